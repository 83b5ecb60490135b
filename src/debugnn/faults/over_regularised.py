"""A regulariser that outweighs the data."""

from typing import Any

import torch
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import HIDDEN, change_optimizer, sequential
from debugnn.faults.program import Data, Setup, score


def decay(setup: Setup, weight_decay: float) -> None:
    """A large weight decay in the optimiser."""
    change_optimizer(setup, weight_decay=weight_decay)


def drop(setup: Setup, p: float) -> None:
    """Dropout that keeps next to nothing."""
    for module in setup.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def drop_after_activations(setup: Setup, p: float) -> None:
    """Dropout that keeps next to nothing, after every activation."""
    modules = ([m, nn.Dropout(p)] if isinstance(m, HIDDEN) else [m] for m in sequential(setup))
    setup.model = nn.Sequential(*(m for group in modules for m in group))


def penalise(setup: Setup, factor: float, power: int) -> None:
    """An L1 or L2 penalty in the loss that outweighs the data."""
    setup.penalty = lambda model: factor * sum(p.abs().pow(power).sum() for p in model.parameters())


def decay_without_lr(setup: Setup, rate: float) -> None:
    """Decoupled weight decay by hand that is not multiplied by the learning rate."""

    def shrink(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 - rate)

    setup.after_step = shrink


def clipped_weights(setup: Setup, bound: float) -> None:
    """Weights clipped after each step, as a Wasserstein critic's are (arXiv:1701.07875)."""

    def clip(model: nn.Module) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.clamp_(-bound, bound)

    setup.after_step = clip


def heavy_divergence(setup: Setup, factor: float) -> None:
    """The divergence in a variational bound weighs so much that the code holds no information."""
    bound = setup.loss_fn

    def loss_fn(outputs: Any, targets: Tensor) -> Tensor:
        rebuilt, mean, log_variance = outputs
        apart = bound((rebuilt, torch.zeros_like(mean), torch.zeros_like(mean)), targets)
        return apart + factor * (bound((rebuilt, mean, log_variance), targets) - apart)

    setup.loss_fn = loss_fn


def weight_without_end(setup: Setup, rate: float) -> None:
    """The weight of a divergence grows in every step, and nothing stops it at 1."""

    def grow(model: nn.Module, _: Any) -> None:
        if model.training:
            model.weight += rate  # type: ignore[operator, assignment]

    setup.model.weight = 0.0  # type: ignore[assignment]
    setup.model.register_forward_pre_hook(grow)


class Noise(nn.Module):
    """Gaussian noise on the features in training."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x) if self.training else x


def noisy_features(setup: Setup, std: float) -> None:
    """Noise after every activation that drowns the features."""
    modules = ([m, Noise(std)] if isinstance(m, HIDDEN) else [m] for m in sequential(setup))
    setup.model = nn.Sequential(*(m for group in modules for m in group))


def erased_images(setup: Setup, side: int) -> None:
    """Random erasing of a square that leaves next to nothing of the training images."""

    def erase(x: Tensor, y: Tensor) -> Data:
        x = x.clone()
        rows, columns = (torch.randint(x.shape[-1] - side + 1, (len(x),)) for _ in range(2))
        for image, row, column in zip(x, rows, columns, strict=True):
            image[..., row : row + side, column : column + side] = 0
        return x, y

    setup.change_batch = erase


class WithCode(nn.Module):
    """A network that returns its last hidden activations too."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.body(x)
        return self.head(code), code


def code_penalised(setup: Setup, factor: float) -> None:
    """A penalty on the hidden code is summed over the batch, and the error is averaged."""
    *body, head = sequential(setup)
    setup.model, plain, score_of = WithCode(nn.Sequential(*body), head), setup.loss_fn, setup.score
    setup.loss_fn = lambda outputs, y: plain(outputs[0], y) + factor * outputs[1].abs().sum()
    setup.score = lambda outputs, y: (score_of or score)(outputs[0], y)


TUNING = [
    case("mlp", code_penalised, ("loss_reduction",), factor=0.05),
    case("friedman", code_penalised, ("loss_reduction",), factor=0.05),
    case("sine", decay, weight_decay=0.1),
    case("cnn_tanh", decay, weight_decay=0.1),
    case("transformer", decay, weight_decay=0.1),
    case("soft_labels", decay, weight_decay=0.1),
    case("mlp_sgd", decay, weight_decay=1.0),
    case("mlp_gelu_weight_decay", decay, weight_decay=100.0),
    case("cnn", decay, weight_decay=1.0),
    case("mlp_dropout", drop, p=0.98),
    case("cnn", drop_after_activations, p=0.95),
    case("mlp", penalise, factor=0.1, power=1),
    case("friedman", penalise, factor=1.0, power=2),
    case("variational_autoencoder", heavy_divergence, ("loss_reduction",), factor=60.0),
]

HELD_OUT = [
    case("mlp_selu", decay_without_lr, rate=0.1),
    case("friedman_sgd", decay_without_lr, rate=0.1),
    case("cnn_sgd", clipped_weights, bound=0.01),
    case("mlp_clipped", noisy_features, std=20.0),
    case("conditional_autoencoder", weight_without_end, ("loss_reduction",), rate=0.1),
    # Training images that are mostly erased are unlike the validation images, too.
    case("cnn", erased_images, ("train_test_mismatch",), side=7),
]
