"""Labels that do not follow from the inputs."""

import torch
from torch import Tensor

from debugnn.faults.cases import case
from debugnn.faults.edits import change_data, shuffled_labels
from debugnn.faults.program import Data, Setup


def shifted_labels(setup: Setup) -> None:
    """Each training sample has the label of the one before it."""
    x, y = setup.train
    setup.train = x, y.roll(1, dims=0)


def other_label_code(setup: Setup, classes: int) -> None:
    """The validation's classes are numbered from 1, with 0 for the last."""
    x, y = setup.val
    setup.val = x, (y + 1) % classes


def validated_with_training_targets(setup: Setup) -> None:
    """The validation inputs are compared with training targets."""
    x, _ = setup.val
    setup.val = x, setup.train[1][: len(x)]


def labels_from_one(setup: Setup) -> None:
    """Classes 1 and 2 where the loss wants 0 and 1."""
    change_data(setup, lambda x, y: (x, y + 1))


def sorted_labels(setup: Setup) -> None:
    """The training labels are sorted, as by a file list in another order, the inputs are not."""
    x, y = setup.train
    setup.train = x, y.sort(dim=0).values


def rows_dropped(setup: Setup, rows: int) -> None:
    """Incomplete rows are dropped from the inputs and not from the targets."""
    x, y = setup.train
    first = len(x) // 20  # most samples come after it
    kept = [i for i in range(len(x)) if not first <= i < first + rows]
    setup.train = x[kept], y[: len(kept)]


def images_flipped_alone(setup: Setup) -> None:
    """Half of the training images are mirrored, and their targets, maps, are not."""

    def flip(x: Tensor, y: Tensor) -> Data:
        chosen = (torch.rand(len(x)) < 0.5)[:, None, None, None]
        return torch.where(chosen, x.flip(-1), x), y

    setup.change_batch = flip


def images_turned_alone(setup: Setup) -> None:
    """Half of the training images are turned by a quarter, and their targets, maps, are not."""

    def turn(x: Tensor, y: Tensor) -> Data:
        chosen = (torch.rand(len(x)) < 0.5)[:, None, None, None]
        return torch.where(chosen, x.rot90(1, (-2, -1)), x), y

    setup.change_batch = turn


def _in_order_of_names(data: Data) -> Data:
    x, y = data
    return x, y[sorted(range(len(y)), key=str)]


def targets_listed_by_name(setup: Setup) -> None:
    """Inputs come in the order of their numbers, targets in that of their names: 1, 10, 100, 11."""
    setup.train, setup.val = map(_in_order_of_names, (setup.train, setup.val))


def masks_scaled_like_images(setup: Setup) -> None:
    """Masks of 0 and 1 are divided by 255, as the images are."""
    (x, y), (held_out, wanted) = setup.train, setup.val
    setup.train, setup.val = (x, y / 255), (held_out, wanted / 255)


def folder_missing(setup: Setup, label: int) -> None:
    """The validation has no folder of one class, and all later classes get the number before."""
    x, y = setup.val
    kept = y != label
    setup.val = x[kept], y[kept] - (y[kept] > label).to(y.dtype)


def pairs_labelled_the_other_way(setup: Setup) -> None:
    """Pairs of one class have the label 1, which the loss takes for that of different ones."""
    change_data(setup, lambda x, y: (x, 1 - y))


TUNING = [
    # That the loss has the wrong code is a correct diagnosis too.
    case("siamese_net", pairs_labelled_the_other_way, ("wrong_loss",)),
    case("cosine_pairs", pairs_labelled_the_other_way, ("wrong_loss",)),
    case("drawn_evenly", folder_missing, label=0),
    case("classes_weighed", folder_missing, label=0),
    case("mlp", folder_missing, label=1),
    case("cnn_of_pixels", targets_listed_by_name),
    case("cnn_of_textures", targets_listed_by_name),
    case("cnn_of_pixels", masks_scaled_like_images),
    case("cnn_of_pixels", images_flipped_alone),
    case("cnn_of_pixels", images_turned_alone),
    case("mlp", shuffled_labels),
    case("properties", shuffled_labels),
    case("mlp_sgd", shuffled_labels, share=0.5),
    case("lstm", shuffled_labels),
    case("cnn", shifted_labels),
    case("friedman", shifted_labels),
    case("friedman", validated_with_training_targets),
]

HELD_OUT = [
    case("cnn_of_textures", rows_dropped, rows=3),
    case("ten_prototypes", other_label_code, ("train_test_mismatch",), classes=10),
    case("mlp_momentum", other_label_code, ("train_test_mismatch",), classes=10),
    case("logits_adjusted", other_label_code, ("train_test_mismatch",), classes=6),
    case("common_class_thinned", other_label_code, ("train_test_mismatch",), classes=4),
    case("cancer_one_logit", labels_from_one),
    case("mlp_layer_norm", sorted_labels),
    case("heteroscedastic", sorted_labels),
    case("sine", rows_dropped, rows=3),
    case("cnn_tanh", rows_dropped, rows=10),
]
