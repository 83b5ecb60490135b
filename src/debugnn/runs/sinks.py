"""Where records go: JSON lines in the run's directory, the console, W&B.

A sink takes one record at a time and never hands anything back.
"""

import logging
import math
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from debugnn import records
from debugnn.doctor.report import Finding, Report
from debugnn.errors import one_line
from debugnn.records import Epoch, Layers, LrPoint, LrSuggestion, Record, Step, TensorStats

log = logging.getLogger(__name__)


class Sink(Protocol):
    def write(self, record: Record | Report) -> None: ...

    def close(self, failed: bool) -> None: ...


class JsonLines:
    """The records of a run's directory, and the diagnosis: findings.json and evidence.json.

    A run that goes on from a checkpoint first drops the rows that came after it.
    """

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        self._directory = directory
        self._files = {}
        for name in ("metrics", "layers"):
            path = directory / f"{name}.jsonl"
            if path.exists():
                keep_rows_before(path, first_step)
            self._files[name] = path.open("a", encoding="utf-8")

    def write(self, record: Record | Report) -> None:
        if isinstance(record, Report):
            for name, text in (
                ("findings", record.to_json()),
                ("evidence", records.dump(asdict(record.evidence))),
            ):
                draft = self._directory / f"{name}.tmp"
                draft.write_text(text + "\n", encoding="utf-8")
                draft.replace(self._directory / f"{name}.json")
            return
        file = self._files["layers" if isinstance(record, Layers) else "metrics"]
        file.write(records.encode(record) + "\n")
        if isinstance(record, Epoch):  # whose checkpoint must not be ahead of the rows
            for file in self._files.values():
                file.flush()

    def close(self, failed: bool) -> None:
        for file in self._files.values():
            file.close()


def keep_rows_before(path: Path, step: int) -> None:
    """Rewrite a JSONL file with only the rows of the steps before `step`, atomically."""
    # A range test's rows have no step: it comes before the training, and is run again with it.
    first = -1 if step > 0 else step
    rows = [row for row in records.read_jsonl(path) if row.get("step", first) < step]
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(records.dump(row) + "\n" for row in rows), encoding="utf-8")
    draft.replace(path)


