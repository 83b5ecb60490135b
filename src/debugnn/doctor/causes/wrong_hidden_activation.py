"""A hidden activation that does not suit the layers or the loss."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.wording import listed, relu_override
from debugnn.doctor.evidence import Evidence

# Looks at which all second derivatives are zero: at one alone, the units of a curved activation may
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
    """All second derivatives that the loop takes of the outputs are zero, at every probe.

    ReLU and its kin consist of straight pieces: the network does too, whatever its weights are, and
    no loss on its second derivative trains it.
    """
    network = evidence.network
    if network.flat_derivatives >= LOOKS and network.flat_derivatives == network.second_derivatives:
        yield Sign(
            severity(evidence),
            "the second derivatives of the outputs with respect to the inputs, which the loss is "
            f"made of, are exactly 0 for all samples, at {network.flat_derivatives} looks: the "
            "activations consist of straight pieces, as ReLU does",
            evidence={"second_derivatives": network.second_derivatives},
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
