"""The course of a training's loss."""

import math
from statistics import fmean

from debugnn.doctor.evidence import Evidence

# A loss has no bound where it ends this many times its first size below zero, and at least this
# far: likelihoods, rewards and critics' scores of sound programs end within some hundred times.
RUNAWAY = 1e4
# Fall over the last tenth of the training, over that of a tenth on average, below which a loss has
# found a bound: a policy's reward may be of any size.
LEVELLED = 0.25
# A loss this many times its first value has diverged. Single losses of sound programs stay below
# 1.6 times the first; the median of the last tenth scatters less than single losses.
DIVERGED = 3.0
STILL_DIVERGED = 1.5
# A loss this many times its first value explains a NaN: numbers had grown before they overflowed.
OVERFLOWING = 1e3
OVERFLOWING_FROM = 1e-3  # the least first loss that this is measured from
# Level below which a mean of ten losses has left the plateau of guessing.
LEFT_PLATEAU = 0.93
# A plateau counts where it takes this share of the training, and at least so many steps. Sound
# programs leave it within 0.1 of their steps.
PLATEAU_SHARE = 0.15
PLATEAU_STEPS = 30
# Share of its whole fall by which the loss of a training at a standstill still falls from one third
# of it to the last one. Means of three medians scatter by less, and trials tell the rest.
STANDSTILL = 0.1
THIRD = 3  # of the ten parts that such medians are of
# Share of the fall of the loss by which it has risen again, as medians of tenths of the training,
# from which lower rates are tried: the scatter of such medians is some hundredths of the fall.
UNLEARNT = 0.25
# Steps whose losses must all be 0.
ZEROS = 100


def plateau(evidence: Evidence) -> int | None:
    """Return the steps before the loss left the level of guessing; None where not measured."""
    return evidence.outcome.first_below.get(LEFT_PLATEAU)


def learns_late(evidence: Evidence) -> bool:
    """Return whether it learnt only after a plateau that took a good part of the training."""
    steps = plateau(evidence)
    least = max(PLATEAU_STEPS, PLATEAU_SHARE * evidence.loop.steps)
    return steps is not None and steps >= least


def diverged(evidence: Evidence) -> bool:
    """Return whether the loss has grown far above its first value."""
    outcome = evidence.outcome
    if outcome.nonfinite_step is not None:
        return True
    first, highest, last = outcome.first_loss, outcome.highest_loss, outcome.last_loss
    if first is None or highest is None or last is None:
        return False
    return highest > DIVERGED * abs(first) + 1e-9 or last > STILL_DIVERGED * abs(first)


def stands_still(evidence: Evidence) -> bool:
    """Return whether the loss no longer falls in the last third of the training."""
    course = evidence.outcome.tenths
    if len(course) < 2 * THIRD:
        return False
    before, last = fmean(course[-2 * THIRD : -THIRD]), fmean(course[-THIRD:])
    return before - last < STANDSTILL * (course[0] - min(course))


def unlearns(evidence: Evidence) -> bool:
    """Return whether the loss rises again for good after it has fallen, by a part of its fall."""
    course, first = evidence.outcome.tenths, evidence.outcome.first_loss
    if len(course) < 2 or first is None:
        return False
    return course[-1] - min(course) > UNLEARNT * (first - min(course)) > 0


def overflowed(evidence: Evidence) -> bool:
    """Return whether a non-finite number ended a divergence, and no operation was invalid."""
    found = evidence.nonfinite
    if found is None:
        return evidence.outcome.nonfinite_step is not None and not evidence.data.nonfinite_samples
    if found.where in ("input", "target"):
        return False
    if found.where in ("parameter", "buffer", "update"):
        return found.step > 0 and (found.overflow or _diverged_before(evidence, found.step))
    return found.overflow or found.where == "unknown" or _diverged_before(evidence, found.step)


def _diverged_before(evidence: Evidence, step: int) -> bool:
    first, highest = evidence.outcome.first_loss, evidence.outcome.highest_loss
    if first is None or highest is None or not math.isfinite(first):
        return False
    return step > 0 and highest > OVERFLOWING * max(abs(first), OVERFLOWING_FROM)


def always_zero(evidence: Evidence) -> str | None:
    """The loss has been exactly 0 in all steps, from the first one on."""
    outcome, steps = evidence.outcome, evidence.loop.steps
    if evidence.loop.steps_before or steps < ZEROS:
        return None
    if outcome.first_loss == outcome.highest_loss == outcome.lowest_loss == 0:
        return (
            f"the loss is exactly 0 in all {steps} steps, from the first one on: it asks for "
            "nothing"
        )
    return None


def runs_away(evidence: Evidence) -> str | None:
    """What is minimised has no lower bound, and the training has run far down."""
    outcome = evidence.outcome
    first, last, course = outcome.first_loss, outcome.last_loss, outcome.tenths
    if first is None or last is None or not last < -RUNAWAY * max(abs(first), 1.0):
        return None
    if len(course) < 2 or course[-2] - course[-1] < LEVELLED * (course[0] - course[-1]) / len(
        course
    ):
        return None
    return (
        f"the loss falls without end, from {first:.3g} to {last:.3g}: it has no lower bound, as "
        "where a sign is flipped, or a term is missing that holds the outputs back"
    )
