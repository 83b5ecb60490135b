"""Hydra launchers that give the jobs of a sweep to Slurm, to Ray, or to processes of this machine.

    python train.py -m hydra/launcher=slurm init=kaiming,xavier seed=0,1,2

    local        one job after the other in this process: Hydra's own launcher, and the default
    slurm        each job is one of a Slurm cluster, by submitit
    slurm_local  each job is a process of this machine, by submitit in the same way: no Slurm needed
    ray          each job is a task of Ray, here or on the cluster at hydra.launcher.init.address

(`joblib` is in `debugnn_workers`, `stacked` in `debugnn_launcher`.)

Each job calls `runs.execute` in another process. So its run is named, locked, saved, stopped and
continued as in this process. A job that Slurm or Ray begins again, because its node was lost or was
given to somebody else, continues its run from the checkpoint.

Hydra's two plugins for these engines are not used. hydra-ray-launcher 1.2 needs cloudpickle below
version 3, and joblib needs version 3 or later. hydra-submitit-launcher 1.2 drops the results of all
jobs if one of them dies, waits without end for a dead job where Slurm keeps no accounts, and starts
all jobs on this machine at the same time.

Hydra imports this module whenever it starts, so the engines are imported only when jobs run.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra.core.config_store import ConfigStore
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
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from debugnn.errors import ConfigError, WorkerDiedError, one_line
from debugnn.runs.pauses import Interrupted, Pauses, told_by_signals

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.5  # seconds, for results
_ASK_EVERY = 10.0  # seconds, for the jobs in Slurm's queue: many launchers ask one controller
# What a job leaves, and why it left nothing: Ray or submitit lost its process.
Outcome = JobReturn | WorkerDiedError

_TO_SAVE = 60.0  # seconds that running jobs have when the launcher is told to stop


# --- settings -------------------------------------------------------------------------------------


@dataclass
class SlurmConfig:
    """Options of submitit, which `sbatch --help` explains. None leaves the cluster's default."""

    _target_: str = "hydra_plugins.debugnn_engines.SlurmLauncher"
    # Jobs and their output; on a file system that all nodes share. %j stands for the job.
    folder: str = "${hydra.sweep.dir}/.submitit/%j"
    name: str = "${hydra.job.name}"
    # A run that needs longer is saved `signal_delay_s` before, queued again and continued, at most
    # `max_num_timeout` times. (Within its first minutes, submitit takes a preemption for this too.)
    timeout_min: int = 240
    signal_delay_s: int = 120
    max_num_timeout: int = 100
    array_parallelism: int = 256  # runs at the same time
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    mem_gb: float | None = None
    setup: list[str] | None = None  # shell commands before the run
    # Any other option of sbatch. With `requeue`, a job begins again after its node was lost or
    # given to another job, even where that is not the cluster's default.
    additional_parameters: dict[str, Any] = field(default_factory=lambda: {"requeue": True})


@dataclass
class SlurmLocalConfig:
    """See `SlurmConfig`."""

    _target_: str = "hydra_plugins.debugnn_engines.SlurmLocalLauncher"
    folder: str = "${hydra.sweep.dir}/.submitit/%j"
    name: str = "${hydra.job.name}"
    timeout_min: int = 240
    max_num_timeout: int = 100
    at_once: int = 2  # processes
    gpus_per_node: int | None = None  # None hides the GPUs from the runs


@dataclass
class RayConfig:
    _target_: str = "hydra_plugins.debugnn_engines.RayLauncher"
    # Arguments of `ray.init`. Without an address, Ray is started on this machine.
    init: dict[str, Any] = field(
        default_factory=lambda: {"address": None, "include_dashboard": False}
    )
    # Options of `ray.remote`: what a run needs, and how often it goes on after its process died.
    remote: dict[str, Any] = field(
        default_factory=lambda: {"num_cpus": 1, "num_gpus": 0, "max_retries": 3}
    )


for _name, _node in {
    "local": BasicLauncherConf,
    "slurm": SlurmConfig,
    "slurm_local": SlurmLocalConfig,
    "ray": RayConfig,
}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=_name, node=_node, provider="debugnn")


# --- jobs -----------------------------------------------------------------------------------------


