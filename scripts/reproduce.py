"""Run the article's experiments, several runs at once, then draw figures and write a page.

    python scripts/reproduce.py                   the seven notebooks, embedded
    python scripts/reproduce.py --experiments all --seeds 0,1,2
    python scripts/reproduce.py --data article    on MNIST and CIFAR-10
    python scripts/reproduce.py --jobs 1          one after the other
    python scripts/reproduce.py optim.lr=3e-4     a setting for every run
    python scripts/reproduce.py --failed          what failed or was cut off, and nothing else

What is finished is not run again. A run that fails, or whose process dies, ends no other.
"""

import argparse
import io
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from debugnn import cli, config
from debugnn.errors import ConfigError
from debugnn.overrides import quote_numbers
from debugnn.runs.arms import UNFINISHED, Arm, End, status_in, table
from debugnn.runs.naming import arm_of, directory_of
from debugnn.runs.workers import run_in_workers

CONF = Path(__file__).resolve().parent.parent / "conf"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One arm of an experiment with one seed."""

    experiment: str
    arm: tuple[str, ...]
    seed: str
    output: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """What `train.py experiment=...` would be called with besides."""
        return (*self.arm, f"output_dir={self.output}", f"seed={self.seed}")

    @property
    def named(self) -> tuple[str, ...]:
        """What it is called by beside the arms of other experiments."""
        return (f"experiment={self.experiment}", *self.overrides)

    @property
    def place(self) -> Path:
        """The run's directory."""
        there = OmegaConf.create({"output_dir": self.output, "seed": int(self.seed)})
        return directory_of(there, self.experiment, arm_of(self.overrides))

    def __str__(self) -> str:
        return " ".join([self.experiment, *self.arm, f"seed={self.seed}"])


