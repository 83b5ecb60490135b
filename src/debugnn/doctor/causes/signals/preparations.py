"""Whether training and validation samples are prepared in different ways."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from debugnn.doctor.causes.signals.skill import JUDGED_AFTER
from debugnn.doctor.evidence import Evidence, RecodedFacts

# Own loss on validation over that on training samples from which there is something to explain,
# and the share of the difference that a change of the inputs has to take away, on each part of
# the samples. Overfitting leaves no such change; one that is by the way takes next to nothing away.
HIGHER = 1.5
TAKEN_AWAY = 0.8
# Share of what the training has taken off the loss that the validation samples lack: of a net that
# is nearly sure of all samples, a multiple of the training loss is next to nothing.
LOST = 0.05
# Own loss on training samples over the training's first loss above which nothing is learnt.
FALLEN = 0.8
# The same share that new numbers for the categories have to take away, which are chosen on few
# samples of each, and partly wrong. Chosen on noise they take nothing away.
REGAINED = 0.25
# Correlation of what a local model says with validation targets from which it knows them; shares of
# it that the targets of training images stay below as they are, and reach once they are moved; and
# by how many standard errors another image's target has to fit less.
KNOWN = 0.3
APART = 0.75
TOGETHER = 0.8
OWN_TARGET = 5.0

TURNED, SHIFTED = "flipped or turned", "shifted"  # what is done to an image alone


class Preparation(NamedTuple):
    """A change of the validation inputs that brings their loss down to that of training samples.

    The losses are means, by the training's own loss function.
    """

    change: str
    training: float
    validation: float  # as they are
    changed: float


def other_preparation(evidence: Evidence) -> Preparation | None:
    """Return the change of the validation inputs that does so; None where none does."""
    facts = evidence.data.preparations
    if facts is None or not _much_higher(evidence, facts.training, facts.validation):
        return None
    trained, plain = facts.training, facts.validation
    # A change that lowers the loss of training samples too, as a larger scale does where a net is
    # right and not yet sure, tells nothing about validation samples.
    taken = {
        name: min((p - c) / (p - trained) for p, c in zip(plain, losses, strict=True))
        for name, losses in facts.changed.items()
        if facts.training_changed.get(name, trained) > trained / HIGHER
    }
    change = max(taken, key=taken.__getitem__, default=None)
    if change is None or not taken[change] > TAKEN_AWAY:
        return None
    return Preparation(change, trained, fmean(plain), fmean(facts.changed[change]))


def renumbered(evidence: Evidence) -> RecodedFacts | None:
    """Return the losses where one table of new numbers for the categories of validation samples
    brings them down to the loss of training samples."""
    facts = evidence.data.recoded
    if facts is None or not _much_higher(evidence, facts.training, facts.validation):
        return None
    losses = zip(facts.validation, facts.renumbered, strict=True)
    regained = min((p - c) / (p - facts.training) for p, c in losses)
    return facts if regained > REGAINED else None


def _much_higher(evidence: Evidence, trained: float, validation: Sequence[float]) -> bool:
    """Return whether all these losses are so high beside that of training samples, of a training
    that has learnt, that the difference wants an explanation."""
    first = evidence.outcome.first_loss
    if first is None or evidence.loop.steps < JUDGED_AFTER or not 0 < trained < FALLEN * first:
        return False
    least = min(validation)
    return least >= HIGHER * trained and least - trained >= LOST * (first - trained)


def moved_apart(evidence: Evidence) -> str | None:
    """Return what was done to training images and not to their targets."""
    facts = evidence.data.alignment
    if facts is None or facts.validation < KNOWN or facts.training > APART * facts.validation:
        return None
    found = {
        TURNED: (facts.turned, facts.turned_gap),
        SHIFTED: (facts.shifted, facts.shifted_gap),
    }
    for change, (fits, gap) in found.items():
        if fits > TOGETHER * facts.validation and gap > OWN_TARGET:
            return change
    return None
