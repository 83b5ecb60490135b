"""A Hydra launcher that trains those jobs of a sweep at once that fit each other.

    python train.py -m hydra/launcher=stacked model=deep_mlp init=kaiming,xavier seed=0,1,2

Jobs fit that differ in numbers alone (`debugnn.stacking.sweep`), up to
`hydra.launcher.at_once` of them.
Each leaves the run that Hydra's own launcher would leave, but for the diagnosis: runs of a stack
are not diagnosed. Jobs that fit no other run as under Hydra's launcher.

Hydra looks for launchers in the namespace package `hydra_plugins`, and imports them whenever it
starts, for `--help` too: torch is imported when jobs run.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import (
    JobReturn,
    configure_log,
    filter_overrides,
    run_job,
    setup_globals,
)
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)


@dataclass
class StackedLauncherConfig:
    _target_: str = "hydra_plugins.debugnn_launcher.StackedLauncher"
    at_once: int = 16


ConfigStore.instance().store(
    group="hydra/launcher", name="stacked", node=StackedLauncherConfig, provider="debugnn"
)


@dataclass
class Job:
    """One job of a sweep, whose interpolations are resolved but in `config`."""

    overrides: Sequence[str]
    config: DictConfig  # with Hydra's own section
    settings: DictConfig  # without
    arm: list[str]

    @property
    def number(self) -> int:
        return self.config.hydra.job.num

    @property
    def experiment(self) -> str | None:
        return self.config.hydra.runtime.choices.get("experiment")


class StackedLauncher(Launcher):
    """Hydra's BasicLauncher, but for the jobs that fit each other.

    Args:
        at_once: how many jobs train at once at most; each takes its own memory.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._context = hydra_context
        self._task = task_function
        self._config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs.

        Raises:
            ConfigError: `at_once` is below 1. A job's own error is said, and the others run.
        """
        from debugnn.errors import ConfigError
        from debugnn.stacking.sweep import sets_that_fit

        if self._at_once < 1:
            raise ConfigError(f"hydra.launcher.at_once={self._at_once}: allowed is [1, inf)")
        setup_globals()
        self._log_as_hydra()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = [self._compose(o, initial_job_idx + i) for i, o in enumerate(job_overrides)]
        sets = sets_that_fit([(j.settings, j.arm, j.experiment) for j in jobs], self._at_once)
        log.info("Launching %d jobs locally, up to %d at once", len(jobs), self._at_once)
        returns: dict[int, JobReturn] = {}
        for chosen in sets:
            for index in chosen:
                typed = " ".join(filter_overrides(jobs[index].overrides))
                log.info("\t#%d : %s", jobs[index].number, typed)
            together = [jobs[index] for index in chosen]
            alone = len(chosen) == 1
            ended = [self._run(together[0], self._task)] if alone else self._together(together)
            returns.update(zip(chosen, ended, strict=True))
        return [returns[index] for index in range(len(jobs))]

    def _together(self, jobs: Sequence[Job]) -> list[JobReturn]:
        """Run a set as one Hydra job, that of its first member."""
        from debugnn import cli
        from debugnn.stacking.sweep import execute_together

        def train(_: DictConfig) -> None:
            requests = [(job.settings, job.arm) for job in jobs]
            execute_together(
                requests, jobs[0].experiment, lambda index, e: cli.report(e, jobs[index].arm)
            )

        ended = self._run(jobs[0], train)
        return [
            replace(
                ended,
                overrides=job.arm,
                cfg=job.settings,
                hydra_cfg=OmegaConf.masked_copy(job.config, "hydra"),
            )
            for job in jobs
        ]

    def _run(self, job: Job, task: TaskFunction) -> JobReturn:
        ended = run_job(
            hydra_context=self._context,
            task_function=task,
            config=job.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        self._log_as_hydra()
        return ended

    def _compose(self, overrides: Sequence[str], number: int) -> Job:
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        settings = copy.deepcopy(config)
        with open_dict(settings):
            del settings["hydra"]
        # ${hydra:...} means this job only while its configuration is Hydra's.
        outer = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            OmegaConf.resolve(settings)
            arm = list(config.hydra.overrides.task)
        except OmegaConfBaseException:
            settings, arm = OmegaConf.create(), []  # fits no other: launched alone, it says why
        finally:
            HydraConfig.instance().cfg = outer
        return Job(overrides, config, settings, arm)

    def _log_as_hydra(self) -> None:
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