def arms(experiment: str, data: str, given: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the overrides of each arm, as `train.py experiment=... GIVEN` would sweep over them.

    Args:
        data: a key of the experiment's `report.data`, whose overrides are added.
        given: overrides by the user. Both replace the experiment's sweep over the same key.
    """
    settings = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    swept = dict(settings.hydra.sweeper.params or {})
    for setting in (*settings.report.data.get(data, []), *given):
        key, _, values = setting.partition("=")
        swept[key] = values
    parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in swept.items()])
    choices = [
        [f"{key}={value}" for value in values_of(override)]
        for key, override in zip(swept, parsed, strict=True)
    ]
    yield from map(list, itertools.product(*choices))


def values_of(override: Override) -> list[str]:
    """Return the values that an override sweeps over, or its only one."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_string()]


def experiments(wanted: str) -> list[str]:
    """Return the names that `--experiments` asks for: notebooks, all, or a list with commas.

    Raises:
        ConfigError: a name that is not known.
    """
    known = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    if wanted == "all":
        return known
    if wanted == "notebooks":
        return [name for name in known if compose("config", [f"experiment={name}"]).report.notebook]
    names = wanted.split(",")
    for name in names:
        if name not in known:
            raise ConfigError(f"--experiments={name}: no such experiment; there are all, "
                              f"notebooks, {', '.join(known)}")  # fmt: skip
    return names


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and how long it took."""

    arm: Arm
    seconds: float


def run(job: Job) -> Outcome:
    """Run the job in this process. An error ends the job alone."""
    started = time.perf_counter()
    try:
        settings = compose("config", list(job.named))
        arm = cli.run_arm(settings, job.overrides, job.experiment)
    except (Exception, SystemExit) as error:
        arm = cli.failed(error, job.named, job.place, str(job))
    return Outcome(replace(arm, overrides=job.named), time.perf_counter() - started)


def run_aside(job: Job) -> tuple[Outcome, str]:
    """Run the job in a worker process, and return its outcome and what it said."""
    said = io.StringIO()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=said, force=True)
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"), redirect_stderr(said):
        outcome = run(job)
    return outcome, said.getvalue()


def outcomes(jobs: Sequence[Job], at_once: int) -> Iterator[tuple[Job, Outcome]]:
    """Run all jobs, and yield each as it ends."""
    if at_once == 1:
        for job in jobs:
            yield job, run(job)
        return
    for ended in run_in_workers(run_aside, announced(jobs), at_once):
        job = jobs[ended.index]
        if ended.error is None:
            outcome, said = ended.value
            log.info("%s", said.rstrip("\n"))  # the lines of a run stay together
        else:
            arm = cli.failed(ended.error, job.named, job.place, str(job))
            outcome = Outcome(arm, 0.0)
        yield job, outcome


def announced(jobs: Sequence[Job]) -> Iterator[tuple[Job]]:
    """Yield each job, and say that it starts."""
    for job in jobs:
        log.info("starts %s", job)
        yield (job,)


def summary(done: dict[Job, Outcome]) -> str:
    """Return a table of the experiments: runs, skipped and failed ones, seconds."""
    rows = [f"{'experiment':20} {'runs':>5} {'skipped':>8} {'failed':>7} {'seconds':>8}"]
    for name in dict.fromkeys(job.experiment for job in done):
        results = [result for job, result in done.items() if job.experiment == name]
        skipped = sum(result.arm.end == End.SKIPPED for result in results)
        failed = sum(result.arm.exit_code != 0 for result in results)
        seconds = sum(result.seconds for result in results)
        rows.append(f"{name:20} {len(results):5} {skipped:8} {failed:7} {seconds:8.0f}")
    return "\n".join(rows)


def runs_at_once() -> int:
    """Return the default of --jobs: a run for each core, four at most."""
    return min(joblib.cpu_count(), 4)


def progress(total: int) -> tqdm:
    """Return a bar that counts runs; it is drawn in a terminal and left out of a log file."""
    return tqdm(total=total, unit="run", ncols=80, disable=None)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--experiments", default="notebooks", help="notebooks (default), all, or names with commas"
    )
    parser.add_argument("--seeds", default="0", help="seeds with commas (default: 0)")
    parser.add_argument(
        "--data", default="embedded", choices=("embedded", "article"),
        help="digits and shapes, which need no download, or MNIST and CIFAR-10",
    )  # fmt: skip
    parser.add_argument("--output", default="outputs", help="where runs and figures go")
    parser.add_argument(
        "--jobs", type=int, default=runs_at_once(), metavar="N",
        help="runs at once (default: one a core, 4 at most), about 1 GB of memory each",
    )  # fmt: skip
    parser.add_argument(
        "--failed", action="store_true",
        help="run only what has failed, was interrupted or was cut off before",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", help="settings for every run: key=value")
    options = parser.parse_args(arguments)
    if not all(seed.isdigit() for seed in options.seeds.split(",")):
        parser.error(f"--seeds={options.seeds}: whole numbers with commas are needed")
    if options.jobs < 1:
        parser.error(f"--jobs={options.jobs}: allowed is [1, inf)")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # On a user's first run, importing it logs "generated new fontManager".
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    config.register()
    done: dict[Job, Outcome] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            given = quote_numbers(options.overrides, CONF)
            jobs = [
                Job(name, tuple(arm), seed, options.output)
                for name in experiments(options.experiments)
                for seed in options.seeds.split(",")
                for arm in arms(name, options.data, given)
            ]
            # A typo would fail every run: it is said once, before the first.
            for job in {job.experiment: job for job in jobs}.values():
                config.check(compose("config", list(job.named)))
            Path(options.output).mkdir(parents=True, exist_ok=True)
            if options.failed:
                jobs = [job for job in jobs if status_in(job.place) in UNFINISHED]
            if not jobs:
                print("none of these runs has failed or was cut off")
                return 0
        except (*cli.WRONG_COMMAND, OSError) as error:
            print(f"error: {cli.explain(error)}", file=sys.stderr)
            return 2
        try:
            with logging_redirect_tqdm(), progress(len(jobs)) as bar:
                for job, outcome in outcomes(jobs, min(options.jobs, len(jobs))):
                    done[job] = outcome
                    bar.update()
        except KeyboardInterrupt as stop:
            print("interrupted: the same command goes on from there", file=sys.stderr)
            return getattr(stop, "exit_code", 130)

    done = {job: done[job] for job in jobs}  # as asked for, not as they ended
    print(f"\n{summary(done)}")
    ended = [outcome.arm for outcome in done.values()]
    failed = [arm for arm in ended if arm.exit_code]
    if failed:
        print(f"\n{table(ended)}", file=sys.stderr)
    if options.jobs > 1 and any("memory" in arm.reason for arm in failed):
        print(f"--jobs {options.jobs // 2} needs less memory", file=sys.stderr)
    if len(failed) < len(ended):
        try:
            show(Path(options.output), [*dict.fromkeys(job.experiment for job in done)])
        except ConfigError as error:  # such as a figure of layers, of runs with doctor=off
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 1 if failed else 0


def show(output: Path, names: list[str]) -> None:
    """Draw the figures of some experiments, and write the page of all runs that are there."""
    from debugnn.analysis import archive, page
    from debugnn.analysis.directories import scan_runs
    from debugnn.analysis.figures import draw

    drawn = draw(output, output / "figures", names)
    print(f"{len(drawn)} figures in {output / 'figures'}")
    runs, unusable = archive.gather(scan_runs(output))
    page.write(runs, unusable, output / "report.html")
    print(f"all of it on one page: {output / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
