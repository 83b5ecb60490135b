"""Inputs far from zero mean and unit scale."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.data import odd_inputs
from debugnn.doctor.causes.signals.outcome import severity, short
from debugnn.doctor.causes.signals.trials import cured, trial_numbers
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import STANDARDISED_INPUTS, Trial


def unscaled_inputs(evidence: Evidence) -> Iterator[Sign]:
    """The inputs' scale is unusual, and a copy learns once they are standardised."""
    odd = odd_inputs(evidence)
    if odd is None or not short(evidence) or cured(evidence, STANDARDISED_INPUTS) is None:
        return
    data = evidence.data
    yield Sign(
        severity(evidence),
        f"the inputs are not standardised, {odd}; standardised, a copy learns",
        evidence={
            "rms": data.rms,
            "mean": data.mean,
            "std": data.std,
            **trial_numbers(evidence, STANDARDISED_INPUTS),
        },
        confidence="shown",
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Standardise inputs whose scale is unusual."""
    if odd_inputs(evidence):
        yield STANDARDISED_INPUTS


CAUSE = Cause(
    name="input_scale",
    meaning="inputs far from zero mean and unit scale",
    kind=Kind.RIVAL,
    rules=(unscaled_inputs,),
    fix="subtract the training inputs' mean and divide by their standard deviation",
    harm="no single learning rate suits weights whose inputs differ so much in size",
    source="LeCun et al. 1998, Efficient BackProp, section 4.3",
    override="data.scale=normalised",
    trials=trials,
)
