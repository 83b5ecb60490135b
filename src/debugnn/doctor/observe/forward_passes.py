"""The model's forward passes between two steps: how it was called, and in which mode."""

from typing import Any, NamedTuple

from torch import Tensor

from debugnn.doctor.evidence import LoopFacts
from debugnn.doctor.observe.calls import Call, as_call

_KEPT = 4  # passes before a step


class ForwardPass(NamedTuple):
    """A pass with gradients: the call, the mode, and the random state before it."""

    call: Call
    training: bool
    random_state: list[Tensor]


class ForwardPasses:
    """Notes passes as they come, and their modes in the evidence of the loop.

    Attributes:
        pending: passes with gradients since the last step, the latest ones.
        last_call: the call that the latest update was computed from.
    """

    def __init__(self, loop: LoopFacts) -> None:
        self._loop = loop
        self.pending: list[ForwardPass] = []
        self.last_call: Call | None = None

    def note_training(self, each: ForwardPass) -> None:
        """Note a pass with gradients."""
        self.pending.append(each)
        del self.pending[:-_KEPT]

    def note_evaluation(self, args: tuple, training: bool) -> bool:
        """Note a pass without gradients, of a model in training mode or not.

        Returns:
            True for an evaluation in training mode.
        """
        self._loop.evaluations += 1
        last = self.last_call
        # A loop may compute the training accuracy of a batch in passing.
        repeated = last is not None and bool(args) and bool(last.args) and args[0] is last.args[0]
        if not training or repeated:
            return False
        self._loop.train_mode_evaluations += 1
        return True

    def note_update(self, training: bool) -> None:
        """Note that the optimiser steps.

        Args:
            training: the model's mode now, for compiled models, whose passes are not seen.
        """
        if self.pending:
            self.last_call, training, _ = self.pending[-1]
        self._loop.training_forwards += 1
        if not training:
            self._loop.eval_mode_forwards += 1
            if self._loop.first_eval_mode is None:
                self._loop.first_eval_mode = self._loop.steps

    def call_of(self, inputs: Any) -> Call:
        """Return how the model was called in this step: as was seen, or as the inputs imply."""
        calls = [each.call for each in self.pending]
        if inputs is None or len(calls) == 1:
            return calls[-1] if calls else as_call(inputs)
        return as_call(inputs)
