"""A hidden activation that does not suit the layers or the loss."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.wording import listed, relu_override
from debugnn.doctor.evidence import Evidence

# Steps in which all second derivatives are zero: at one alone, the units of a curved activation may
# all be saturated, where rounding leaves nothing of them.
LOOKS = 2


def hidden_softmax(evidence: Evidence) -> Iterator[Sign]:
    """A weight layer's input is a distribution, or its logarithm, that the network made."""
    layers = evidence.network.softmax_inputs
    if layers:
        yield Sign(
            severity(evidence),
            f"the input of {listed(layers)} is a distribution: a softmax is used as a hidden "
            "activation, where it makes the units compete and leaves hardly a gradient",
            layer=layers[0],
            evidence={"layers": layers},
            override=relu_override(evidence),
        )


def flat_second_derivative(evidence: Evidence) -> Iterator[Sign]:
    """All second derivatives that the loss is made of are zero, at every probe.

    Of the outputs, or of the layers within the network. ReLU and its kin consist of straight
    pieces: the network does too, whatever its weights are, and no loss on its second derivative
    trains it.
    """
    network = evidence.network
    looks = network.second_derivatives
    if not LOOKS <= looks == network.flat_derivatives + network.flat_layers:
        return
    if network.flat_layers:
        seen = (
            "the loss is made of second derivatives of the outputs with respect to the inputs, and "
            "those of the last layer's output with respect to the first layer's input are exactly "
            f"0 for all samples, at {looks} looks"
        )
    else:
        seen = (
            "the second derivatives of the outputs with respect to the inputs, which the loss is "
            f"made of, are exactly 0 for all samples, at {looks} looks"
        )
    yield Sign(
        severity(evidence),
        f"{seen}: the activations consist of straight pieces, as ReLU does",
        evidence={"second_derivatives": looks},
        harm="no weights of this network change its second derivative",
        override=None,
        fix="use activations with a second derivative: tanh, sine, softplus, GELU or SiLU",
    )


CAUSE = Cause(
    name="wrong_hidden_activation",
    meaning="a hidden activation that does not suit the layers or the loss",
    kind=Kind.CERTAIN,
    rules=(hidden_softmax, flat_second_derivative),
    fix="use ReLU (or GELU, tanh) in hidden layers",
    harm="its units share a sum of 1, which leaves small signals and gradients to the other layers",
    source="Goodfellow et al. 2016, Deep Learning, section 6.3: hidden units",
    override="model=relu_net",
)
