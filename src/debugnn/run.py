"""One run: its directory, its records, and its end.

A run's directory is named by what it is, `<output_dir>/<experiment>/<arm>/seed=<n>/`. A finished
run is not repeated; one that was cut off goes on from its checkpoint.
"""

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from debugnn import checkpoint, records
from debugnn.build import build
from debugnn.config import BOOKKEEPING
from debugnn.doctor.findings import Report
from debugnn.doctor.preflight import check
from debugnn.doctor.probes import LayerProbe
from debugnn.doctor.watch import Doctor
from debugnn.errors import CheckFailedError, ConfigError
from debugnn.loop import Training, fit
from debugnn.lr_finder import range_test, suggest
from debugnn.models import parameter_count
from debugnn.records import Record
from debugnn.sinks import Console, JsonLines, Sink, WandB

log = logging.getLogger(__name__)

# Overrides that are no part of an arm's name: the directory says them elsewhere, or they do not
# change what is computed.
_NOT_IN_ARM = ("experiment", "seed", "hydra", *BOOKKEEPING)


def execute(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path | None:
    """Run what the configuration says, or find it done, and return the run's directory.

    With `trainer.stack` above 1: that many seeds, and the directory that holds theirs.

    Args:
        overrides: as typed; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Raises:
        ConfigError: before anything is written.
        CheckFailedError: `task=check` found an error; it writes nothing.
    """
    if config.task.name == "check":
        return check_first(config)
    if config.trainer.stack > 1:
        from debugnn.stacked import execute_stack  # which is built on this module

        return execute_stack(config, overrides, experiment)
    arm = arm_of(overrides)
    experiment = experiment or "adhoc"
    directory = directory_of(config, experiment, arm)
    title = f"{experiment} {label(arm)} seed={config.seed}"
    resolved = OmegaConf.to_container(config, resolve=True)
    status = _status(directory)
    if config.overwrite:
        status = None
    elif status is not None:
        _compare(directory, resolved)
        if status == "finished":
            log.info("%s: finished before, skipped (overwrite=true runs it again)", title)
            _update_report(directory, resolved["report"])
            return directory

    training = build(config)
    log.info("%s", title)
    _claim(directory, fresh=status is None)
    if (directory / "checkpoint.pt").exists():
        checkpoint.restore(directory / "checkpoint.pt", training)
        log.info("  goes on from epoch %d", training.epoch)
    facts = _facts(config, experiment, arm)
    facts |= {"classes": training.data.classes, "parameters": parameter_count(training.model)}
    if status is not None:
        facts["wandb_id"] = records.load((directory / "run.json").read_text()).get("wandb_id")
    _replace(directory / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    _write_facts(directory, facts)

    started = time.perf_counter()
    sinks: list[Sink] = [JsonLines(directory, training.step), Console(config.trainer.epochs)]
    failed = True
    try:
        if config.wandb.mode != "disabled":
            sink = WandB(
                directory,
                resolved["wandb"],
                config=resolved,
                name=run_name(config, experiment, arm),
                group=experiment,
                job_type=config.task.name,
                run_id=facts["wandb_id"],
            )
            facts["wandb_id"] = sink.id
            sinks.append(sink)
            _write_facts(directory, facts)
        for record in follow(config, training, directory):
            for sink in sinks:
                sink.write(record)
            if isinstance(record, records.Epoch) and _checkpoint_due(config, training):
                checkpoint.save(directory / "checkpoint.pt", training)
        failed = False
    except Exception as error:
        facts["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        for sink in sinks:
            sink.close(failed)
        facts["seconds"] = round(time.perf_counter() - started, 3)
        facts["status"] = "failed" if failed else "finished"
        _write_facts(directory, facts)
    log.info("  %.1f s, in %s", facts["seconds"], directory)
    return directory


def check_first(config: DictConfig) -> None:
    """Print the checks before a training; nothing is trained or written."""
    training = build(config)
    checklist = check(
        training.model,
        training.loss,
        training.batches(0),
        training.optimizer,
        [training.data.test_sample(1024)],
    )
    log.info("%s", checklist)
    if not checklist.passed:
        raise CheckFailedError


def follow(config: DictConfig, training: Training, directory: Path) -> Iterator[Record | Report]:
    """The records of the task: range tests where asked for, the training, its diagnosis."""
    if training.step == 0 and (config.task.name == "lr_find" or config.task.lr_from):
        with torch.random.fork_rng():  # the training's random numbers stay its own
            rates = yield from find_lr(config, training)
        if config.task.lr_from:
            chosen = rates.get(config.task.lr_from)
            if not chosen:
                raise ConfigError(
                    f"task.lr_from={config.task.lr_from}: the range test's curve suggests nothing"
                )
            for group in training.optimizer.param_groups:
                group["lr"] = chosen[0]
    if config.task.name == "train":
        probe = LayerProbe(config.doctor.every, config.doctor.bins)
        if config.doctor.every is None:
            yield from fit(training, config.trainer.epochs, probe)
            return
        with Doctor(
            training.model,
            training.optimizer,
            loss_fn=training.loss,
            every=config.doctor.every,
            budget=config.doctor.budget,
            save_to=directory,
        ) as doctor:
            if training.step:
                doctor.evidence.troubles.append(f"the {training.step} steps before this start")
            yield from fit(training, config.trainer.epochs, probe, doctor)
            yield doctor.report()


def find_lr(config: DictConfig, training: Training) -> Iterator[Record]:
    """All range tests and their suggestions; returns rule → suggested rates, one a test."""
    finder = dict(config.task.finder)
    rates: dict[str, list[float]] = {}
    for test in range(finder.pop("repeats")):
        points = []
        for point in range_test(training, test=test, **finder):
            points.append(point)
            yield point
        for suggestion in suggest(points):
            rates.setdefault(suggestion.rule, []).append(suggestion.lr)
            yield suggestion
    return rates


# --- names --------------------------------------------------------------------------------------


def arm_of(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides that make this run what it is, sorted by key, values as short as they go.

    >>> arm_of(["model.activation._target_=torch.nn.SELU", "seed=1", "clip='4.0'"])
    {'clip': '4.0', 'model.activation': 'SELU'}
    """
    arm = {}
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if any(key == name or key.startswith(f"{name}.") for name in _NOT_IN_ARM):
            continue
        value = _plain_number(value.strip("'\""))
        if key.endswith("._target_"):
            key, value = key.removesuffix("._target_"), value.rpartition(".")[2]
        arm[key] = value
    return dict(sorted(arm.items()))


def _plain_number(value: str) -> str:
    """1e-3 and 0.001 are one arm: Hydra rewrites the values of a sweep, and not a single run's."""
    try:
        return value if value.lstrip("+-").isdigit() else str(float(value))
    except ValueError:
        return value


def label(arm: Mapping[str, str]) -> str:
    """The arm as one word that can name a directory."""
    text = ",".join(f"{key}={value}" for key, value in arm.items()) or "default"
    safe = re.sub(r"[^\w.,=+-]", "_", text)
    if len(safe) > 120:  # file names end at 255 bytes; two long arms must stay two
        safe = f"{safe[:107]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return safe


def directory_of(config: DictConfig, experiment: str, arm: Mapping[str, str]) -> Path:
    return Path(config.output_dir) / experiment / label(arm) / f"seed={config.seed}"


def article_run(config: DictConfig, arm: Mapping[str, str]) -> str | None:
    """The article's run that this arm repeats: the one whose settings are all the arm's."""
    if config.report is None:
        return None
    best = None
    for pattern, run in config.report.article.items():
        wanted = dict(item.split("=", 1) for item in pattern.split(",") if item != "default")
        if wanted.items() <= arm.items() and (best is None or len(wanted) > best[0]):
            best = (len(wanted), run)
    return best[1] if best else None


def run_name(config: DictConfig, experiment: str, arm: Mapping[str, str]) -> str:
    """W&B's run name: the article's where it has one, with the seed where that is not 0."""
    name = article_run(config, arm) or f"{experiment}/{label(arm)}"
    return name if config.seed == 0 else f"{name}-seed{config.seed}"


# --- the directory ------------------------------------------------------------------------------


def _status(directory: Path) -> str | None:
    """What `run.json` says; None where there is no run yet."""
    path = directory / "run.json"
    if not path.exists():
        return None
    try:
        return records.load(path.read_text())["status"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: not a run's record; overwrite=true starts over") from None


def _compare(directory: Path, resolved: Mapping[str, Any]) -> None:
    """Refuse to take a directory whose run was another configuration's."""
    path = directory / "config.yaml"
    before = _flat(OmegaConf.to_container(OmegaConf.load(path))) if path.exists() else {}
    now = _flat(resolved)
    for name in sorted(before.keys() | now.keys()):
        kept = any(name == b or name.startswith(f"{b}.") for b in BOOKKEEPING)
        if not kept and before.get(name) != now.get(name):
            raise ConfigError(
                f"{directory}: holds a run with {name}={before.get(name)}, and {name}="
                f"{now.get(name)} is asked for; overwrite=true starts over, another output_dir "
                "keeps both"
            )


def _update_report(directory: Path, report: Mapping[str, Any] | None) -> None:
    """Give a finished run today's report block: figures read it there."""
    path = directory / "config.yaml"
    kept = OmegaConf.load(path)
    if OmegaConf.to_container(kept).get("report") != report:
        kept["report"] = report
        _replace(path, OmegaConf.to_yaml(kept))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = {}
        for key, item in value.items():
            items.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
        return items
    return {prefix: value}


def _claim(directory: Path, fresh: bool) -> None:
    """Make the directory ready to be written: empty where the run starts from nothing."""
    try:
        if fresh and directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {directory} cannot be written ({error.strerror})") from None


def _checkpoint_due(config: DictConfig, training: Training) -> bool:
    last = training.epoch == config.trainer.epochs
    return last or training.epoch % config.trainer.checkpoint_every == 0


def _replace(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _write_facts(directory: Path, facts: Mapping[str, Any]) -> None:
    _replace(directory / "run.json", records.dump(facts, indent=2))


def _facts(config: DictConfig, experiment: str, arm: Mapping[str, str]) -> dict[str, Any]:
    """What a reader of the run needs to know and the configuration does not say."""
    return {
        "status": "running",
        "experiment": experiment,
        "arm": dict(arm),
        "seed": config.seed,
        "data": config.data.name,
        "article_run": article_run(config, arm),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": _device(config.trainer.device),
        "threads": torch.get_num_threads(),
        "wandb_id": None,
    }


def _git() -> dict[str, Any]:
    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", *words],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return answer.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if commit else None}


def _device(choice: str) -> str:
    if choice != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
