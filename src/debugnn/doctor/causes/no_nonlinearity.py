"""Layers without a nonlinearity between them."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import (
    cured,
    relu_override,
    severity,
    short,
    shown_by,
    trial_numbers,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import RECTIFIED, Trial

# Weight layers that follow each other: two linear maps are one.
LAYERS = 2


def linear_layers(evidence: Evidence) -> Iterator[Sign]:
    """The forward pass is linear in its input. That can be meant: a map of low rank, say, or
    embeddings that are compared. It is a fault where the training stays behind."""
    network = evidence.network
    if network.nonlinear is not False or network.depth < LAYERS:
        return
    cure = cured(evidence, RECTIFIED)
    yield Sign(
        severity(evidence) if short(evidence) else "note",
        f"{network.depth} weight layers follow each other without an activation: together they "
        "are no more than one linear map",
        evidence={"weight_layers": network.depth, **trial_numbers(evidence, RECTIFIED)},
        override=relu_override(evidence),
        confidence=shown_by(evidence, cure),
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Put ReLUs between linear layers."""
    if evidence.network.nonlinear is False and evidence.network.depth >= LAYERS:
        yield RECTIFIED


CAUSE = Cause(
    name="no_nonlinearity",
    meaning="layers without a nonlinearity between them",
    kind=Kind.RIVAL,
    rules=(linear_layers,),
    fix="put an activation (ReLU) after every hidden layer",
    source="identity: a composition of linear maps is linear",
    override="model=relu_net",
    trials=trials,
)
