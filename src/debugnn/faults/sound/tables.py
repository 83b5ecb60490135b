"""Classification of tables: two classes, three, a hundred."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from debugnn.faults.datasets import (
    Split,
    bids,
    binary,
    events,
    few_informative,
    likes,
    prototypes,
    table,
    toy,
)
from debugnn.faults.loops import taking
from debugnn.faults.nets import Functional, Products, mlp
from debugnn.faults.program import Build, Setup

ce = nn.CrossEntropyLoss


def oversampled(data: Split) -> Split:
    """Repeat the training samples of class 1 twice, as for a class that is rare."""
    (x, y), val = data
    again = (y == 1).nonzero().flatten().repeat(2)
    return (torch.cat([x, x[again]]), torch.cat([y, y[again]])), val


def focal_loss(outputs: Tensor, targets: Tensor, share: float = 0.95) -> Tensor:
    """The cross-entropy, in which rare and badly met samples count more (Lin et al. 2017,
    arXiv:1708.02002)."""
    loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    weight = torch.where(targets > 0.5, share, 1 - share)
    return (weight * (1 - (-loss).exp()).square() * loss).sum() / targets.sum().clamp_min(1)


def ranking(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of pairs of an event and none in which the event's output is higher."""
    happened, did_not = outputs[targets > 0.5], outputs[targets < 0.5]
    return (happened[:, None] > did_not).float().mean().item()


def numbered(data: Split) -> Split:
    """Add the row's number to the features, of a file whose order tells nothing."""
    (x, y), (x_val, y_val) = data
    number = torch.randperm(len(x) + len(x_val)).float()
    number = ((number - number.mean()) / number.std()).unsqueeze(1)
    train, val = number[: len(x)], number[len(x) :]
    return (torch.cat([x, train], dim=1), y), (torch.cat([x_val, val], dim=1), y_val)


class Bidder(nn.Module):
    """Reads words' numbers (B,), and amounts (B, 2) beside what it knows of the words."""

    def __init__(self, words: int, hidden: int) -> None:
        super().__init__()
        self.known = nn.Embedding(words, 8)
        nn.init.normal_(self.known.weight, std=0.3)
        self.joined = mlp(10, hidden, 1)

    def forward(self, words: Tensor, amounts: Tensor) -> Tensor:
        return self.joined(torch.cat([self.known(words), amounts], dim=1))


def bidder(seed: int) -> Setup:
    """What is bought, from a word and two amounts, each an argument of its own."""
    return Setup(
        Bidder(60, 32), nn.BCEWithLogitsLoss(), partial(Adam, lr=5e-3), *bids(seed), epochs=10,
        loop=taking(lambda rows: (rows[:, 0].long(), rows[:, 1:])),
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "bidder": bidder,
    "recommender": lambda seed: Setup(
        Products(200, 120, 24, std=0.1),
        nn.BCEWithLogitsLoss(),
        partial(AdamW, lr=1e-2),
        *likes(seed),
        batch_size=128,
        epochs=4,
    ),
    "numbered_rows": lambda seed: Setup(
        mlp(21, 32, 2), ce(), partial(Adam, lr=3e-3), *numbered(few_informative(seed)), epochs=8
    ),
    "cancer": lambda seed: Setup(  # 37 % and 63 %
        mlp(30, 16, 2), ce(), partial(Adam, lr=3e-3), *table("breast_cancer", seed), epochs=12
    ),
    "wine": lambda seed: Setup(
        mlp(13, 32, 3), ce(), partial(Adam, lr=5e-3), *table("wine", seed), batch_size=16, epochs=12
    ),
    "moons": lambda seed: Setup(
        mlp(2, 32, 32, 2), ce(), partial(Adam, lr=5e-3), *toy("moons", seed), epochs=15
    ),
    "functional_circles": lambda seed: Setup(
        Functional(2, 32, 2),
        F.cross_entropy,
        partial(Adam, lr=5e-3),
        *toy("circles", seed),
        epochs=12,
    ),
    "ten_prototypes": lambda seed: Setup(
        mlp(32, 64, 10),
        ce(),
        partial(SGD, lr=0.1),
        *prototypes(seed, classes=10, noise=1.5),
        epochs=4,
    ),
    "forty_classes": lambda seed: Setup(
        mlp(32, 128, 40), ce(), partial(Adam, lr=5e-3), *prototypes(seed, classes=40), epochs=6
    ),
    "weighted_events": lambda seed: Setup(  # many alarms are false, as the weight asks for
        mlp(10, 32, 1),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(30.0)),
        partial(Adam, lr=5e-3),
        *events(seed),
        batch_size=64,
        score=ranking,
    ),
}

HELD_OUT: dict[str, Build] = {
    "cancer_one_logit": lambda seed: Setup(
        mlp(30, 16, 1, activation=nn.Tanh),
        nn.BCEWithLogitsLoss(),
        partial(SGD, lr=0.1),
        *binary(table("breast_cancer", seed)),
        epochs=12,
    ),
    "iris": lambda seed: Setup(
        mlp(4, 24, 24, 3, activation=nn.Tanh),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *table("iris", seed),
        batch_size=16,
        epochs=15,
    ),
    "circles_one_logit": lambda seed: Setup(
        mlp(2, 32, 32, 1),
        nn.BCEWithLogitsLoss(),
        partial(Adam, lr=5e-3),
        *binary(toy("circles", seed)),
        epochs=12,
    ),
    "hundred_classes": lambda seed: Setup(
        mlp(32, 128, 100), ce(), partial(Adam, lr=5e-3), *prototypes(seed), epochs=6
    ),
    "oversampled": lambda seed: Setup(  # after the split
        mlp(20, 32, 2), ce(), partial(Adam, lr=3e-3), *oversampled(few_informative(seed)), epochs=4
    ),
    "few_informative": lambda seed: Setup(  # stops before it overfits
        mlp(20, 32, 2),
        ce(),
        partial(Adam, lr=5e-3),
        *few_informative(seed),
        epochs=6,
    ),
    "focal_events": lambda seed: Setup(
        mlp(10, 24, 24, 1, activation=nn.GELU),
        focal_loss,
        partial(AdamW, lr=5e-3),
        *events(seed),
        batch_size=100,
        epochs=10,
        score=ranking,
    ),
}
