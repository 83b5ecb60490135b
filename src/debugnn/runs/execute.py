"""One run from its configuration to its end: whatever trains, trains through here.

`execute` does what a configuration asks for. It opens and closes a run in three steps, which the
members of a stack go through too:

    prepare(directory)    builds and restores the training
    open_run(run)         writes what it is handed, and at the end how the run ended
    records_of(run)       trains, and yields the records to be written

A finished run is not repeated. A run that was cut off, or stopped by a signal, continues from its
checkpoint.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from debugnn.build import build
from debugnn.records import Diagnosis, Epoch, Evaluating, Pause, Pruned, Record
from debugnn.runs.directory import RunDirectory
from debugnn.runs.facts import facts_of
from debugnn.runs.pauses import Interrupted, Pauses, told_by_signals
from debugnn.runs.sinks import Console, JsonLines, Sink
from debugnn.runs.writer import Writer
from debugnn.training import checkpoint
from debugnn.training.loop import Training, fit

if TYPE_CHECKING:
    from debugnn.doctor.resting import RestingDoctor

log = logging.getLogger(__name__)

Told = Record | Diagnosis | Pause | Evaluating | Pruned
Write = Callable[[Told], None]


def execute(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path | None:
    """Do what the configuration's task asks for.

    Args:
        config: the composed configuration.
        overrides: as typed, `key=value` each; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Returns:
        The run's directory; None for `task=check`, which writes nothing.

    Raises:
        ConfigError: a setting that cannot be used. Nothing has been written then, except by
            `task=fix`, whose first run ends before its remedy is composed.
        CheckFailedError: `task=check` found an error.
    """
    if config.task.name == "check":
        from debugnn.runs.diagnosis import check_before_training

        check_before_training(config)
        return None
    if config.task.name == "fix":
        from debugnn.runs.fix import fix

        return fix(config, overrides, experiment)
    directory = RunDirectory(config, overrides, experiment)
    if not finished(directory):
        train(prepare(directory))
    return directory.path


def finished(directory: RunDirectory) -> bool:
    """True if the run is there, finished; say so, and bring its report section up to date.

    A pruned run has ended too, unless it is asked for without pruning.

    Raises:
        ConfigError: a run of another configuration is there.
        RunError: the run that is there is damaged, or another process is writing it.
    """
    if directory.status is None:
        return False
    from debugnn.runs import kept  # a new run needs nothing of it

    return kept.is_finished(directory)


def train(run: "Run") -> None:
    """Do the task of a prepared run, and keep what it yields.

    Raises:
        ConfigError: the range test suggests no rate, or the directory cannot be written. Nothing
            has been written then.
    """
    directory, started = run.directory, time.perf_counter()
    log.info("%s", directory.title)
    if run.training.step:
        log.info("  continues from epoch %d, step %d", run.training.epoch, run.training.step)
    console = Console(directory.config.trainer.epochs)
    with told_by_signals(run.pauses):
        with run.pauses.at_once():
            choose_rate(run)
        with open_run(run) as write:
            for record in records_of(run):
                relay(record, write, console, run.pauses)
                if run.training.step == 0:  # a range test, with nothing to be saved
                    run.pauses.end_if_told()
    log.info("  %.1f s, in %s", time.perf_counter() - started, directory.path)
    run.pauses.end_if_told()  # a signal that came when there was nothing left to train


def relay(record: Told, write: Write, console: Console, pauses: Pauses, last: bool = True) -> None:
    """Hand a record on; end what trains if it was told to stop and can be saved as it is now.

    Args:
        last: of the records of several runs at one place, of which each is saved with its own.

    Raises:
        Interrupted: it was told to stop.
    """
    pauses.end_at_once(False)
    console.write(record)
    write(record)
    pauses.end_at_once(last and isinstance(record, Evaluating))
    if last and isinstance(record, Pause | Epoch):
        pauses.end_if_told()


@dataclass
class Run:
    """A run that can be opened.

    Attributes:
        directory: where it is kept.
        training: built, and restored from the run's checkpoint if there is one.
        search: records of the range test that chose the learning rate. They come before the
            training's.
        pauses: when it is saved inside an epoch.
        doctor: watches the training; None before it begins, and without a doctor.
        doctors_state: what the doctor knew at the checkpoint; None without one.
    """

    directory: RunDirectory
    training: Training
    pauses: Pauses
    search: list[Record] = field(default_factory=list)
    doctor: "RestingDoctor | None" = None
    doctors_state: Mapping[str, Any] | None = None


def prepare(directory: RunDirectory, before: tuple[int, int] | None = None) -> Run:
    """Build the training of a run, and restore its checkpoint. Nothing is written.

    Afterwards, torch's global generators stand where the training begins.

    Args:
        before: go back to the checkpoint before the last one, of these numbers of epochs and steps.

    Raises:
        ConfigError: the configuration cannot be used.
        RunError: no checkpoint can be read.
    """
    if directory.config.wandb.mode != "disabled":
        from debugnn.runs.wandb_sink import check_environment

        check_environment()
    training, settings = build(directory.config), directory.config.trainer
    pauses = Pauses(settings.checkpoint_minutes, settings.checkpoint_seconds)
    run = Run(directory, training, pauses)
    if directory.status is not None and directory.checkpoint.exists() and before != (0, 0):
        from debugnn.training.restoring import restore  # a new run needs nothing of it

        run.doctors_state = restore(directory.checkpoint, training, settings.epochs, before)
    return run


def choose_rate(run: Run) -> None:
    """Set the learning rate by a range test if `task.lr_from` asks for it, once a run.

    Nothing is written.

    Raises:
        ConfigError: the range test suggests no rate.
    """
    asked = run.directory.config.task.lr_from is not None
    if asked and run.training.step == 0 and not run.search:
        from debugnn.runs.learning_rate import choose

        run.search = choose(run.directory.config.task, run.training)


@contextmanager
def open_run(run: Run, **more_facts: object) -> Iterator[Write]:
    """Keep what is written in the block: records, checkpoints, and how the run ended.

    Args:
        more_facts: of this run, for run.json.

    Yields:
        The function that takes each record of the run.

    Raises:
        ConfigError: the directory cannot be written.
        RunError: see `RunDirectory.claimed`; or rows of the run that is continued are damaged.
    """
    directory, training = run.directory, run.training
    config = directory.config
    facts = facts_of(config, directory.experiment, directory.arm, training) | more_facts
    earlier = 0.0  # seconds, of a run that is continued
    started = time.perf_counter()
    status = "failed"
    ahead: dict[str, Any] | None = None  # the training's state during an evaluation
    with directory.claimed(), Writer() as writer:
        rows = JsonLines(directory.path, training.place)
        sinks: list[Sink] = [rows]
        if directory.status is not None:
            from debugnn.runs import kept

            before = kept.read_facts(directory)
            facts["wandb_id"], facts["started"] = before["wandb_id"], before["started"]
            earlier = before.get("seconds", 0.0)
        facts["seconds"] = earlier  # known to the next piece even if this one is killed
        directory.write_facts(facts)

        def save(state: dict[str, Any]) -> None:
            writer.submit(checkpoint.write, directory.checkpoint, state)
            writer.hurry()
            run.pauses.saved()

        def write(record: Told) -> None:
            nonlocal ahead
            ahead = None
            if isinstance(record, Evaluating):
                if run.pauses.due(training.place):
                    ahead = _state_of(run)
                return
            if isinstance(record, Pruned):
                facts["pruned"] = asdict(record)
                return
            # The writer keeps the order: the checkpoint must not be ahead of the rows.
            if isinstance(record, Pause):
                writer.submit(rows.flush)
            else:
                writer.submit(_write, sinks, record)
            if isinstance(record, Pause) or (isinstance(record, Epoch) and _checkpoint_due(run)):
                save(_state_of(run))

        try:
            if config.wandb.mode != "disabled":
                from debugnn.runs.wandb_sink import begin

                logged = begin(directory, facts["wandb_id"], training)
                facts["wandb_id"] = logged.id
                sinks.append(logged)
                directory.write_facts(facts)
                if directory.status is not None:
                    logged.log_kept()
            yield write
            writer.drain()
            rows.close(failed=False)  # a full disk is noticed here at the latest
            status = "pruned" if "pruned" in facts else "finished"
        except Interrupted:
            if ahead is not None:
                writer.submit(rows.flush)
                save(ahead)
            for sink in sinks:
                sink.hurry()
            writer.drain()
            status = "interrupted"
            log.warning("  stopped after step %d: the same command goes on", training.step)
            raise
        except (Exception, SystemExit) as error:
            facts["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            writer.wait()
            for sink in sinks:
                with suppress(OSError):  # of a full disk, which the run has failed on already
                    sink.close(failed=status == "failed")
            facts["seconds"] = round(earlier + time.perf_counter() - started, 3)
            facts["status"] = status
            directory.write_facts(facts)


def _state_of(run: Run) -> dict[str, Any]:
    doctor = run.doctor if run.directory.config.doctor.keep else None
    return checkpoint.state_of(run.training, None if doctor is None else doctor.state_dict())


def _write(sinks: Sequence[Sink], record: Record | Diagnosis) -> None:
    for sink in sinks:
        sink.write(record)


def _checkpoint_due(run: Run) -> bool:
    settings, epoch = run.directory.config.trainer, run.training.epoch
    if epoch == settings.epochs:
        return True
    return run.pauses.due(run.training.place, regular=epoch % settings.checkpoint_every == 0)


def records_of(run: Run) -> Iterator[Told]:
    """Do the task of a run, and yield its records: range tests, the training, its diagnosis."""
    config, training = run.directory.config, run.training
    yield from run.search
    if config.task.name == "lr_find":
        if not run.search and training.step == 0:
            from debugnn.runs.learning_rate import range_tests

            yield from range_tests(config.task, training)
        return
    if config.doctor.enabled:
        from debugnn.runs.diagnosis import diagnosed, doctor_of

        with doctor_of(config, training, run.directory.path, run.doctors_state) as run.doctor:
            yield from diagnosed(config, training, run.doctor, run.pauses)
    else:
        yield from fit(training, config.trainer.epochs, pause=run.pauses)
