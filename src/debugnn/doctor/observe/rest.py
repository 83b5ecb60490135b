"""Steps of a training that no hook looks at, because its loop says itself what it does.

What is noted of such a step: its loss, its samples, the learning rate, whether its gradients are
finite, and the outputs where its loss jumps.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from debugnn.cadence import is_due
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.devices import waits
from debugnn.doctor.observe.hooks import TrainingHooks
from debugnn.doctor.observe.loss_jumps import LossJumps
from debugnn.doctor.observe.losses import LossCurve
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded

_WATCHED = 20  # first steps, which hooks look at
# Steps that are noted together. Between the passes of a small model, noting one takes four times as
# long as it does after another one.
_TOGETHER = 20
_BYTES = 2**24  # most memory that their batches and outputs take
_EACH = _BYTES // _TOGETHER  # that a step counts as, at least
_EVALUATIONS = 20  # first evaluations, all of which are watched


class _Step(NamedTuple):
    """A step that is to be noted."""

    loss: float | Tensor  # a tensor where it is not finite, or has not been read
    outputs: Tensor
    inputs: Tensor
    targets: Any


class Rest:
    """Takes hooks off between the steps that are looked at closely, and notes those steps.

    There is no rest where a watched step was not what the loop says: one forward pass of the model
    in training mode, from one tensor to another. Nor where the pass drew random numbers, or kept
    something in the model: a step that breaks could not be repeated.

    Args:
        training: what is watched.
        hooks: that are taken off.
        losses: of all steps.
        jumps: of these losses.
        allowed: nothing asks for hooks at every step.

    Attributes:
        evidence: what has been seen.
        on: no hooks are on the model and the optimiser.
    """

    not_in_state = (
        "_allowed",
        "_bytes",
        "_device_waits",
        "_outputs",
        "_quiet",
        "_rates",
        "_same_rates",
        "_steps",
    )

    def __init__(
        self,
        training: WatchedTraining,
        hooks: TrainingHooks,
        losses: LossCurve,
        jumps: LossJumps,
        allowed: bool,
    ) -> None:
        self.evidence = training.evidence
        self.on = False
        self._training = training
        self._hooks = hooks
        self._losses = losses
        self._jumps = jumps
        self._allowed = allowed
        self._keeps_promises = True  # all watched steps were what the loop says
        self._compared = 0  # watched steps that the loop has announced
        self._evaluations = 0
        self._device_waits = any(map(waits, training.model.parameters()))
        self._outputs: Tensor | None = None  # of this step, at rest
        self._steps: list[_Step] = []  # that are to be noted
        self._bytes = 0  # that their batches and outputs take
        self._quiet = 0  # steps from now on at which nothing is due
        # Rates of the latest update that was noted; None of rates that change in place.
        self._rates: list[float] | None = None
        self._same_rates = 0  # updates since then, at the same rates

    def before_update(self, outputs: Tensor, norm: Tensor) -> None:
        """Look at a step between its backward pass and its update.

        Args:
            outputs: of the model.
            norm: of its gradients, a scalar.
        """
        if not self.on:
            self._compared += 1
            self._keeps_promises = self._keeps_promises and self._is_as_promised(outputs)
            return
        self._outputs = outputs.detach()
        loop, optimizer = self.evidence.loop, self._training.optimizer
        # NaN and infinity of any gradient show in the norm, and that there are none.
        strange = norm.is_cpu and not 0 < norm.item() < math.inf
        if strange or not self._training.model.training:
            self.flush()
            self._hooks.note_update(optimizer, thorough=True)
            loop.optimizer_steps += 1
        elif [group["lr"] for group in optimizer.param_groups] == self._rates:
            self._same_rates += 1
        else:
            self._note_rates()
            loop.training_forwards += 1
            loop.optimizer_steps += 1

    def _note_rates(self) -> None:
        """Look at the rates of an update; of those that follow, whether they are the same."""
        self._note_same_rates()
        optimizer = self._training.optimizer
        self._hooks.note_rates(optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        in_place = any(isinstance(rate, Tensor) for rate in rates)
        self._rates = None if in_place or not self._hooks.rates.are_kept else rates

    def _note_same_rates(self) -> None:
        """Count the updates since the latest whose rates were looked at."""
        updates, self._same_rates = self._same_rates, 0
        self._hooks.rates.repeat(updates)
        self.evidence.loop.training_forwards += updates
        self.evidence.loop.optimizer_steps += updates

    def _is_as_promised(self, outputs: Any) -> bool:
        pending = self._training.passes.pending
        if not isinstance(outputs, Tensor):
            return False
        if len(pending) != 1 or not pending[0].training or self._hooks.state.places:
            return False
        if self._compared < _WATCHED and self._compared > 1:
            return True  # to compare the random state takes as long as a small layer
        before, now = pending[0].random_state, self._training.random_state()
        return all(map(torch.equal, before, now))

    def _takes(self, inputs: Any) -> bool:
        """Return whether the model's only argument is the batch, in whatever layout."""
        calls = [each.call for each in self._training.passes.pending]
        if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
            return False
        (taken,) = calls[0].args
        tensors = isinstance(taken, Tensor) and isinstance(inputs, Tensor)
        return tensors and taken.shape == inputs.shape

    def step(self, loss: Any, inputs: Any, targets: Any) -> bool:
        """Take note of a step, after its update; False where it is to be looked at closely."""
        if not self.on:
            as_promised = isinstance(loss, Tensor) and self._takes(inputs)
            self._keeps_promises = self._keeps_promises and as_promised
            return False
        outputs, self._outputs = self._outputs, None
        known: float | Tensor = loss.item() if loss.is_cpu else loss.detach()
        broken = isinstance(known, float) and not math.isfinite(known)
        if outputs is None or (
            (broken or self._hooks.kept_weights) and self.evidence.nonfinite is None
        ):
            self.flush()
            self._hooks.outputs = outputs
            return False
        self._steps.append(_Step(loss.detach() if broken else known, outputs, inputs, targets))
        self._bytes += max(_EACH, inputs.nbytes + outputs.nbytes)
        self._quiet -= 1
        if self._quiet <= 0:
            self.flush()
            self.plan()
        elif self._bytes >= _BYTES:
            self.flush()
        return True

    def flush(self) -> None:
        """Note the steps that were taken at rest; before anything that depends on them."""
        steps, self._steps, self._bytes = self._steps, [], 0
        if self._same_rates:
            self._note_same_rates()
        if steps:
            self._note(steps)
            self._training.end_steps(len(steps))

    @guarded("the steps between two probes")
    def _note(self, steps: Sequence[_Step]) -> None:
        training, first = self._training, self.evidence.loop.steps
        buffer, layout, losses = training.buffer, training.layout, self._losses
        known = buffer.is_known
        if known:
            buffer.leave_out([layout.size(step.inputs) for step in steps])
        for number, (loss, outputs, inputs, targets) in enumerate(steps, first):
            if not known:
                buffer.take(Call((inputs,)), inputs, targets, layout, due=False)
            if isinstance(loss, Tensor):
                losses.add(loss, number)
                if loss.is_cpu:
                    losses.read()
                continue
            losses.append(loss)
            if self._jumps.rises(number, losses.values):
                rows = layout.rows(Call((inputs,)), inputs)
                self._jumps.note(number, losses.values, outputs, targets, rows)
        training.passes.last_call = Call((steps[-1].inputs,))

    def before_evaluation(self) -> None:
        """Watch the evaluation that follows, as the first ones, and later ones more rarely.

        A loop evaluates in the same way each time.
        """
        self.flush()
        if is_due(self._evaluations, 1, _EVALUATIONS):
            self.end()
        self._evaluations += 1

    def plan(self) -> None:
        """Begin to rest, or end it, before the next step."""
        training = self._training
        close = training.probe_due or training.probe_follows
        # A GPU is waited for at these steps, and what was computed since is looked at.
        close = close or (training.reading_due and self._device_waits)
        if self.on and close:
            self.end()
        elif not (self.on or close) and self._may_begin():
            self.on = True
            self._hooks.take_off()
        if self.on:
            self._quiet = training.quiet_steps(self._device_waits)

    def _may_begin(self) -> bool:
        compared = self._keeps_promises and self._compared >= _WATCHED
        return self._allowed and compared and not self._hooks.are_busy

    def end(self) -> None:
        """Watch the next step, and the passes before it."""
        if self.on:
            self.flush()
            self.on = False
            self._hooks.put_on(self._training.model)

    def restore(self) -> None:
        """Take the hooks off again, of a training that goes on from where it rested."""
        if not self._allowed:
            self.on = False
        if self.on:
            self._hooks.take_off()
            self.plan()

    def close(self) -> None:
        """Let go of what is kept, and rest no more."""
        self.flush()
        self._outputs = None
        self.on = self._allowed = False
