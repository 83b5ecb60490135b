"""Layers without a nonlinearity between them."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import relu_override, severity, short
from debugnn.doctor.evidence import Evidence

# Weight layers that follow each other: two linear maps are one.
LAYERS = 2


def linear_layers(evidence: Evidence) -> Iterator[Sign]:
    """The forward pass is linear in its input. A low-rank map to several values can be meant."""
    network = evidence.network
    if network.nonlinear is not False or network.depth < LAYERS:
        return
    shapes = evidence.loss.shapes
    several = evidence.task == "values" and len(shapes) == 2 and len(shapes[1]) > 1
    low_rank = several and shapes[1][-1] > 1
    yield Sign(
        "note" if low_rank and not short(evidence) else severity(evidence),
        f"{network.depth} weight layers follow each other without an activation: together they "
        "are no more than one linear map",
        evidence={"weight_layers": network.depth},
        override=relu_override(evidence),
    )


CAUSE = Cause(
    name="no_nonlinearity",
    meaning="layers without a nonlinearity between them",
    kind=Kind.CERTAIN,
    rules=(linear_layers,),
    fix="put an activation (ReLU) after every hidden layer",
    harm="such layers can do no more than one linear layer",
    source="identity: a composition of linear maps is linear",
    override="model=relu_net",
)
