"""A Hydra launcher that runs the jobs of a sweep side by side, in worker processes.

    python train.py -m hydra/launcher=joblib init=kaiming,xavier

It runs on joblib's engine, loky, as the plugin `hydra-joblib-launcher` does. That plugin hands all
jobs to one `joblib.Parallel`: a worker that dies there ends the whole sweep, and where the command
is killed its workers train on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
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
        jobs = [
            _Job(self._context, self._config, self._task, list(overrides), initial_job_idx + index)
            for index, overrides in enumerate(job_overrides)
        ]
        given = Singleton.get_state(), cli.shows_tracebacks()
        returns: dict[int, JobReturn] = {}
        for ended in run_in_workers(
            _run_aside,
            [(job, *given) for job in jobs],
            at_once,
            begins=lambda i: jobs[i].announce(),
        ):
            job, returned = jobs[ended.index], ended.value
            if ended.error is not None:
                returned = job.returns(self._failed(job, ended.error))
            if returned.status == JobStatus.COMPLETED:
                cli.record(returned.return_value)
            returns[ended.index] = returned
        return [returned for _, returned in sorted(returns.items())]

    def _failed(self, job: "_Job", error: BaseException) -> Any:
        """Return the arm whose worker gave nothing back."""
        from debugnn import cli
        from debugnn.runs.arms import place_of

        settings = job.composed()
        place = place_of(settings, job.overrides, settings.hydra.runtime.choices.get("experiment"))
        return cli.failed(error, job.overrides, place, name=" ".join(job.overrides))


@dataclass(frozen=True)
class _Job:
    """A job of a sweep: what Hydra's `run_job` is called with, in a worker."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    overrides: list[str]
    number: int

    def announce(self) -> None:
        log.info("\t#%d : %s", self.number, " ".join(filter_overrides(self.overrides)))

    def composed(self) -> DictConfig:
        """Return the job's configuration, with its number."""
        settings = self.context.config_loader.load_sweep_config(self.config, self.overrides)
        with open_dict(settings):
            settings.hydra.job.id = f"{settings.hydra.job.name}_{self.number}"
            settings.hydra.job.num = self.number
        return settings

    def returns(self, value: object) -> JobReturn:
        """Return the value as that of this job."""
        return JobReturn(self.overrides, status=JobStatus.COMPLETED, _return_value=value)


def _run_aside(job: _Job, singletons: dict[Any, Any], tracebacks: bool) -> JobReturn:
    """Run a job in this worker, as Hydra's own launcher does in its process."""
    from debugnn import cli

    cli.show_tracebacks(tracebacks)
    setup_globals()
    Singleton.set_state(singletons)
    settings = job.composed()
    HydraConfig.instance().set_config(settings)
    return run_job(
        hydra_context=job.context,
        config=settings,
        task_function=job.task,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
