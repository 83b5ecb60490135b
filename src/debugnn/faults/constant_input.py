"""Every sample has the same input."""

import torch
from torch import Tensor

from debugnn.faults.cases import case
from debugnn.faults.edits import change_inputs
from debugnn.faults.program import Data, Setup


def zero_inputs(setup: Setup) -> None:
    """All inputs are 0."""
    change_inputs(setup, torch.zeros_like)


def constant_inputs(setup: Setup, value: float) -> None:
    """All inputs are one number."""
    change_inputs(setup, lambda x: torch.full_like(x, value))


def mean_sample(setup: Setup) -> None:
    """The inputs are averaged over the samples."""
    change_inputs(setup, lambda x: x.mean(dim=0, keepdim=True).expand_as(x).clone())


def repeated_sample(setup: Setup) -> None:
    """A loader returns the first sample with every label."""
    change_inputs(setup, lambda x: x[:1].expand_as(x).clone())


def truncated_to_integers(setup: Setup) -> None:
    """Inputs from 0 to below 1 are cast to whole numbers, which makes all of them 0."""

    def scale_and_cast(x: Tensor) -> Tensor:
        scaled = (x - x.amin()) / (x.amax() - x.amin() + 1)
        return scaled.to(torch.uint8).float()

    change_inputs(setup, scale_and_cast)


def clamped_to_maximum(setup: Setup) -> None:
    """`clamp(min=1)` where `clamp(max=1)` was meant, on inputs from 0 to 1."""
    change_inputs(setup, lambda x: torch.sigmoid(x).clamp(min=1))


def shared_buffer(setup: Setup) -> None:
    """A loader fills one buffer again and again: all inputs of a batch are its last sample."""

    def views_of_one_buffer(x: Tensor, y: Tensor) -> Data:
        return x[-1:].expand_as(x).clone(), y

    setup.change_batch = views_of_one_buffer


TUNING = [
    case("mlp", zero_inputs),
    case("lstm", zero_inputs),
    case("friedman", constant_inputs, value=1.0),
    case("cancer", mean_sample),
]

HELD_OUT = [
    case("cnn", repeated_sample),
    case("transformer", repeated_sample),
    case("mlp_gelu_weight_decay", truncated_to_integers),
    case("friedman_huber", clamped_to_maximum),
    case("cnn_sgd", shared_buffer),
]
