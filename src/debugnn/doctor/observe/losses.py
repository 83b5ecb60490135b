"""The losses of a training's steps, read off a GPU with few waits."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.observe.calls import map_tensors, scores_of
from debugnn.tensor_stats import read_together

_COMPARED = 100_000  # values of a gradient
_ONE_DIRECTION = 1e-2  # what two gradients may differ by, as they are rounded
_ZERO_LOSS = 1e-8  # a loss of this size has no ratio to another that means anything


class LossCurve:
    """The losses that were handed over, and their ratio to the loss function's own value.

    Attributes:
        values: of the steps so far, as far as they have been read.
        broke_at: first step whose loss was not finite.
        ratios: loss handed over / loss function's value, at probes.
        gradient_scales: gradient that reached the outputs / that of the loss function's mean, at
            probes where both have one direction.
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.broke_at: int | None = None
        self.ratios: list[float] = []
        self.gradient_scales: list[float] = []
        self._unread: list[tuple[int | None, Tensor]] = []

    def add(self, loss: Tensor, step: int | None) -> None:
        """Note a loss, a scalar, which `read` fetches.

        Args:
            step: None of an empty batch, whose loss may be NaN by right.
        """
        self._unread.append((step, loss))

    def append(self, loss: float) -> None:
        """Note a finite loss that has been read already, where none waits to be."""
        self.values.append(loss)

    def read(self) -> None:
        """Fetch the losses since the last call, all at once."""
        values = read_together([loss for _, loss in self._unread])
        for (step, _), value in zip(self._unread, values, strict=True):
            if self.broke_at is None and step is not None and not math.isfinite(value):
                self.broke_at = step
        self.values += values
        self._unread.clear()

    def compare(self, loss: float, own: float) -> None:
        """Note the ratio of a loss to what the loss function returns for the same outputs."""
        if math.isfinite(own) and abs(own) > _ZERO_LOSS and math.isfinite(loss):
            self.ratios.append(loss / own)

    def compare_gradients(self, gradient: Tensor, own: Tensor) -> None:
        """Note the ratio of the gradient that reached the outputs to the loss function's own."""
        if gradient.shape != own.shape:
            return
        spacing = max(1, gradient.numel() // _COMPARED)
        used, plain = (g.flatten()[::spacing].double() for g in (gradient, own))
        if not torch.isfinite(used).all() or not plain.any():
            return
        scale = (used @ plain / (plain @ plain)).item()
        rest = torch.linalg.vector_norm(used - scale * plain)
        if rest <= _ONE_DIRECTION * torch.linalg.vector_norm(used):
            self.gradient_scales.append(scale)


def value_of(loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> float:
    """Return the loss function's value; of a value for each sample, their mean."""
    with torch.enable_grad():  # a loss may hold a gradient's norm
        return loss_fn(outputs, targets).detach().float().mean().item()


def output_gradient(
    loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any
) -> Tensor | None:
    """Return what `gradient_of` does, and leave no trace."""
    with undisturbed(loss_fn):
        return gradient_of(loss_fn, outputs, targets)


def gradient_of(loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> Tensor | None:
    """Return the gradient of the loss function's mean with respect to the outputs' scores.

    None where there are no scores, or the loss does not depend on them.
    """
    scores = scores_of(outputs)
    if scores is None:
        return None
    with torch.enable_grad():
        leaf = scores.detach().clone().requires_grad_()
        given = map_tensors(outputs, lambda tensor: leaf if tensor is scores else tensor)
        loss = loss_fn(given, targets).float().mean()
        if not loss.requires_grad:
            return None
        return torch.autograd.grad(loss, leaf, allow_unused=True)[0]
