"""A loss that is summed over the batch."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import (
    cured,
    diverged,
    failing,
    severity,
    short,
    shown_by,
    summed,
    trial_numbers,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import AVERAGED_LOSS, LOWER_RATES, Trial


def summed_loss(evidence: Evidence) -> Iterator[Sign]:
    """A sum does harm where its average, or a lower rate, cures: it multiplies the rate by the
    batch size. Elsewhere it is a note."""
    if not summed(evidence):
        return
    averaged, slower = cured(evidence, AVERAGED_LOSS), cured(evidence, *LOWER_RATES)
    ran_off = failing(evidence) and diverged(evidence)
    harmful = short(evidence) and (averaged or slower or ran_off)
    yield Sign(
        severity(evidence) if harmful else "note",
        "the loss is summed over the batch, so that its gradient grows with the batch size"
        + ("; averaged, a copy learns" if averaged else ""),
        evidence=trial_numbers(evidence, AVERAGED_LOSS),
        confidence=shown_by(evidence, averaged or slower),
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Average a loss that is summed."""
    if summed(evidence):
        yield AVERAGED_LOSS


CAUSE = Cause(
    name="loss_reduction",
    meaning="a loss that is summed over the batch",
    kind=Kind.RIVAL,
    rules=(summed_loss,),
    fix='average the loss over the batch (reduction="mean")',
    harm="gradients grow with the batch size, and with them every step",
    source="TheDeepChecker (Ben Braiek & Khomh 2023): the loss doubles with the batch",
    trials=trials,
)
