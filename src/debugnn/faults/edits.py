"""Changes of a setup that the faults of several causes are made of."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from debugnn.faults.nets import Functional, Recurrent, mlp
from debugnn.faults.program import Data, Loss, Setup

# The modules that serve the sound programs as hidden activations.
HIDDEN = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.Tanh, nn.Sigmoid)


# ----------------------------------------------------------------------------------- the model


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def layers(model: nn.Module) -> list[Any]:
    """Return the linear, convolutional and recurrent layers in the order of the forward pass."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.RNNBase)]


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not biases."""
    return [p for name, p in model.named_parameters() if "weight" in name]


def sequential(setup: Setup) -> nn.Sequential:
    """Return the model of a program that is a plain sequence of modules."""
    assert isinstance(setup.model, nn.Sequential)
    return setup.model


def widths(setup: Setup) -> tuple[int, int]:
    """Return the number of input features and of outputs of a plain MLP."""
    model: Any = setup.model
    return model[0].in_features, model[-1].out_features


def replace_activations(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Put a new module in the place of every hidden activation."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, HIDDEN):
                setattr(parent, name, make())


def use_activation(setup: Setup, function: Callable[[Tensor], Tensor]) -> None:
    """Let a function take the place of every hidden activation."""
    if isinstance(setup.model, Functional):
        setup.model.activation = function
    else:
        replace_activations(setup.model, lambda: Apply(function))


def insert(setup: Setup, function: Callable[[Tensor], Tensor], position: int) -> None:
    """Put a function into the forward pass of a plain sequence of modules."""
    sequential(setup).insert(position, Apply(function))


def pixel_rnn(setup: Setup, gain: float, nonlinearity: str = "tanh") -> None:
    """A plain RNN reads the 64 pixels one by one, and its recurrence scales by `gain` at each."""
    change_inputs(setup, lambda x: x.flatten(1).unsqueeze(2))
    model = Recurrent(partial(nn.RNN, nonlinearity=nonlinearity), 1, 32, 10)
    (rnn, _) = layers(model)
    nn.init.orthogonal_(rnn.weight_hh_l0, gain=gain)
    setup.model = model
    setup.clip = None
    setup.epochs = min(setup.epochs, 3)  # a step takes eight times as long


def scale_weights(setup: Setup, factor: float) -> None:
    """All initial weights are multiplied by a factor."""
    with torch.no_grad():
        for p in weights(setup.model):
            p.mul_(factor)


def normal_weights(setup: Setup, std: float) -> None:
    """All initial weights are normal with one standard deviation, whatever the fan-in is."""
    for p in weights(setup.model):
        nn.init.normal_(p, std=std)


def deeper(setup: Setup, depth: int) -> None:
    """Replace a plain MLP by one with `depth` hidden layers of 64 units."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[64] * depth, outputs)


# ------------------------------------------------------------------------------------ the data


def change_data(setup: Setup, change: Callable[[Tensor, Tensor], Data]) -> None:
    """Change inputs and targets, of training and validation alike."""
    setup.train, setup.val = change(*setup.train), change(*setup.val)


def change_inputs(setup: Setup, change: Callable[[Tensor], Tensor]) -> None:
    """Change the inputs, of training and validation alike."""
    change_data(setup, lambda x, y: (change(x), y))


def add_columns(setup: Setup, train: Tensor, val: Tensor) -> None:
    """Append features (N, K) to the training and validation tables, and widen the first layer."""
    setup.train = torch.cat([setup.train[0], train], dim=1), setup.train[1]
    setup.val = torch.cat([setup.val[0], val], dim=1), setup.val[1]
    model = sequential(setup)
    model[0] = nn.Linear(setup.train[0].shape[1], layers(model)[0].out_features)


def shuffled_labels(setup: Setup, share: float = 1.0) -> None:
    """The training labels, or a share of them, are in random order."""
    x, y = setup.train
    places = torch.randperm(len(y))[: int(share * len(y))]
    y = y.clone()
    y[places] = y[places[torch.randperm(len(places))]]
    setup.train = x, y


def keep_samples(setup: Setup, kept: Tensor) -> None:
    """Train on some of the samples, given as indices or a mask, for as many steps as before."""
    x, y = setup.train
    setup.train = x[kept], y[kept]
    setup.epochs = setup.epochs * len(x) // len(setup.train[0])


# ------------------------------------------------------------------------ the loss, the optimiser


def use_loss(setup: Setup, loss_fn: Loss) -> None:
    """Another loss function takes the place of the right one."""
    setup.loss_fn = loss_fn


def optimizer_options(setup: Setup) -> dict[str, Any]:
    """Return the keyword arguments, lr among them, that the program makes its optimiser with."""
    assert isinstance(setup.make_optimizer, partial)
    return setup.make_optimizer.keywords


def change_optimizer(setup: Setup, **options: Any) -> None:
    """Change keyword arguments of the optimiser."""
    setup.make_optimizer = partial(setup.make_optimizer, **options)


def scale_lr(setup: Setup, factor: float) -> None:
    """The learning rate is multiplied by a factor."""
    change_optimizer(setup, lr=factor * optimizer_options(setup)["lr"])


def after_making_optimizer(setup: Setup, change: Callable[[], None]) -> None:
    """Call `change` when the optimiser has been made."""
    make = setup.make_optimizer

    def make_then_change(params: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = make(params)
        change()
        return optimizer

    setup.make_optimizer = make_then_change
