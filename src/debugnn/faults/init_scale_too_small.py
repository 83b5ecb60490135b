"""Initial weights that are too small."""

from torch import nn

from debugnn.faults.cases import case
from debugnn.faults.edits import deeper, layers, normal_weights, scale_weights
from debugnn.faults.program import Setup


def small_init(setup: Setup, std: float, depth: int = 4) -> None:
    """Normal weights far too small for a net of some depth."""
    deeper(setup, depth)
    normal_weights(setup, std)


def variance_for_std(setup: Setup, depth: int) -> None:
    """The variance 2 / fan_in is given as the standard deviation."""
    deeper(setup, depth)
    for layer in layers(setup.model):
        nn.init.normal_(layer.weight, std=2 / layer.in_features)


def gain_of_policy_heads(setup: Setup, gain: float) -> None:
    """The gain 0.01 that is meant for a policy's output layer is used in all layers."""
    for layer in layers(setup.model):
        nn.init.orthogonal_(layer.weight, gain=gain)
        nn.init.zeros_(layer.bias)


def fan_of_all_entries(setup: Setup, depth: int) -> None:
    """Kaiming's formula with the number of a layer's weights for its fan-in."""
    deeper(setup, depth)
    for layer in layers(setup.model):
        nn.init.normal_(layer.weight, std=(2 / layer.weight.numel()) ** 0.5)


TUNING = [
    case("mlp_sgd", scale_weights, factor=0.01),
    case("cnn_sgd", scale_weights, factor=0.01),
    case("mlp_sgd", small_init, std=1e-3),
    case("mlp_momentum", small_init, std=1e-4),
    case("friedman_sgd", small_init, std=1e-3),
    case("mlp", small_init, std=1e-4, depth=6),
]

HELD_OUT = [
    case("mlp_sgd", variance_for_std, depth=6),
    case("mlp_selu", gain_of_policy_heads, gain=0.01),
    case("cnn_sgd", gain_of_policy_heads, gain=0.01),
    case("mlp_momentum", fan_of_all_entries, depth=8),
]