@dataclass
class Job:
    """One job of a sweep. It is sent to another process and called there."""

    number: int
    overrides: list[str]
    hydra_context: HydraContext
    config: DictConfig
    task_function: TaskFunction
    singletons: Any
    tracebacks: bool
    import_paths: list[str]  # with the folder of train.py, where a user's own modules may be

    def __call__(self) -> JobReturn:
        """Do for a job what Hydra's own launcher does. Its value is an `Arm`."""
        from debugnn import cli

        cli.show_tracebacks(self.tracebacks)
        sys.path += [path for path in self.import_paths if path not in sys.path]
        setup_globals()
        Singleton.set_state(self.singletons)
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=self.composed(),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def composed(self) -> DictConfig:
        """Return the job's configuration, with its number."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, self.overrides)
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{self.number}"
            config.hydra.job.num = self.number
        return config


class SubmittedJob(Job):
    """A job that submitit calls, on a node of Slurm or on this machine."""

    def __call__(self) -> JobReturn:
        """Run the job.

        Raises:
            Interrupted: the run was saved, and the job ends without an outcome.
            SystemExit: the same, and the job was queued again.
        """
        on_slurm = os.environ["SUBMITIT_EXECUTOR"] == "slurm"
        if not on_slurm:
            # submitit ignores SIGTERM until a run listens to it. Nothing is to be saved before.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The job's time is over. Until a run listens, the job ends at once; then, after a step.
        queue_again: Any = signal.signal(signal.SIGUSR2, _interrupt)
        try:
            return super().__call__()
        except Interrupted as stop:
            if stop.exit_code == 128 + signal.SIGUSR2:
                queue_again(signal.SIGUSR2, None)
            # Slurm takes a job that ends by itself for done, even while it is being preempted.
            elif on_slurm and _is_preempted(os.environ["SLURM_JOB_ID"]):
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            raise

    def checkpoint(self) -> Any:
        """Return what is queued when the job's time is over: itself, as the run continues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def _is_preempted(job_id: str) -> bool:
    """Return whether Slurm is taking the node of a running job for another job."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job_id],
        capture_output=True,
        text=True,
        check=True,
    )
    return "PreemptTime=" in shown.stdout and "PreemptTime=None" not in shown.stdout


# --- launchers ------------------------------------------------------------------------------------


class EngineLauncher(Launcher):
    """Makes a sweep's jobs and gathers their outcomes."""

    kind: type[Job] = Job

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the jobs are made of."""
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs. One that fails, or whose process dies, is recorded, and the others run.

        Returns:
            What each job returned, in the order of `job_overrides`.

        Raises:
            ConfigError: the engine is not installed, or does not take the jobs.
            KeyboardInterrupt: a signal told this process to stop.
        """
        from debugnn import cli

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        given = Singleton.get_state(), cli.shows_tracebacks(), list(sys.path)
        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
            made_of = self.hydra_context, self.config, self.task_function, *given
            jobs.append(self.kind(number, list(overrides), *made_of))
        returns: dict[int, JobReturn] = {}
        for job, outcome in self.outcomes(jobs):
            if isinstance(outcome, WorkerDiedError):
                outcome = _failed(job, outcome)
            how: object = "failed"
            if outcome.status == JobStatus.COMPLETED:
                cli.record(outcome.return_value)
                how = outcome.return_value.end
            returns[job.number] = outcome
            log.info("\t#%d %s (%d of %d)", job.number, how, len(returns), len(jobs))
        return [returns[job.number] for job in jobs]

    @abstractmethod
    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run the jobs, and yield each with its outcome when it has ended."""


def _failed(job: Job, error: WorkerDiedError) -> JobReturn:
    """Return what a job that left no outcome would have returned: its arm, as failed."""
    from debugnn import cli

    arm = cli.lost(error, job.composed(), job.overrides)
    return JobReturn(job.overrides, status=JobStatus.COMPLETED, _return_value=arm)


class SlurmLauncher(EngineLauncher):
    """Each job is a job of a Slurm cluster; several are an array.

    The jobs do not depend on this process. If it ends, they stay in the queue.

    Args:
        folder: where submitit keeps the jobs and their output.
        max_num_timeout: how often a job is queued again when its time was over.
        timeout_min: a job's time, in minutes.
        signal_delay_s: how long before its end the job is told, in seconds.
        options: of the jobs, as submitit names them.
    """

    kind = SubmittedJob

    def __init__(
        self,
        folder: str,
        max_num_timeout: int,
        timeout_min: int,
        signal_delay_s: int,
        **options: Any,
    ) -> None:
        self._folder, self._max_num_timeout = folder, max_num_timeout
        self._timeout_min, self._signal_delay_s = timeout_min, signal_delay_s
        self._options = {
            "timeout_min": timeout_min, "signal_delay_s": signal_delay_s, **options
        }  # fmt: skip

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Queue the jobs, and yield each with its outcome when it has ended."""
        if 60 * self._timeout_min <= self._signal_delay_s:  # jobs would be told to stop at once
            raise ConfigError(
                f"hydra.launcher.timeout_min={self._timeout_min}: must be longer than "
                f"hydra.launcher.signal_delay_s={self._signal_delay_s}"
            )
        with _refusals_as_errors("slurm", "submitit"):
            executor = _executor("slurm", self._folder, self._max_num_timeout, self._options)
            with executor.batch():
                queued = [executor.submit(job) for job in jobs]
        waiting = {one.job_id: (job, one) for job, one in zip(jobs, queued, strict=True)}
        array = queued[0].job_id.partition("_")[0]
        log.info("Slurm's job %s: %d runs, output in %s", array, len(jobs), self._folder)
        asked, missed = time.monotonic(), set[str]()
        try:
            while waiting:
                gone = set[str]()
                if time.monotonic() - asked > _ASK_EVERY:
                    asked, gone = time.monotonic(), waiting.keys() - _queue(waiting)
                for job_id, (job, submitted) in list(waiting.items()):
                    # A shared file system may show the outcome later than the queue its end: a job
                    # is dead when it has been missed twice.
                    if submitted.paths.result_pickle.exists() or job_id in gone & missed:
                        del waiting[job_id]
                        yield job, _outcome(submitted)
                missed = gone or missed
                time.sleep(_LOOK_EVERY if waiting else 0)
        except KeyboardInterrupt:
            log.warning("The jobs stay in Slurm's queue: `scancel %s` saves and ends them.", array)
            raise
        _tidy(self._folder, array)


