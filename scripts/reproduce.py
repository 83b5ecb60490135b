"""Run the article's experiments one after the other, then draw their figures.

    python scripts/reproduce.py                   the seven notebooks, embedded
    python scripts/reproduce.py --experiments all --seeds 0,1,2
    python scripts/reproduce.py --data article    on MNIST and CIFAR-10
    python scripts/reproduce.py optim.lr=3e-4     a setting for every run

What is finished is not run again.
"""

import argparse
import itertools
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from debugnn import cli, config
from debugnn.errors import ConfigError

CONF = Path(__file__).resolve().parent.parent / "conf"


@dataclass(frozen=True)
class Job:
    """One arm of an experiment with one seed."""

    experiment: str
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.experiment} {' '.join(self.overrides)}"


def arms(experiment: str, data: str, given: Sequence[str] = ()) -> Iterator[list[str]]:
    """The overrides of each arm, as `train.py -m experiment=... GIVEN` would sweep over them.

    What is given, and what the experiment sets for this kind of data, replaces the sweep over the
    same key.
    """
    settings = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    swept = dict(settings.hydra.sweeper.params or {})
    for setting in (*settings.report.data.get(data, []), *given):
        key, _, values = setting.partition("=")
        swept[key] = values
    parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in swept.items()])
    choices = [
        [f"{override.input_line.partition('=')[0]}={value}" for value in values_of(override)]
        for override in parsed
    ]
    yield from map(list, itertools.product(*choices))


def values_of(override: Override) -> list[str]:
    """The values that an override sweeps over, or its one."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.input_line.partition("=")[2]]


def experiments(wanted: str) -> list[str]:
    """The names that `--experiments` asks for: notebooks, all, or a list with commas."""
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


def run(job: Job) -> str | None:
    """Run the job; return what went wrong, in a line, or None."""
    from debugnn.run import execute

    try:
        settings = compose("config", [f"experiment={job.experiment}", *job.overrides])
        execute(settings, job.overrides, job.experiment)
    except (ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
        return cli.explain(error)
    except Exception as error:  # one arm's bug must not cost the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def summary(done: dict[Job, tuple[str | None, float]]) -> str:
    """A table of the experiments: how many runs, how many failed, seconds."""
    rows = [f"{'experiment':20} {'runs':>5} {'failed':>7} {'seconds':>8}"]
    for name in dict.fromkeys(job.experiment for job in done):
        results = [result for job, result in done.items() if job.experiment == name]
        failed = sum(error is not None for error, _ in results)
        rows.append(f"{name:20} {len(results):5} {failed:7} {sum(s for _, s in results):8.0f}")
    return "\n".join(rows)


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
    parser.add_argument("overrides", nargs="*", help="settings for every run: key=value")
    options = parser.parse_args(arguments)
    if not all(seed.isdigit() for seed in options.seeds.split(",")):
        parser.error(f"--seeds={options.seeds}: whole numbers with commas are needed")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config.register()
    done: dict[Job, tuple[str | None, float]] = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            given = cli.quote_numbers(options.overrides, CONF)
            jobs = [
                Job(name, (*arm, f"output_dir={options.output}", f"seed={seed}"))
                for name in experiments(options.experiments)
                for seed in options.seeds.split(",")
                for arm in arms(name, options.data, given)
            ]
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            print(f"error: {cli.explain(error)}", file=sys.stderr)
            return 2
        with logging_redirect_tqdm(), tqdm(jobs, unit="run", dynamic_ncols=True) as bar:
            for job in bar:
                bar.set_description(job.experiment)
                started = time.perf_counter()
                done[job] = (run(job), time.perf_counter() - started)

    print(f"\n{summary(done)}")
    for job, (error, _) in done.items():
        if error is not None:
            print(f"failed: {job}: {error}", file=sys.stderr)
    failed = sum(error is not None for error, _ in done.values())
    if failed < len(done):
        draw_figures(Path(options.output), [*dict.fromkeys(job.experiment for job in done)])
    return 1 if failed else 0


def draw_figures(runs: Path, names: list[str]) -> None:
    from debugnn.figures import draw

    drawn = draw(runs, runs / "figures", names)
    print(f"{len(drawn)} figures in {runs / 'figures'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
