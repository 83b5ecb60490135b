"""A loss that is summed over the batch, or whose terms are of other scales."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from debugnn.faults.cases import case
from debugnn.faults.edits import change_optimizer
from debugnn.faults.program import Loss, Setup
from debugnn.faults.sound.dense import asked_of_images


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch."""
    return -logits.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).sum()


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared errors, summed over the batch."""
    return (outputs - targets).square().sum()


def summed(setup: Setup, loss_fn: Loss, batch_size: int, lr: float) -> None:
    """A loss summed over the batch, at a learning rate that suits its mean."""
    setup.loss_fn, setup.batch_size = loss_fn, batch_size
    change_optimizer(setup, lr=lr)


def weighted_by_batch(setup: Setup, batch_size: int) -> None:
    """The loss times the batch size, which is right for an epoch's mean, is differentiated."""
    mean = setup.loss_fn
    setup.loss_fn = lambda outputs, targets: mean(outputs, targets) * len(targets)
    setup.batch_size = batch_size


def _categorical(logits: Tensor, labels: Tensor) -> Tensor:
    return -Categorical(logits=logits, validate_args=False).log_prob(labels).sum()


def _normal(outputs: Tensor, targets: Tensor) -> Tensor:
    return -Normal(outputs, 1.0, validate_args=False).log_prob(targets).sum()


def log_likelihood(setup: Setup, batch_size: int) -> None:
    """The negative log-likelihood of the whole batch, by `torch.distributions`."""
    classes = not setup.train[1].is_floating_point()
    setup.loss_fn = _categorical if classes else _normal
    setup.batch_size = batch_size


def inner_product(setup: Setup, batch_size: int) -> None:
    """The textbook's eᵀe, without a division by the number of samples."""

    def squared_norm(outputs: Tensor, targets: Tensor) -> Tensor:
        errors = (outputs - targets).flatten()
        return torch.dot(errors, errors)

    setup.loss_fn, setup.batch_size = squared_norm, batch_size


def darkness_unscaled(setup: Setup, unit: float) -> None:
    """The target of one of two heads is given in a unit that makes its squared error large."""

    def asked(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"digit": labels, "darkness": unit * images.mean(dim=1, keepdim=True)}

    setup.loop = asked_of_images(asked)
    change_optimizer(setup, lr=0.02)


def undivided_accumulation(setup: Setup, batches: int) -> None:
    """Gradients of several batches are added up, and not divided by their number."""
    setup.accumulate, setup.averages_accumulated = batches, False
    setup.batch_size = 8
    setup.epochs *= 2


def summed_over_batches(setup: Setup, batches: int, lr: float) -> None:
    """Small batches, whose gradients are added up for an update at the rate of a single one."""
    setup.batch_size, setup.accumulate = 8, batches
    setup.averages_accumulated = False
    setup.epochs *= 2
    change_optimizer(setup, lr=lr)


def divergence_summed(setup: Setup) -> None:
    """A divergence that is summed over the batch, beside the mean of the squared errors."""

    def bound(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
        rebuilt, mean, log_variance = outputs
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
        return F.mse_loss(rebuilt, targets) + kl

    setup.loss_fn = bound


def commitment_summed(setup: Setup) -> None:
    """How far codes and a codebook's entries are apart is summed over the batch, errors are not."""

    def loss_fn(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
        rebuilt, codes, chosen = outputs
        apart = (chosen - codes.detach()).square() + 0.25 * (codes - chosen.detach()).square()
        return (rebuilt - targets).square().mean() + apart.sum()

    setup.loss_fn = loss_fn


TUNING = [
    case("variational_autoencoder", divergence_summed, ("over_regularised",)),
    case("quantised_autoencoder", commitment_summed),
    case("digit_and_darkness", darkness_unscaled, unit=8000.0),
    case("mlp_momentum", summed_over_batches, ("lr_too_high",), batches=16, lr=0.1),
    case("cnn_batch_norm", summed_over_batches, ("lr_too_high",), batches=12, lr=0.3),
    case("mlp_sgd", summed, loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=64, lr=0.1),
    case("cnn_sgd", summed, loss_fn=cross_entropy_sum, batch_size=64, lr=0.05),
    case("friedman_sgd", summed, loss_fn=nn.MSELoss(reduction="sum"), batch_size=64, lr=0.02),
    case("mlp_momentum", summed, loss_fn=cross_entropy_sum, batch_size=128, lr=0.03),
    case(
        "cancer_one_logit",
        summed,
        loss_fn=nn.BCEWithLogitsLoss(reduction="sum"),
        batch_size=128,
        lr=1.0,
    ),
    case("friedman_sgd", summed, loss_fn=squared_errors, batch_size=32, lr=0.02),
    case("mlp_sgd", weighted_by_batch, batch_size=64),
]

HELD_OUT = [
    case("mlp_sgd", log_likelihood, batch_size=128),
    case("ten_prototypes", log_likelihood, batch_size=64),
    case("friedman_sgd", inner_product, batch_size=64),
    case("friedman_sgd", undivided_accumulation, ("lr_too_high",), batches=16),
    case("mlp_selu", undivided_accumulation, ("lr_too_high",), batches=16),
]
