"""Layers without a nonlinearity between them."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.outcome import severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import relu_override
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import RECTIFIED, Trial

# Weight layers that follow each other: two linear maps are one.
LAYERS = 2
# Bend of a linear network: rounding is below 1e-6, tanhs of small arguments have 1e-4.
STRAIGHT = 1e-5


def linear(evidence: Evidence) -> bool:
    """Return whether layers that follow each other are one linear map, by the operations of the
    forward pass or by its outputs: an activation may be a straight line, or its result unused.

    The outputs have to be straight at the start and after the training: a branch whose last layer
    starts at zero, or whose gate is closed at first, does not bend yet."""
    network = evidence.network
    bends = [bend for bend in (network.bend, network.trained_bend) if bend is not None]
    straight = network.bend is not None and max(bends) < STRAIGHT
    return network.depth >= LAYERS and (network.nonlinear is False or straight)


def redundant(evidence: Evidence) -> bool:
    """Return whether one layer could do what the layers do: none of them is narrower than the
    input and the output. A narrow one is a map of low rank, which can be meant."""
    hidden, last = evidence.weights[:-1], evidence.weights[-1:]
    if not hidden:
        return False
    return min(weight.outputs for weight in hidden) >= min(hidden[0].inputs, last[0].outputs)


def linear_layers(evidence: Evidence) -> Iterator[Sign]:
    """The network is linear in its input, though it has several layers."""
    network = evidence.network
    if not linear(evidence):
        return
    cure = cured(evidence, RECTIFIED)
    identity = redundant(evidence)
    yield Sign(
        severity(evidence) if identity or short(evidence) else "note",
        f"{network.depth} weight layers follow each other without an activation: together they "
        "are no more than one linear map",
        evidence={"weight_layers": network.depth, **trial_numbers(evidence, RECTIFIED)},
        override=relu_override(evidence),
        confidence="certain" if identity else shown_by(evidence, cure),
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Put ReLUs between linear layers."""
    if linear(evidence):
        yield RECTIFIED


CAUSE = Cause(
    name="no_nonlinearity",
    meaning="layers without a nonlinearity between them",
    kind=Kind.RIVAL,
    rules=(linear_layers,),
    fix="put an activation (ReLU) after every hidden layer",
    harm="such layers can do no more than one linear layer",
    source="identity: a composition of linear maps is linear",
    override="model=relu_net",
    trials=trials,
)
