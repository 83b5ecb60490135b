"""A hidden activation that belongs at an output."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import insert, layers, replace_activations, use_activation
from debugnn.faults.program import Setup

softmax = partial(nn.Softmax, dim=1)


def hidden_module(setup: Setup, make: Callable[[], nn.Module]) -> None:
    """A module for outputs in the place of the hidden activations."""
    replace_activations(setup.model, make)


def extra_softmax(setup: Setup, position: int) -> None:
    """A softmax after a hidden activation."""
    insert(setup, partial(F.softmax, dim=1), position)


def hidden_function(setup: Setup, function: Callable[[Tensor], Tensor]) -> None:
    """A function for outputs in the place of the hidden activations."""
    use_activation(setup, function)


class SoftmaxBeforeHead(nn.Module):
    """A recurrent net that normalises its features where it should normalise its outputs."""

    def __init__(self, rnn: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.head(torch.softmax(outputs[:, -1], dim=-1))


def softmax_before_head(setup: Setup) -> None:
    """`head(softmax(features))` where `softmax(head(features))` was meant."""
    setup.model = SoftmaxBeforeHead(*layers(setup.model))


def softmax_by_hand(setup: Setup) -> None:
    """exp(x) / Σ exp(x), written out, in the place of the hidden activations."""

    def normalised(x: Tensor) -> Tensor:
        exponentials = torch.exp(x)
        return exponentials / exponentials.sum(dim=1, keepdim=True)

    use_activation(setup, normalised)


TUNING = [
    case("mlp", hidden_module, make=softmax),
    case("mlp_tanh", hidden_module, make=partial(nn.LogSoftmax, dim=1)),
    case("cnn", hidden_module, make=softmax),
    case("friedman", hidden_module, make=softmax),
    case("moons", hidden_module, make=softmax),
    case("mlp_momentum", extra_softmax, position=2),
    case("mlp_rmsprop", extra_softmax, position=4),
]

HELD_OUT = [
    case("functional", hidden_function, function=partial(F.softmax, dim=1)),
    case("functional", hidden_function, function=partial(F.log_softmax, dim=1)),
    case("hundred_classes", softmax_by_hand),
    case("cnn_sgd", softmax_by_hand),
    case("lstm", softmax_before_head),
    case("rnn", softmax_before_head),
]
