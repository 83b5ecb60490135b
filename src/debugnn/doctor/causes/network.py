"""What the network cannot learn from as it was built and initialised."""

from collections.abc import Iterator

from debugnn.doctor.causes.signals import (
    SMALL_GAIN,
    cured,
    extreme_gain,
    failing,
    outsized_constant,
    rough_start,
    short,
    symmetric_layer,
)
from debugnn.doctor.causes.wording import fork_numbers, listed, relu_override, severity
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding


def no_nonlinearity(evidence: Evidence) -> Iterator[Finding]:
    network = evidence.network
    if network.nonlinear is False and network.depth >= 2:
        # Of several values from a narrow middle: a low-rank map, which can be meant.
        several = evidence.task == "values" and len(evidence.loss.shapes) == 2
        several = several and evidence.loss.shapes[1][-1] > 1 < len(evidence.loss.shapes[1])
        yield Finding(
            "no_nonlinearity",
            "note" if several and not short(evidence) else severity(evidence),
            f"{network.depth} weight layers follow each other without an activation: "
            "together they are no more than one linear map",
            "put an activation (ReLU) after every hidden layer",
            evidence={"weight_layers": network.depth},
            override=relu_override(evidence),
        )


def wrong_hidden_activation(evidence: Evidence) -> Iterator[Finding]:
    layers = evidence.network.softmax_inputs
    if layers:
        yield Finding(
            "wrong_hidden_activation",
            severity(evidence),
            f"the input of {listed(layers)} is a distribution: a softmax is used as a hidden "
            "activation, where it makes the units compete and leaves hardly a gradient",
            "use ReLU (or GELU, tanh) in hidden layers",
            layer=layers[0],
            evidence={"layers": layers},
            override=relu_override(evidence),
        )


def symmetric_init(evidence: Evidence) -> Iterator[Finding]:
    layer = symmetric_layer(evidence)
    if layer is None:
        return
    yield Finding(
        "symmetric_init",
        severity(evidence),
        "all units of the layer start with equal weights, get equal gradients, and stay equal"
        if not layer.constant
        else "all weights of the layer start equal, so that its units stay equal",
        "initialise at random (torch.nn.init.kaiming_uniform_)",
        layer=layer.name.rpartition(".")[0],
        step=0,
        evidence={"gain": layer.gain},
        override="init=kaiming",
    )


def init_scale_too_large(evidence: Evidence) -> Iterator[Finding]:
    worst = extreme_gain(evidence, large=True)
    if worst is None or not (short(evidence) or rough_start(evidence)):
        return
    fork = cured(evidence, "init")
    if fork is None and not outsized_constant(evidence):
        return
    initial = evidence.outcome.initial.relative_loss
    yield Finding(
        "init_scale_too_large",
        severity(evidence),
        f"the weights start {worst.gain / 1.41:.3g} times as large as Kaiming's rule has them"
        + (f", the loss at {initial:.3g} times that of guessing" if initial else ""),
        "initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
        layer=worst.name.rpartition(".")[0],
        step=0,
        evidence={
            "gain": worst.gain,
            "initial_relative_loss": initial,
            **fork_numbers(evidence, "init"),
        },
        override="init=kaiming",
    )


def init_scale_too_small(evidence: Evidence) -> Iterator[Finding]:
    worst = extreme_gain(evidence, large=False)
    if worst is None or not short(evidence):
        return
    # Deep nets that start far too small may need longer than a fork from any initialisation.
    if cured(evidence, "init") is None and not (failing(evidence) and worst.gain < SMALL_GAIN / 2):
        return
    yield Finding(
        "init_scale_too_small",
        severity(evidence),
        f"the weights start at {worst.gain / 1.41:.2g} of the size that Kaiming's rule gives them: "
        "signals and gradients fade from layer to layer",
        "initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
        layer=worst.name.rpartition(".")[0],
        step=0,
        evidence={"gain": worst.gain, **fork_numbers(evidence, "init")},
        override="init=kaiming",
    )
