"""A doctor for a loop that says itself what it does, such as `debugnn.training.loop`."""

from typing import Any

from torch import Tensor

from debugnn.doctor.evidence import Evidence
from debugnn.doctor.watch import Doctor


class RestingDoctor(Doctor):
    """A doctor that takes its hooks off between the steps that it looks at closely.

    On a net whose step takes 0.2 ms the calls of the hooks alone take a fifth of it. The loop must
    call the model with the batch once for each update, in training mode, and say so by
    `before_update`; it must call `before_evaluation` before it evaluates the model; and it must
    leave the batches, the outputs and the validation samples as they are, as steps are noted some
    together and some validations late. What it does is compared with that at the first twenty steps
    and around each probe after them; see `observe.rest`. A loop that does something else is watched
    at every step, as `Doctor` does.

    Arguments as of `Doctor`, except for `on_nonfinite`, which has every step looked at.
    """

    @property
    def evidence(self) -> Evidence:
        """What has been seen; brought up to date by `report`."""
        self._observer.rest.flush()
        return super().evidence

    def before_update(self, outputs: Tensor, norm: Tensor) -> None:
        """To be called in each step between the backward pass and the optimiser's step.

        Args:
            outputs: that the loss was computed from.
            norm: of the gradients, a scalar.
        """
        self._observer.rest.before_update(outputs, norm)

    def before_evaluation(self) -> None:
        """To be called before the loop evaluates the model: how it does is looked at."""
        self._observer.rest.before_evaluation()

    def step(self, loss: Any, inputs: Any = None, targets: Any = None) -> None:
        """Take note of one training step; to be called after `optimizer.step()`.

        Args:
            loss: the loss that was stepped with, a scalar tensor.
            inputs: the batch.
            targets: what `loss_fn` compares the outputs with.
        """
        rest = self._observer.rest
        if not rest.step(loss, inputs, targets):
            super().step(loss, inputs, targets)
            rest.plan()

    def validate(self, inputs: Any, targets: Any = None) -> None:
        """Evaluate a copy of the model on some validation samples; see `Doctor.validate`."""
        self._observer.validate(inputs, targets, unchanged=True)
        self._observer.rest.plan()
