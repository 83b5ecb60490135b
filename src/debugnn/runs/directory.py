"""A run's directory: who writes it, whether a run is there already, and what describes that run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from debugnn import records
from debugnn.config import check
from debugnn.errors import ConfigError, RunError
from debugnn.files import replace_text
from debugnn.runs.naming import arm_of, directory_of, label

ERROR_FILE = "error.txt"  # the traceback of the error that ended a run

# Locked while a run is trained. It stays afterwards, as the mark of a directory that runs write.
LOCK = ".debugnn.lock"
_NO_FOLDER = (NotADirectoryError, FileExistsError)


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
        if self.config.overwrite or not self.facts_path.exists():
            return None
        from debugnn.runs import kept  # a new run needs nothing of it

        return kept.read_facts(self)["status"]

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        replace_text(self.facts_path, records.dump(facts, indent=2))

    @property
    def facts_path(self) -> Path:
        """The path of run.json, which says how the run went."""
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
            from debugnn.runs import kept

            raise RunError(f"{self.path}: {kept.holder(self)} is writing it") from None
        self.status = self._read_status()

    def unlock(self) -> None:
        """Let other processes write the directory."""
        self._lock.release()

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
        continued, new = self.status is not None, not self.path.exists()
        if not new:
            from debugnn.runs import emptying  # a new run needs nothing of it

            if not continued:
                emptying.check_own(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        if (self.status is not None) != continued:
            raise RunError(f"{self.path}: another process has begun this run just now")
        if not new:
            (emptying.remove_remains if continued else emptying.empty)(self.path)
        replace_text(self.config_path, OmegaConf.to_yaml(self.config, resolve=True))
