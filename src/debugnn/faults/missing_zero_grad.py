"""Gradients that are added to the previous step's."""

from torch.optim import SGD, Optimizer

from debugnn.faults.cases import case
from debugnn.faults.edits import layers
from debugnn.faults.program import Setup


def no_zero_grad(setup: Setup) -> None:
    """`zero_grad` is never called."""
    setup.zero_grad = lambda optimizer, number: None


def zeroed_now_and_then(setup: Setup, every: int) -> None:
    """`zero_grad` stands under an `if` that is meant for the log."""

    def zero_at_log(optimizer: Optimizer, number: int) -> None:
        if number % every == 0:
            optimizer.zero_grad()

    setup.zero_grad = zero_at_log


def zeroed_once_an_epoch(setup: Setup) -> None:
    """`zero_grad` stands in the loop over the epochs."""

    def zero_at_first_batch(optimizer: Optimizer, number: int) -> None:
        if number == 0:
            optimizer.zero_grad()

    setup.zero_grad = zero_at_first_batch


def zeroed_by_another_optimizer(setup: Setup) -> None:
    """`zero_grad` of an optimiser that holds only the output layer."""
    other = SGD(layers(setup.model)[-1].parameters(), lr=0.1)
    setup.zero_grad = lambda optimizer, number: other.zero_grad()


def zeroed_biases_only(setup: Setup) -> None:
    """A loop by hand over the parameters whose filter by name leaves out the weights."""

    def zero_by_name(optimizer: Optimizer, number: int) -> None:
        for name, p in setup.model.named_parameters():
            if not name.endswith("weight") and p.grad is not None:
                p.grad.zero_()

    setup.zero_grad = zero_by_name


TUNING = [
    case("mlp_sgd", no_zero_grad),
    case("mlp", no_zero_grad),
    case("mlp_momentum", no_zero_grad),
    case("cnn_sgd", no_zero_grad),
    case("lstm", no_zero_grad),
    case("friedman", no_zero_grad),
    case("cnn", no_zero_grad),
    case("mlp_momentum", zeroed_now_and_then, every=10),
]

HELD_OUT = [
    case("mlp_selu", zeroed_once_an_epoch),
    case("gru_clipped", zeroed_once_an_epoch),
    case("cnn_sgd", zeroed_by_another_optimizer),
    case("friedman_sgd", zeroed_by_another_optimizer),
    case("mlp_tanh", zeroed_biases_only),
]