class SlurmLocalLauncher(EngineLauncher):
    """Each job is a process of this machine, started by submitit as Slurm would start it.

    Args:
        folder: where submitit keeps the jobs and their output.
        max_num_timeout: how often a job is started again when its time was over.
        at_once: how many jobs run at the same time.
        options: of the jobs, as submitit names them.
    """

    kind = SubmittedJob

    def __init__(self, folder: str, max_num_timeout: int, at_once: int, **options: Any) -> None:
        self._folder, self._max_num_timeout = folder, max_num_timeout
        self._at_once, self._options = at_once, options

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Start the jobs, and yield each with its outcome when it has ended."""
        if self._at_once < 1:
            raise ConfigError(f"hydra.launcher.at_once={self._at_once}: allowed is [1, inf)")
        with _refusals_as_errors("slurm_local", "submitit"):
            executor = _executor("local", self._folder, self._max_num_timeout, self._options)
        waiting, running = list(reversed(jobs)), dict[str, tuple[Job, Any]]()
        pauses = Pauses(0)
        with told_by_signals(pauses):
            while waiting or running:
                while waiting and len(running) < self._at_once:
                    job = waiting.pop()
                    with _without_interrupts():
                        submitted = executor.submit(job)
                    running[submitted.job_id] = job, submitted
                for job_id, (job, submitted) in list(running.items()):
                    if submitted.done():
                        del running[job_id]
                        yield job, _outcome(submitted)
                if pauses.stopped_by is not None:
                    for process in running:
                        os.kill(int(process), signal.SIGTERM)  # it tells the run
                    _wait_for(lambda: all(one.done() for _, one in running.values()))
                    pauses.end_if_told()
                time.sleep(_LOOK_EVERY if running else 0)
        _tidy(self._folder)


class RayLauncher(EngineLauncher):
    """Each job is a task of Ray. A task whose process or node dies is begun again elsewhere.

    Args:
        init: arguments of `ray.init`.
        remote: options of `ray.remote`.
    """

    def __init__(self, init: DictConfig, remote: DictConfig) -> None:
        self._init, self._remote = _plain(init), _plain(remote)

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Hand the jobs to Ray, and yield each with its outcome when it has ended."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # it takes lines of two runs for repetitions
        # Ray starts its processes at a low priority, so that they stand still on a busy machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        before = signal.getsignal(signal.SIGTERM)
        with _refusals_as_errors("ray", "ray"):
            import ray

            ray.init(**self._init)
            task = ray.remote(**self._remote)(_call)
        signal.signal(signal.SIGTERM, before)  # Ray ends the process with a code of its own
        pauses = Pauses(0)
        try:
            with told_by_signals(pauses):
                running = {task.options(name=f"#{job.number}").remote(job): job for job in jobs}
                while running:
                    for ended in ray.wait(list(running), timeout=_LOOK_EVERY)[0]:
                        job = running.pop(ended)
                        try:
                            outcome = ray.get(ended)
                        except Exception as error:  # Ray's: of a process or a node that died
                            outcome = WorkerDiedError(one_line(error))
                        yield job, outcome
                    if pauses.stopped_by is not None:
                        for reference in running:
                            ray.cancel(reference)  # reaches the run as SIGINT
                        ray.wait(list(running), num_returns=len(running), timeout=_TO_SAVE)
                        pauses.end_if_told()
        finally:
            ray.shutdown()


def _call(job: Job) -> JobReturn:
    return job()


# --- what they share ------------------------------------------------------------------------------


@contextmanager
def _refusals_as_errors(option: str, library: str) -> Iterator[None]:
    """Raise what an engine raises as a ConfigError that names the launcher."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        extra = option.partition("_")[0]
        raise ConfigError(
            f"hydra/launcher={option}: {library} is not installed: pip install 'debugnn[{extra}]'"
        ) from None
    except Exception as error:  # the engines' own have no common base
        raise ConfigError(f"hydra/launcher={option}: {one_line(error)}") from None


