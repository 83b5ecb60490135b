"""What the course of a training's loss says of the loss itself."""

from debugnn.doctor.causes.signals.outcome import UNKNOWN_JUDGED_AFTER
from debugnn.doctor.evidence import Evidence

# A loss has no bound where it ends this many times its first size below zero, and at least this
# far: likelihoods, rewards and critics' scores of sound programs end within some hundred times.
RUNAWAY = 1e4
# Fall over the last tenth of the training, over that of a tenth on average, below which a loss has
# found a bound: a policy's reward may be of any size.
LEVELLED = 0.25


def always_zero(evidence: Evidence) -> str | None:
    """The loss has been exactly 0 in all steps, from the first one on."""
    outcome, steps = evidence.outcome, evidence.loop.steps
    if evidence.loop.steps_before or steps < UNKNOWN_JUDGED_AFTER:
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
