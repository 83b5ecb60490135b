"""Inputs that give the target away."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import add_columns, change_data, sequential
from debugnn.faults.nets import (
    CausalAttention,
    Convolved,
    MaskedConvolution,
    MaskedMlp,
    NextSymbol,
    Reader,
    mlp,
)
from debugnn.faults.program import Data, Setup
from debugnn.faults.sequence_loops import Echo


def leak(setup: Setup, classes: int | None, *, in_val: bool) -> None:
    """The label, one-hot or as it is, is among the features; in validation it may be missing."""

    def label(y: Tensor) -> Tensor:
        return 2 * (F.one_hot(y, classes) if classes else y.reshape(len(y), 1)).float()

    add_columns(setup, label(setup.train[1]), label(setup.val[1]) * in_val)


def exponential_of_target(setup: Setup) -> None:
    """A column holds what the target is the logarithm of."""

    def column(y: Tensor) -> Tensor:
        powers = (2 * y.reshape(len(y), 1)).exp()
        return (powers - powers.mean()) / powers.std()

    add_columns(setup, column(setup.train[1]), column(setup.val[1]))


def leaky_pixel(setup: Setup, *, in_val: bool) -> None:
    """The brightness of the corner pixel is the label."""

    def mark(x: Tensor, y: Tensor) -> Data:
        x = x.clone()
        x[:, 0, 0, 0] = y - 4.5
        return x, y

    setup.train = mark(*setup.train)
    if in_val:
        setup.val = mark(*setup.val)


def row_number(setup: Setup) -> None:
    """The row's number is a feature, in a file that is sorted by class."""
    y = torch.cat([setup.train[1], setup.val[1]])
    number = torch.empty(len(y))
    number[y.argsort(stable=True)] = torch.arange(len(y)).float()
    number = ((number - number.mean()) / number.std()).unsqueeze(1)
    train = len(setup.train[0])
    add_columns(setup, number[:train], number[train:])


def identifier(setup: Setup, first: int) -> None:
    """An identifier is a feature, of a register that took in one class after the other, twice."""
    y = torch.cat([setup.train[1], setup.val[1]]).flatten()
    later = torch.rand(len(y)) < 0.5
    number = torch.empty(len(y))
    number[(2 * later.float() + (y > 0)).argsort(stable=True)] = torch.arange(len(y)).float()
    number = ((number + first) / number.std()).unsqueeze(1)
    train = len(setup.train[0])
    add_columns(setup, number[:train], number[train:])


def recorded_afterwards(setup: Setup, wrong: float) -> None:
    """A column that is filled in when the outcome is known, with few wrong entries."""

    def column(y: Tensor) -> Tensor:
        y = y.reshape(len(y), 1).float()
        return torch.where(torch.rand(len(y), 1) < wrong, 1 - y, y)

    add_columns(setup, column(setup.train[1]), column(setup.val[1]))


def target_encoding(setup: Setup, rows: int) -> None:
    """A category of few rows is encoded by the mean target of these rows, their own included.

    Categories of the validation rows are new, and get the mean of all targets.
    """
    y = setup.train[1].flatten()
    category = torch.randperm(len(y)) // rows
    means = torch.bincount(category, weights=y) / torch.bincount(category)
    add_columns(setup, means[category].unsqueeze(1), y.mean().expand(len(setup.val[0]), 1))


