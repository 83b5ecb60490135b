"""The symbols that a loss pulls the outputs of a batch to, at each position of a sequence."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import Call, copied, scores_of
from debugnn.doctor.observe.hooks import TrainingHooks
from debugnn.doctor.observe.losses import output_gradient
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded


@dataclass
class Scored:
    """The symbols that a loss pulled outputs to, in one batch.

    Attributes:
        call: how the model was called.
        symbols: flat, in the order of the outputs' positions; −1 where nothing was scored.
        axis: of the classes in the outputs.
        shape: of the outputs without this axis.
    """

    call: Call
    symbols: Tensor
    axis: int
    shape: tuple[int, ...]


def scored(call: Call, outputs: Tensor, gradient: Tensor, targets: Any) -> Scored | None:
    """Return the symbols that a gradient pulls outputs to.

    Args:
        outputs: a tensor with an axis of classes.
        gradient: of the loss with respect to them.
        targets: tell the axis of classes, where they are a tensor of a class each; else the last
            one is taken.

    Returns:
        None where outputs and gradient are no scores of symbols.
    """
    if gradient.shape != outputs.shape or outputs.dim() < 2:
        return None
    axis = class_axis(outputs, targets)
    if gradient.shape[axis] < 2:
        return None
    positions = gradient.movedim(axis, -1)
    pulls, symbols = positions.flatten(0, -2).min(dim=1)
    if not torch.isfinite(pulls).all():
        return None
    symbols[pulls >= 0] = -1
    return Scored(call.map(copied), symbols.cpu(), axis, tuple(positions.shape[:-1]))


def class_axis(outputs: Tensor, targets: Any) -> int:
    """Return the axis of the classes in outputs, the last one where targets do not tell it."""
    last = outputs.dim() - 1
    if not isinstance(targets, Tensor) or outputs.shape[:-1] == targets.shape or last < 2:
        return last
    return 1 if outputs.shape[2:] == targets.shape[1:] else last


class ScoredSymbols:
    """Keeps the symbols that the loss pulled the outputs of one batch to.

    Args:
        training: what is watched.
        hooks: hold the outputs and their gradient.

    Attributes:
        evidence: the training's.
        of_batch: these symbols, once they are known.
    """

    def __init__(self, training: WatchedTraining, hooks: TrainingHooks) -> None:
        self.evidence = training.evidence
        self.of_batch: Scored | None = None
        self._training = training
        self._hooks = hooks

    @guarded("what the loss compares at each position")
    def note_step(self, call: Call, targets: Any) -> None:
        """Take a training step's own outputs and gradient, of the first step that has both."""
        outputs, gradient = self._hooks.outputs, self._hooks.output_gradient
        if self.of_batch is not None or outputs is None:
            return
        scores, pending = scores_of(outputs), self._training.passes.pending
        latest = bool(pending) and pending[-1].call is call
        if scores is not None and gradient is not None and latest:
            self.of_batch = scored(call, scores, gradient, targets)

    @guarded("what the loss compares at each position")
    def note_copy(self) -> None:
        """Take the outputs of a copy of the model, before any training step."""
        training, early = self._training, self._training.buffer.early
        replica = training.replica.model if training.replica is not None else None
        if replica is None or training.loss_fn is None or not early:
            return
        call, targets = early[0].call, early[0].targets
        with training.undisturbed(), torch.no_grad(), without_dropout(replica, training=False):
            outputs = call(replica)
        scores, gradient = scores_of(outputs), output_gradient(training.loss_fn, outputs, targets)
        if scores is not None and gradient is not None:
            self.of_batch = scored(call, scores, gradient, targets)
