"""A Hydra launcher that runs the jobs of a sweep side by side, in worker processes.

    python train.py -m hydra/launcher=joblib init=kaiming,xavier

It runs on joblib's engine, loky, as the plugin `hydra-joblib-launcher` does. That plugin hands all
jobs to one `joblib.Parallel`: a worker that dies there ends the whole sweep, and where the command
is killed its workers train on.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    filter_overrides,
    run_job,
    setup_globals,
)
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


@dataclass
class WorkersLauncherConfig:
    _target_: str = "hydra_plugins.debugnn_workers.WorkersLauncher"
    n_jobs: int = -1


class LauncherName(SearchPathPlugin):
    """Registers the launcher after all plugins have been imported, before Hydra composes.

    `hydra-joblib-launcher` registers its own under the same name. The last one has it.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Register the launcher; the search path stays as it is."""
        ConfigStore.instance().store(
            group="hydra/launcher", name="joblib", node=WorkersLauncherConfig, provider="debugnn"
        )


class WorkersLauncher(Launcher):
    """Runs jobs in worker processes.

    Args:
        n_jobs: how many jobs run at once, -1 for one a core.
    """

    def __init__(self, n_jobs: int) -> None:
        self._n_jobs = n_jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what jobs are made of; Hydra calls it once."""
        self._context = hydra_context
        self._task = task_function
        self._config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs. One that fails, or whose process dies, is recorded, and the others run.

        Returns:
            What each job returned, in the order of `job_overrides`. The value of a job is its
            `debugnn.runs.arms.Arm`.

        Raises:
            ConfigError: `n_jobs` is neither -1 nor above 0.
            Interrupted: a signal stopped the sweep.
        """
        from joblib import cpu_count

        from debugnn import cli
        from debugnn.errors import ConfigError
        from debugnn.runs.workers import run_in_workers

        if self._n_jobs < 1 and self._n_jobs != -1:
            raise ConfigError(
                f"hydra.launcher.n_jobs={self._n_jobs}: allowed is [1, inf), or -1 for one a core"
            )
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        at_once = min(cpu_count() if self._n_jobs == -1 else self._n_jobs, len(job_overrides))
        log.info("Launching %d jobs, %d at once", len(job_overrides), at_once)
        given = self._task, self._context.callbacks, Singleton.get_state(), cli.shows_tracebacks()

        def calls() -> Iterator[tuple]:
            for number, overrides in enumerate(job_overrides, start=initial_job_idx):
                log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
                yield (self._composed(number, overrides), *given)

        returns: dict[int, JobReturn] = {}
        for ended in run_in_workers(_run_aside, calls(), at_once):
            overrides, returned = list(job_overrides[ended.index]), ended.value
            if ended.error is not None:
                settings = self._composed(initial_job_idx + ended.index, overrides)
                arm = cli.lost(ended.error, settings, overrides)
                returned = JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=arm)
            if returned.status == JobStatus.COMPLETED:
                cli.record(returned.return_value)
            returns[ended.index] = returned
        return [returned for _, returned in sorted(returns.items())]

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """Return the settings of a job, with its number."""
        loader = self._context.config_loader
        settings = loader.load_sweep_config(self._config, list(overrides))
        with open_dict(settings):
            settings.hydra.job.id = f"{settings.hydra.job.name}_{number}"
            settings.hydra.job.num = number
        return settings


def _run_aside(
    settings: DictConfig,
    task: TaskFunction,
    callbacks: Callbacks,
    singletons: dict[Any, Any],
    tracebacks: bool,
) -> JobReturn:
    """Run a job in this worker, as Hydra's own launcher does in its process."""
    from debugnn import cli

    cli.show_tracebacks(tracebacks)
    setup_globals()
    first = Plugins not in Singleton._instances
    if first:  # it executes all plugins: a tenth of a short job's time
        Singleton.set_state(singletons)
    HydraConfig.instance().set_config(settings)
    returned = run_job(
        hydra_context=HydraContext(GlobalHydra.instance().config_loader(), callbacks),
        config=settings,
        task_function=task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if first:
        # A full collection of garbage takes 0.3 s, most of it for what libraries keep for ever, and
        # comes every ten short jobs.
        gc.collect()
        gc.freeze()
    return returned
