"""A run's directory: who writes it, whether a run is there already, and what describes that run."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from debugnn import records
from debugnn.config import check
from debugnn.errors import START_OVER, ConfigError, RunError
from debugnn.files import replace_text
from debugnn.runs.naming import arm_of, directory_of, label

ERROR_FILE = "error.txt"  # the traceback of the error that ended a run

# Locked while a run is trained. It stays afterwards, as the mark of a directory that runs write.
LOCK = ".debugnn.lock"
# What runs, and scripts/report.py for a single run, write there. Nothing else is ever removed.
_WRITTEN = (LOCK, "config.yaml", "run.json", "metrics.jsonl", "layers.jsonl", "findings.json",
            "evidence.json", "fix.json", ERROR_FILE, "checkpoint.pt", "checkpoint.previous.pt",
            "checkpoint.sha256", "nonfinite_step_*.pt", "wandb", "report.html")  # fmt: skip
_NO_FOLDER = (NotADirectoryError, FileExistsError)
_STATUSES = ("running", "interrupted", "failed", "pruned", "finished")


class RunDirectory:
    """The directory of the run that a configuration asks for.

    Args:
        config: the composed configuration.
        overrides: as typed, `key=value` each; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Attributes:
        path: where it is, or will be.
        title: the run in a few words, for the console.
        resolved: the configuration as plain values.
        status: `finished`, `pruned` (ended early, because it was hopeless), `failed`, `interrupted`
            by a signal or `running` (cut off) if a run is there that is to be kept, None otherwise.

    Raises:
        ConfigError: a setting is not allowed; names that become paths are among them.
        RunError: its run.json cannot be used.
    """

    def __init__(
        self, config: DictConfig, overrides: Sequence[str], experiment: str | None
    ) -> None:
        check(config)
        self.config = config
        self.experiment = experiment or "adhoc"
        self.arm = arm_of(overrides)
        self.path = directory_of(config, self.experiment, self.arm)
        self.title = f"{self.experiment} {label(self.arm)} seed={config.seed}"
        self.resolved: Any = OmegaConf.to_container(config, resolve=True)
        self.status = self._read_status()
        self._lock = FileLock(self.path / LOCK)

    @property
    def checkpoint(self) -> Path:
        """The path of the run's last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """The path of the rows of steps, epochs and range tests."""
        return self.path / "metrics.jsonl"

    # --- what is there ----------------------------------------------------------------------------

    def _read_status(self) -> str | None:
        if self.config.overwrite or not self._facts_path.exists():
            return None
        return self.read_facts()["status"]

    def read_facts(self) -> dict[str, Any]:
        """Return what run.json says.

        Raises:
            RunError: it is damaged, or of something else.
        """
        try:
            facts = records.load(self._facts_path.read_text(encoding="utf-8"))
            known = facts["status"] in _STATUSES and facts["started"] and facts["training_code"]
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise RunError(f"{self._facts_path}: not a run's record; {START_OVER}")
        return facts

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        replace_text(self._facts_path, records.dump(facts, indent=2))

    @property
    def _facts_path(self) -> Path:
        return self.path / "run.json"

    @property
    def config_path(self) -> Path:
        """The path of the run's settings."""
        return self.path / "config.yaml"

    # --- who writes it ----------------------------------------------------------------------------

    def lock(self) -> None:
        """Keep other processes from writing an existing directory; read its status again.

        The lock is this process's, and ends with it, however it ends.

        Raises:
            RunError: another process has it.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{self.path}: {self._holder()} is writing it") from None
        self.status = self._read_status()

    def unlock(self) -> None:
        """Let other processes write the directory."""
        self._lock.release()

    def _holder(self) -> str:
        """Return which process has the lock, from what it wrote into run.json."""
        try:
            facts = records.load(self._facts_path.read_text(encoding="utf-8"))
            return f"process {facts['pid']} on {facts['host']}, since {facts['resumed']},"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create and lock the directory, emptied unless a run is continued; write config.yaml.

        The lock is let go at the block's end.

        Raises:
            ConfigError: it cannot be written.
            RunError: another process is writing it, or it holds what no run wrote: then nothing in
                it is removed.
        """
        try:
            try:
                self._claim()
            except OSError as error:
                # Not a folder's path: the setting is at fault; otherwise, the disk is.
                kind = ConfigError if isinstance(error, _NO_FOLDER) else RunError
                raise kind(
                    f"output_dir: {self.path} cannot be written ({error.strerror})"
                ) from None
            yield
        finally:
            self.unlock()

    def _claim(self) -> None:
        continued = self.status is not None
        if not continued:
            self._check_own()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if (self.status is not None) != continued:
            raise RunError(f"{self.path}: another process has begun this run just now")
        if not continued:
            self._empty()
        for draft in self.path.glob("*.tmp"):  # of a process that was killed
            if _is_written(draft.name):
                draft.unlink()
        (self.path / ERROR_FILE).unlink(missing_ok=True)  # of an earlier piece of the run
        replace_text(self.config_path, OmegaConf.to_yaml(self.config, resolve=True))

    def _check_own(self) -> None:
        """Check that the directory holds nothing but what runs write.

        Raises:
            RunError: it holds something else, or a part of it cannot be removed.
        """
        entries = sorted(path.name for path in self._entries())
        unknown = [name for name in entries if not _is_written(name)]
        if unknown or (entries and LOCK not in entries):
            raise RunError(
                f"{self.path}: holds {(unknown or entries)[0]}, which no run of this project "
                "wrote: it is not emptied; move it, or choose another output_dir"
            )
        for folder, _, _ in os.walk(self.path):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise RunError(f"{folder}: cannot be emptied (Permission denied)")

    def _empty(self) -> None:
        for path in self._entries():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _entries(self) -> Iterator[Path]:
        if self.path.exists():
            yield from self.path.iterdir()


def _is_written(name: str) -> bool:
    """Return whether runs write a file or folder of this name, or its draft."""
    return any(fnmatch(name.removesuffix(".tmp"), pattern) for pattern in _WRITTEN)
