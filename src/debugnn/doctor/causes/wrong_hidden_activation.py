"""A hidden activation that belongs at an output."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.wording import listed, relu_override
from debugnn.doctor.evidence import Evidence


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


CAUSE = Cause(
    name="wrong_hidden_activation",
    meaning="a hidden activation that belongs at an output",
    kind=Kind.CERTAIN,
    rules=(hidden_softmax,),
    fix="use ReLU (or GELU, tanh) in hidden layers",
    harm="its units share a sum of 1, which leaves small signals and gradients to the other layers",
    source="Goodfellow et al. 2016, Deep Learning, section 6.3: hidden units",
    override="model=relu_net",
)
