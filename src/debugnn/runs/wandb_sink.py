"""Records as a W&B run: offline unless asked, and never a reason for a run to end, or to wait."""

import atexit
import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

# W&B's process sends metrics about itself, and at its end waits for a hanging server 30 s for them.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read by W&B's import
import wandb
from omegaconf import DictConfig

from debugnn import json_lines
from debugnn.errors import ConfigError, first_line
from debugnn.records import (
    Diagnosis,
    Epoch,
    Layers,
    LrPoint,
    LrSuggestion,
    Record,
    Step,
    TensorStats,
)
from debugnn.runs.directory import RunDirectory
from debugnn.runs.naming import article_run, label
from debugnn.runs.writer import Writer
from debugnn.training.loop import Training

log = logging.getLogger(__name__)

# W&B would import pandas, in 0.2 s, to ask whether a histogram is one of its tables. Without it W&B
# asks for the name of the value's type.
wandb.util.pd_available = False

# Most rows of single steps in a run: a curve is about as many pixels wide. W&B takes 0.2 ms of the
# processor for a row, as long as a step of a small net.
_ROWS = 500
# Rows of layers are this many times as far apart as rows of steps, 50 in a run: they are 100 times
# as large.
_LAYERS_APART = 10

# Which number the panels of each kind of metric are drawn over.
_AXES = {
    "train/*": "epoch", "test/*": "epoch", "step/*": "step", "gradients/*": "step",
    "parameters/*": "step", "activations/*": "step", "lr_finder/*": "iteration",
}  # fmt: skip


# Shares of wandb.init_timeout: for the server's answer at a run's start; and at its end for the
# checkpoint's upload to begin, and for all uploads to end. W&B completes its file on the disk only
# if it ends by itself, before it is left alone.
_TO_START, _TO_UPLOAD, _TO_END = 0.9, 0.2, 0.7

_TO_STOP = 2.5  # seconds at most, of a run that is to end within five
_AGAIN_AFTER = 600  # seconds, in which the runs of a sweep do not wait for an unreachable server


# Where W&B keeps logs, copies of artifacts and its settings, if the user has not said where.
_FOLDERS = {
    name: place
    for name, place in (
        ("WANDB_CACHE_DIR", ".cache"), ("WANDB_DATA_DIR", ".local/share"),
        ("WANDB_CONFIG_DIR", ".config"),
    )
    if name not in os.environ
}  # fmt: skip


def steps_apart(steps: int) -> int:
    """Return how many steps lie between two rows of a training of so many steps."""
    return math.ceil(steps / (_ROWS - 1))  # the first step has a row too


def check_environment() -> None:
    """Check W&B's environment variables.

    Raises:
        ConfigError: a value is not allowed.
    """
    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
    except (ValueError, wandb.errors.UsageError) as error:  # pydantic's are ValueErrors
        if not hasattr(error, "errors"):
            raise ConfigError(f"W&B's settings, WANDB_… in the environment: {error}") from error
        fault = error.errors()[0]
        given = str(fault["input"])
        names = [n for n, value in os.environ.items() if n.startswith("WANDB_") and value == given]
        name = names[0] if names else f"W&B's setting {fault['loc'][0]}"
        raise ConfigError(f"{name}={given}: {fault['msg']}") from error


def begin(directory: RunDirectory, run_id: str | None, training: Training) -> "WandB":
    """Begin the W&B run of a run's directory.

    Args:
        directory: of the run.
        run_id: W&B's id of the run that is continued, None for a new run.
        training: of the run.
    """
    steps_per_epoch = training.data.steps_per_epoch(training.batch_size, training.steps_per_epoch)
    return WandB(
        directory.path,
        config=directory.resolved,
        name=run_name(directory.config, directory.experiment, directory.arm),
        group=directory.experiment,
        run_id=run_id,
        epochs=directory.config.trainer.epochs,
        steps_per_epoch=steps_per_epoch,
    )


def run_name(config: DictConfig, experiment: str, arm: Mapping[str, str]) -> str:
    """Return W&B's name of the run: the article's if there is one, with a seed other than 0."""
    name = article_run(config, arm) or f"{experiment}/{label(arm)}"
    return name if config.seed == 0 else f"{name}-seed{config.seed}"


