"""Activations at their bounds, where they are flat."""

from collections.abc import Callable

import torch
from torch import nn

from debugnn.faults.cases import case
from debugnn.faults.edits import Apply, layers, replace_activations
from debugnn.faults.program import Setup


def large_biases(setup: Setup, bias: float) -> None:
    """Hidden biases of either sign, far in the tails of a sigmoid or tanh."""
    with torch.no_grad():
        for layer in layers(setup.model)[:-1]:
            layer.bias.copy_(bias * torch.randn_like(layer.bias).sign())


def steep(setup: Setup, kind: Callable[[], nn.Module], gain: float) -> None:
    """A hidden activation that is almost a step function."""
    replace_activations(setup.model, lambda: nn.Sequential(Apply(lambda x: gain * x), kind()))


def saturated_gates(setup: Setup, bias: float) -> None:
    """Biases that shut the input and output gates of an LSTM."""
    (rnn, _) = layers(setup.model)
    with torch.no_grad():
        for name, p in rnn.named_parameters():
            if "bias" in name:
                inputs, forget, cell, output = p.chunk(4)
                inputs.fill_(-bias)
                forget.fill_(bias)
                cell.fill_(bias)
                output.fill_(-bias)


def gain_of_norms(setup: Setup, kind: Callable[[], nn.Module], gain: float) -> None:
    """Normalisation layers whose learnt scale starts far above 1, before a bounded activation."""
    replace_activations(setup.model, kind)
    for module in setup.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
            nn.init.constant_(module.weight, gain)


def weights_for_other_units(setup: Setup, factor: float) -> None:
    """A first layer from a net whose inputs were smaller by `factor`."""
    with torch.no_grad():
        layers(setup.model)[0].weight.mul_(factor)


def latched_recurrence(setup: Setup, gain: float) -> None:
    """Recurrent weights `gain` · I: a tanh unit keeps the sign of its first input for ever."""
    (rnn, _) = layers(setup.model)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(gain * torch.eye(rnn.hidden_size))


TUNING = [
    case("mlp_tanh", large_biases, bias=20.0),
    case("mlp_shallow_sigmoid", large_biases, bias=30.0),
    case("cnn_tanh", large_biases, bias=15.0),
    case("friedman_sgd", large_biases, bias=20.0),
    case("mlp_sgd", steep, kind=nn.Tanh, gain=100.0),
    case("friedman", steep, kind=nn.Sigmoid, gain=100.0),
    case("lstm", saturated_gates, bias=10.0),
]

# The weights that saturate the units are too large at the start, which is a correct diagnosis too.
HELD_OUT = [
    case("mlp_layer_norm", gain_of_norms, kind=nn.Tanh, gain=100.0),
    case("friedman_huber", gain_of_norms, kind=nn.Sigmoid, gain=100.0),
    case("mlp_tanh", weights_for_other_units, ("init_scale_too_large",), factor=255.0),
    case("rnn", latched_recurrence, ("init_scale_too_large",), gain=10.0),
]
