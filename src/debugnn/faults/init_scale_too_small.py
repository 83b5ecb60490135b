"""Initial weights that are too small."""

from torch import nn

from debugnn.faults.cases import case
from debugnn.faults.edits import (
    Apply,
    deeper,
    layers,
    normal_weights,
    replace_activations,
    scale_weights,
)
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


def lecun_for_relu(setup: Setup, depth: int) -> None:
    """LeCun's rule, which suits SELU, in a deep net of ReLUs: each layer halves the variance."""
    deeper(setup, depth)
    for layer in layers(setup.model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)


def small_factor(setup: Setup, factor: float) -> None:
    """What is handed from layer to layer is multiplied by a small number, as a mean over all nodes
    of a graph does where one over the neighbours is meant."""
    deeper(setup, 3)
    replace_activations(setup.model, lambda: Apply(lambda x: factor * x.relu()))


def scales_zeroed(setup: Setup) -> None:
    """Batch norm's scales are set to 0 where its shifts are meant."""
    for module in setup.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.zeros_(module.weight)


def default_weights(setup: Setup, depth: int) -> None:
    """PyTorch's default weights in a deep plain net: each layer leaves 0.4 of the signal."""
    deeper(setup, depth)


TUNING = [
    case("mlp_sgd", scale_weights, factor=0.01),
    case("cnn_sgd", scale_weights, factor=0.01),
    case("mlp_sgd", small_init, std=1e-3),
    case("mlp_momentum", small_init, std=1e-4),
    case("friedman_sgd", small_init, std=1e-3),
    case("mlp", small_init, std=1e-4, depth=6),
    case("mlp_sgd", small_factor, factor=0.05),
    case("mlp", small_factor, factor=0.01),
    case("mlp_momentum", default_weights, depth=10),
    case("cnn_batch_norm", scales_zeroed, ("dead_relu",)),
]

HELD_OUT = [
    case("mlp_sgd", variance_for_std, depth=6),
    case("mlp_selu", gain_of_policy_heads, gain=0.01),
    case("cnn_sgd", gain_of_policy_heads, gain=0.01),
    case("mlp_momentum", fan_of_all_entries, depth=8),
    case("mlp_momentum", lecun_for_relu, depth=16),
]