class WandB:
    """A W&B run: metrics, per-layer histograms under the keys of `wandb.watch`, the checkpoint.

    W&B is called in a thread of its own. A run waits for it for `wandb.init_timeout` seconds at its
    start and at its end, and not in between. If the server of an online run cannot be reached at
    the start, the run goes on offline, and a line says how to upload it later. If W&B fails later,
    as where its server hangs or its process was killed, the run goes on without it, and a line says
    so.

    Args:
        directory: the run's directory.
        config: the resolved configuration. Its `wandb` section says how the run is kept.
        name: of the run.
        group: the experiment.
        run_id: W&B's id of the run that is continued, None for a new run.
        epochs: of the whole training.
        steps_per_epoch: its steps are these times the epochs; of more than 500, some are logged.

    Attributes:
        id: W&B's id of the run.
    """

    _environment_saved = False  # W&B lists the installed packages: 0.14 s, so once a process
    _starting = threading.Lock()
    _open = 0  # runs that have begun and not ended
    _unreachable_until = -math.inf  # by time.monotonic(): runs go offline without a try

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, Any],
        name: str,
        group: str,
        run_id: str | None,
        epochs: int,
        steps_per_epoch: int,
    ) -> None:
        settings = config["wandb"]
        self.id: str = run_id or secrets.token_hex(4)
        self._directory = directory
        self._mode = settings["mode"]
        self._seconds = settings["init_timeout"]
        self._save_checkpoint = settings["checkpoint"]
        self._every = settings["every"] or steps_apart(epochs * steps_per_epoch)
        self._steps_per_epoch = steps_per_epoch
        self._last_of_epoch: Step | None = None  # which has one row with its epoch
        self._next_layers = 0
        self._early_layers: list[Layers] = []  # of steps whose own rows have not come yet
        self._on_server = 0  # rows of earlier pieces
        self._left_out = 0.0  # rows from here on that the run has
        # The run may lack records before this piece of it. The server of an online run may not have
        # had all of them when a piece was killed. Pieces of an offline run that were never uploaded
        # are removed: W&B uploads none of the pieces behind one that was cut off.
        self._incomplete = False
        self._failed = False
        self._lost_service = False  # W&B's process, which all runs of this one write through
        options = {
            "dir": directory,
            "project": settings["project"],
            "entity": settings["entity"],
            "tags": list(settings["tags"]),
            "config": dict(config),
            "name": name,
            "group": group,
            "job_type": config["task"]["name"],
            "id": self.id,
            "resume": "allow" if run_id else None,
            "settings": wandb.Settings(
                quiet=True,
                silent=True,
                console="off",
                init_timeout=_TO_START * self._seconds,
                finish_timeout=_TO_END * self._seconds,
                finish_timeout_raises=True,
                reinit="create_new",  # the runs of a stack are open side by side
                x_save_requirements=not WandB._environment_saved,
            ),
        }
        WandB._environment_saved = True
        self._writer = Writer("wandb", most=math.inf)
        self._call(self._start, options)
        self._writer.wait(self._seconds)  # what is logged before it has started waits for it

    # --- the thread -------------------------------------------------------------------------------

    def _call(self, call: Callable, *arguments: Any) -> None:
        """Let the thread make a call, whose errors are said and end nothing."""
        self._writer.submit(self._spared, call, *arguments)

    def _spared(self, call: Callable, *arguments: Any) -> None:
        with self._sparing_the_run():
            call(*arguments)

    @contextmanager
    def _sparing_the_run(self) -> Iterator[None]:
        """Let no error of W&B out of the block; the first one is said."""
        try:
            yield
        except BaseException as error:  # a dead process, a full disk, whatever W&B raises
            self._lost_service |= isinstance(error, ConnectionError)
            self._give_up(first_line(error))

    def _give_up(self, reason: str) -> None:
        if not self._failed:
            log.warning(
                "W&B has failed (%s): the run goes on without it; `wandb sync --no-skip-online "
                "%s/wandb/*run-*` uploads what it had",
                reason,
                self._directory,
            )
        self._failed = True

    def _start(self, options: dict[str, Any]) -> None:
        with WandB._starting:
            self._start_alone(options)

    def _start_alone(self, options: dict[str, Any]) -> None:
        online = self._mode == "online"
        offline = not online or time.monotonic() < WandB._unreachable_until
        if not offline:
            before = set(self._directory.glob("wandb/run-*"))
            try:
                self._init("online", options)
                self._on_server = self._run.starting_step  # its rows are numbered by their order
                self._incomplete = options["resume"] is not None
            except Exception as error:  # W&B's own, the system's, or those of its libraries
                WandB._unreachable_until = time.monotonic() + _AGAIN_AFTER
                log.warning("W&B cannot be reached (%s)", first_line(error))
                for attempt in set(self._directory.glob("wandb/run-*")) - before:
                    shutil.rmtree(attempt)  # it is empty; `wandb sync` would take it for a run
                # W&B's process goes on with the attempt, and lets no other run have its id.
                if WandB._open:
                    self.id = options["id"] = secrets.token_hex(4)
                else:
                    _end_service(1)
                offline = True
        if offline:
            if online:
                log.warning(
                    "the run goes on offline; later, `wandb sync %s/wandb/offline-run-*` uploads "
                    "it to W&B", self._directory,
                )  # fmt: skip
            earlier = list(self._directory.glob(f"wandb/offline-run-*-{self.id}"))
            self._init("offline", options)
            uploaded = any(self._directory.glob(f"wandb/run-*-{self.id}")) or any(
                any(piece.glob("*.synced")) for piece in earlier
            )
            self._incomplete = not uploaded
            for piece in () if uploaded else earlier:
                shutil.rmtree(piece)
        for pattern, axis in _AXES.items():
            self._run.define_metric(pattern, step_metric=axis)

    def _init(self, mode: Literal["online", "offline"], options: dict[str, Any]) -> None:
        _do_without_home(self._directory / "wandb" / "home")
        # What W&B prints outside of a run ("Loaded credentials") or for its server ("Artifact
        # already exists") follows the session's settings, whatever a run's say. Errors are shown.
        wandb.setup(wandb.Settings(show_info=False, show_warnings=False))
        try:
            self._run = wandb.init(mode=mode, **options)
            WandB._open += 1
        finally:
            # Exit functions run in the reverse order: this one before W&B's, which waits for ever.
            atexit.unregister(_end_service)
            atexit.register(_end_service, self._seconds)

    # --- what a run says --------------------------------------------------------------------------

    def write(self, record: Record | Diagnosis) -> None:
        """Log the record, unless it is one of the steps that are left out.

        Layers are logged behind their step, whose record comes later. So the order of rows is the
        same however a run is cut into pieces, and however late its losses are read.
        """
        if isinstance(record, Layers):
            if record.step >= self._next_layers:
                apart = _LAYERS_APART * self._every if self._every > 1 else 0
                self._next_layers = record.step + apart
                self._early_layers.append(record)
        elif isinstance(record, Step):
            self._submit_layers(record.step - 1)
            if record.step == 0 or (record.step + 1) % self._every == 0:
                if (record.step + 1) % self._steps_per_epoch == 0:
                    self._last_of_epoch = record
                else:
                    self._submit(record)
            self._submit_layers(record.step)
        elif isinstance(record, Epoch) and self._last_of_epoch is not None:
            self._submit(self._last_of_epoch, record)
            self._last_of_epoch = None
            self._submit_layers(math.inf)
        else:
            self._submit_layers(math.inf)
            self._submit(record)

    def _submit_layers(self, last_step: float) -> None:
        """Log the layers up to a step, unless a step before them waits for its epoch.

        A run that ends there goes on there, and logs them then.
        """
        while (
            self._last_of_epoch is None
            and self._early_layers
            and self._early_layers[0].step <= last_step
        ):
            self._submit(self._early_layers.pop(0))

    def _submit(self, record: Record | Diagnosis, epoch: Epoch | None = None) -> None:
        """Log a record, and an epoch in the same row: a row takes longer than what it holds."""
        if not self._failed:
            self._call(self._log, record, epoch)

    def log_kept(self) -> None:
        """Log the records in the directory's files, of a run that goes on; before all others.

        Those that W&B has are left out, and so are later ones that its server has of steps behind
        the checkpoint, which are made again. Which ones these are is known when the run has begun
        at W&B, which may be later than this call.
        """
        self._call(self._begin_kept)
        layers = json_lines.read(self._directory / "layers.jsonl")
        early = next(layers, None)
        for row in json_lines.read(self._directory / "metrics.jsonl"):
            while early is not None and row.get("step", -1) >= early["step"]:
                self.write(json_lines.decode(early))
                early = next(layers, None)
            self.write(json_lines.decode(row))
        self._call(self._end_kept)

    def _begin_kept(self) -> None:
        self._left_out = self._on_server if self._incomplete else math.inf

    def _end_kept(self) -> None:
        if not self._incomplete:
            self._left_out = 0

    def _log(self, record: Record | Diagnosis, epoch: Epoch | None) -> None:
        if self._failed:
            return
        if self._left_out:
            self._left_out -= 1
        elif isinstance(record, Diagnosis):
            self._diagnose(record)
        else:
            row = self._payload(record) | (self._payload(epoch) if epoch is not None else {})
            self._run.log({k: v for k, v in row.items() if v is not None})

    def hurry(self) -> None:
        """Let the run wait no more than a few seconds for W&B: it was told to stop."""
        self._seconds = min(self._seconds, _TO_STOP)
        atexit.unregister(_end_service)
        atexit.register(_end_service, 1)

    def close(self, failed: bool) -> None:
        """Upload the checkpoint if asked, and finish the run."""
        self._submit_layers(math.inf)
        self._call(self._finish, failed)
        if not self._writer.wait(self._seconds):
            self._give_up(f"it did not end within wandb.init_timeout={self._seconds}")
        self._writer.end()

    def _finish(self, failed: bool) -> None:
        if not self._failed and self._save_checkpoint:
            self._upload_checkpoint()
        if hasattr(self, "_run"):
            WandB._open -= 1
            with self._sparing_the_run():
                self._run.finish(exit_code=1 if failed else 0)
        if self._lost_service:  # the next run starts another
            with suppress(Exception):
                wandb.teardown()

    def _upload_checkpoint(self) -> None:
        """Hand the checkpoint to W&B, which first asks its server who the user is."""
        path = self._directory / "checkpoint.pt"
        if not path.exists():
            return

        def begin() -> None:
            with self._sparing_the_run():
                artifact = wandb.Artifact(f"checkpoint-{self.id}", type="model")
                artifact.add_file(str(path))
                self._run.log_artifact(artifact)

        beginning = threading.Thread(target=begin, daemon=True)
        beginning.start()
        beginning.join(_TO_UPLOAD * self._seconds)
        if beginning.is_alive():
            self._give_up("its server does not answer")

    def _diagnose(self, diagnosis: Diagnosis) -> None:
        """Log the findings as a table and in the summary, and raise an alert for each error."""
        columns = ["severity", "cause", "confidence", "layer", "step", "summary", "harm", "fix"]
        columns += ["line", "override"]
        findings = diagnosis.report["findings"]
        table = wandb.Table(columns=[*columns, "under"])
        for finding, under in _flattened(findings):
            table.add_data(*(finding[column] for column in columns), under)
        self._run.log({"findings": table})
        first = next((f for f in findings if f["cause"] == diagnosis.cause), None)
        self._run.summary["doctor/healthy"] = diagnosis.healthy
        self._run.summary["doctor/reason"] = diagnosis.report["reason"]
        self._run.summary["doctor/cause"] = diagnosis.cause
        self._run.summary["doctor/severity"] = first["severity"] if first else None
        self._run.summary["doctor/override"] = first["override"] if first else None
        for finding in findings:
            if finding["severity"] == "error":
                self._run.alert(
                    title=finding["cause"],
                    text=f"{finding['summary']}: {finding['harm']}. Fix: {finding['fix']}",
                    level="ERROR",
                )

    def _payload(self, record: Record) -> dict[str, Any]:
        row: dict[str, Any]
        match record:
            case Step():
                row = {"step": record.step, "step/loss": record.loss, "step/lr": record.lr}
                row["step/grad_norm"] = record.grad_norm
                row["step/accuracy"] = record.accuracy
            case Epoch():
                row = {
                    "epoch": record.epoch,
                    "train/loss": record.train_loss,
                    "train/last_batch_loss": record.last_batch_loss,
                    "train/accuracy": record.train_accuracy,
                    "test/loss": record.test_loss,
                    "test/accuracy": record.test_accuracy,
                }
            case LrPoint():
                row = {
                    "iteration": record.iteration,
                    f"lr_finder/{record.test}/lr": record.lr,
                    f"lr_finder/{record.test}/loss": record.loss,
                    f"lr_finder/{record.test}/smoothed_loss": record.smoothed_loss,
                }
            case LrSuggestion():
                row = {f"lr_finder/{record.test}/{record.rule}": record.lr}
            case Layers():
                row = {"step": record.step}
                for kind in ("gradients", "parameters", "activations"):
                    for name, stats in getattr(record, kind).items():
                        row.update(self._tensor(f"{kind}/{name}", stats))
        return row

    def _tensor(self, key: str, stats: TensorStats) -> dict[str, Any]:
        row: dict[str, Any] = {f"{key}/norm": stats.norm}
        if math.isfinite(stats.low):
            edges = np.linspace(stats.low, stats.high, len(stats.histogram) + 1)
            row[key] = wandb.Histogram(np_histogram=(np.array(stats.histogram), edges))
        if stats.nonfinite:
            row[f"{key}/nonfinite"] = stats.nonfinite
        if stats.dead_units is not None:
            row[f"{key}/dead_units"] = stats.dead_units
        if stats.saturated is not None:
            row[f"{key}/saturated"] = stats.saturated
        return row


def _do_without_home(folder: Path) -> None:
    """Let W&B keep its own files in this folder, if there is no home that can be written."""
    for name, place in _FOLDERS.items():
        try:
            own = Path(os.environ["HOME"], place, "wandb")
            own.mkdir(parents=True, exist_ok=True)
            usable = os.access(own, os.W_OK)
        except (KeyError, OSError):
            usable = False
        if not usable:
            os.environ[name] = str(folder.absolute())


def _end_service(seconds: float) -> None:
    """End W&B's process at the end of this one; leave it alone if it does not end in time."""
    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(seconds)


def _flattened(
    findings: Sequence[Mapping[str, Any]], under: str | None = None
) -> Iterator[tuple[Mapping[str, Any], str | None]]:
    """Yield each finding with the cause that explains it, None without one."""
    for finding in findings:
        yield finding, under
        yield from _flattened(finding["consequences"], finding["cause"])
