"""Inputs far from zero mean and unit scale."""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.datasets import bundled
from debugnn.faults.edits import add_columns, change_inputs, sequential
from debugnn.faults.program import Data, Setup


def scale_inputs(setup: Setup, factor: float = 1.0, offset: float = 0.0) -> None:
    """Inputs in another unit, or with another zero."""
    change_inputs(setup, lambda x: x * factor + offset)


def raw_units(setup: Setup, name: str) -> None:
    """A table's features in their own units."""
    inputs = torch.as_tensor(bundled(name)[0]).float()
    change_inputs(setup, lambda x: x * inputs.std(dim=0) + inputs.mean(dim=0))


def scale_features(setup: Setup, decades: float) -> None:
    """Features whose scales differ by this many powers of ten."""
    features = setup.train[0].shape[1]
    change_inputs(setup, lambda x: x * torch.logspace(0, decades, features))


def raw_timestamp(setup: Setup) -> None:
    """A column with the time of each measurement in seconds since 1970."""
    train, val = (1.6e9 + 3e7 * torch.rand(len(x), 1) for x, _ in (setup.train, setup.val))
    add_columns(setup, train, val)


def missing_as_number(setup: Setup, share: float, code: float) -> None:
    """Missing values are coded as a number, such as -999, which the net takes for a value."""

    def replace(x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < share, code, x)

    change_inputs(setup, replace)


def squeezed_by_outlier(setup: Setup, outlier: float) -> None:
    """Scaled to 0 to 1 by a maximum that is one wrong entry, so that all others are near 0."""
    low = setup.train[0].amin()
    change_inputs(setup, lambda x: (x - low) / (outlier - low))


def without_first_norm(setup: Setup) -> None:
    """Leave out the normalisation layer that brings the inputs to one scale."""
    sequential(setup)[0] = nn.Identity()


def each_epoch(setup: Setup, change: Callable[[Tensor], object]) -> None:
    """Let a function change the training inputs in place as each epoch begins."""
    inputs, _ = setup.train
    batches, number = -(-len(inputs) // setup.batch_size), count()

    def prepare(x: Tensor, y: Tensor) -> Data:
        if next(number) % batches == 0:
            change(inputs)
        return x, y

    setup.change_batch = prepare


def divided_again(setup: Setup, std: float) -> None:
    """What the data set keeps is divided by a deviation in place, in each epoch again."""
    each_epoch(setup, lambda x: x.div_(std))


def to_unit_again(setup: Setup) -> None:
    """Pixels are brought to 0 to 1 in place, in each epoch again."""
    setup.train = (setup.train[0] * 64 + 128, setup.train[1])
    setup.val = (setup.val[0] * 64 / 255 + 128 / 255, setup.val[1])
    each_epoch(setup, lambda x: x.div_(255))


def age_in_hours(setup: Setup, hours: float) -> None:
    """The machines' age, an argument of its own, is a count of hours.

    Args:
        setup: the forecaster.
        hours: in the unit that it has had.
    """

    def as_counted(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, 2] = (hours * x[:, :, 2]).round()
        return x

    change_inputs(setup, as_counted)


def amounts_as_they_are(setup: Setup) -> None:
    """Costs in cents and numbers of times, whose logarithms the sound program is given.

    Args:
        setup: the bidder.
    """

    def counted(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:] = (torch.tensor([8.0, 6.0]) + x[:, 1:]).exp().round()
        return x

    change_inputs(setup, counted)


TUNING = [
    case("bidder", amounts_as_they_are),
    case("forecaster", age_in_hours, hours=5000.0),
    case("mlp_sgd", scale_inputs, factor=255.0),
    case("cnn_sgd", scale_inputs, factor=1000.0),
    case("mlp_sgd", scale_inputs, offset=100.0),
    case("mlp_momentum", scale_inputs, factor=1e-3),
    case("friedman_sgd", scale_inputs, factor=255.0),
    case("lstm", scale_inputs, factor=1e-3),
    case("wine", raw_units, name="wine"),
    case("measured", without_first_norm),
    case("cnn_sgd", divided_again, ("train_test_mismatch", "exploding_gradient"), std=0.2),
]

HELD_OUT = [
    case("mlp_momentum", to_unit_again, ("train_test_mismatch",)),
    case("iris", scale_features, decades=4.0),
    case("cancer", raw_timestamp),
    case("friedman_sgd", missing_as_number, share=0.05, code=-999.0),
    case("wine", missing_as_number, share=0.05, code=-9999.0),
    case("mlp_sgd", squeezed_by_outlier, outlier=1e5),
]
