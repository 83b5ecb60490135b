"""Makes room for a run where files lie: removes what runs have written, and never anything else."""

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from debugnn.errors import RunError
from debugnn.runs.directory import ERROR_FILE, LOCK

# What runs, and scripts/report.py for a single run, write into a run's directory.
_WRITTEN = (LOCK, "config.yaml", "run.json", "metrics.jsonl", "layers.jsonl", "findings.json",
            "evidence.json", "fix.json", ERROR_FILE, "checkpoint.pt", "checkpoint.previous.pt",
            "checkpoint.sha256", "nonfinite_step_*.pt", "wandb", "report.html")  # fmt: skip


def check_own(folder: Path) -> None:
    """Check that a run's directory holds nothing but what runs write.

    Raises:
        RunError: it holds something else, or a part of it cannot be removed.
    """
    entries = sorted(path.name for path in folder.iterdir())
    unknown = [name for name in entries if not _is_written(name)]
    if unknown or (entries and LOCK not in entries):
        raise RunError(
            f"{folder}: holds {(unknown or entries)[0]}, which no run of this project wrote: it is "
            "not emptied; move it, or choose another output_dir"
        )
    for inner, _, _ in os.walk(folder):
        if not os.access(inner, os.W_OK | os.X_OK):
            raise RunError(f"{inner}: cannot be emptied (Permission denied)")


def empty(folder: Path) -> None:
    """Remove all that a run's directory holds, except its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def remove_remains(folder: Path) -> None:
    """Remove what the earlier piece of a run that goes on has left: drafts of files, its error."""
    (folder / ERROR_FILE).unlink(missing_ok=True)
    for draft in folder.glob("*.tmp"):
        if _is_written(draft.name):
            draft.unlink()


def _is_written(name: str) -> bool:
    """Return whether runs write a file or folder of this name, or its draft."""
    return any(fnmatch(name.removesuffix(".tmp"), pattern) for pattern in _WRITTEN)
