"""A learning rate that is too low."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import (
    LARGE_UPDATE,
    STILL,
    cured,
    diverged,
    largest_update,
    severity,
    short,
    shown_by,
    trial_numbers,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import HIGHER_RATES, Trial

# Movement, over STILL, below which no trial is needed.
WITHOUT_TRIAL = 0.1
# Factor on the rate that is proposed where no trial tells one.
PROPOSED = 1000.0


def still_weights(evidence: Evidence) -> Iterator[Sign]:
    """Weights that have hardly moved in the whole training, and a copy learns at a higher rate."""
    movement = evidence.outcome.movement
    if not short(evidence) or diverged(evidence) or movement is None:
        return
    faster = cured(evidence, *HIGHER_RATES)
    if movement > STILL or (faster is None and movement > WITHOUT_TRIAL * STILL):
        return
    factor = faster.lr if faster else PROPOSED
    higher = f"{(evidence.optimizer.lr or 0) * factor:.3g}"
    yield Sign(
        severity(evidence),
        f"after {evidence.loop.steps} steps the weights have moved by {100 * movement:.2g} % of "
        "their size" + (f"; at a rate of {higher} a copy learns" if faster else ""),
        f"raise the learning rate, to {higher} say",
        evidence={
            "lr": evidence.optimizer.lr,
            "movement": movement,
            **trial_numbers(evidence, *HIGHER_RATES),
        },
        confidence=shown_by(evidence, faster),
        override=f"optim.lr={higher}",
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Try higher rates, one after the other, until one learns."""
    slow = largest_update(evidence)[0] < LARGE_UPDATE and not diverged(evidence)
    if slow and not cured(evidence, *HIGHER_RATES):
        yield from HIGHER_RATES


CAUSE = Cause(
    name="lr_too_low",
    meaning="a learning rate that is too low",
    kind=Kind.RIVAL,
    rules=(still_weights,),
    fix="raise the learning rate",
    harm="the weights hardly leave their initial values in the steps that there are",
    source="Smith 2017, arXiv:1506.01186; the article's claim 4",
    override="optim.lr=1e-3",
    trials=trials,
)
