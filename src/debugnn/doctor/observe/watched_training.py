"""The training that is watched, and what has been found out about it so far."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.cadence import is_due, next_due
from debugnn.doctor import troubles
from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe.buffer import BatchBuffer
from debugnn.doctor.observe.forward_passes import ForwardPasses
from debugnn.doctor.observe.labels_among_inputs import LabelsAmongInputs
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.parts import Part
from debugnn.doctor.observe.replica import Replica
from debugnn.doctor.observe.task import Task
from debugnn.doctor.reachable import Changes
from debugnn.errors import one_line
from debugnn.random_state import random_state

_EARLY_PROBES = (3, 8)  # steps


class WatchedTraining:
    """A training, and what its observer knows of it.

    Args:
        model: any module; one from `torch.compile` too.
        optimizer: any of `torch.optim`.
        loss_fn: called as `loss_fn(model(inputs), targets)`; None where there is none.
        every: steps between two probes of the layers; see `cadence.is_due`.
        steps_before: steps that the training took before.
        layout: where samples lie, as far as it is known before the first batch.
        copies: keep a copy of the model and its initial weights.

    Attributes:
        model: without the wrapper of `torch.compile`.
        optimizer: as it was given.
        loss_fn: None also once it was seen to need targets that the loop does not hand over.
        needs_no_targets: the loss function was seen to need none.
        every: as it was given.
        evidence: what has been seen.
        layout: where the samples of a batch lie.
        buffer: some of the training's batches.
        passes: the forward passes since the last step.
        replica: a copy of the model, from the first forward pass on.
        task: how outputs and targets are read, from the first step on.
        labels_among_inputs: where labels are that the model is called with, and no targets given.
        parts: outputs that are compared with one target each, where the task is unknown.
        probe_due: this step is one of a probe.
        probe_follows: the next step is one of a probe.
        reading_due: numbers that lie on a GPU are read at this step, and all gradients looked at.
    """

    not_in_state = (
        "every",
        "probe_due",
        "probe_follows",
        "reading_due",
        "_copies",
    )

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        *,
        every: int,
        steps_before: int,
        layout: Layout,
        copies: bool,
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.needs_no_targets = False
        self.every = every
        self.evidence = Evidence()
        self.evidence.loop.steps_before = steps_before
        self.layout = layout
        self.buffer = BatchBuffer()
        self.passes = ForwardPasses(self.evidence.loop)
        self.replica: Replica | None = None
        self.task: Task | None = None
        self.labels_among_inputs: LabelsAmongInputs | None = None
        self.parts: list[Part] = []
        self._copies = copies
        self.plan_step()

    def copy_model(self) -> None:
        """Copy the model as it starts, before the first forward pass."""
        self.replica = Replica(self.model, self.optimizer, self._copies)
        if self.replica.error is not None:
            troubles.note(
                self.evidence,
                "the model is not tried out, and its outputs are not looked at: it cannot be "
                f"copied ({one_line(self.replica.error)})",
            )

    def current_model(self) -> nn.Module | None:
        """Return the copy as the model is now, None without a copy."""
        return None if self.replica is None else self.replica.current()

    def undisturbed(self) -> AbstractContextManager[Changes]:
        """Leave no trace of what runs in the block, copies of the model and the loss function."""
        return undisturbed(self.loss_fn, self.model)

    def end_steps(self, count: int = 1) -> None:
        """Count steps; of several, none but the last may have a probe after it."""
        self.evidence.loop.steps += count
        self.plan_step()

    def plan_step(self) -> None:
        """Set what is due at this step: it is asked for often in a step."""
        step = self.evidence.loop.steps
        self.probe_due = self._is_of_probe(step)
        self.probe_follows = self._is_of_probe(step + 1)
        self.reading_due = self.probe_due or step % self.every == 0

    def quiet_steps(self, reads: bool) -> int:
        """Return a number of steps, from this one on, at which nothing is due, nor just after them.

        Args:
            reads: that numbers are read counts too.
        """
        step = self.evidence.loop.steps
        quiet = next_due(step, self.every) - 1 - step
        return min(quiet, self.every - step % self.every) if reads else quiet

    def _is_of_probe(self, step: int) -> bool:
        return is_due(step, self.every) or step in _EARLY_PROBES

    def random_state(self) -> list[Tensor]:
        """Return the present random state of the CPU and of the model's device."""
        device = self.replica.device if self.replica is not None else torch.device("cpu")
        return random_state(device)

    def state_before_pass(self) -> list[Tensor]:
        """Return the random state before this step's forward pass; the present one without it."""
        pending = self.passes.pending
        return pending[-1].random_state if pending else self.random_state()

    def release(self) -> None:
        """Let go of the copy and of the batches."""
        if self.replica is not None:
            self.replica.release()
        self.buffer.clear()
        self.passes.clear()
