"""What may observe a training. One that nobody observes needs nothing of it."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from debugnn.training.loop import Seen


class Probe(Protocol):
    """A recorder of the layers' statistics, such as `training.layer_stats.LayerProbe`."""

    def due(self, step: int) -> bool:
        """Return whether the step with this index is recorded."""

    def watch(self, model: nn.Module, step: int) -> AbstractContextManager[Seen | None]:
        """Wrap the passes of one step; yield a dict that is filled at the end, if it is due."""


class Watcher(Protocol):
    """An observer of each step, such as `debugnn.doctor.resting.RestingDoctor`."""

    def before_update(self, outputs: Tensor, norm: Tensor) -> None:
        """Called between backward pass and update, with the outputs and the gradients' norm."""

    def step(self, loss: Tensor, inputs: Tensor, targets: Tensor) -> None:
        """Called after each update with the batch and its loss."""

    def before_evaluation(self) -> None:
        """Called before each evaluation."""

    def validate(self, inputs: Tensor, targets: Tensor) -> None:
        """Called after each evaluation with a sample of the test set."""
