"""Activations at their bounds, where they are flat."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.dead_relu import after_what_killed_them
from debugnn.doctor.causes.signals.network import Stuck, stuck_layer
from debugnn.doctor.causes.signals.outcome import severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import RECTIFIED, REINITIALISED, Trial

# Share of a layer's values at their bounds. TheDeepChecker warns at ρ > 0.85, SageMaker at half;
# sound programs have up to 0.45, saturated layers 1.
SATURATED = 0.6


def saturated_values(evidence: Evidence) -> Stuck | None:
    """Return the share of saturated values, layer, step, and whether from the start."""
    return stuck_layer(evidence, lambda a: a.saturated, SATURATED)


def saturated_layer(evidence: Evidence) -> Iterator[Sign]:
    """A layer of a failing training whose sigmoids or tanhs lie at their bounds."""
    found = saturated_values(evidence)
    if found is None or not short(evidence):
        return
    share, layer, step, from_start = found
    yield Sign(
        severity(evidence),
        f"{100 * share:.0f} % of the activations lie at their bounds, where the derivative is "
        "almost zero" + (", from the start" if from_start else ""),
        layer=layer or None,
        step=step,
        evidence={"saturated": share, **trial_numbers(evidence, REINITIALISED, RECTIFIED)},
        confidence=shown_by(evidence, cured(evidence, REINITIALISED, RECTIFIED)),
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Draw weights and biases anew, or put ReLUs, where a layer is saturated."""
    if saturated_values(evidence):
        yield from (REINITIALISED, RECTIFIED)


CAUSE = Cause(
    name="saturated_activation",
    meaning="activations at their bounds, where they are flat",
    kind=Kind.SYMPTOM,
    rules=(saturated_layer,),
    fix="make weights and biases before the activation smaller (Xavier's rule), or use ReLU",
    harm="the derivative is almost zero there, so that the layers before hardly learn",
    source="Glorot & Bengio 2010; TheDeepChecker (Ben Braiek & Khomh 2023)",
    override="init=xavier",
    trials=trials,
    lateness=after_what_killed_them,
)
