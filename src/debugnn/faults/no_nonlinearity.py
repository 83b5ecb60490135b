"""Layers without a nonlinearity between them."""

import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import HIDDEN, layers, replace_activations, sequential, use_activation
from debugnn.faults.nets import Functional, cnn
from debugnn.faults.program import Setup


def no_activation(setup: Setup) -> None:
    """The activations are left out."""
    if isinstance(setup.model, Functional):
        use_activation(setup, lambda x: x)
    else:
        setup.model = nn.Sequential(*(m for m in sequential(setup) if not isinstance(m, HIDDEN)))


def slope_of_one(setup: Setup) -> None:
    """A leaky ReLU with the same slope on either side."""
    replace_activations(setup.model, lambda: nn.LeakyReLU(negative_slope=1.0))


def linear_cnn(setup: Setup) -> None:
    """Convolutions and average pools without an activation (a max-pool would be one)."""
    setup.model = cnn(16, 32, pool=nn.AvgPool2d)
    no_activation(setup)


def result_discarded(setup: Setup) -> None:
    """`F.relu(x)` as a statement: its result is not assigned."""

    def relu_as_statement(x: Tensor) -> Tensor:
        F.relu(x)
        return x

    use_activation(setup, relu_as_statement)


def norm_for_activation(setup: Setup) -> None:
    """Batch normalisation in the place of the activation, not beside it."""
    model = sequential(setup)
    widths = iter([layer.out_features for layer in layers(model)])
    for position, module in enumerate(model):
        if isinstance(module, HIDDEN):
            model[position] = nn.BatchNorm1d(next(widths))


def bounds_never_reached(setup: Setup, bound: float) -> None:
    """A clamp as the activation, with bounds that no value reaches."""
    replace_activations(setup.model, lambda: nn.Hardtanh(-bound, bound))


TUNING = [
    case("moons", no_activation),
    case("circles_one_logit", no_activation),
    case("mlp", no_activation),
    case("functional_circles", no_activation),
    case("friedman", no_activation),
    case("sine", no_activation),
    case("circles_one_logit", slope_of_one),
    case("friedman_sgd", slope_of_one),
    case("friedman_closed_gates", slope_of_one),
]

HELD_OUT = [
    case("cnn", linear_cnn),
    case("functional_circles", result_discarded),
    case("friedman", result_discarded),
    case("moons", norm_for_activation),
    case("sine", bounds_never_reached, bound=1000.0),
]
