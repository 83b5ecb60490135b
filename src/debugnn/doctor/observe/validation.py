"""The evaluation of a copy of the model, in evaluation mode, on some validation samples."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from debugnn.doctor import troubles
from debugnn.doctor.evidence import Score, Validation
from debugnn.doctor.observe.buffer import ValidationBatch
from debugnn.doctor.observe.calls import Call, as_call, copied, map_tensors, reshaped_like
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.own_statistics import standardised_alone
from debugnn.doctor.observe.task import read, score
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.errors import one_line

_VALIDATED = 1024  # most samples of a validation set that are evaluated
_ALL = 10  # validations that are all evaluated
_GROWTH = 1.25  # of their number after these, from one that is evaluated to the next


class _Handed(NamedTuple):
    """A validation as the loop handed it over."""

    inputs: Any
    targets: Any


class ValidationSamples:
    """Evaluates copies of the model, and keeps the samples of the latest validation.

    Args:
        training: whose evidence takes the validations.

    Attributes:
        latest: samples and outputs of the latest validation that was evaluated.
    """

    def __init__(self, training: WatchedTraining) -> None:
        self.latest: ValidationBatch | None = None
        self._left_out: ValidationBatch | _Handed | None = None  # the latest, not evaluated
        self._next = 1  # validation that is evaluated, counted from 1
        self._standardised_alone: bool | None = None  # of the first validation's samples
        self._training = training

    def note(self, inputs: Any, targets: Any, unchanged: bool = False) -> None:
        """Evaluate a copy of the model as it is now, or keep the samples for `catch_up`.

        The first ten validations are evaluated. After them their number grows by a quarter from
        one that is evaluated to the next: a small net trains for an epoch in less time than an
        evaluation takes.

        Args:
            inputs: of all samples.
            targets: theirs.
            unchanged: the loop leaves them as they are, so that no copies are needed.
        """
        replica, count = self._training.replica, self._training.evidence.loop.validations
        if replica is None or replica.model is None:
            return  # as with memory="low": no samples are kept that nothing can be asked of
        if 0 in [tensor.numel() for tensor in as_call(inputs).tensors()]:
            return
        if count < self._next:
            handed = _Handed(inputs, targets)
            self._left_out = handed if unchanged else self._chosen(*handed)
            return
        self._next = count + 1 if count < _ALL else math.ceil(_GROWTH * count)
        self._evaluate(self._chosen(inputs, targets))

    def catch_up(self) -> None:
        """Evaluate a copy of the model as it is now, where the latest validation was left out."""
        self.copy()
        if isinstance(self._left_out, ValidationBatch):
            self._evaluate(self._left_out)

    def copy(self) -> None:
        """Copy the samples of the latest validation, where it was left out."""
        if isinstance(self._left_out, _Handed):
            self._left_out = self._chosen(*self._left_out)

    def release(self) -> None:
        """Let go of the samples."""
        self.latest = self._left_out = None

    def _chosen(self, inputs: Any, targets: Any) -> ValidationBatch:
        """Return copies of at most 1,024 of the samples, without outputs."""
        training = self._training
        passes, layout = training.passes, training.layout
        handed = passes.validation_call(inputs)
        whole = reshaped_like(handed, passes.last_call)
        if targets is None and training.labels_among_inputs is not None:
            targets = training.labels_among_inputs.of(whole)
        size = layout.count(whole) or 1
        call, kept = whole, targets
        # All samples take time, and are prepared once.
        if self._standardised_alone is None and training.buffer.early:
            self._standardised_alone = self._were_standardised_alone(layout.rows(whole, inputs))
        if size > _VALIDATED:
            rows = torch.linspace(0, size - 1, _VALIDATED).long()
            call, kept = layout.take(whole, rows, targets)
        given = layout.rows(call, inputs if call is whole else None)
        return ValidationBatch(
            call=call.map(copied),
            inputs=None if given is None else copied(given),
            targets=map_tensors(kept, copied),
            size=size,
            standardised_alone=self._standardised_alone or False,
        )

    def _were_standardised_alone(self, rows: Tensor | None) -> bool:
        if rows is None or not rows.is_floating_point():
            return False
        kept = [batch.inputs for batch in self._training.buffer.batches]
        known = [
            each
            for each in kept
            if each is not None and each.shape[1:] == rows.shape[1:] and each.dtype == rows.dtype
        ]
        return standardised_alone(rows, torch.cat(known) if known else None)

    def _evaluate(self, batch: ValidationBatch) -> None:
        """Evaluate a copy of the model as it is now; nothing where it cannot be copied."""
        self._left_out = None
        training = self._training
        model = training.current_model()
        if model is None:
            return
        call, targets = batch.call, batch.targets
        with training.undisturbed(), torch.no_grad(), without_dropout(model, training=False):
            try:
                outputs = training.layout.run(model, call)
            except Exception as error:  # whatever the model raises of what it was not made for
                troubles.note(training.evidence, self._why_not(call, error))
                return
            loss = self._loss(outputs, targets)
        task, step = training.task or read(outputs, targets), training.evidence.loop.steps
        known = isinstance(targets, Tensor)
        if loss is not None or known:
            rarest = training.buffer.rarest(task)
            found = score(task, outputs, targets, rarest) if known else Score()
            training.evidence.outcome.validations.append(Validation(step, loss, found))
        self.latest = replace(batch, step=step, outputs=outputs)

    def _loss(self, outputs: Any, targets: Any) -> float | None:
        """Return the loss function's own value, None without targets that it needs."""
        loss_fn = self._training.loss_fn
        if loss_fn is None or (targets is None and not self._training.needs_no_targets):
            return None
        return value_of(loss_fn, outputs, targets)

    def _why_not(self, handed: Call, error: Exception) -> str:
        seen = self._training.passes.last_call
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
