"""A learning rate that is too low."""

from functools import partial

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau, StepLR

from debugnn.faults.cases import case
from debugnn.faults.edits import change_optimizer, scale_lr
from debugnn.faults.program import Setup


def switched_to_sgd(setup: Setup, lr: float) -> None:
    """SGD at a learning rate that suits Adam."""
    setup.make_optimizer = partial(SGD, lr=lr)


def decayed_every_batch(setup: Setup, gamma: float) -> None:
    """A decay that is meant for epochs is stepped after each batch."""
    setup.make_scheduler = partial(ExponentialLR, gamma=gamma)
    setup.scheduler_steps_after = "batch"


def warm_up_counted_in_epochs(setup: Setup, steps: int) -> None:
    """A warm-up over a number of steps is stepped after each epoch, and so hardly begins."""
    setup.make_scheduler = partial(LambdaLR, lr_lambda=lambda step: (step + 1) / steps)


def warm_up_stepped_once_an_epoch(setup: Setup, warm_up: int) -> None:
    """A linear schedule is counted in batches, begins at 0, and is stepped after each epoch."""
    total = setup.epochs * len(setup.train[0]) // setup.batch_size

    def factor(step: int) -> float:
        return step / warm_up if step < warm_up else max(0.0, (total - step) / (total - warm_up))

    setup.make_scheduler = partial(LambdaLR, lr_lambda=factor)


def epsilon_with_lost_sign(setup: Setup, eps: float) -> None:
    """Adam's epsilon as 1e8, where 1e-8 was meant."""
    change_optimizer(setup, eps=eps)


def plateaus_of_what_rises(setup: Setup, lr: float, factor: float) -> None:
    """A rate falls whenever a score, which is higher the better, has not fallen for two epochs."""

    class Lowering:
        def __init__(self, optimizer: Optimizer) -> None:
            self.plateau = ReduceLROnPlateau(optimizer, factor=factor, patience=2)

        def step(self) -> None:
            self.plateau.step(setup.scores[-1] if setup.scores else 0.0)

    setup.make_optimizer = partial(SGD, lr=lr)
    setup.make_scheduler = Lowering


def clipped_to_nothing(setup: Setup, norm: float) -> None:
    """The threshold for the gradients' norm is far below what they have."""
    setup.clip = norm


class FallingFromWhatItWas:
    """Multiplies each rate by a power of the epoch's number, on top of the powers of the epochs
    before."""

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.optimizer, self.decay, self.epoch = optimizer, decay, 0

    def step(self) -> None:
        """Lower the rates at the end of an epoch."""
        self.epoch += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay**self.epoch


def compounding_decay(setup: Setup, decay: float) -> None:
    """A decay that is meant for the initial rate is applied to the one that has fallen already."""
    setup.make_scheduler = partial(FallingFromWhatItWas, decay=decay)


def step_size_in_epochs(setup: Setup, gamma: float) -> None:
    """A step decay whose step size is meant in epochs is stepped after each batch."""
    setup.make_scheduler = partial(StepLR, step_size=max(setup.epochs // 2, 1), gamma=gamma)
    setup.scheduler_steps_after = "batch"


def decayed_too_soon(setup: Setup, gamma: float) -> None:
    """An exponential decay for a training of fewer epochs."""
    setup.make_scheduler = partial(ExponentialLR, gamma=gamma)


TUNING = [
    case("triplet_net", scale_lr, factor=5e-5),
    case("cosine_pairs", scale_lr, factor=5e-5),
    case("flow", scale_lr, factor=5e-5),
    case("friedman", compounding_decay, decay=0.5),
    case("mlp_sgd", compounding_decay, decay=0.5),
    case("mlp_momentum", plateaus_of_what_rises, lr=3e-3, factor=0.1),
    case("cnn_tanh", plateaus_of_what_rises, lr=1e-3, factor=0.2),
    case("mlp_momentum", step_size_in_epochs, gamma=0.1),
    case("friedman", step_size_in_epochs, gamma=0.1),
    case("cnn_tanh", step_size_in_epochs, gamma=0.2),
    case("mlp", scale_lr, factor=1e-3),
    case("mlp_sgd", scale_lr, factor=1e-3),
    case("cnn", scale_lr, factor=1e-3),
    case("lstm", scale_lr, factor=1e-3),
    case("friedman", scale_lr, factor=1e-3),
    case("cnn_batch_norm", scale_lr, factor=1e-4),
    case("transformer", scale_lr, factor=1e-3),
    case("mlp", switched_to_sgd, lr=1e-4),
    case("gru_clipped", switched_to_sgd, lr=1e-3),
    case("mlp_sgd", clipped_to_nothing, norm=1e-3),
    case("cnn_sgd", clipped_to_nothing, norm=1e-3),
    case("rnn_sgd_clipped", clipped_to_nothing, norm=1e-4),
    case("friedman_sgd", clipped_to_nothing, norm=1e-3),
    case("mlp", warm_up_stepped_once_an_epoch, warm_up=150),
    case("transformer", warm_up_stepped_once_an_epoch, warm_up=200),
    case("cnn_batch_norm", warm_up_stepped_once_an_epoch, warm_up=100),
]

HELD_OUT = [
    case("friedman", decayed_too_soon, gamma=0.3),
    case("mlp_momentum", decayed_every_batch, gamma=0.5),
    case("friedman_sgd", decayed_every_batch, gamma=0.7),
    case("transformer", warm_up_counted_in_epochs, steps=10000),
    case("cnn_sgd", warm_up_counted_in_epochs, steps=10000),
    case("mlp_layer_norm", epsilon_with_lost_sign, eps=1e8),
]
