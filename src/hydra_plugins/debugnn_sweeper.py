"""A Hydra sweeper for long sweeps: the basic one, without composing each job's settings twice.

A composition takes 0.1 s, most of it for files, the defaults list and merging. These depend on the
options of groups alone, so jobs of the same options share one composition, and each job's other
overrides are applied to a copy of it. Hydra's basic sweeper composes each job from the files twice:
all of them before the first job starts, and again one by one.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

_KEPT = 64  # compositions, of the latest combinations of options


@dataclass
class SharingSweeperConfig:
    _target_: str = "hydra_plugins.debugnn_sweeper.SharingSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(
    group="hydra/sweeper", name="sharing", node=SharingSweeperConfig, provider="debugnn"
)


class SharedCompositions(ConfigLoaderImpl):
    """Hydra's loader, which keeps what jobs with the same options of groups share."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        super().__init__(loader.get_search_path())
        self._compositions: OrderedDict[tuple[str, ...], DictConfig] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process with a job: nothing that it would not read."""
        return {**self.__dict__, "_compositions": OrderedDict()}

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Return a job's settings, as Hydra's own loader does."""
        options, values = self._parted(sweep_overrides)
        config = copy.deepcopy(self._composed(master_config, options))
        OmegaConf.set_readonly(config.hydra, False)
        self._apply_overrides_to_config(values, config)
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        own = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in own]
        dirname = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            own,
            kv_sep=dirname.kv_sep,
            item_sep=dirname.item_sep,
            exclude_keys=dirname.exclude_keys,
        )
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def check(self, master_config: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
        """Find errors of all jobs' overrides: each combination of options, each value once.

        Raises:
            HydraException, OmegaConfBaseException: as the composition of a job at fault.
        """
        known: dict[tuple[str, ...], tuple[DictConfig, set[str]]] = {}
        for overrides in jobs:
            options, values = self._parted(list(overrides))
            key = tuple(options)
            if key not in known:
                known[key] = copy.deepcopy(self._composed(master_config, options)), set()
            config, seen = known[key]
            new = [value for value in values if value.input_line not in seen]
            self._apply_overrides_to_config(new, config)
            seen.update(str(value.input_line) for value in new)

    def _parted(self, overrides: Sequence[str]) -> tuple[list[str], list[Override]]:
        """Return which overrides choose options of groups, and the others, which set values."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        options = [o for o in parsed if o.package or self.repository.group_exists(o.key_or_group)]
        lines = [str(option.input_line) for option in options]
        return lines, [o for o in parsed if o not in options]

    def _composed(self, master_config: DictConfig, options: list[str]) -> DictConfig:
        key = tuple(options)
        if key not in self._compositions:
            self._compositions[key] = super().load_sweep_config(master_config, options)
            while len(self._compositions) > _KEPT:
                self._compositions.popitem(last=False)
        self._compositions.move_to_end(key)
        return self._compositions[key]


class LetGoOfSettings(Callback):
    """Lets go of a job's settings: launchers keep what jobs return until the last has ended.

    A sweep of 200 jobs grew by 60 MB.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None


class SharingSweeper(BasicSweeper):
    """Hydra's basic sweeper, whose jobs share compositions."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        assert isinstance(hydra_context.config_loader, ConfigLoaderImpl)
        self._loader = SharedCompositions(hydra_context.config_loader)
        sharing = HydraContext(config_loader=self._loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=sharing, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> Any:
        assert self.config is not None
        self._loader.check(self.config, batch)
