"""Runs that end early, because the doctor calls them hopeless: `prune_on=doctor`.

The doctor is asked at a few early steps and at the end of each epoch. It looks at a copy, and so a
run that is not pruned is, bit for bit, the run without pruning. A pruned run is kept with a
checkpoint, and goes on from there if it is asked for without pruning.
"""

from collections.abc import Callable, Iterator

from debugnn.doctor import Doctor
from debugnn.records import Epoch, Evaluating, Pause, Pruned, Record
from debugnn.training.loop import Training

_EARLY = (50, 100, 200)  # steps before which the doctor is asked inside a long first epoch


def pause_for_looks(training: Training, pause: Callable[[], bool]) -> Callable[[], bool]:
    """Return the pauses of a run, with those at which the doctor is asked."""
    return lambda: pause() or training.step in _EARLY


def until_hopeless(
    records: Iterator[Record | Pause | Evaluating], training: Training, doctor: Doctor, epochs: int
) -> Iterator[Record | Pause | Evaluating | Pruned]:
    """Yield the records of a training, up to where it is hopeless, and then a `Pruned`.

    Args:
        doctor: watches the training.
        epochs: that are trained; the doctor is not asked at their end.
    """
    # The checkpoint that a run goes on from may be the last one before it was to be pruned.
    begun = training.step > 0 and (training.tally is None or training.step in _EARLY)
    if begun and (reason := doctor.hopeless()):
        yield Pruned(training.step, reason)
        return
    for record in records:
        yield record
        if isinstance(record, Epoch | Pause) and training.epoch < epochs:
            reason = doctor.hopeless()
            if reason:
                yield Pruned(training.step, reason)
                return
