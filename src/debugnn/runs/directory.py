"""A run's directory: what it is called, what it says of the run, and who writes into it.

It is named by what the run is, `<output_dir>/<experiment>/<arm>/seed=<n>/`.
"""

import hashlib
import math
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from debugnn import records
from debugnn.config import BOOKKEEPING, settings_of
from debugnn.doctor.report import Report
from debugnn.errors import ConfigError
from debugnn.nn.networks import parameter_count
from debugnn.records import Epoch, Record
from debugnn.runs.sinks import Console, JsonLines, Sink, WandB
from debugnn.runs.writer import Writer
from debugnn.training import checkpoint
from debugnn.training.loop import Training

# Overrides that are no part of an arm's name: the directory says them elsewhere, or they do not
# change what is computed.
_NOT_IN_ARM = ("experiment", "seed", "hydra", *BOOKKEEPING)

_WANDB_ROWS = 1000  # of single steps, a run: W&B draws no more points than 1,500 of a curve

Write = Callable[[Record | Report], None]


class RunDirectory:
    """The directory of the run that a configuration asks for.

    Args:
        overrides: as typed; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Attributes:
        status: what is there already, `finished`, `failed`, `running` (cut off), or None for
            nothing, or nothing to be kept.

    Raises:
        ConfigError: it holds something that is no run.
    """

    def __init__(
        self, config: DictConfig, overrides: Sequence[str], experiment: str | None
    ) -> None:
        self.config = config
        self.experiment = experiment or "adhoc"
        self.arm = arm_of(overrides)
        self.path = directory_of(config, self.experiment, self.arm)
        self.title = f"{self.experiment} {label(self.arm)} seed={config.seed}"
        self.status = None if config.overwrite else _status(self.path)
        self._resolved = OmegaConf.to_container(config, resolve=True)

    def compare(self) -> None:
        """Raise ConfigError where a run of another configuration is kept there."""
        if self.status is None:
            return
        path = self.path / "config.yaml"
        before = flat(OmegaConf.to_container(OmegaConf.load(path))) if path.exists() else {}
        now = flat(self._resolved)
        for name in sorted(before.keys() | now.keys()):
            kept = any(name == b or name.startswith(f"{b}.") for b in BOOKKEEPING)
            if not kept and before.get(name) != now.get(name):
                raise ConfigError(
                    f"{self.path}: holds a run with {name}={before.get(name)}, and {name}="
                    f"{now.get(name)} is asked for; overwrite=true starts over, another output_dir "
                    "keeps both"
                )

    def update_report(self) -> None:
        """Give a finished run today's report block: figures read it there."""
        path = self.path / "config.yaml"
        kept = OmegaConf.load(path)
        if OmegaConf.to_container(kept).get("report") != self._resolved["report"]:
            kept["report"] = self._resolved["report"]
            _replace(path, OmegaConf.to_yaml(kept))

    def claim(self, training: Training) -> None:
        """Make it ready to be written, and take the training up where its checkpoint left it.

        It is emptied where the run starts from nothing.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            if self.status is None and self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"output_dir: {self.path} cannot be written ({error.strerror})"
            ) from None
        if (self.path / "checkpoint.pt").exists():
            checkpoint.restore(self.path / "checkpoint.pt", training)

    @contextmanager
    def recording(
        self, training: Training, writer: Writer, stacked: int | None = None
    ) -> Iterator[Write]:
        """Keep what is written inside the block: records, checkpoints, and how the run ended.

        Args:
            stacked: how many runs train at once, where it is not this one alone.
        """
        config, facts = self.config, self._facts(training)
        if stacked is not None:
            facts["stacked"] = stacked
        if self.status is not None:
            facts["wandb_id"] = records.load((self.path / "run.json").read_text()).get("wandb_id")
        _replace(self.path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        self._write_facts(facts)
        started = time.perf_counter()
        sinks: list[Sink] = [JsonLines(self.path, training.step)]
        console = Console(config.trainer.epochs) if stacked is None else None
        failed = True
        try:
            if config.wandb.mode != "disabled":
                sink = self._wandb(training, facts["wandb_id"])
                facts["wandb_id"] = sink.id
                sinks.append(sink)
                self._write_facts(facts)

            def write(record: Record | Report) -> None:
                if console is not None:
                    console.write(record)
                for sink in sinks:
                    writer.submit(sink.write, record)
                if isinstance(record, Epoch) and self._checkpoint_due(training):
                    # After its epoch's rows, in the writer's order: it must not be ahead of them.
                    state = checkpoint.state_of(training)
                    writer.submit(checkpoint.write, self.path / "checkpoint.pt", state)

            yield write
            writer.drain()
            failed = False
        except Exception as error:
            facts["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            writer.settle()
            for sink in sinks:
                sink.close(failed)
            facts["seconds"] = round(time.perf_counter() - started, 3)
            facts["status"] = "failed" if failed else "finished"
            self._write_facts(facts)

    def _wandb(self, training: Training, run_id: str | None) -> WandB:
        config = self.config
        steps = training.data.steps_per_epoch(training.batch_size, training.steps_per_epoch)
        return WandB(
            self.path,
            self._resolved["wandb"],
            config=self._resolved,
            name=run_name(config, self.experiment, self.arm),
            group=self.experiment,
            job_type=config.task.name,
            run_id=run_id,
            every=config.wandb.every or math.ceil(config.trainer.epochs * steps / _WANDB_ROWS),
        )

    def _checkpoint_due(self, training: Training) -> bool:
        last = training.epoch == self.config.trainer.epochs
        return last or training.epoch % self.config.trainer.checkpoint_every == 0

    def _facts(self, training: Training) -> dict[str, Any]:
        """What a reader of the run needs to know and the configuration does not say."""
        return {
            "status": "running",
            "experiment": self.experiment,
            "arm": dict(self.arm),
            "seed": self.config.seed,
            "data": self.config.data.name,
            "article_run": article_run(self.config, self.arm),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": _git(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": _device(self.config.trainer.device),
            "threads": torch.get_num_threads(),
            "wandb_id": None,
            "classes": training.data.classes,
            "parameters": parameter_count(training.model),
        }

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        _replace(self.path / "run.json", records.dump(facts, indent=2))


# --- names --------------------------------------------------------------------------------------


def arm_of(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides that make this run what it is, sorted by key, values as short as they go.

    >>> arm_of(["model.activation._target_=torch.nn.SELU", "seed=1", "clip='4.0'"])
    {'clip': '4.0', 'model.activation': 'SELU'}
    """
    arm = {}
    settings = (setting for override in overrides for setting in settings_of(override).items())
    for key, value in settings:
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


# --- files and facts -----------------------------------------------------------------------------


def _status(directory: Path) -> str | None:
    """What `run.json` says; None where there is no run yet."""
    path = directory / "run.json"
    if not path.exists():
        return None
    try:
        return records.load(path.read_text())["status"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: not a run's record; overwrite=true starts over") from None


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = {}
        for key, item in value.items():
            items.update(flat(item, f"{prefix}.{key}" if prefix else str(key)))
        return items
    return {prefix: value}


def _replace(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


@cache  # of the process: that is the code that runs, whatever becomes of the files
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
