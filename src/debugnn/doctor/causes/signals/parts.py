"""The parts of a loss, one output and one target each, where the whole is no known task."""

import math
from typing import NamedTuple

from debugnn.doctor.causes.signals.outcome import AT_CHANCE, FAR_BEHIND, LOSS_AT_CHANCE
from debugnn.doctor.causes.signals.skill import JUDGED_AFTER, fitted
from debugnn.doctor.evidence import Evidence, PartFacts

# Skill of a simple model that shows that a part can be learnt. Beside other parts one may be left
# behind for a while, or on purpose by a small weight, so that a little is not enough.
LEARNABLE = 0.3
# Last loss over the first one, below which a loss that no other network moves has fallen: more than
# a bias or a scale gains that fits the outputs to the targets' mean.
FALLEN_TO = 0.5
# Loss of guessing of one part over that of another, beyond which it leaves the other no gradient to
# speak of; and the whole loss at the start, over that of the larger part: it counts in full.
OUTWEIGHED = 30.0
COUNTS = 0.5


def fell(evidence: Evidence) -> bool:
    """Return whether the loss has come down by much, and not below zero.

    Below zero it may be a reward, or have a sign flipped, so that its fall tells nothing. False too
    where another network is trained against this one, and moves the loss.
    """
    first, last = evidence.outcome.first_loss, evidence.outcome.last_loss
    if first is None or last is None or evidence.adversarial:
        return False
    return 0 <= last < FALLEN_TO * first


def part_skill(part: PartFacts) -> float | None:
    """Return the skill of a part on training samples, the better one of both modes."""
    classes = Evidence(classes=part.classes)
    found = [fitted(score, classes) for score in (part.train, part.train_mode)]
    return max((skill for skill in found if skill is not None), default=None)


def idle_part(evidence: Evidence) -> PartFacts | None:
    """Return a part that is not learnt at all, though a simple model finds much; None without.

    What an autoencoder rebuilds is among its inputs, where a simple model finds it whole.
    """
    if not _judged(evidence) or evidence.reconstruction:
        return None
    for part in evidence.outcome.parts:
        simple, skill = part.simple_skill, part_skill(part)
        if part.against or simple is None or skill is None or simple < LEARNABLE:
            continue
        if skill < AT_CHANCE and _lowest_loss(part) > LOSS_AT_CHANCE:
            return part
    return None


class Outweighed(NamedTuple):
    """A part that is not learnt, and one that is, of a loss so much larger."""

    idle: PartFacts
    larger: PartFacts
    guessing: tuple[float, float]  # the loss of guessing, of either


def outweighed_part(evidence: Evidence) -> Outweighed | None:
    """Return a part that is not learnt beside a learnt one of far larger loss, None without."""
    idle, first = idle_part(evidence), evidence.outcome.first_loss
    own = None if idle is None else _guessing(idle)
    if idle is None or own is None or first is None:
        return None
    for part in evidence.outcome.parts:
        other = _guessing(part)
        if part is idle or other is None or not _learns(part):
            continue
        if other > OUTWEIGHED * own and first > COUNTS * other:
            return Outweighed(idle, part, (own, other))
    return None


def _guessing(part: PartFacts) -> float | None:
    loss, relative = part.train.loss, part.train.relative_loss
    return loss / relative if loss and relative else None


def parts_learn(evidence: Evidence) -> bool:
    """Return whether all that the loss compares is known and learnt."""
    if not (_judged(evidence) and evidence.outcome.parts_are_all):
        return False
    return all(_learns(part) for part in evidence.outcome.parts if not part.against)


def _learns(part: PartFacts) -> bool:
    skill = part_skill(part)
    if skill is None or skill < AT_CHANCE or _lowest_loss(part) > LOSS_AT_CHANCE:
        return False
    return part.simple_skill is None or skill > part.simple_skill - FAR_BEHIND


def _lowest_loss(part: PartFacts) -> float:
    losses = [part.train.relative_loss, part.train_mode.relative_loss]
    return min((loss for loss in losses if loss is not None), default=math.inf)


def _judged(evidence: Evidence) -> bool:
    """Return whether there are parts, and the training was long enough to judge them."""
    known = bool(evidence.outcome.parts) and not evidence.adversarial
    finite = evidence.outcome.nonfinite_step is None
    return known and finite and evidence.loop.steps >= JUDGED_AFTER
