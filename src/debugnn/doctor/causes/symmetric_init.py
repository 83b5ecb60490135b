"""Units that start equal and stay equal."""

import itertools
from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.network import outsized_constant
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.wording import module_of
from debugnn.doctor.evidence import Evidence, WeightFacts
from debugnn.doctor.report import Finding

# Share of the weight tensors with equal rows above which symmetry is the whole initialisation.
ALL_SYMMETRIC = 0.9


def symmetric_layer(evidence: Evidence) -> WeightFacts | None:
    """Return the first hidden layer whose units start equal and are told apart by nothing after."""
    weights = evidence.weights
    if len(weights) < 2:
        return None
    constant = sum(w.identical_rows for w in weights) / len(weights)
    for layer, following in itertools.pairwise(weights):
        if not layer.identical_rows:
            continue
        if following.identical_columns and (constant >= ALL_SYMMETRIC or short(evidence)):
            return layer
        if failing(evidence):
            return layer
    return None


def equal_units(evidence: Evidence) -> Iterator[Sign]:
    """A hidden layer whose units have equal weights, which nothing after it tells apart."""
    layer = symmetric_layer(evidence)
    if layer is None:
        return
    yield Sign(
        severity(evidence),
        "all weights of the layer start equal, so that its units stay equal"
        if layer.constant
        else "all units of the layer start with equal weights, get equal gradients, and stay equal",
        layer=module_of(layer.name),
        step=0,
        evidence={"gain": layer.gain},
        confidence="certain",
    )


def after_its_size(evidence: Evidence, finding: Finding) -> int:
    """Constant weights that are outsized fail by their size first."""
    return 1 if outsized_constant(evidence) else 0


CAUSE = Cause(
    name="symmetric_init",
    meaning="units that start equal and stay equal",
    kind=Kind.SYMPTOM,
    rules=(equal_units,),
    fix="initialise at random (torch.nn.init.kaiming_uniform_)",
    harm="equal units get equal gradients, and together do no more than one unit",
    source="Goodfellow et al. 2016, Deep Learning, section 8.4: breaking symmetry",
    override="init=kaiming",
    lateness=after_its_size,
)
