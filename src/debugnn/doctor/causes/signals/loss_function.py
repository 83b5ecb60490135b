"""What the loss function asks for, and how losses are added up."""

import math
import statistics

from debugnn.doctor.evidence import Evidence

# The loss of a doubled batch over that of the batch is 2 for a sum and 1 for a mean.
SUM_TOLERANCE = 0.02
# Loss of perfect outputs over that of the best constant ones above which they are out of
# reach: 0.63 for a softmax applied twice to ten classes, 0 for a sound loss.
UNREACHABLE = 0.2
# Relative change of a loss that ignores a shift of all logits; an L2 term on logits adds < 1 %.
SHIFT_TOLERANCE = 0.01
# Where more confidence in right outputs costs again, labels are smoothed: the loss at the most
# confident outputs over the lowest.
SMOOTHED = 1.5
SMOOTHED_BY = 1e-3
# Gradients that reach the outputs over the loss function's own, by which a loss counts as not
# divided; rounding is far below.
UNDIVIDED = 0.02


def summed(evidence: Evidence) -> bool:
    """Return whether the loss adds up over the batch."""
    doubling = evidence.loss.doubling
    return evidence.loss.scalar and doubling is not None and abs(doubling - 2) < SUM_TOLERANCE


def better_when_right(evidence: Evidence) -> bool | None:
    """Return whether the loss is lower where the outputs are right; None where it cannot be told.

    A loss whose sign was flipped goes below zero. A loss that does not (of a distance, say) may
    have another idea of what is right, so that a higher value proves nothing.
    """
    pairs = evidence.loss.rewards
    values = [value for pair in pairs for value in pair]
    if not values or not all(map(math.isfinite, values)):
        return None
    if any(right < wrong for right, wrong in pairs):
        return True
    return False if evidence.task == "classes" or min(values) < 0 else None


def loss_floor(evidence: Evidence) -> float | None:
    """Return the loss of perfect outputs over that of the best constant ones.

    None where it means nothing: the constant's loss is not positive, labels are smoothed, or it
    cannot be told what the loss rewards.
    """
    loss = evidence.loss
    if loss.best is None or loss.constant is None or not loss.constant > 0:
        return None
    if evidence.task == "binary" and better_when_right(evidence) is None:
        return None
    if loss.confident is not None and loss.confident > SMOOTHED * loss.best + SMOOTHED_BY:
        return None
    return loss.best / loss.constant


def shift_invariant(evidence: Evidence) -> bool | None:
    """Return whether adding a constant to all outputs of a sample leaves the loss as it is."""
    if evidence.task == "binary":
        return False if evidence.loss.squared else None
    change = evidence.loss.shift_change
    return None if change is None else change <= SHIFT_TOLERANCE


def undivided_passes(evidence: Evidence) -> int | None:
    """Return how many backward passes are added up for an update, where their loss is not divided
    by that number; None where it is, or where there is one pass."""
    counts, scale = evidence.loop.passes_per_update, evidence.loop.gradient_scale
    passes = statistics.mode(counts) if counts else 1
    if passes < 2 or scale is None or abs(scale - 1) > UNDIVIDED:
        return None
    return passes
