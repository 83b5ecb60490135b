"""Initial weights that are too large."""

import torch
from torch import nn

from debugnn.faults.cases import case
from debugnn.faults.edits import layers, normal_weights, scale_weights, weights
from debugnn.faults.program import Setup


def uniform_weights(setup: Setup, low: float, high: float) -> None:
    """`torch.rand` in the place of a centred distribution."""
    for p in weights(setup.model):
        nn.init.uniform_(p, low, high)


def times_fan_in(setup: Setup) -> None:
    """Standard deviation √(2 · fan_in) in the place of √(2 / fan_in)."""
    for layer in layers(setup.model):
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=(2 * fan_in) ** 0.5)


def default_truncated_normal(setup: Setup) -> None:
    """`trunc_normal_(weight)`, whose standard deviation is 1 by default."""
    for p in weights(setup.model):
        nn.init.trunc_normal_(p)


def scaled_by_every_container(setup: Setup, factor: float) -> None:
    """A recursive initialisation scales a weight once for each module that it lies in."""
    with torch.no_grad():
        for module in setup.model.modules():
            for p in weights(module):
                p.mul_(factor)


def embeddings_of_unit_scale(setup: Setup) -> None:
    """Embeddings whose products are the outputs start from N(0, 1), as `nn.Embedding` has it."""
    for module in setup.model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim > 1:
            module.reset_parameters()


TUNING = [
    case("recommender", embeddings_of_unit_scale),
    case("flow", normal_weights, std=1.0),
    case("mlp_sgd", scale_weights, factor=30.0),
    case("cnn_sgd", scale_weights, factor=10.0),
    case("cancer", scale_weights, factor=100.0),
    case("mlp", normal_weights, std=3.0),
    case("friedman", normal_weights, std=2.0),
    case("mlp_rmsprop", normal_weights, std=2.0),
    case("mlp_sgd", uniform_weights, low=0.0, high=1.0),
]

HELD_OUT = [
    case("mlp_sgd", times_fan_in),
    case("cnn", times_fan_in),
    case("mlp_selu", default_truncated_normal),
    case("friedman", scaled_by_every_container, factor=5.0),
]
