"""A run's directory: whether a run is there already, and the two files that describe it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from debugnn import records
from debugnn.errors import ConfigError
from debugnn.files import replace_text
from debugnn.records import BOOKKEEPING
from debugnn.runs.naming import arm_of, directory_of, label


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
        status: `finished`, `failed` or `running` (cut off) if a run is there that is to be kept,
            None otherwise.

    Raises:
        ConfigError: its run.json cannot be read.
    """

    def __init__(
        self, config: DictConfig, overrides: Sequence[str], experiment: str | None
    ) -> None:
        self.config = config
        self.experiment = experiment or "adhoc"
        self.arm = arm_of(overrides)
        self.path = directory_of(config, self.experiment, self.arm)
        self.title = f"{self.experiment} {label(self.arm)} seed={config.seed}"
        self.resolved: Any = OmegaConf.to_container(config, resolve=True)
        self.status = None if config.overwrite else self._read_status()

    @property
    def checkpoint(self) -> Path:
        """The path of the run's last checkpoint."""
        return self.path / "checkpoint.pt"

    def _read_status(self) -> str | None:
        return self.read_facts()["status"] if self._facts_path.exists() else None

    def read_facts(self) -> dict[str, Any]:
        """Return what run.json says.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            facts = records.load(self._facts_path.read_text(encoding="utf-8"))
            facts["status"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self._facts_path}: not a run's record; overwrite=true starts over"
            ) from None
        return facts

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        replace_text(self._facts_path, records.dump(facts, indent=2))

    @property
    def _facts_path(self) -> Path:
        return self.path / "run.json"

    @property
    def _config_path(self) -> Path:
        return self.path / "config.yaml"

    def compare(self) -> None:
        """Check that a run that is kept there has this configuration.

        Raises:
            ConfigError: it has another one; the message names the first difference.
        """
        if self.status is None:
            return
        kept = self._config_path.exists()
        before = flat(OmegaConf.to_container(OmegaConf.load(self._config_path))) if kept else {}
        now = flat(self.resolved)
        for name in sorted(before.keys() | now.keys()):
            may_differ = any(name == b or name.startswith(f"{b}.") for b in BOOKKEEPING)
            if not may_differ and before.get(name) != now.get(name):
                raise ConfigError(
                    f"{self.path}: holds a run with {name}={before.get(name)}, and {name}="
                    f"{now.get(name)} is asked for; overwrite=true starts over, another output_dir "
                    "keeps both"
                )

    def update_report(self) -> None:
        """Give a finished run the present `report` section, which the figures read there."""
        kept: Any = OmegaConf.to_container(OmegaConf.load(self._config_path))
        if kept.get("report") != self.resolved["report"]:
            kept["report"] = self.resolved["report"]
            replace_text(self._config_path, OmegaConf.to_yaml(OmegaConf.create(kept)))

    def claim(self) -> None:
        """Create the directory, emptied unless a run is continued, and write config.yaml.

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
        replace_text(self._config_path, OmegaConf.to_yaml(self.config, resolve=True))


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
