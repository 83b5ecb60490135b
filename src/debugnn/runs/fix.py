"""Does the doctor's remedy help? The same training before, after, and under a random change."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from debugnn import json_lines, records
from debugnn.config import check
from debugnn.errors import ConfigError
from debugnn.files import replace_text
from debugnn.overrides import compose
from debugnn.runs.execute import execute

log = logging.getLogger(__name__)

# What the control is drawn from: changes that are often tried when a training fails.
CONTROLS = (
    "init=kaiming", "init=xavier", "init=lecun", "init=orthogonal", "clip=4.0", "reg=dropout",
    "reg=bn", "optim=sgd", "optim=adamw", "optim.lr=0.0001", "optim.lr=0.01", "model=relu_net",
    "model=tanh", "model=leaky_relu", "data.batch_size=16", "data.batch_size=256",
)  # fmt: skip


def fix(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path:
    """Train, apply the first finding's override, and train again for the same number of epochs.

    A third run, the control, has an override that is drawn at random by the seed. Accuracy, loss
    and diagnosis of the three are printed, and kept in fix.json in the first run's directory.

    Args:
        config: the composed configuration.
        overrides: as typed, `key=value` each; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Returns:
        The first run's directory.

    Raises:
        ConfigError: a setting that cannot be used, before anything is written; or, after the first
            run, a remedy that does not go together with the settings.
    """
    check(config)
    asked = [o for o in overrides if not o.startswith("task")]
    directory = _run(asked, experiment)
    report = records.load((directory / "findings.json").read_text(encoding="utf-8"))
    rows = {"before": _row(directory, "")}
    if report["healthy"] is not False:
        log.info("nothing to fix: %s", _why_nothing(report))
        return directory
    first = next((f for f in report["findings"] if f["cause"] == report["main_cause"]), None)
    if first is None:
        log.info("no cause was found: %s", report["reason"])
        return directory
    if first["override"] is None:
        log.info("no setting mends %s: %s", first["cause"], first["fix"])
        return directory
    rows["after"] = _row(_run(_with(asked, first["override"]), experiment), first["override"])
    settings = compose(asked)
    for control in _controls(config.seed, asked, first["override"]):
        if compose(_with(asked, control)) == settings:
            continue  # what it sets is set already
        try:
            rows["control"] = _row(_run(_with(asked, control), experiment), control)
            break
        except ConfigError as error:  # say, a network without images under another model
            log.info("control %s does not fit here: %s", control, error)
    replace_text(directory / "fix.json", records.dump(rows, indent=2) + "\n")
    log.info("%s", _table(rows))
    return directory


def _why_nothing(report: dict[str, Any]) -> str:
    again = "" if report["healthy"] else " (overwrite=true runs it again)"
    return report["reason"] + again


def _run(overrides: Sequence[str], experiment: str | None) -> Path:
    config = compose(overrides)
    if not config.doctor.enabled:
        raise ConfigError("doctor=off: task=fix needs the doctor's findings")
    directory = execute(config, overrides, experiment)
    assert directory is not None  # task=train
    return directory


def _with(overrides: Sequence[str], change: str) -> list[str]:
    """Return the overrides with one of them changed or added."""
    key = change.partition("=")[0]
    return [*(o for o in overrides if o.partition("=")[0] != key), change]


def _controls(seed: int, overrides: Sequence[str], remedy: str) -> list[str]:
    """Return the control changes in random order, without the remedy's key and what is set."""
    key = remedy.partition("=")[0].partition(".")[0]
    free = [c for c in CONTROLS if c.partition("=")[0].partition(".")[0] != key]
    free = [c for c in free if c not in overrides]
    return random.Random(seed).sample(free, len(free))


def _row(directory: Path, change: str) -> dict[str, Any]:
    """Return what a run came to: its last losses and accuracy, and its diagnosis."""
    *_, last = json_lines.read(directory / "metrics.jsonl", "epoch")
    report = records.load((directory / "findings.json").read_text(encoding="utf-8"))
    return {
        "override": change,
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"],
        "diagnosis": report["main_cause"],
        "directory": str(directory),
    }


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':8s} {'override':24s} {'accuracy':>8s} {'test loss':>10s}  diagnosis"]
    for name, row in rows.items():
        accuracy = row["test_accuracy"]
        shown = "–" if accuracy is None else f"{accuracy:.1f} %"
        lines.append(
            f"{name:8s} {row['override'] or '(as asked)':24s} {shown:>8s} "
            f"{row['test_loss']:10.4g}  {row['diagnosis']}"
        )
    return "\n".join(lines)
