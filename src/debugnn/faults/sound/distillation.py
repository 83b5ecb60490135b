"""Students that learn from a teacher's logits instead of labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from debugnn.faults.datasets import digits
from debugnn.faults.nets import cnn, mlp
from debugnn.faults.program import Build, Setup


def divergence(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The divergence of two softmaxes of logits (Hinton et al. 2015, arXiv:1503.02531)."""
    said, wanted = ((each / temperature).log_softmax(dim=1) for each in (outputs, targets))
    return temperature**2 * F.kl_div(said, wanted, reduction="batchmean", log_target=True)


def agreement(outputs: Tensor, targets: Tensor) -> float:
    """Return how often student and teacher name the same class."""
    return (outputs.argmax(dim=1) == targets.argmax(dim=1)).float().mean().item()


def student(
    seed: int,
    model: nn.Module,
    make_optimizer: Callable[..., Any],
    temperature: float,
    *shape: int,
) -> Setup:
    """A student of a net that was trained on the digits' labels before.

    Args:
        shape: of the images that the student is given.
    """
    (x, y), (x_val, _) = digits(seed)
    teacher = mlp(64, 96, 10)
    moves = Adam(teacher.parameters(), lr=5e-3)
    for chosen in torch.arange(len(x)).repeat(12).split(50):
        moves.zero_grad()
        F.cross_entropy(teacher(x[chosen]), y[chosen]).backward()
        moves.step()
    with torch.no_grad():
        train, val = ((rows.reshape(-1, *shape), teacher(rows)) for rows in (x, x_val))
    loss_fn = partial(divergence, temperature=temperature)
    return Setup(model, loss_fn, make_optimizer, train, val, score=agreement)


TUNING: dict[str, Build] = {
    "student": lambda seed: student(
        seed, mlp(64, 24, 10), partial(SGD, lr=0.02, momentum=0.9), 4.0, 64
    ),
}

HELD_OUT: dict[str, Build] = {
    "convolutional_student": lambda seed: student(
        seed, cnn(8, 16), partial(Adam, lr=5e-3), 2.0, 1, 8, 8
    ),
}
