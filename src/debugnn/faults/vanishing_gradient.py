"""Gradients that shrink on their way to the first layers, or to the first steps of a sequence."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from debugnn.faults.cases import case
from debugnn.faults.edits import Apply, change_inputs, layers, pixel_rnn, widths
from debugnn.faults.nets import OneByOne, Stepwise, cnn, mlp
from debugnn.faults.program import Setup


def deep_mlp(setup: Setup, activation: Callable[[], nn.Module], depth: int) -> None:
    """Many narrow layers with an activation whose slope is well below 1."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[32] * depth, outputs, activation=activation)


def flat_tanh() -> nn.Module:
    """A tanh whose slope is at most 0.3."""
    return Apply(lambda x: torch.tanh(0.3 * x))


def deep_cnn(setup: Setup, activation: Callable[[], nn.Module], depth: int) -> None:
    """Many convolutions with an activation whose slope is well below 1."""
    setup.model = cnn(*[8] * depth, activation=activation)


def padded_sequence(setup: Setup, padding: int) -> None:
    """Zeros follow each sequence, and the head reads the recurrent net's output after them.

    What `pad_packed_sequence` is for.
    """
    change_inputs(setup, lambda x: F.pad(x, (0, 0, 0, padding)))


def stacked_recurrent(setup: Setup, depth: int) -> None:
    """Many recurrent layers on top of each other, without shortcuts."""
    (rnn, _) = layers(setup.model)
    setup.model.rnn = type(rnn)(rnn.input_size, rnn.hidden_size, num_layers=depth, batch_first=True)


def lost_shortcuts(setup: Setup, depth: int) -> None:
    """`x = block(x)` in a deep residual net, where `x = x + block(x)` was meant."""
    first, *_, last = layers(setup.model)
    width = first.out_features
    blocks = (mlp(width, width, width) for _ in range(depth))
    setup.model = nn.Sequential(first, *blocks, nn.LayerNorm(width), last)


def state_without_graph(setup: Setup) -> None:
    """Each step of a recurrence starts from a copy of the last one's values, made by `.data`."""
    cast(Stepwise, setup.model).hand_on = lambda step, state: state.data.clone()


def state_through_numpy(setup: Setup) -> None:
    """Each step of a recurrence starts from a state that has been in numpy."""
    cast(Stepwise, setup.model).hand_on = lambda step, state: torch.from_numpy(
        state.detach().numpy().copy()
    )


def both_states_without_graph(setup: Setup) -> None:
    """The two states of an LSTM cell are detached before each step, as they are between batches."""
    cast(OneByOne, setup.model).hand_on = torch.detach


def state_in_a_list(setup: Setup) -> None:
    """The state of a recurrence is made anew in each step, from a list of its numbers."""
    cast(OneByOne, setup.model).hand_on = lambda state: torch.tensor(state.tolist())


TUNING = [
    case("one_by_one_tokens", state_in_a_list, ("frozen_parameters",)),
    case("mlp", deep_mlp, activation=nn.Sigmoid, depth=6),
    case("wine", deep_mlp, activation=nn.Sigmoid, depth=8),
    case("mlp_momentum", deep_mlp, activation=flat_tanh, depth=10),
    case("cancer_one_logit", deep_mlp, activation=nn.Sigmoid, depth=5),
    case("friedman", deep_mlp, activation=nn.Sigmoid, depth=10),
    case("cnn_sgd", deep_cnn, activation=nn.Sigmoid, depth=5),
    case("rnn", pixel_rnn, gain=0.3),
    case("stepwise", state_without_graph, ("frozen_parameters",)),
    case("one_by_one", both_states_without_graph, ("frozen_parameters",)),
]

HELD_OUT = [
    case("stepwise_tokens", state_through_numpy, ("frozen_parameters",)),
    case("rnn", padded_sequence, padding=40),
    case("rnn_sgd_clipped", padded_sequence, padding=24),
    case("lstm", stacked_recurrent, depth=8),
    # Kaiming initialisation would mend it as shortcuts do (He et al. 2015, arXiv:1502.01852).
    case("residual_zero_init", lost_shortcuts, ("init_scale_too_small",), depth=12),
]
