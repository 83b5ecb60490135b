"""The losses of a training's steps, read off a GPU with few waits."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.copies import undisturbed
from debugnn.tensor_stats import read_together

_ZERO_LOSS = 1e-8  # a loss of this size has no ratio to another that means anything


class LossCurve:
    """The losses that were handed over, and their ratio to the loss function's own value.

    Attributes:
        values: of the steps so far, as far as they have been read.
        broke_at: first step whose loss was not finite.
        ratios: loss handed over / loss function's value, at probes.
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.broke_at: int | None = None
        self.ratios: list[float] = []
        self._unread: list[tuple[int | None, Tensor]] = []

    def add(self, loss: Tensor, step: int | None) -> None:
        """Note a loss, a scalar, which `read` fetches.

        Args:
            step: None of an empty batch, whose loss may be NaN by right.
        """
        self._unread.append((step, loss))

    def read(self) -> None:
        """Fetch the losses since the last call, all at once."""
        values = read_together([loss for _, loss in self._unread])
        for (step, _), value in zip(self._unread, values, strict=True):
            if self.broke_at is None and step is not None and not math.isfinite(value):
                self.broke_at = step
        self.values += values
        self._unread.clear()

    def compare(
        self, loss: Tensor, loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any
    ) -> None:
        """Note the ratio of a loss to what the loss function returns for the same outputs."""
        with undisturbed(loss_fn), torch.enable_grad():  # a loss may hold a gradient's norm
            own = loss_fn(outputs, targets).detach().float().mean().item()
        if math.isfinite(own) and abs(own) > _ZERO_LOSS and math.isfinite(loss.item()):
            self.ratios.append(loss.item() / own)
