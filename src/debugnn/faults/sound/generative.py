"""Generative models: autoencoders with a random or a discrete code, and adversarial networks."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adam

from debugnn.faults.datasets import autoencoding, black_and_white, ring, toy, waves
from debugnn.faults.loops import told_the_class
from debugnn.faults.nets import (
    Flow,
    MaskedConvolution,
    MaskedMlp,
    QuantisedAutoencoder,
    RoundedAutoencoder,
    VariationalAutoencoder,
    mlp,
)
from debugnn.faults.program import Build, Setup, score


def negative_elbo(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """Squared error and KL divergence, both summed over pixels, codes and samples."""
    rebuilt, mean, log_variance = outputs
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return 0.5 * (rebuilt - targets).square().sum() + kl


def rebuilt_score(outputs: tuple[Tensor, ...], targets: Tensor) -> float:
    """Return R² of a variational autoencoder's rebuilt inputs."""
    return score(outputs[0], targets)


def variational_autoencoder(seed: int) -> Setup:
    """A variational autoencoder of digits by the textbook's summed bound."""
    return Setup(
        VariationalAutoencoder(64, 64, 6), negative_elbo, partial(Adam, lr=2e-3),
        *autoencoding(seed), score=rebuilt_score,
    )  # fmt: skip


def quantised_loss(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """The error of rebuilt signals, and how far codes and the entries of a codebook are apart.

    The entries are pulled to the codes, and these, less, to the entries (arXiv:1711.00937).
    """
    rebuilt, codes, chosen = outputs
    apart = F.mse_loss(chosen, codes.detach()) + 0.25 * F.mse_loss(codes, chosen.detach())
    return F.mse_loss(rebuilt, targets) + apart


def flow_loss(outputs: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    """Return the negative log-likelihood of a flow to a normal density, but for a constant."""
    codes, volume = outputs
    return (0.5 * codes.square().sum(dim=1) - volume).mean()


def flow(seed: int) -> Setup:
    """A normalising flow of points of two moons; its targets are placeholders."""
    (x, _), (x_val, _) = toy("moons", seed)
    return Setup(
        Flow(6, 32), flow_loss, partial(Adam, lr=3e-3), (x, torch.zeros(len(x))),
        (x_val, torch.zeros(len(x_val))), epochs=15,
        score=lambda outputs, targets: -flow_loss(outputs, targets).item(),
    )  # fmt: skip


def generator(seed: int, hinge: bool = False) -> Setup:
    """A generator of points of a ring; the critic that its loss calls trains after each step."""
    maker, critic = mlp(6, 48, 48, 2), mlp(2, 48, 48, 1, activation=partial(nn.LeakyReLU, 0.2))
    if hinge:
        for layer in (critic[0], critic[2]):
            spectral_norm(layer)
    moves = Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    train, val = ring(seed)
    draws = torch.Generator().manual_seed(seed)

    def loss_fn(fake: Tensor, _: Tensor) -> Tensor:
        return -critic(fake).mean() if hinge else F.softplus(-critic(fake)).mean()

    def outside(fake: Tensor, _: Tensor) -> float:
        return (fake.norm(dim=1) > 0.5).float().mean().item()

    def train_critic(model: nn.Module) -> None:
        chosen = torch.randint(len(train[0]), (32,), generator=draws)
        with torch.no_grad():
            fake = model(train[0][chosen])
        true = train[1][chosen]
        bound = F.relu if hinge else F.softplus
        margin = 1.0 if hinge else 0.0
        moves.zero_grad()
        (bound(margin - critic(true)) + bound(margin + critic(fake))).mean().backward()
        moves.step()

    return Setup(
        maker, loss_fn, partial(Adam, lr=1e-3, betas=(0.5, 0.9)), train, val,
        after_step=train_critic, score=outside,
    )  # fmt: skip


def pixel_by_pixel(seed: int) -> Setup:
    """Each pixel of a digit is predicted from those above it and to its left."""
    model = nn.Sequential(
        MaskedConvolution(1, 24, centre=False), nn.ReLU(),
        MaskedConvolution(24, 24, centre=True), nn.ReLU(), nn.Conv2d(24, 1, 1),
    )  # fmt: skip
    return Setup(
        model, nn.BCEWithLogitsLoss(), partial(Adam, lr=1e-2), *black_and_white(seed, 1, 8, 8),
        epochs=12,
    )  # fmt: skip


def feature_by_feature(seed: int) -> Setup:
    """Each pixel of a digit is predicted from those before it, with weights of its own."""
    return Setup(
        MaskedMlp(64, 256), nn.BCEWithLogitsLoss(), partial(Adam, lr=5e-3), *black_and_white(seed),
        epochs=15,
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "pixel_by_pixel": pixel_by_pixel,
    "rounded_autoencoder": lambda seed: Setup(
        RoundedAutoencoder(64, 64, 12),
        nn.MSELoss(),
        partial(Adam, lr=2e-3),
        *autoencoding(seed),
        epochs=12,
    ),
    "variational_autoencoder": variational_autoencoder,
    "quantised_autoencoder": lambda seed: Setup(
        QuantisedAutoencoder(32, 8, 32),
        quantised_loss,
        partial(Adam, lr=3e-3),
        *waves(seed),
        epochs=10,
        score=rebuilt_score,
    ),
    "generator": generator,
    "flow": flow,
}

HELD_OUT: dict[str, Build] = {
    "feature_by_feature": feature_by_feature,
    "conditional_autoencoder": told_the_class,
    "generator_with_hinge": partial(generator, hinge=True),
}
