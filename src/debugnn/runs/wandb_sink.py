"""Records as a W&B run: offline unless asked, and never a reason for a run to end."""

import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from debugnn.errors import first_line, one_line
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

log = logging.getLogger(__name__)

_ROWS = 1000  # of single steps, in a run: W&B draws at most 1,500 points of a curve
_LAYERS_APART = 5  # rows of layers are so many times as far apart: histograms are a hundred times
# as large as a step's row

# Which number the panels of each kind of metric are drawn over.
_AXES = {
    "train/*": "epoch", "test/*": "epoch", "step/*": "step", "gradients/*": "step",
    "parameters/*": "step", "activations/*": "step", "lr_finder/*": "iteration",
}  # fmt: skip


class WandB:
    """A W&B run: metrics, per-layer histograms under the keys of `wandb.watch`, the checkpoint.

    If the server of an online run cannot be reached, the run goes on offline, and a line says how
    to upload it later. If W&B fails later, as where its process was killed, the run goes on without
    it, and a line says so.

    Args:
        directory: the run's directory.
        config: the resolved configuration. Its `wandb` section says how the run is kept.
        name: of the run.
        group: the experiment.
        run_id: W&B's id of the run that is continued, None for a new run.
        steps: of the whole training; of more than 1,000, only some are logged.
    """

    _environment_saved = False  # W&B lists the installed packages: 0.14 s, so once a process

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, Any],
        name: str,
        group: str,
        run_id: str | None,
        steps: int,
    ) -> None:
        # What W&B prints outside of a run ("Loaded credentials") or for its server ("Artifact
        # already exists") follows the session's settings, whatever a run's say. Errors are shown.
        wandb.setup(wandb.Settings(show_info=False, show_warnings=False))
        settings = config["wandb"]
        self._directory = directory
        self._save_checkpoint = settings["checkpoint"]
        self._every = settings["every"] or math.ceil(steps / _ROWS)
        self._next_layers = 0
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
            "id": run_id,
            "resume": "allow" if run_id else None,
            "settings": wandb.Settings(
                quiet=True,
                silent=True,
                console="off",
                init_timeout=settings["init_timeout"],
                reinit="create_new",  # the runs of a stack are open side by side
                x_save_requirements=not WandB._environment_saved,
            ),
        }
        WandB._environment_saved = True
        before = set(directory.glob("wandb/run-*"))
        try:
            self.run = wandb.init(mode=settings["mode"], **options)
        except (wandb.errors.Error, OSError) as error:
            if settings["mode"] != "online":
                raise
            log.warning(
                "W&B cannot be reached (%s): the run goes on offline; later, "
                "`wandb sync %s/wandb/offline-run-*` uploads it",
                one_line(error),
                directory,
            )
            for attempt in set(directory.glob("wandb/run-*")) - before:
                shutil.rmtree(attempt)  # it is empty, and `wandb sync` would take it for a run
            self.run = wandb.init(mode="offline", **options)
        for pattern, axis in _AXES.items():
            self.run.define_metric(pattern, step_metric=axis)

    @property
    def id(self) -> str:
        """W&B's id of the run."""
        return self.run.id

    def write(self, record: Record | Diagnosis) -> None:
        """Log the record, unless it is one of the steps that are left out."""
        with self._sparing_the_run():
            self._log(record)

    def _log(self, record: Record | Diagnosis) -> None:
        if self._failed:
            return
        if isinstance(record, Diagnosis):
            self._diagnose(record)
            return
        if isinstance(record, Step) and record.step % self._every:
            return
        if isinstance(record, Layers):
            if record.step < self._next_layers:
                return
            apart = _LAYERS_APART * self._every if self._every > 1 else 0
            self._next_layers = record.step + apart
        self.run.log({k: v for k, v in self._payload(record).items() if v is not None})

    def close(self, failed: bool) -> None:
        """Upload the checkpoint if asked, and finish the run."""
        checkpoint = self._directory / "checkpoint.pt"
        with self._sparing_the_run():
            if self._save_checkpoint and checkpoint.exists() and not self._failed:
                artifact = wandb.Artifact(f"checkpoint-{self.run.id}", type="model")
                artifact.add_file(str(checkpoint))
                self.run.log_artifact(artifact)
        with self._sparing_the_run():
            self.run.finish(exit_code=1 if failed else 0)
        if self._lost_service:  # the next run starts another
            with suppress(Exception):
                wandb.teardown()

    @contextmanager
    def _sparing_the_run(self) -> Iterator[None]:
        """Let no error of W&B out of the block; the first one is said."""
        try:
            yield
        except Exception as error:  # a dead process, a full disk, whatever W&B raises
            if not self._failed:
                log.warning(
                    "W&B has failed (%s): the run goes on without it; `wandb sync %s/wandb/*run-*` "
                    "uploads what it had",
                    first_line(error),
                    self._directory,
                )
            self._failed = True
            self._lost_service |= isinstance(error, ConnectionError)

    def _diagnose(self, diagnosis: Diagnosis) -> None:
        """Log the findings as a table and in the summary, and raise an alert for each error."""
        columns = ["severity", "cause", "confidence", "layer", "step", "summary", "harm", "fix"]
        columns += ["line", "override"]
        findings = diagnosis.report["findings"]
        table = wandb.Table(columns=[*columns, "under"])
        for finding, under in _flattened(findings):
            table.add_data(*(finding[column] for column in columns), under)
        self.run.log({"findings": table})
        first = next((f for f in findings if f["cause"] == diagnosis.cause), None)
        self.run.summary["doctor/healthy"] = diagnosis.healthy
        self.run.summary["doctor/reason"] = diagnosis.report["reason"]
        self.run.summary["doctor/cause"] = diagnosis.cause
        self.run.summary["doctor/severity"] = first["severity"] if first else None
        self.run.summary["doctor/override"] = first["override"] if first else None
        for finding in findings:
            if finding["severity"] == "error":
                self.run.alert(
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


def _flattened(
    findings: Sequence[Mapping[str, Any]], under: str | None = None
) -> Iterator[tuple[Mapping[str, Any], str | None]]:
    """Yield each finding with the cause that explains it, None without one."""
    for finding in findings:
        yield finding, under
        yield from _flattened(finding["consequences"], finding["cause"])
