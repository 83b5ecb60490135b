"""Units that start equal and stay equal."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import (
    module_of,
    outsized_constant,
    severity,
    symmetric_layer,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding


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
