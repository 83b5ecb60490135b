"""Classes that are too rare to be learnt."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import keep_samples
from debugnn.faults.program import Setup
from debugnn.faults.sound.rare_classes import mean_recall


def thin_out(setup: Setup, classes: tuple[int, ...], keep: float) -> None:
    """Training has a small share of the samples of some classes; validation has all."""
    _, y = setup.train
    kept = torch.ones(len(y), dtype=torch.bool)
    for label in classes:
        places = (y.flatten() == label).nonzero().flatten()
        kept[places[max(2, int(keep * len(places))) :]] = False
    keep_samples(setup, kept)


def background_flood(setup: Setup, label: int, copies: int) -> None:
    """One class has many overlapping samples, as windows without an object have."""
    x, y = setup.train
    background = x[y.flatten() == label].repeat(copies, *[1] * (x.dim() - 1))
    background = background + 0.1 * torch.randn_like(background)
    setup.train = torch.cat([x, background]), torch.cat([y, y.new_full((len(background),), label)])
    setup.epochs = max(1, setup.epochs * len(x) // len(setup.train[0]))


def long_tail(setup: Setup, ratio: float) -> None:
    """Each class has a fixed share of the samples of the one before it.

    As in CIFAR-LT (Cui et al. 2019, arXiv:1901.05555, section 5.1).

    Args:
        setup: a classification.
        ratio: number of samples of the rarest class over that of the most frequent one.
    """
    _, y = setup.train
    classes = int(y.max()) + 1
    kept = torch.ones(len(y), dtype=torch.bool)
    for label in range(classes):
        places = (y == label).nonzero().flatten()
        kept[places[max(1, int(len(places) * ratio ** (label / (classes - 1)))) :]] = False
    keep_samples(setup, kept)


def head_of_sorted_file(setup: Setup, rows: float) -> None:
    """The first rows of a file that is sorted by class: the last classes are hardly there."""
    _, y = setup.train
    order = y.flatten().argsort(stable=True)
    keep_samples(setup, order[: int(rows * len(y))])


def sampler_by_frequency(setup: Setup, rare: tuple[int, ...], keep: float) -> None:
    """A weighted sampler whose weights are the classes' counts, where their inverse was meant."""
    thin_out(setup, rare, keep)
    x, y = setup.train
    counts = torch.bincount(y.flatten().long()).float()
    drawn = counts[y.flatten().long()].multinomial(len(y), replacement=True)
    setup.train = x[drawn], y[drawn]


def one_weight_a_class(setup: Setup) -> None:
    """A weighted sampler is given a weight for each class, where it takes one for each sample: it
    draws the first samples alone, as many as there are classes."""
    _, y = setup.train
    count = len(y)
    keep_samples(setup, torch.arange(count) % (int(y.max()) + 1))


def weighed_by_counts(setup: Setup) -> None:
    """The loss weighs each class by its share, where the inverse was meant."""
    counts = torch.bincount(setup.train[1]).float()
    setup.loss_fn = nn.CrossEntropyLoss(weight=counts / counts.mean())


def weighed_by_logarithms(setup: Setup) -> None:
    """The weight of a class is the logarithm of the commonest class's count over its own: 0 of the
    commonest. Of a batch that holds nothing else the weighted mean is 0 / 0."""
    counts = torch.bincount(setup.train[1]).float()
    setup.loss_fn = nn.CrossEntropyLoss(weight=(counts.max() / counts).log())


def weighed_by_shares_by_hand(setup: Setup) -> None:
    """Each sample's loss is multiplied by the share of its class, where the inverse was meant."""
    y = setup.train[1].flatten().long()
    shares = torch.bincount(y) / len(y)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        else:
            loss = F.cross_entropy(outputs, targets, reduction="none")
        return (shares[targets.long()] * loss).mean()

    setup.loss_fn = loss_fn
    setup.score = mean_recall


def drawn_by_counts(setup: Setup) -> None:
    """The sampler's weights are the counts of the classes, where their inverse was meant.

    The program has drawn all classes equally often; the validation has their natural shares.
    """
    y = setup.val[1].flatten().long()
    x, drawn_evenly = setup.train[0], setup.train[1].flatten().long()
    weights = torch.bincount(y).double().square()
    rows = weights[drawn_evenly].multinomial(len(x), replacement=True)
    setup.train = x[rows], setup.train[1][rows]


def adjusted_the_other_way(setup: Setup) -> None:
    """The logarithms of the classes' shares are subtracted from the logits."""
    offset = (torch.bincount(setup.train[1]) / len(setup.train[1])).log()
    setup.loss_fn = lambda outputs, targets: F.cross_entropy(outputs - offset, targets)


def sorted_by_class(setup: Setup) -> None:
    """The samples are sorted by class, and the sampler does not shuffle."""
    x, y = setup.train
    order = y.flatten().argsort(stable=True)
    setup.train, setup.shuffles = (x[order], y[order]), False


def folder_by_folder(setup: Setup) -> None:
    """The samples are read from one folder for each class, in no order of the classes."""
    x, y = setup.train
    folders = torch.randperm(int(y.max()) + 1)
    order = torch.cat([(y.flatten() == label).nonzero().flatten() for label in folders])
    setup.train, setup.shuffles = (x[order], y[order]), False


UNSHUFFLED = ("bad_labels", "train_test_mismatch")


def without_negatives(setup: Setup) -> None:
    """Trained on what is liked alone, as where no others are drawn beside it."""
    keep_samples(setup, setup.train[1].flatten() == 1)


TUNING = [
    case("recommender", without_negatives, ("bad_labels",)),
    case("classes_weighed", weighed_by_shares_by_hand),
    case("weighted_events", weighed_by_shares_by_hand),
    case("drawn_evenly", drawn_by_counts),
    case("classes_weighed", weighed_by_logarithms, ("non_finite",)),
    case("classes_weighed", weighed_by_counts),
    case("mlp_momentum", sorted_by_class, UNSHUFFLED),
    case("cnn", sorted_by_class, UNSHUFFLED),
    case("few_informative", thin_out, classes=(1,), keep=0.02),
    case("ten_prototypes", thin_out, classes=(1, 2, 3, 4, 5, 6, 7, 8, 9), keep=0.02),
    case("mlp_momentum", one_weight_a_class, ("overfitting",)),
    case("cnn", one_weight_a_class, ("overfitting",)),
    case("moons", thin_out, classes=(0,), keep=0.02),
    case("mlp_sgd", thin_out, classes=(5, 6, 7, 8, 9), keep=0.02),
    case("circles_one_logit", thin_out, classes=(1,), keep=0.03),
    case("cnn", thin_out, classes=(0, 1, 2, 3, 4, 5, 6, 8), keep=0.01),
    case("few_informative", background_flood, label=0, copies=60),
]

HELD_OUT = [
    case("logits_adjusted", adjusted_the_other_way),
    case("cnn_batch_norm", folder_by_folder, UNSHUFFLED),
    case("mlp_momentum", long_tail, ratio=0.005),
    case("ten_prototypes", long_tail, ratio=0.005),
    # The validation has classes that the training may lack altogether.
    case("moons", head_of_sorted_file, ("train_test_mismatch",), rows=0.5),
    case("mlp_cosine", head_of_sorted_file, ("train_test_mismatch",), rows=0.6),
    case("few_informative", sampler_by_frequency, rare=(1,), keep=0.1),
]
