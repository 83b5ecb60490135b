"""Networks of which a part is frozen."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam, Optimizer

from debugnn.faults.datasets import digits
from debugnn.faults.nets import cnn, mlp
from debugnn.faults.program import Build, Setup


def only_trainable(
    make: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Give the optimiser only the parameters that are not frozen."""
    return lambda params: make([p for p in params if p.requires_grad])


def frozen_first_layer(seed: int) -> Setup:
    """Two trained layers on a fixed random layer."""
    model = mlp(64, 256, 64, 10)
    model[0].requires_grad_(False)
    optimizer = only_trainable(partial(Adam, lr=2e-3))
    return Setup(model, nn.CrossEntropyLoss(), optimizer, *digits(seed), epochs=6)


def fine_tuning(seed: int) -> Setup:
    """A new head for the digits 5 to 9 on frozen features that were learnt on 0 to 4."""
    images = digits(seed, 1, 8, 8)
    (x, y), _ = images
    model = cnn(16, 32, classes=5)
    optimizer = Adam(model.parameters(), lr=5e-3)
    for batch in torch.randperm(len(x)).repeat(3).split(64):
        old = batch[y[batch] < 5]
        optimizer.zero_grad()
        F.cross_entropy(model(x[old]), y[old]).backward()
        optimizer.step()
    model.requires_grad_(False)
    model[-1] = nn.Linear(128, 5)
    train, val = ((x[y >= 5], y[y >= 5] - 5) for x, y in images)
    head = only_trainable(partial(Adam, lr=5e-3))
    return Setup(model, nn.CrossEntropyLoss(), head, train, val, epochs=10)


TUNING: dict[str, Build] = {"frozen_first_layer": frozen_first_layer}

HELD_OUT: dict[str, Build] = {"fine_tuning": fine_tuning}
