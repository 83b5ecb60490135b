"""The evaluation of a copy of the model, in evaluation mode, on some validation samples."""

from typing import Any

import torch
from torch import Tensor

from debugnn.doctor import troubles
from debugnn.doctor.evidence import Score, Validation
from debugnn.doctor.observe.buffer import ValidationBatch
from debugnn.doctor.observe.calls import as_call, copied, map_tensors, reshaped_like
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.task import read, score
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.errors import one_line

_VALIDATED = 1024  # most samples of a validation set that are evaluated


class ValidationSamples:
    """Evaluates copies of the model, and keeps the samples of the latest validation.

    Args:
        training: whose evidence takes the validations.

    Attributes:
        latest: samples and outputs of the latest validation.
    """

    def __init__(self, training: WatchedTraining) -> None:
        self.latest: ValidationBatch | None = None
        self._training = training

    def evaluate(self, inputs: Any, targets: Any) -> None:
        """Evaluate a copy of the model as it is now; nothing where it cannot be copied."""
        training = self._training
        model = training.current_model()
        if model is None:
            return
        passes, layout = training.passes, training.layout
        whole = reshaped_like(passes.validation_call(inputs), passes.last_call)
        if targets is None and training.labels_among_inputs is not None:
            targets = training.labels_among_inputs.of(whole)
        size = layout.count(whole) or 1
        call, kept = whole, targets
        if size > _VALIDATED:
            rows = torch.linspace(0, size - 1, _VALIDATED).long()
            call, kept = layout.take(whole, rows, targets)
        with training.undisturbed(), torch.no_grad(), without_dropout(model, training=False):
            try:
                outputs = layout.run(model, call)
            except Exception as error:  # whatever the model raises of what it was not made for
                troubles.note(training.evidence, self._why_not(inputs, error))
                return
            loss = self._loss(outputs, kept)
        task, step = training.task or read(outputs, kept), training.evidence.loop.steps
        if loss is not None or isinstance(kept, Tensor):
            rarest = training.buffer.rarest(task)
            found = score(task, outputs, kept, rarest) if isinstance(kept, Tensor) else Score()
            training.evidence.outcome.validations.append(Validation(step, loss, found))
        given = layout.rows(call, inputs if call is whole else None)
        self.latest = ValidationBatch(
            call=call.map(copied),
            inputs=None if given is None else copied(given),
            targets=map_tensors(kept, copied),
            size=size,
            step=step,
            outputs=outputs,
        )

    def _loss(self, outputs: Any, targets: Any) -> float | None:
        """Return the loss function's own value, None without targets that it needs."""
        loss_fn = self._training.loss_fn
        if loss_fn is None or (targets is None and not self._training.needs_no_targets):
            return None
        return value_of(loss_fn, outputs, targets)

    def _why_not(self, inputs: Any, error: Exception) -> str:
        seen = self._training.passes.last_call
        handed = as_call(inputs, seen)
        if seen is not None:
            taken, given = (len(call.args) + len(call.kwargs) for call in (seen, handed))
            if taken != given:
                arguments = f"{taken} argument{'' if taken == 1 else 's'}"
                return (
                    f"validation is not looked at: the model takes {arguments} and validate() was "
                    f"given {given}"
                )
        return (
            "validation is not looked at: the model cannot be called with what validate() was "
            f"given ({type(error).__name__}: {one_line(error)})"
        )