def _executor(cluster: str, folder: str, max_num_timeout: int, options: dict[str, Any]) -> Any:
    """Return submitit's executor for `slurm` or `local`, which takes these options."""
    import submitit

    executor = submitit.AutoExecutor(
        folder, cluster, **{f"{cluster}_max_num_timeout": max_num_timeout}
    )
    # submitit gives names without a prefix to every kind of cluster.
    general = {"name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"}
    executor.update_parameters(
        **{
            name if name in general else f"{cluster}_{name}": _plain(value)
            for name, value in options.items()
            if value is not None
        }
    )
    return executor


def _plain(value: Any) -> Any:
    """Return a setting without OmegaConf's containers."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _outcome(submitted: Any) -> Outcome:
    """Return the outcome of a job of submitit that has ended; remove its files if it left one."""
    paths = submitted.paths
    if not paths.result_pickle.exists():
        return WorkerDiedError(f"its process died; its output is in {paths.folder}")
    error = submitted.exception()
    if error is not None:  # its text is the traceback, and hints to the output
        lines = str(error).split("----------------------")[1].strip().splitlines()
        reason = list(takewhile(lambda line: not line.startswith(" "), reversed(lines)))
        return WorkerDiedError(f"{' '.join(reversed(reason))}; its output is in {paths.folder}")
    for path in (paths.submitted_pickle, paths.stdout, paths.stderr):
        path.unlink(missing_ok=True)
    outcome = submitted.result()
    paths.result_pickle.unlink(missing_ok=True)
    _remove_empty(paths.folder)
    return outcome


def _tidy(folder: str, array: str = "") -> None:
    """Remove what submitit leaves for a whole sweep, and folders without anything in them."""
    own = Path(folder.replace("%j", array))
    (own / f"{array}_submission.sh").unlink(missing_ok=True)
    top = Path(folder.partition("%j")[0])
    for link in top.glob(".submission_file_*.sh"):
        if not link.exists():  # it led to the file
            link.unlink(missing_ok=True)
    for path in (own, Path(folder), top):
        _remove_empty(path)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # something is in it
        folder.rmdir()


def _queue(job_ids: Iterable[str]) -> set[str]:
    """Return which jobs wait or run, by what Slurm says; all of them if it says nothing."""
    shown = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--format=%i"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return set(shown.stdout.split()) if shown.returncode == 0 else set(job_ids)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started in the block.

    The terminal sends it to all processes. The runs are told once, by their launcher: a second
    signal would end them before they are saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(ended: Callable[[], bool]) -> None:
    """Wait until something has ended, for `_TO_SAVE` at most."""
    deadline = time.monotonic() + _TO_SAVE
    while not ended() and time.monotonic() < deadline:
        time.sleep(0.1)
