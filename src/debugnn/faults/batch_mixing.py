"""A sample's output depends on other samples."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import Apply, insert, layers, sequential
from debugnn.faults.program import Setup
from debugnn.faults.sound.sequences import reset_every


def time_before_batch(setup: Setup) -> None:
    """The recurrent net takes the batch axis for the time axis."""
    (rnn, _) = layers(setup.model)
    rnn.batch_first = False


def reshape_for_transpose(setup: Setup) -> None:
    """reshape where transpose was meant: the rows of a sample come from several samples."""
    mix = Apply(lambda x: x.reshape(x.shape[1], len(x), -1).transpose(0, 1))
    setup.model = nn.Sequential(mix, setup.model)


def reshape_for_permute(setup: Setup) -> None:
    """reshape where permute was meant, before a head whose scores have their time axis first."""
    model: Any = setup.model
    model.reshaped = True


def normalised_by_hand(setup: Setup, position: int) -> None:
    """Normalisation by the batch's statistics, in training and in evaluation."""
    insert(setup, lambda x: (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-5), position)


def attention_over_batch(setup: Setup) -> None:
    """The attention takes the batch axis for the sequence axis."""
    for module in setup.model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.batch_first = False


def channels_before_batch(setup: Setup) -> None:
    """The channel axis is moved to the front before the images are flattened."""
    flatten = Apply(lambda x: x.transpose(0, 1).reshape(len(x), -1))
    model = sequential(setup)
    setup.model = nn.Sequential(*model[:-2], flatten, model[-1])


def gated_over_batch(setup: Setup, position: int) -> None:
    """A gate whose softmax runs over the samples."""
    insert(setup, lambda x: x * x.softmax(dim=0) * len(x), position)


class BothDirections(nn.Module):
    """A recurrent net, run forwards and backwards by hand."""

    def __init__(self, rnn: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x: Tensor) -> Tensor:
        forwards, _ = self.rnn(x)
        backwards, _ = self.rnn(x.flip(0))
        return self.head(forwards[:, -1] + backwards[:, -1])


def reversed_batch(setup: Setup) -> None:
    """`flip(0)`, which reverses the batch, where `flip(1)` was meant to reverse the time."""
    setup.model = BothDirections(*layers(setup.model))


def weighed_over_batch(setup: Setup) -> None:
    """The weights of a sequence's steps sum to 1 over the samples, not over the steps."""
    model: Any = setup.model
    model.over = 0


def viewed_for_transposed(setup: Setup) -> None:
    """view and transpose where the table was meant to stay: features come from several samples."""
    mix = Apply(lambda x: x.reshape(x.shape[1], len(x)).transpose(0, 1))
    setup.model = nn.Sequential(mix, setup.model)


def never_reset(setup: Setup) -> None:
    """The net goes on from a state that other samples have left."""
    setup.change_batch = None


def reset_each_epoch(setup: Setup) -> None:
    """The state is cleared once an epoch, as if the batches were parts of long sequences."""
    model: Any = setup.model
    setup.change_batch = reset_every(math.ceil(len(setup.train[0]) / setup.batch_size), model)


def edges_not_shifted(setup: Setup) -> None:
    """Graphs are put together to a batch, and their edges keep the numbers that they had alone."""

    def unshifted(arguments: Any, targets: Tensor) -> Any:
        nodes, edges, owner = arguments
        first = torch.searchsorted(owner, owner)  # of the graph of each node
        return (nodes, edges - first[edges], owner), targets

    setup.change_batch = unshifted


class WeighedNodes(nn.Module):
    """Weighs the nodes' values against each other: those of all graphs of the batch."""

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.head, self.weight = head, nn.Linear(width, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(h) * self.weight(h).softmax(dim=0)


def weighed_over_graphs(setup: Setup) -> None:
    """The weights of a graph's nodes sum to 1 over the whole batch of graphs."""
    model: Any = setup.model
    model.head = WeighedNodes(model.head, model.own.out_features)


def unit_length_over_batch(setup: Setup) -> None:
    """The embeddings get unit length along the batch, not along their features."""
    setup.model = nn.Sequential(*layers(setup.model), Apply(lambda x: F.normalize(x, dim=0)))


TUNING = [
    case("small_graphs", weighed_over_graphs),
    case("lstm", time_before_batch),
    case("gru_clipped", time_before_batch),
    case("gru_clipped", reshape_for_transpose),
    case("mlp", normalised_by_hand, position=1),
    case("cnn", normalised_by_hand, position=1),
    case("packed", weighed_over_batch),
    case("tracker", never_reset),
    case("small_graphs", edges_not_shifted),
    case("written_lines", reshape_for_permute),
]

HELD_OUT = [
    case("siamese_net", unit_length_over_batch),
    case("transformer", attention_over_batch),
    case("cnn", channels_before_batch),
    case("mlp", gated_over_batch, position=1),
    case("rnn", reversed_batch),
    case("autoencoder", viewed_for_transposed),
    case("notebook", reset_each_epoch),
]
