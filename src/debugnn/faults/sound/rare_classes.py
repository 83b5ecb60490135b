"""Classification of rare classes, which are drawn or weighed to count as much as the common ones.

The validation keeps the natural shares of the classes, so that accuracy and loss on it are worse
than those of guessing the commonest class for long. What counts is the classes' mean recall.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from debugnn.faults.datasets import Split, binary, digits, mixture
from debugnn.faults.nets import mlp
from debugnn.faults.program import Build, Setup

SIX = (0.8, 0.1, 0.05, 0.025, 0.015, 0.01)
FOUR = (0.86, 0.08, 0.04, 0.02)


def mean_recall(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean over the classes of the share of their samples that are recognised."""
    said = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    labels = targets.reshape(-1).long()
    return torch.stack(
        [(said[labels == c] == c).float().mean() for c in labels.unique()]
    ).mean().item()  # fmt: skip


def ranking(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of pairs, one of either class, whose scores are in the right order."""
    scores = outputs[:, 1] - outputs[:, 0]
    return (scores[targets == 1][:, None] > scores[targets == 0]).float().mean().item()


def drawn(data: Split, power: float = -1.0) -> Split:
    """Draw as many training samples with replacement as there are, as a weighted sampler does.

    Args:
        data: the samples.
        power: of the classes' counts, which gives the weight of their samples: −1 draws all classes
            equally often.
    """
    (x, y), val = data
    weights = torch.bincount(y.flatten().long()).double() ** power
    rows = weights[y.flatten().long()].multinomial(len(y), replacement=True)
    return (x[rows], y[rows]), val


def undersampled(data: Split) -> Split:
    """Leave as many training samples of each class as the rarest one has."""
    (x, y), val = data
    least = int(torch.bincount(y).min())
    kept = torch.cat([(y == c).nonzero().flatten()[:least] for c in y.unique()])
    return (x[kept], y[kept]), val


def thinned_digits(seed: int) -> Split:
    """Digits as images, of which 1 to 9 are some eight times as rare as 0, in both sets."""
    parts = []
    for x, y in digits(seed, 1, 8, 8):
        keep = torch.ones(len(y), dtype=torch.bool)
        for c in range(1, 10):
            keep[(y == c).nonzero().flatten()[::3]] = False
        again = (y == 0).nonzero().flatten().repeat(4)
        noise = 0.3 * torch.randn(len(again), *x.shape[1:])
        parts.append((torch.cat([x[keep], x[again] + noise]), torch.cat([y[keep], y[again]])))
    return parts[0], parts[1]


def inverse_shares(y: Tensor) -> Tensor:
    """Return a weight for each class, the inverse of its share, of mean 1 over the samples."""
    counts = torch.bincount(y).float()
    return len(y) / (len(counts) * counts)


class AdjustedLoss(nn.Module):
    """The cross-entropy of logits to which the logarithms of the classes' shares are added
    (Menon et al. 2021, arXiv:2007.07314)."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.offset = (torch.bincount(y) / len(y)).log()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs + self.offset, targets)


def _drawn_evenly(seed: int) -> Setup:
    return Setup(
        mlp(20, 64, 48, 6), nn.CrossEntropyLoss(label_smoothing=0.1), partial(AdamW, lr=3e-3),
        *drawn(mixture(seed, SIX)), batch_size=64, epochs=4, score=mean_recall,
    )  # fmt: skip


def _weighed(seed: int) -> Setup:
    train, val = mixture(seed, FOUR, features=12)
    return Setup(
        mlp(12, 40, 4, activation=nn.Tanh), nn.CrossEntropyLoss(weight=inverse_shares(train[1])),
        partial(Adam, lr=5e-3), train, val, batch_size=50, epochs=4, score=mean_recall,
    )  # fmt: skip


def _adjusted(seed: int) -> Setup:
    train, val = mixture(seed, SIX)
    return Setup(
        mlp(20, 64, 6), AdjustedLoss(train[1]), partial(SGD, lr=0.1, momentum=0.9), train, val,
        batch_size=64, epochs=5, score=mean_recall,
    )  # fmt: skip


def _undersampled(seed: int) -> Setup:
    return Setup(
        mlp(12, 48, 48, 4), nn.CrossEntropyLoss(), partial(Adam, lr=5e-3),
        *undersampled(mixture(seed, FOUR, features=12, samples=9000)), batch_size=24, epochs=8,
        score=mean_recall,
    )  # fmt: skip


def _one_in_thirty(seed: int) -> Setup:
    return Setup(
        mlp(16, 32, 1), nn.BCEWithLogitsLoss(), partial(AdamW, lr=3e-3),
        *binary(drawn(mixture(seed, (0.97, 0.03), features=16))), batch_size=64, epochs=4,
        score=mean_recall,
    )  # fmt: skip


def _digits_weighed(seed: int) -> Setup:
    train, val = thinned_digits(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    loss = nn.CrossEntropyLoss(weight=inverse_shares(train[1]))
    return Setup(net, loss, partial(Adam, lr=2e-3), train, val, epochs=6, score=mean_recall)


def _hardly_told_apart(seed: int) -> Setup:
    """Of the rare class no sample is likelier than not, so that no sample is called one."""
    return Setup(
        mlp(12, 32, 2), nn.CrossEntropyLoss(), partial(Adam, lr=2e-3),
        *mixture(seed, (0.94, 0.06), features=12, samples=9000, distance=0.9), batch_size=64,
        epochs=3, score=ranking,
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "drawn_evenly": _drawn_evenly,
    "classes_weighed": _weighed,
    "one_in_thirty": _one_in_thirty,
    "hardly_told_apart": _hardly_told_apart,
}

HELD_OUT: dict[str, Build] = {
    "logits_adjusted": _adjusted,
    "common_class_thinned": _undersampled,
    "rare_digits_weighed": _digits_weighed,
}
