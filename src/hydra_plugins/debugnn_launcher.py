"""A Hydra launcher that trains several jobs of a sweep at once.

    python train.py -m hydra/launcher=stacked model=deep_mlp init=kaiming,xavier seed=0,1,2

Jobs that differ only in numbers (`debugnn.stacking.sweep`) train together, up to
`hydra.launcher.at_once` of them. Each leaves the run that Hydra's own launcher would leave, except
for the diagnosis: runs of a stack are not diagnosed. Jobs that fit no other run as under Hydra's
launcher.

Hydra looks for launchers in the namespace package `hydra_plugins`, and imports them whenever it
starts, for `--help` too. So torch is imported here only when jobs run.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


@dataclass
class StackedLauncherConfig:
    _target_: str = "hydra_plugins.debugnn_launcher.StackedLauncher"
    at_once: int = 16


ConfigStore.instance().store(
    group="hydra/launcher", name="stacked", node=StackedLauncherConfig, provider="debugnn"
)


class StackedLauncher(BasicLauncher):
    """Hydra's BasicLauncher, except for the jobs that fit each other.

    Args:
        at_once: how many jobs train at once at most; each takes its own memory.
    """

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self._at_once = at_once

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs. A job that fails is recorded, and the others run.

        Raises:
            ConfigError: `at_once` is below 1.
        """
        from debugnn import arguments, cli
        from debugnn.errors import ConfigError
        from debugnn.runs.arms import Arm, end_of, left_out, place_of, status_in
        from debugnn.stacking.sweep import Job, execute_together, sets_that_fit

        def composed(settings: DictConfig) -> Job | None:
            job = HydraConfig.get()
            OmegaConf.resolve(settings)  # ${hydra:...} means this job only in here
            arm: Any = OmegaConf.to_container(job.overrides.task)  # ${…} in them as typed
            experiment = job.runtime.choices.get("experiment")
            alone = left_out(settings, status_in(place_of(settings, arm, experiment)))
            if alone:
                return None
            arguments.check(settings)
            return Job(settings, arm, experiment)

        if self._at_once < 1:
            raise ConfigError(f"hydra.launcher.at_once={self._at_once}: allowed is [1, inf)")
        assert self.config is not None  # after setup
        task, self.task_function = self.task_function, composed
        returns = list(super().launch(job_overrides, initial_job_idx))
        self.task_function = task
        jobs = [r.return_value if r.status == JobStatus.COMPLETED else None for r in returns]
        for chosen in sets_that_fit(jobs, self._at_once):
            if len(chosen) == 1:
                (index,) = chosen
                returns[index] = super().launch([job_overrides[index]], initial_job_idx + index)[0]
                continue
            members = [job for index in chosen if (job := jobs[index]) is not None]
            configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
            places = [place_of(job.config, job.overrides, job.experiment) for job in members]
            before = [status_in(place) for place in places]
            broken: dict[int, Arm] = {}

            def failed(job: Job, error: BaseException, broken: dict = broken) -> None:
                place = place_of(job.config, job.overrides, job.experiment)
                name = " ".join(job.overrides)
                broken[id(job)] = cli.failed(error, job.overrides, place, name)

            execute_together(members, failed)
            for job, place, status in zip(members, places, before, strict=True):
                ended = Arm(tuple(job.overrides), end_of(job.config, status, place), place)
                cli.record(broken.get(id(job), ended))
        return returns