def rate_of_own_group(setup: Setup, rows: int) -> None:
    """The mean target of a row's group, its own included; validation rows belong to groups too."""
    y = setup.train[1].flatten().float()
    groups = -(-len(y) // rows)
    group = torch.randperm(len(y)) % groups
    means = torch.bincount(group, weights=y) / torch.bincount(group)
    means = ((means - means.mean()) / means.std()).float()
    other = torch.randint(groups, (len(setup.val[0]),))
    add_columns(setup, means[group].unsqueeze(1), means[other].unsqueeze(1))


def answer_among_tokens(setup: Setup) -> None:
    """The last token of the sequence is the one to predict."""

    def with_answer(x: Tensor, y: Tensor) -> Data:
        return torch.cat([x[:, :-1], y.unsqueeze(1)], dim=1), y

    change_data(setup, with_answer)


def sees_what_follows(setup: Setup) -> None:
    """The attention has no causal mask."""
    setup.model = NextSymbol(12, CausalAttention(16, causal=False))


def targets_not_shifted(setup: Setup) -> None:
    """The target of each position is the symbol that is read there."""
    change_data(setup, lambda x, y: (x, x.clone()))


def both_directions(setup: Setup) -> None:
    """The recurrent layer reads the sequence from its end, too."""
    setup.model = NextSymbol(12, Reader(both=True))


def centred_convolution(setup: Setup) -> None:
    """The convolution is padded on both sides, and so sees what follows."""
    setup.model = NextSymbol(12, Convolved(centred=True))


def together(setup: Setup) -> Data:
    """Return training and validation samples as one set."""
    return torch.cat([setup.train[0], setup.val[0]]), torch.cat([setup.train[1], setup.val[1]])


def split_again(setup: Setup, chosen: Tensor) -> None:
    """Split these of all samples at random into training and validation."""
    x, y = together(setup)
    chosen = chosen[torch.randperm(len(chosen))]
    cut = 3 * len(chosen) // 4
    setup.train = x[chosen[:cut]], y[chosen[:cut]]
    setup.val = x[chosen[cut:]], y[chosen[cut:]]


def oversampled_before_split(setup: Setup, label: int, copies: int) -> None:
    """A class is repeated several times before the data are split."""
    _, y = together(setup)
    own = (y == label).nonzero().flatten()
    split_again(setup, torch.cat([torch.arange(len(y)), own.repeat(copies)]))


def bootstrapped_before_split(setup: Setup) -> None:
    """The samples are drawn with replacement before they are split."""
    _, y = together(setup)
    split_again(setup, torch.randint(len(y), (2 * len(y),)))


def windows_cut_before_split(setup: Setup) -> None:
    """Overlapping windows of all series are split at random, whichever series they are from."""
    split_again(setup, torch.arange(len(setup.train[0]) + len(setup.val[0])))


def centre_unmasked(setup: Setup) -> None:
    """The first masked convolution lets a pixel see itself, as only later ones may."""
    first, *others = sequential(setup)
    assert isinstance(first, MaskedConvolution)
    seen = MaskedConvolution(first.in_channels, first.out_channels, centre=True)
    setup.model = nn.Sequential(seen, *others)


def units_see_their_own(setup: Setup, hidden: int) -> None:
    """Units of a masked net see one feature more than they should: `<=` for `<`."""
    setup.model = MaskedMlp(setup.train[0].shape[1], hidden, itself=True)


def values_ahead_not_blanked(setup: Setup) -> None:
    """The decoder is given what it is to forecast, beside the loads ahead."""

    def filled(x: Tensor, y: Tensor) -> Data:
        x = x.clone()
        x[:, -y.shape[1] :, 0] = y
        return x, y

    change_data(setup, filled)


def own_value_among_features(setup: Setup) -> None:
    """A net that reads each position by itself is given its own target as one more feature."""

    def beside(x: Tensor, y: Tensor) -> Data:
        return torch.cat([x, y], dim=2), y

    change_data(setup, beside)
    setup.model = mlp(setup.train[0].shape[2], 24, setup.train[1].shape[2])
    setup.change_batch = None


def padded_around(setup: Setup) -> None:
    """A convolution is padded on both sides, as images are: half of what it reads comes later."""
    model = setup.model
    assert isinstance(model, Echo)
    model.after = model.before // 2
    model.before -= model.after


TUNING = [
    case("echo", padded_around),
    case("tracker_in_order", own_value_among_features),
    case("forecaster", values_ahead_not_blanked),
    case("pixel_by_pixel", centre_unmasked),
    case("next_symbol_attention", sees_what_follows),
    case("next_symbol_gru", targets_not_shifted, ("bad_labels",)),
    case("few_informative", oversampled_before_split, ("overfitting",), label=1, copies=5),
    case("cnn", oversampled_before_split, label=3, copies=6),
    case("gru_vibrations", windows_cut_before_split, ("overfitting",)),
    case("ten_prototypes", leak, classes=10, in_val=True),
    case("few_informative", identifier, ("overfitting",), first=7000),
    case("cancer_one_logit", identifier, ("overfitting",), first=1),
    case("few_informative", leak, classes=2, in_val=False),
    case("friedman", leak, classes=None, in_val=True),
    case("diabetes", leak, classes=None, in_val=False),
    case("diabetes", exponential_of_target),
    case("friedman", exponential_of_target),
    case("noisy_line", leak, classes=None, in_val=True),
    case("cnn", leaky_pixel, in_val=True),
    case("cnn_tanh", leaky_pixel, in_val=False),
    case("few_informative", rate_of_own_group, ("overfitting",), rows=2),
    case("diabetes", rate_of_own_group, ("overfitting",), rows=3),
]

HELD_OUT = [
    case("feature_by_feature", units_see_their_own, hidden=256),
    case("next_symbol_gru", both_directions),
    case("next_symbol_convolution", centred_convolution),
    case("friedman", bootstrapped_before_split),
    case("wine", row_number),
    case("few_informative", recorded_afterwards, wrong=0.01),
    case("noisy_line", target_encoding, rows=2),
    case("friedman", target_encoding, rows=1),
    case("transformer_tokens", answer_among_tokens),
]
