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
        last_evaluation: the latest call without gradients since the last step.
    """

    not_in_state = (
        "pending",
        "last_evaluation",
    )

    def __init__(self, loop: LoopFacts) -> None:
        self._loop = loop
        self.pending: list[ForwardPass] = []
        self.last_call: Call | None = None
        self.last_evaluation: Call | None = None

    def note_training(self, each: ForwardPass) -> None:
        """Note a pass with gradients."""
        self.pending.append(each)
        del self.pending[:-_KEPT]

    def put_back(self, call: Call) -> None:
        """Note what the latest pass was given, where its model has taken tensors out of it.

        Args:
            call: as it was before the pass.
        """
        if self.pending and len(call.tensors()) > len(self.pending[-1].call.tensors()):
            self.pending[-1] = self.pending[-1]._replace(call=call)

    def note_evaluation(self, call: Call, training: bool) -> bool:
        """Note a pass without gradients, of a model in training mode or not.

        Returns:
            True for an evaluation in training mode.
        """
        self._loop.evaluations += 1
        args, self.last_evaluation = call.args, call
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

    def call_of(self, inputs: Any) -> Call | None:
        """Return how the model was called in this step, None where that is not known.

        As was seen. Of several passes it is the one with these inputs, else the latest of the
        largest: the optimiser steps after it, and a loop that calls the model with a boundary's
        point beside its batch trains on the batch. Inputs that the model was not called with count
        where they fit it: a batch that is accumulated from parts, or a compiled model's, whose
        passes are not seen.

        Args:
            inputs: as the loop handed them over, None where it did not.
        """
        calls = [each.call for each in self.pending]
        if len(calls) == 1:
            return calls[0]
        if inputs is None:
            return max(reversed(calls), key=_values) if calls else None
        handed = as_call(inputs, calls[-1] if calls else self.last_call)
        for call in reversed(calls):
            if _among(handed.tensors(), call.tensors()):
                return call
        return handed if not calls or _alike(handed, calls[-1]) else calls[-1]

    def validation_call(self, inputs: Any) -> Call:
        """Return how the model is called with validation inputs.

        As was seen, where the loop has just evaluated with them itself: it may hand over less than
        the model takes.
        """
        handed, seen = as_call(inputs, self.last_call), self.last_evaluation
        if seen is None or _alike(handed, seen) or not _among(handed.tensors(), seen.tensors()):
            return handed
        return seen

    def clear(self) -> None:
        """Forget the passes of a step."""
        self.pending.clear()
        self.last_evaluation = None


def _values(call: Call) -> int:
    """Return the number of values in a call's tensors of known shape."""
    return sum(tensor.numel() for tensor in call.tensors() if not tensor.is_nested)


def _among(handed: list[Tensor], seen: list[Tensor]) -> bool:
    """True if all tensors of one call are tensors of another, and there is one."""
    known = {id(tensor) for tensor in seen}
    return bool(handed) and all(id(tensor) in known for tensor in handed)


def _alike(one: Call, other: Call) -> bool:
    """True if two calls have arguments of the same names and numbers of tensors."""
    return (
        len(one.args) == len(other.args)
        and one.kwargs.keys() == other.kwargs.keys()
        and len(one.tensors()) == len(other.tensors())
    )
