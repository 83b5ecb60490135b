"""Gradients that grow from layer to layer, or from step to step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import Apply, change_data, layers, pixel_rnn, widths
from debugnn.faults.nets import Residual, cnn, mlp
from debugnn.faults.program import Setup


def _kaiming(model: nn.Module, gain: float = 1.0) -> None:
    """Kaiming initialisation times `gain`, for all but the output layer."""
    for layer in layers(model)[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            layer.weight.mul_(gain)


def gain_per_layer(setup: Setup, gain: float, depth: int) -> None:
    """Many layers, each of which scales the signal up by `gain`."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[32] * depth, outputs)
    _kaiming(setup.model, gain)


def gain_per_convolution(setup: Setup, gain: float, depth: int) -> None:
    """Many convolutions, each of which scales the signal up by `gain`."""
    setup.model = cnn(*[8] * depth)
    _kaiming(setup.model, gain)


def unscaled_targets(setup: Setup, factor: float) -> None:
    """Regression targets in their raw unit."""
    change_data(setup, lambda x, y: (x, y * factor + 3 * factor))


def residual_growth(setup: Setup, depth: int, gain: float) -> None:
    """Residual blocks whose branches add up, without any normalisation."""
    features, outputs = widths(setup)
    blocks = (Residual(32, gain=gain) for _ in range(depth))
    setup.model = nn.Sequential(nn.Linear(features, 32), *blocks, nn.Linear(32, outputs))


def squared_activations(setup: Setup, depth: int) -> None:
    """x² as the hidden activation, as for homomorphic encryption, without any normalisation."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[32] * depth, outputs, activation=lambda: Apply(torch.square))
    _kaiming(setup.model)


def neighbour_sums(setup: Setup, depth: int) -> None:
    """Each layer adds up a pixel's neighbours without dividing by their number.

    As a graph convolution does whose adjacency matrix is not normalised (Kipf and Welling 2017,
    arXiv:1609.02907, section 3.1).
    """
    _, *hidden, flatten, head = cnn(*[16] * depth)
    setup.model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1))
    for module in hidden:
        setup.model.append(module)
        if isinstance(module, nn.Conv2d):
            setup.model.append(Apply(_sum_of_neighbours))
    setup.model.extend([flatten, head])


def _sum_of_neighbours(x: Tensor) -> Tensor:
    return 9 * F.avg_pool2d(x, 3, stride=1, padding=1)


class DenseSums(nn.Module):
    """Each layer's input is the sum of all earlier layers' outputs."""

    def __init__(self, first: nn.Module, width: int, depth: int, head: nn.Module) -> None:
        super().__init__()
        self.first, self.head = first, head
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.first(x)]
        for layer in self.hidden:
            total = torch.stack(outputs).sum(dim=0)
            outputs.append(total + F.relu(layer(total)))
        return self.head(outputs[-1])


def dense_sums(setup: Setup, depth: int) -> None:
    """A dense net that adds earlier outputs up, where it should concatenate them."""
    features, outputs = widths(setup)
    setup.model = DenseSums(nn.Linear(features, 32), 32, depth, nn.Linear(32, outputs))


TUNING = [
    case("mlp_sgd", gain_per_layer, ("init_scale_too_large",), gain=1.8, depth=20),
    case("friedman_sgd", gain_per_layer, ("init_scale_too_large",), gain=1.6, depth=16),
    case("cnn_sgd", gain_per_convolution, ("init_scale_too_large",), gain=2.0, depth=12),
    case("rnn_sgd_clipped", pixel_rnn, gain=2.0, nonlinearity="relu"),
    case("rnn_sgd_clipped", pixel_rnn, gain=3.0),
    case("friedman_sgd", unscaled_targets, ("lr_too_high",), factor=1000.0),
]

HELD_OUT = [
    case("mlp_momentum", residual_growth, depth=20, gain=3.0),
    case("mlp", squared_activations, depth=4),
    case("cnn_sgd", neighbour_sums, depth=8),
    case("mlp_cosine", dense_sums, depth=16),
]
