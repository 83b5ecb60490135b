"""Regression: values, and the parameters of a distribution of them."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from debugnn.faults.datasets import (
    autoencoding,
    bundled,
    counts,
    friedman,
    fuzzy,
    noisy_line,
    prices,
    rare_counts,
    regression,
    sine,
    spreading,
)
from debugnn.faults.nets import Coupling, Gated, Heads, mlp
from debugnn.faults.program import Build, Setup, score


def soft_label_score(outputs: Tensor, targets: Tensor) -> float:
    """Return R² of probabilities that come as logits."""
    return score(outputs.sigmoid(), targets)


def rate_score(outputs: Tensor, targets: Tensor) -> float:
    """Return R² of rates that come as logarithms."""
    return score(outputs.exp(), targets)


def gaussian_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """The Gaussian's negative log-likelihood, which may fall below zero."""
    deviation = outputs["log_variance"].clamp(-8, 8).exp()
    return F.gaussian_nll_loss(outputs["mean"], targets, deviation)


def mean_score(outputs: dict[str, Tensor], targets: Tensor) -> float:
    """Return R² of the means."""
    return score(outputs["mean"], targets)


def heteroscedastic(seed: int) -> Setup:
    """Mean and log-variance of a curve whose noise grows along it."""
    heads = {"mean": nn.Linear(32, 1), "log_variance": nn.Linear(32, 1)}
    body = nn.Sequential(*mlp(1, 32, 32), nn.Tanh())
    return Setup(
        Heads(body, heads), gaussian_loss, partial(Adam, lr=1e-2), *spreading(seed), epochs=15,
        score=mean_score,
    )  # fmt: skip


def measured(seed: int) -> Setup:
    """Measurements in units of their own, from thousandths to hundred thousands, that the net's
    first batch norm brings to one scale. The targets, logarithms, are far from zero too."""
    units = torch.tensor([3e5, 2e-3, 40.0, 1.0, 8e4, 5e-2, 9.0, 2e5, 600.0, 1e-3])
    zeros = torch.tensor([5e5, 0.0, 1990.0, 2.0, 0.0, 1.0, 100.0, 1e5, 0.0, 1e-3])
    train, val = ((x * units + zeros, y + 9) for x, y in friedman(seed))
    model = nn.Sequential(nn.BatchNorm1d(10), *mlp(10, 64, 64, 1, activation=nn.SiLU))
    return Setup(model, nn.SmoothL1Loss(), partial(AdamW, lr=4e-3), train, val, epochs=12)


def decayed(seed: int) -> Setup:
    """A rate that is below a hundredth for more than half of the training, which has converged by
    then."""
    return Setup(
        mlp(8, 16, 1), nn.MSELoss(), partial(Adam, lr=3e-2), *noisy_line(seed), epochs=20,
        make_scheduler=partial(ExponentialLR, gamma=0.5),
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "noisy_line_decayed": decayed,
    "rare_counts": lambda seed: Setup(
        mlp(6, 32, 1),
        nn.PoissonNLLLoss(),
        partial(Adam, lr=3e-3),
        *rare_counts(seed),
        epochs=6,
        batch_size=64,
        score=rate_score,
    ),
    "measured": measured,
    "friedman": lambda seed: Setup(
        mlp(10, 64, 64, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *friedman(seed), epochs=12
    ),
    "friedman_huber": lambda seed: Setup(
        mlp(10, 48, 48, 1, norm=nn.LayerNorm),
        nn.SmoothL1Loss(),
        partial(AdamW, lr=5e-3),
        *friedman(seed),
        epochs=12,
    ),
    "sine": lambda seed: Setup(
        mlp(1, 32, 32, 1, activation=nn.Tanh),
        nn.MSELoss(),
        partial(Adam, lr=1e-2),
        *sine(seed),
        epochs=25,
    ),
    "autoencoder": lambda seed: Setup(
        mlp(64, 64, 24, 64, 64), nn.MSELoss(), partial(Adam, lr=5e-3), *autoencoding(seed)
    ),
    "friedman_prices": lambda seed: Setup(
        mlp(10, 64, 64, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *prices(seed), epochs=12
    ),
    "friedman_closed_gates": lambda seed: Setup(
        nn.Sequential(nn.Linear(10, 32), Gated(32), Gated(32), nn.Linear(32, 1)),
        nn.MSELoss(),
        partial(Adam, lr=5e-3),
        *friedman(seed),
        epochs=12,
    ),
    "soft_labels": lambda seed: Setup(
        mlp(12, 32, 1),
        nn.BCEWithLogitsLoss(),
        partial(Adam, lr=1e-2),
        *fuzzy(seed),
        epochs=10,
        score=soft_label_score,
    ),
}

HELD_OUT: dict[str, Build] = {
    "friedman_sgd": lambda seed: Setup(
        mlp(10, 64, 1, activation=nn.Tanh),
        F.mse_loss,
        partial(SGD, lr=0.02, momentum=0.9),
        *friedman(seed),
        epochs=20,
    ),
    "diabetes": lambda seed: Setup(
        mlp(10, 16, 1),
        nn.MSELoss(),
        partial(Adam, lr=3e-3),
        *regression(*bundled("diabetes"), seed),
        epochs=12,
    ),
    "noisy_line": lambda seed: Setup(
        mlp(8, 16, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *noisy_line(seed), epochs=8
    ),
    "counts": lambda seed: Setup(
        mlp(8, 32, 1),
        nn.PoissonNLLLoss(),
        partial(Adam, lr=5e-3),
        *counts(seed),
        epochs=10,
        score=rate_score,
    ),
    "heteroscedastic": heteroscedastic,
    "friedman_couplings": lambda seed: Setup(
        nn.Sequential(*(Coupling(10, 32) for _ in range(4)), nn.Linear(10, 1)),
        F.l1_loss,
        partial(AdamW, lr=5e-3),
        *friedman(seed),
        epochs=12,
    ),
}
