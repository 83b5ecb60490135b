"""A Hydra sweeper that searches: each next run depends on the results of those before.

    python train.py -m hydra/sweeper=optuna prune_on=doctor optim.lr=1e-3,1e-2 init=kaiming,xavier

conf/hydra/sweeper/optuna.yaml lists its settings. Hydra imports this module whenever it starts, for
`--help` too. So Optuna is imported here only when a search begins.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.debugnn_sweeper import SharedCompositions

if TYPE_CHECKING:
    from debugnn.search import Choice, Range, Space, Study, Trial

log = logging.getLogger("debugnn.search")  # whose lines Hydra's launchers show


class OptunaSweeper(Sweeper):
    """Runs trials until there are `n_trials`; see conf/hydra/sweeper/optuna.yaml.

    Args:
        n_trials: in all.
        n_jobs: trials that are handed to the launcher at once.
        sampler, metric: see `debugnn.search`.
        study: the study's file; None for one that is named by what all trials share.
        params: key → sweep, in Hydra's syntax of overrides.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        metric: str,
        study: str | None,
        params: Mapping[str, Any],
    ) -> None:
        self.hydra_context = None
        self.config = None
        self.launcher = None
        self._n_trials = n_trials
        self._n_jobs = n_jobs
        self._sampler = sampler
        self._metric = metric
        self._study = study
        self._params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        assert isinstance(hydra_context.config_loader, ConfigLoaderImpl)
        loader = SharedCompositions(hydra_context.config_loader)
        hydra_context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Begin the search, or go on with it.

        Raises:
            ConfigError: a setting of the sweeper, or a key, cannot be used; Optuna is missing.
        """
        from debugnn.config import check

        self._check()
        assert self.config is not None
        assert self.hydra_context is not None
        lines = [f"{key}={value}" for key, value in self._params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = {o.get_key_element(): o for o in parser.parse_overrides([*lines, *arguments])}
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in parsed.items()
                 if not o.is_sweep_override()]  # fmt: skip
        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, fixed)
        space = space_of(parsed.values())
        for values in _each_once(space):  # a mistake is found before the search begins
            check(loader.load_sweep_config(self.config, [*fixed, *values]))
        with self._open(space, fixed, composed) as study:
            self._run(study, fixed, composed)
            from debugnn.search import summary

            configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
            for line in summary(study, lambda trial: _directory(composed, fixed, trial)):
                log.info("%s", line)

    def _check(self) -> None:
        from debugnn.errors import ConfigError

        try:
            from debugnn.search import METRICS, SAMPLERS
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"hydra/sweeper=optuna: needs `pip install '.[search]'` ({error})"
            ) from None
        for name, count in (("n_trials", self._n_trials), ("n_jobs", self._n_jobs)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"hydra.sweeper.{name}={count}: allowed is [1, inf)")
        for name, value, allowed in (
            ("sampler", self._sampler, SAMPLERS),
            ("metric", self._metric, tuple(METRICS)),
        ):
            if value not in allowed:
                raise ConfigError(f"hydra.sweeper.{name}={value}: allowed are {', '.join(allowed)}")

    def _open(self, space: "Space", fixed: Sequence[str], composed: DictConfig) -> "Study":
        from debugnn.errors import ConfigError
        from debugnn.runs.naming import arm_of, label
        from debugnn.search import Study

        if not space:
            raise ConfigError("hydra.sweeper.params: nothing is searched over")
        if "seed" in space:
            raise ConfigError("seed: the trials of a search have one seed")
        arm, experiment = arm_of(fixed), _experiment(composed)
        path = Path(composed.output_dir) / experiment / "study" / label(arm)
        shared = {"experiment": experiment, "seed": composed.seed, "prune_on": composed.prune_on}
        return Study(
            Path(self._study) if self._study else path / f"seed={composed.seed}.jsonl",
            space,
            {**arm, **{key: str(value) for key, value in shared.items()}},
            sampler=self._sampler,
            metric=self._metric,
            seed=composed.seed,
            overwrite=composed.overwrite,
        )

    def _run(self, study: "Study", fixed: Sequence[str], composed: DictConfig) -> None:
        """Run the trials that are left."""
        from debugnn.search import note_result

        assert self.launcher is not None
        waiting = study.unfinished()
        while waiting or study.begun < self._n_trials:
            if not waiting:
                count = min(self._n_jobs, self._n_trials - study.begun)
                waiting = [study.propose() for _ in range(count)]
            batch, waiting = waiting[: self._n_jobs], waiting[self._n_jobs :]
            jobs = [[*fixed, *trial.overrides] for trial in batch]
            returns = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            for trial in batch:
                note_result(study, trial, _directory(composed, fixed, trial))
            for ended in returns:
                _ = ended.return_value  # raises the error of a job in another process


def space_of(overrides: Iterable[Override]) -> "Space":
    """Return what is searched over, of overrides as Hydra parses them.

    Raises:
        ConfigError: a range that cannot be used.
    """
    swept = (override for override in overrides if override.is_sweep_override())
    return {override.get_key_element(): _searched(override) for override in swept}


def _each_once(space: "Space") -> Iterator[list[str]]:
    """Yield overrides in which each choice, and each end of a range, comes at least once."""
    from debugnn.search import Range

    ends = {key: (v.low, v.high) if isinstance(v, Range) else v.values for key, v in space.items()}
    for turn in range(max(map(len, ends.values()), default=1)):
        yield [f"{key}={values[turn % len(values)]}" for key, values in ends.items()]


def _searched(override: Override) -> "Choice | Range":
    from debugnn.errors import ConfigError
    from debugnn.search import Choice, Range

    if override.is_discrete_sweep():
        return Choice(tuple(override.sweep_string_iterator()))
    swept, key = override.value(), override.get_key_element()
    assert isinstance(swept, IntervalSweep)
    assert swept.start is not None
    assert swept.end is not None
    if unknown := swept.tags - {"log"}:
        raise ConfigError(f"{key}: tag {', '.join(sorted(unknown))} of a range; allowed is log")
    if not swept.start < swept.end or ("log" in swept.tags and swept.start <= 0):
        needed = "above 0, and below the other" if "log" in swept.tags else "below the other"
        raise ConfigError(f"{key}: interval({swept.start},{swept.end}): the first must be {needed}")
    return Range(swept.start, swept.end, "log" in swept.tags)


def _experiment(composed: DictConfig) -> str:
    return composed.hydra.runtime.choices.get("experiment") or "adhoc"


def _directory(composed: DictConfig, fixed: Sequence[str], trial: "Trial") -> Path:
    """Return the directory of a trial's run.

    Args:
        composed: the configuration that all trials share.
    """
    from debugnn.runs.naming import arm_of, directory_of

    return directory_of(composed, _experiment(composed), arm_of([*fixed, *trial.overrides]))