class Console:
    """About ten lines of epochs a run, what a range test suggests, and the diagnosis."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._every = max(1, math.ceil(epochs / 10))

    def write(self, record: Record | Report) -> None:
        if isinstance(record, Report):
            log.info("%s", textwrap.indent(str(record), "  "))
        if isinstance(record, LrSuggestion):
            log.info("  range test %d: %-8s suggests lr %.2g", record.test, record.rule, record.lr)
        if not isinstance(record, Epoch):
            return
        last = record.epoch + 1 == self._epochs
        if record.epoch % self._every == 0 or last:
            log.info("%s", epoch_line(record, self._epochs))

    def close(self, failed: bool) -> None:
        pass


def epoch_line(record: Epoch, epochs: int) -> str:
    """The epoch as one line of at most 80 columns."""
    width = len(str(epochs - 1))
    line = f"  epoch {record.epoch:{width}d} of {epochs}  train loss {record.train_loss:9.4g}"
    if record.test_loss is not None:
        line += f"  test loss {record.test_loss:9.4g}"
    if record.test_accuracy is not None:
        line += f"  accuracy {record.test_accuracy:5.1f} %"
    return line


class WandB:
    """A W&B run: metrics, per-layer histograms under `wandb.watch`'s keys, the checkpoint.

    Offline unless asked; a server that cannot be reached turns an online run into an offline one
    with a line that says how to sync it.

    Args:
        every: steps between two rows of single steps, of which W&B draws a thousand or so. Rows of
            layers, with their histograms a hundred times as large, are five times as far apart.
    """

    _environment_saved = False  # the list of packages, 0.14 s: once for all runs of a process

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        *,
        config: Mapping[str, Any],
        name: str,
        group: str,
        job_type: str,
        run_id: str | None = None,
        every: int = 1,
    ) -> None:
        import wandb

        # What W&B prints outside of a run ("Loaded credentials") or for its server ("Artifact
        # already exists") follows the session's settings, whatever a run's say. Errors stay.
        wandb.setup(wandb.Settings(show_info=False, show_warnings=False))
        self._wandb = wandb
        self._directory = directory
        self._save_checkpoint = settings["checkpoint"]
        self._every = every
        self._next_layers = 0
        options = {
            "dir": directory,
            "project": settings["project"],
            "entity": settings["entity"],
            "tags": list(settings["tags"]),
            "config": dict(config),
            "name": name,
            "group": group,
            "job_type": job_type,
            "id": run_id,
            "resume": "allow" if run_id else None,
            "settings": wandb.Settings(
                quiet=True,
                silent=True,
                console="off",
                init_timeout=settings["init_timeout"],
                reinit="create_new",  # a stack's runs are open side by side
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
                shutil.rmtree(attempt)  # empty, and not what is to be synced
            self.run = wandb.init(mode="offline", **options)
        for pattern, step_metric in (
            ("train/*", "epoch"), ("test/*", "epoch"), ("step/*", "step"), ("gradients/*", "step"),
            ("parameters/*", "step"), ("activations/*", "step"), ("lr_finder/*", "iteration"),
        ):  # fmt: skip
            self.run.define_metric(pattern, step_metric=step_metric)

    @property
    def id(self) -> str:
        return self.run.id

    def write(self, record: Record | Report) -> None:
        if isinstance(record, Report):
            self._diagnose(record)
            return
        if isinstance(record, Step) and record.step % self._every:
            return
        if isinstance(record, Layers):
            if record.step < self._next_layers:
                return
            self._next_layers = record.step + (5 * self._every if self._every > 1 else 0)
        self.run.log({k: v for k, v in self._payload(record).items() if v is not None})

    def close(self, failed: bool) -> None:
        checkpoint = self._directory / "checkpoint.pt"
        if self._save_checkpoint and checkpoint.exists():
            artifact = self._wandb.Artifact(f"checkpoint-{self.run.id}", type="model")
            artifact.add_file(str(checkpoint))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=1 if failed else 0)

    def _diagnose(self, report: Report) -> None:
        """The findings as a table and in the summary, an alert for each error."""
        columns = ["severity", "cause", "layer", "step", "summary", "fix", "override", "under"]
        table = self._wandb.Table(columns=columns)
        for finding, under in _flattened(report.findings):
            table.add_data(
                finding.severity, finding.cause, finding.layer, finding.step, finding.summary,
                finding.fix, finding.override, under,
            )  # fmt: skip
        self.run.log({"findings": table})
        first = report.findings[0] if not report.healthy else None
        self.run.summary["doctor/healthy"] = report.healthy
        self.run.summary["doctor/cause"] = first.cause if first else "healthy"
        self.run.summary["doctor/severity"] = first.severity if first else None
        self.run.summary["doctor/override"] = first.override if first else None
        for finding in report.findings:
            if finding.severity == "error":
                self.run.alert(
                    title=finding.cause,
                    text=f"{finding.summary}. Fix: {finding.fix}",
                    level=self._wandb.AlertLevel.ERROR,
                )

    def _payload(self, record: Record) -> dict[str, Any]:
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
            row[key] = self._wandb.Histogram(np_histogram=(stats.histogram, edges.tolist()))
        if stats.nonfinite:
            row[f"{key}/nonfinite"] = stats.nonfinite
        if stats.dead_units is not None:
            row[f"{key}/dead_units"] = stats.dead_units
        return row


def _flattened(findings: Sequence[Finding], under: str | None = None) -> Iterator[tuple]:
    """Each finding with the cause that explains it, if one does."""
    for finding in findings:
        yield finding, under
        yield from _flattened(finding.consequences, finding.cause)
