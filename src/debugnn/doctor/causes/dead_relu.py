"""Units that are zero for every sample."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.network import Stuck, stuck_layer
from debugnn.doctor.causes.signals.outcome import severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding
from debugnn.doctor.trials import REINITIALISED, Trial

# Share of a layer's units that are zero for every sample. SageMaker Debugger warns at half of a
# layer; sound programs have up to 0.42, dead layers 1.
DEAD = 0.75


def dead_units(evidence: Evidence) -> Stuck | None:
    """Return the share of dead units, layer, step, and whether they were dead from the start."""
    return stuck_layer(evidence, lambda a: a.dead, DEAD)


def dead_layer(evidence: Evidence) -> Iterator[Sign]:
    """A layer of a failing training in which most units are dead."""
    found = dead_units(evidence)
    if found is None or not short(evidence):
        return
    share, layer, step, from_start = found
    yield Sign(
        severity(evidence),
        f"{100 * share:.0f} % of the units are zero for every sample of a batch"
        + (", from the start" if from_start else ""),
        None if from_start else "lower the learning rate, or use leaky ReLU",
        layer=layer or None,
        step=step,
        evidence={"dead_units": share},
        confidence=shown_by(evidence, cured(evidence, REINITIALISED) if from_start else None),
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Draw weights and biases anew where a layer is dead."""
    if dead_units(evidence):
        yield REINITIALISED


def after_what_killed_them(evidence: Evidence, finding: Finding) -> int:
    """Units that were alive at the start died of something else."""
    return 1 if finding.step else 0


CAUSE = Cause(
    name="dead_relu",
    meaning="units that are zero for every sample",
    kind=Kind.SYMPTOM,
    rules=(dead_layer,),
    fix="start from a bias of 0 and weights by Kaiming's rule, or use leaky ReLU",
    harm="a unit that is zero for every sample gets no gradient, and never comes back",
    source="Maas et al. 2013; Lu et al. 2019, arXiv:1903.06733; the article's claim 6",
    override="model=leaky_relu",
    trials=trials,
    lateness=after_what_killed_them,
)
