"""The loss function, called with outputs that are made up."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import first_tensor, in_memory_as, map_tensors, with_first
from debugnn.doctor.reachable import kept

LossFunction = Callable[[Any, Any], Tensor]

# Numerical tolerances, of rounding and of reading, not of verdicts.
ZERO_LOSS = 1e-9  # a loss of this size has no ratio to another that means anything
_ROUNDING = 1e-5  # relative difference of two values, or gradients, that are the same but for it
SURE, REST = 0.998, 0.001  # probability of the right class, and what is left for the others
FAR = 1e3  # size of outputs that are far from all targets
EDGE = 1e-4  # a probability whose logit is taken is at least this far from 0 and 1


class Loss:
    """The loss function on made-up tensors, which take the place of the outputs' first tensor.

    All calls draw the same random numbers. What is made up lies in memory as the model's outputs
    and the batch's targets do.

    Args:
        outputs: the model's; a tensor, or a nest of containers.
        targets: the batch's.

    Attributes:
        restores: every call finds the loss function's own state as the first one did.
    """

    restores = False

    def __init__(self, loss_fn: LossFunction, outputs: Any, targets: Any) -> None:
        self._loss_fn = loss_fn
        self.outputs = map_tensors(outputs, Tensor.detach)
        self.targets = targets

    def __call__(self, made_up: Tensor, targets: Any = None) -> float:
        """Return the mean loss."""
        return self.of(with_first(self.outputs, made_up), targets)

    def of(self, outputs: Any, targets: Any = None) -> float:
        """Return the mean loss of outputs of the model's own structure."""
        with self._apart():
            return self._value(outputs, targets).detach().item()

    def within(self, made_up: Tensor) -> float:
        """Return the mean loss; infinity of outputs that it is not defined for."""
        return self.at(with_first(self.outputs, made_up))

    def at(self, outputs: Any, targets: Any = None) -> float:
        """Return the same of outputs of the model's own structure."""
        try:
            value = self.of(outputs, targets)
        except Exception:  # whatever the user's function raises
            return math.inf
        return math.inf if math.isnan(value) else value

    def gradient(self, made_up: Tensor, targets: Any = None) -> Tensor | None:
        """Return the gradient with respect to the made-up tensor, None where there is none."""
        return self.with_gradient(made_up, targets)[1]

    def with_gradient(self, made_up: Tensor, targets: Any = None) -> tuple[float, Tensor | None]:
        """Return the mean loss, and its gradient with respect to the made-up tensor."""
        leaf = made_up.clone().requires_grad_()
        with self._apart():
            value = self._value(with_first(self.outputs, leaf), targets)
            if not value.requires_grad:
                return value.item(), None
            return value.item(), torch.autograd.grad(value, leaf, allow_unused=True)[0]

    def _value(self, outputs: Any, targets: Any) -> Tensor:
        torch.random.default_generator.manual_seed(0)
        made_up, own = first_tensor(outputs), first_tensor(self.outputs)
        if made_up is not None and own is not None:
            outputs = with_first(outputs, in_memory_as(made_up, own))
        if targets is None:
            targets = self.targets
        elif isinstance(targets, Tensor) and isinstance(self.targets, Tensor):
            targets = in_memory_as(targets, self.targets)
        return self._loss_fn(outputs, targets).float().mean()

    def _apart(self) -> AbstractContextManager[Any]:
        return kept(self._loss_fn) if self.restores else nullcontext()


def random_numbers() -> torch.Generator:
    """Return a generator that draws the same numbers each time."""
    return torch.Generator().manual_seed(0)


def equal(first: float, second: float, unit: float | None = None) -> bool:
    """Return whether two values are the same but for rounding, of the larger of them or a unit."""
    size = max(abs(first), abs(second)) if unit is None else unit
    return first == second or abs(first - second) <= _ROUNDING * size


def alike(here: Tensor | None, there: Tensor | None) -> bool:
    """Return whether two gradients are the same but for rounding."""
    if here is None or there is None:
        return here is there
    return bool((here - there).abs().max() <= _ROUNDING * here.abs().max())


def ratio(part: Tensor, whole: Tensor) -> float:
    """Return the ratio of two scalars; 0 where both are 0."""
    return (part / whole).item() if part != 0 else 0.0
