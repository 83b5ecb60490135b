"""Parameters that no gradient reaches."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from debugnn.faults.cases import case
from debugnn.faults.edits import insert, layers, sequential, use_activation
from debugnn.faults.nets import (
    ConditionalAutoencoder,
    QuantisedAutoencoder,
    RoundedAutoencoder,
)
from debugnn.faults.program import Setup


def detach_before(setup: Setup, position: int) -> None:
    """A detach() in the forward pass cuts off the layers before it."""
    insert(setup, torch.Tensor.detach, position % len(sequential(setup)))


class Tapped(nn.Module):
    """Takes what a layer gives out of a network by a hook, for a head of its own."""

    def __init__(self, body: nn.Module, tapped: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.taken: Tensor | None = None
        tapped.register_forward_hook(self._take)

    def _take(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.taken = output.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        assert self.taken is not None
        taken, self.taken = self.taken, None
        return self.head(taken)


def tapped_by_detaching_hook(setup: Setup) -> None:
    """A hook takes the last hidden layer's output for the head, and detaches it."""
    *body, head = sequential(setup)
    setup.model = Tapped(nn.Sequential(*body), body[-1], head)


def through_numpy(setup: Setup) -> None:
    """An activation is computed in NumPy."""
    use_activation(setup, lambda x: torch.from_numpy(np.maximum(x.detach().numpy(), 0)))


def frozen_by_accident(setup: Setup, keep: int = 1) -> None:
    """requires_grad is False in all but the last layers, and the optimiser has all of them."""
    for layer in layers(setup.model)[:-keep]:
        layer.requires_grad_(False)


def unfrozen_on_modules(setup: Setup, keep: int = 1) -> None:
    """All is frozen, and then `requires_grad = True` is set on the layers, not their parameters."""
    for layer in layers(setup.model)[:-keep]:
        layer.requires_grad_(False)
        vars(layer)["requires_grad"] = True


class NoGradBody(nn.Module):
    """A body under no_grad, and a head that learns."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(x)
        return self.head(x)


def no_grad_body(setup: Setup) -> None:
    """torch.no_grad() around all but the output layer."""
    model = sequential(setup)
    setup.model = NoGradBody(model[:-1], model[-1])


class DataOfFeatures(nn.Module):
    """A recurrent net that hands `.data`, which has no gradient, to its head."""

    def __init__(self, rnn: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.head(outputs[:, -1].data)


def data_of_features(setup: Setup) -> None:
    """`.data` in the forward pass."""
    setup.model = DataOfFeatures(*layers(setup.model))


def binary_activations(setup: Setup) -> None:
    """sign(x) as the hidden activation, without a straight-through estimator.

    Its derivative is 0 everywhere (Bengio et al. 2013, arXiv:1308.3432).
    """
    use_activation(setup, torch.sign)


def cleared_between(setup: Setup, set_to_none: bool) -> None:
    """The gradients are cleared between backward() and the optimiser's step."""
    setup.before_step = lambda optimizer: optimizer.zero_grad(set_to_none=set_to_none)


def model_cleared_between(setup: Setup) -> None:
    """model.zero_grad() between backward() and the optimiser's step."""
    setup.before_step = lambda _: setup.model.zero_grad()


def cleared_between_passes(setup: Setup, set_to_none: bool) -> None:
    """The gradients of the first loss are cleared before the backward pass of the second one."""
    setup.zero_grad = lambda optimizer, _: optimizer.zero_grad(set_to_none=set_to_none)


def detached_in_the_loss(setup: Setup, name: str) -> None:
    """The loss takes one of several outputs out of the graph before it compares it."""
    loss_fn = setup.loss_fn

    def cut(outputs: dict[str, Tensor], targets: Any) -> Tensor:
        return loss_fn({**outputs, name: outputs[name].detach()}, targets)

    setup.loss_fn = cut


def code_without_estimator(setup: Setup) -> None:
    """The decoder is given the entries of the codebook themselves, with the gradient of these."""
    cast(QuantisedAutoencoder, setup.model).hand_on = lambda codes, chosen: chosen


def estimator_within_detach(setup: Setup) -> None:
    """`(z + (q - z)).detach()`, where `z + (q - z).detach()` was meant."""
    cast(QuantisedAutoencoder, setup.model).hand_on = lambda codes, chosen: (
        codes + (chosen - codes)
    ).detach()


def rounded_without_estimator(setup: Setup) -> None:
    """The decoder is given whole numbers, without a straight-through estimator."""
    cast(RoundedAutoencoder, setup.model).hand_on = lambda code, rounded: rounded


def code_by_sample(setup: Setup) -> None:
    """`sample()`, where a gradient to the encoder takes `rsample()`."""
    cast(ConditionalAutoencoder, setup.model).draw = Normal.sample


TUNING = [
    case("rounded_autoencoder", rounded_without_estimator, ("vanishing_gradient",)),
    case("conditional_autoencoder", code_by_sample, ("vanishing_gradient",)),
    case("digit_and_darkness", detached_in_the_loss, name="darkness"),
    case("quantised_autoencoder", code_without_estimator, ("vanishing_gradient",)),
    case("quantised_autoencoder", estimator_within_detach, ("vanishing_gradient",)),
    case("cnn", cleared_between, ("optimizer_mismatch",), set_to_none=True),
    case("friedman", cleared_between, ("optimizer_mismatch",), set_to_none=False),
    case("lstm", cleared_between, ("optimizer_mismatch",), set_to_none=False),
    case("two_backward_passes", cleared_between_passes, ("optimizer_mismatch",), set_to_none=True),
    case("two_backward_passes", cleared_between_passes, ("optimizer_mismatch",), set_to_none=False),
    case("mlp", detach_before, position=-1),
    case("cnn", detach_before, position=3),
    case("mlp", tapped_by_detaching_hook),
    case("mlp_sgd", frozen_by_accident),
    case("lstm", frozen_by_accident),
    case("cnn_batch_norm", frozen_by_accident, keep=2),
    case("mlp_sgd", unfrozen_on_modules),
    case("lstm", unfrozen_on_modules),
    case("functional", through_numpy),
]

HELD_OUT = [
    case("mlp_layer_norm", model_cleared_between, ("optimizer_mismatch",)),
    case("friedman", no_grad_body),
    case("gru_clipped", data_of_features),
    case("mlp_tanh", binary_activations),
    case("cnn_sgd", binary_activations),
]
