"""A learning rate that is too high."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from debugnn.faults.cases import case
from debugnn.faults.edits import change_optimizer, layers, optimizer_options, scale_lr
from debugnn.faults.program import Setup


def switched_to_adam(setup: Setup, lr: float) -> None:
    """Adam at a learning rate that suits SGD."""
    setup.make_optimizer = partial(Adam, lr=lr)


def endless_warm_up(setup: Setup) -> None:
    """A linear warm-up that is stepped after each batch and never ends."""
    setup.make_scheduler = partial(LambdaLR, lr_lambda=lambda step: step + 1)
    setup.scheduler_steps_after = "batch"


def heavy_momentum(setup: Setup, momentum: float) -> None:
    """A momentum so close to 1 that it adds up the gradients of a thousand steps."""
    change_optimizer(setup, momentum=momentum)


def fast_head(setup: Setup, factor: float) -> None:
    """A parameter group that gives the output layer a far higher learning rate."""
    make: Callable[[Any], Optimizer] = setup.make_optimizer
    lr = optimizer_options(setup)["lr"]

    def in_groups(params: Iterable[nn.Parameter]) -> Optimizer:
        head = list(layers(setup.model)[-1].parameters())
        body = [p for p in params if all(p is not q for q in head)]
        return make([{"params": body}, {"params": head, "lr": factor * lr}])

    setup.make_optimizer = in_groups


TUNING = [
    case("mlp", scale_lr, factor=500.0),
    case("mlp_sgd", scale_lr, factor=100.0),
    case("cnn", scale_lr, factor=100.0),
    case("lstm", scale_lr, factor=100.0),
    case("friedman_sgd", scale_lr, factor=100.0),
    case("transformer", scale_lr, factor=100.0),
    case("mlp_momentum", scale_lr, factor=100.0),
    case("mlp_sgd", switched_to_adam, lr=0.5),
    case("triplet_net", scale_lr, factor=1000.0),
    case("flow", scale_lr, factor=1000.0),
]

HELD_OUT = [
    case("mlp_sgd", endless_warm_up),
    case("friedman", endless_warm_up),
    case("mlp_momentum", heavy_momentum, momentum=0.999),
    case("cnn_sgd", heavy_momentum, momentum=0.999),
    case("lstm", fast_head, factor=1000.0),
    case("cnn_group_norm", fast_head, factor=1000.0),
]
