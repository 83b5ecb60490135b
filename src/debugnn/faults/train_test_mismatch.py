"""Validation data unlike the training data."""

from collections.abc import Callable

import torch
from torch import Tensor

from debugnn.faults.cases import case
from debugnn.faults.program import Setup


def _change_val(setup: Setup, change: Callable[[Tensor], Tensor]) -> None:
    setup.val = change(setup.val[0]), setup.val[1]


def val_scaled(setup: Setup, factor: float = 1.0, offset: float = 0.0) -> None:
    """The validation inputs are standardised in another way than the training inputs."""
    _change_val(setup, lambda x: x * factor + offset)


def val_inverted(setup: Setup) -> None:
    """Black and white are swapped in validation."""
    _change_val(setup, lambda x: x.amax() + x.amin() - x)


def val_permuted(setup: Setup) -> None:
    """The features of the validation are in another order."""
    order = torch.randperm(setup.val[0].shape[1])
    _change_val(setup, lambda x: x[:, order])


def val_transposed(setup: Setup) -> None:
    """Rows and columns are swapped in validation."""
    _change_val(setup, lambda x: x.transpose(-2, -1).contiguous())


def val_cropped_elsewhere(setup: Setup, pixels: int) -> None:
    """The crop of the validation images is some pixels off that of the training images."""
    _change_val(setup, lambda x: x.roll((pixels, pixels), dims=(-2, -1)))


def val_channels_reversed(setup: Setup) -> None:
    """The validation images are read with the channels in the reverse order: BGR, not RGB."""
    _change_val(setup, lambda x: x.flip(1))


def split_without_shuffling(setup: Setup, feature: int) -> None:
    """A table that is sorted by a feature is cut into training and validation."""
    x = torch.cat([setup.train[0], setup.val[0]])
    y = torch.cat([setup.train[1], setup.val[1]])
    first, last = x[:, feature].argsort().split([len(setup.train[0]), len(setup.val[0])])
    setup.train, setup.val = (x[first], y[first]), (x[last], y[last])


def scaler_fitted_twice(setup: Setup, feature: int) -> None:
    """A table that is sorted by a feature is cut, and a scaler is fitted to either part."""
    split_without_shuffling(setup, feature)
    (x, y), (new_x, new_y) = setup.train, setup.val
    setup.train = (x - x.mean(dim=0)) / x.std(dim=0), y
    setup.val = (new_x - new_x.mean(dim=0)) / new_x.std(dim=0), new_y


def words_numbered_anew(setup: Setup, column: int) -> None:
    """The validation's words get the numbers of a vocabulary of its own."""
    words = setup.val[0][:, column]
    _, numbers = words.unique(return_inverse=True)
    order = torch.randperm(int(numbers.max()) + 1)
    rows = setup.val[0].clone()
    rows[:, column] = order[numbers].to(rows.dtype)
    setup.val = rows, setup.val[1]


def numbered_by_appearance(setup: Setup) -> None:
    """Whoever is met in the validation is numbered anew, in the order of appearance."""

    def numbered(column: Tensor) -> Tensor:
        known: dict[int, int] = {}
        return torch.tensor([known.setdefault(value, len(known)) for value in column.tolist()])

    _change_val(setup, lambda pairs: torch.stack([numbered(c) for c in pairs.T], dim=1))


TUNING = [
    case("bidder", words_numbered_anew, column=0),
    case("mlp", val_scaled, offset=-3.0),
    case("friedman", val_scaled, factor=0.1),
    case("cancer", val_scaled, offset=4.0),
    case("mlp_raw_pixels", val_scaled, factor=1 / 16),
    case("cnn", val_inverted),
    case("cnn_in_colours", val_channels_reversed),
    case("friedman", scaler_fitted_twice, feature=3),
    case("cancer", scaler_fitted_twice, feature=0),
]

HELD_OUT = [
    case("recommender", numbered_by_appearance),
    case("wine", val_permuted),
    case("lstm", val_transposed),
    case("cnn_sgd", val_cropped_elsewhere, pixels=3),
    case("sine", split_without_shuffling, feature=0),
    case("friedman", split_without_shuffling, feature=0),
]
