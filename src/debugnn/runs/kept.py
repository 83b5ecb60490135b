"""The run that a directory holds already: whether it is the one that is asked for, and its rows."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from debugnn import json_lines, records, settings
from debugnn.errors import START_OVER, ConfigError, RunError
from debugnn.files import replace_text
from debugnn.records import BOOKKEEPING, Epoch, Step
from debugnn.runs.directory import RunDirectory

log = logging.getLogger(__name__)

_STATUSES = ("running", "interrupted", "failed", "pruned", "finished")


def read_facts(directory: RunDirectory) -> dict[str, Any]:
    """Return what run.json says.

    Raises:
        RunError: it is damaged, or of something else.
    """
    try:
        facts = records.load(directory.facts_path.read_text(encoding="utf-8"))
        known = facts["status"] in _STATUSES and facts["started"] and facts["training_code"]
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise RunError(f"{directory.facts_path}: not a run's record; {START_OVER}")
    return facts


def holder(directory: RunDirectory) -> str:
    """Return which process has the directory's lock, from what it wrote into run.json."""
    try:
        facts = records.load(directory.facts_path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']}, since {facts['resumed']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def is_finished(directory: RunDirectory) -> bool:
    """Check the run that is there, and return whether it has ended; lock it if it has not.

    If it has, say so, and bring its report section up to date.

    Raises:
        ConfigError: it has another configuration.
        RunError: it is damaged, or another process is writing it.
    """
    config = _kept_config(directory)
    _compare(directory, config)
    ended = ("finished", "pruned") if directory.config.prune_on else ("finished",)
    if directory.status not in ended:
        directory.lock()  # before its checkpoint is read
    if directory.status not in ended:
        return False
    directory.unlock()  # it has finished while the lock was asked for
    again = "overwrite=true runs it again"
    if directory.status == "pruned":
        again += ", prune_on=null goes on with it"
    log.info("%s: %s before, skipped (%s)", directory.title, directory.status, again)
    if config.get("report") != directory.resolved["report"]:  # which the figures read there
        config["report"] = directory.resolved["report"]
        replace_text(directory.config_path, OmegaConf.to_yaml(OmegaConf.create(config)))
    return True


def _kept_config(directory: RunDirectory) -> dict[str, Any]:
    """Return what config.yaml says.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return settings.read(directory.config_path)
    except FileNotFoundError:
        reason = "no such file"
    except ValueError as error:
        reason = str(error)
    raise RunError(f"{directory.config_path}: not a run's settings ({reason}); {START_OVER}")


def _compare(directory: RunDirectory, kept: dict[str, Any]) -> None:
    """Check that the run has the configuration that is asked for.

    Raises:
        ConfigError: it has another one; the message names the first difference.
        RunError: what a finished run leaves is missing.
    """
    before, now = flat(kept), flat(directory.resolved)
    for name in sorted(before.keys() | now.keys()):
        may_differ = any(name == b or name.startswith(f"{b}.") for b in BOOKKEEPING)
        if not may_differ and before.get(name) != now.get(name):
            raise ConfigError(
                f"{directory.path}: holds a run with {name}={before.get(name)}, and {name}="
                f"{now.get(name)} is asked for; {START_OVER}, another output_dir keeps both"
            )
    if directory.status == "finished" and not directory.metrics.exists():
        raise RunError(f"{directory.metrics}: missing, of a finished run; {START_OVER}")


def keep_rows_before(path: Path, epoch: int, step: int) -> None:
    """Rewrite a JSONL file with only the rows of steps and of epochs before a place, atomically.

    A run may be killed between the row of an epoch and its checkpoint: the one before may be of the
    epoch's last step, and the row comes again.

    Raises:
        RunError: a row is damaged, or there are rows of steps and not of all steps before `step`.
    """
    # A range test's rows have no step. It precedes the training, and is repeated with step 0.
    without_step = -1 if step > 0 else step
    try:
        rows = [
            row
            for row in json_lines.read(path)
            if row.get("step", without_step) < step
            and not (row.get("kind") == Epoch.kind and row["epoch"] >= epoch)
        ]
    except ValueError as error:
        raise RunError(f"{path}, {error}; {START_OVER}") from None
    told = {row["step"] for row in rows if row.get("kind") == Step.kind}
    if told and len(told) < step:
        missing = min(set(range(step)) - told)
        raise RunError(f"{path}: the row of step {missing} is missing; {START_OVER}")
    replace_text(path, "".join(records.dump(row) + "\n" for row in rows))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys.

    >>> flat({"optim": {"lr": 0.1}, "seed": 0})
    {'optim.lr': 0.1, 'seed': 0}
    """
    if isinstance(value, Mapping):
        items = {}
        for key, item in value.items():
            items.update(flat(item, f"{prefix}.{key}" if prefix else str(key)))
        return items
    return {prefix: value}
