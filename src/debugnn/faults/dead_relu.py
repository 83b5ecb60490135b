"""ReLU units that are zero for every sample."""

import torch
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import change_inputs, layers, use_activation
from debugnn.faults.program import Setup


def negative_biases(setup: Setup, bias: float, only: int | None = None) -> None:
    """Biases that keep all hidden units, or those of one hidden layer, below zero."""
    hidden = layers(setup.model)[:-1]
    for layer in hidden if only is None else [hidden[only]]:
        nn.init.constant_(layer.bias, bias)


def negative_shift_of_norms(setup: Setup, shift: float) -> None:
    """Normalisation layers whose learnt shift starts far below zero, before ReLUs."""
    for module in setup.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
            nn.init.constant_(module.bias, shift)


def negative_weights(setup: Setup) -> None:
    """Weights that are all negative, on inputs that are all positive."""
    change_inputs(setup, torch.abs)
    with torch.no_grad():
        for layer in layers(setup.model)[:-1]:
            layer.weight.copy_(-layer.weight.abs())
            layer.bias.copy_(-layer.bias.abs())


def maximum_subtracted(setup: Setup) -> None:
    """Each sample's largest value is subtracted before the ReLU, as for a stable softmax."""
    use_activation(setup, lambda x: torch.relu(x - x.amax(dim=1, keepdim=True)))


class FrozenNorm(nn.Module):
    """Batch normalisation with fixed statistics, as detection models use it."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), mean))
        self.register_buffer("std", torch.full((channels, 1, 1), std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def foreign_statistics(setup: Setup, mean: float, std: float) -> None:
    """Frozen normalisation layers with the statistics of a net that had inputs of 0 to 255."""
    modules = (
        [m, FrozenNorm(m.out_channels, mean, std)] if isinstance(m, nn.Conv2d) else [m]
        for m in setup.model.children()
    )
    setup.model = nn.Sequential(*(m for group in modules for m in group))


TUNING = [
    case("mlp", negative_biases, bias=-10.0),
    case("cnn", negative_biases, bias=-8.0),
    case("mlp_sgd", negative_biases, bias=-15.0, only=1),
    case("friedman", negative_biases, bias=-10.0),
    case("functional", negative_biases, bias=-12.0),
    case("mlp_batch_norm", negative_shift_of_norms, shift=-10.0),
    case("friedman_huber", negative_shift_of_norms, shift=-10.0),
]

HELD_OUT = [
    case("mlp_sgd", negative_weights),
    case("mlp_label_smoothing", maximum_subtracted),
    case("friedman", maximum_subtracted),
    case("cnn", foreign_statistics, mean=120.0, std=60.0),
]
