"""The observer: turns what happens in a training loop into evidence. It judges nothing."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor import troubles
from debugnn.doctor.copies import Relay, copied_loss, undisturbed
from debugnn.doctor.evidence import Evidence, NonFinite, Validation
from debugnn.doctor.nonfinite import described
from debugnn.doctor.nonfinite_replay import NonFiniteReplay
from debugnn.doctor.observe import devices, first_batch
from debugnn.doctor.observe.buffer import BatchBuffer, ValidationBatch
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import (
    Call,
    as_call,
    batch_size,
    copied,
    map_tensors,
    reshaped_like,
    rows_of,
    run_in_chunks,
    take,
)
from debugnn.doctor.observe.data import note_data
from debugnn.doctor.observe.forward_passes import ForwardPass, ForwardPasses
from debugnn.doctor.observe.layers import LayerProbes
from debugnn.doctor.observe.loss_jumps import LossJumps, own_losses
from debugnn.doctor.observe.losses import LossCurve
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.optimizer import optimizer_facts, still_unreached
from debugnn.doctor.observe.outcome import (
    note_losses,
    note_movement,
    note_scores,
    outputs_of,
    score_of,
)
from debugnn.doctor.observe.replica import Replica
from debugnn.doctor.observe.stale_gradients import StaleGradients
from debugnn.doctor.observe.task import Task, read, score
from debugnn.doctor.troubles import guarded
from debugnn.errors import one_line
from debugnn.random_state import random_state
from debugnn.tensor_stats import read_together

_VALIDATED = 1024  # samples of a validation set that are looked at
_EARLY_PROBES = (3, 8)  # steps


class Observer:
    """Watches a training through hooks and through what its loop hands over.

    Nothing that it does raises after the constructor: what it cannot look at is a line of
    `evidence.troubles`.

    Args:
        model: any module; one from `torch.compile` too.
        optimizer: any of `torch.optim`.
        loss_fn: called as `loss_fn(model(inputs), targets)`; None where there is none.
        every: steps between two probes of the layers.
        save_to: folder for the batch and the weights of a first non-finite number.
        steps_before: steps that the training took before.
        at_once: look at the loss, all gradients and all weights in every step, to find the first
            non-finite number at its own step.
        copies: keep a copy of the model and its initial weights.

    Attributes:
        evidence: what has been seen.
        buffer: some of the training's batches.
        replica: a copy of the model, from the first forward pass on.
        task: how outputs and targets are read, from the first step on.
        nonfinite: the step that broke.

    Raises:
        TypeError: an argument of the wrong kind, or a model or optimiser that takes no hooks.
        ValueError: `every` below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        every: int = 20,
        save_to: Path | None = None,
        steps_before: int = 0,
        at_once: bool = False,
        copies: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: a torch.nn.Module is needed")
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer is a {kind}: a torch.optim.Optimizer is needed")
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn is a {type(loss_fn).__name__}: a function is needed")
        if every < 1:
            raise ValueError(f"every={every}: at least 1 is needed")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.evidence = Evidence()
        self.buffer = BatchBuffer()
        self.replica: Replica | None = None
        self.task: Task | None = None
        self.nonfinite = NonFiniteReplay()
        self._every = every
        self._save_to = save_to
        self._at_once = at_once
        self._copies = copies
        self._loop = self.evidence.loop
        self._loop.steps_before = steps_before
        self._begun = False
        self._passes = ForwardPasses(self._loop)
        self._outputs: Any = None  # of the latest pass since the last step
        self._losses = LossCurve()
        self._jumps = LossJumps()
        self._layers = LayerProbes(self.evidence, self.model)
        self._stale = StaleGradients(self._loop)
        self._validation: ValidationBatch | None = None
        self._handles: list[Any] = []
        self._hook(model)

    # --- hooks: what happens between two steps ----------------------------------------------------

    def _hook(self, model: nn.Module) -> None:
        try:
            self._handles += [
                model.register_forward_pre_hook(Relay(self, "_before_forward"), with_kwargs=True),
                model.register_forward_hook(Relay(self, "_after_forward")),
            ]
        except RuntimeError as error:  # TorchScript
            raise TypeError(f"model takes no hooks: {one_line(error)}") from error
        try:
            self._handles += [
                self.optimizer.register_step_pre_hook(Relay(self, "_before_update")),
                self.optimizer.register_step_post_hook(Relay(self, "_after_update")),
            ]
        except AttributeError as error:
            self.close()
            kind = type(self.optimizer).__name__
            raise TypeError(f"{kind} takes no hooks: it never called super().__init__()") from error

    @guarded("a forward pass")
    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        learning = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if not learning:
            if self._passes.note_evaluation(args, self.model.training):
                self._loop.evaluation_line = self._loop.evaluation_line or line_of_caller()
            return
        if not self._begun:
            self._begin()
        call = Call(args, kwargs)
        if self._loop.training_line is None:
            self._loop.training_line = line_of_caller()
        if not self.model.training and self._loop.eval_mode_line is None:
            self._loop.eval_mode_line = line_of_caller()
        self._passes.note_training(ForwardPass(call, self.model.training, self._random_state()))

    @guarded("the outputs of a forward pass")
    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.is_grad_enabled():
            self._outputs = map_tensors(output, Tensor.detach)

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        """Note the gradients of an update; with a closure, those that its first call leaves.

        Returns:
            Arguments with a closure that notes them; None where there is no closure.
        """
        own, *rest = args  # a hook on the step gets the optimiser too
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self._note_update(optimizer)
            return None
        noted = False

        def watched() -> Any:
            nonlocal noted
            result = closure()
            if not noted:
                noted = True
                self._note_update(optimizer)
            return result

        if rest:
            return (own, watched, *rest[1:]), kwargs
        return args, {**kwargs, "closure": watched}

    @guarded("the gradients before an update")
    def _note_update(self, optimizer: torch.optim.Optimizer) -> None:
        due, state = self._due, self._state_before_pass()
        if self._loop.update_line is None:
            self._loop.update_line = line_of_caller()
        self._passes.note_update(self.model.training)
        self._stale.compare(due)
        self._layers.refresh(due)
        if not self._layers.has_gradients():
            self._loop.empty_steps += 1
            return
        if self.replica is not None:
            self.replica.note_rates(optimizer)
        thorough = due or self._at_once
        if self.evidence.nonfinite is None and self._layers.has_nonfinite_gradients(thorough):
            self.nonfinite.keep(self.model, state)
        if due:
            self._layers.measure_gradients(self.replica)

    @guarded("the weights after an update")
    def _after_update(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self._loop.optimizer_steps += 1
        self._stale.keep(self._every)
        self._layers.measure_updates()

    def _begin(self) -> None:
        """Copy the model and note what the optimiser holds, before the first forward pass."""
        self._begun = True
        self.replica = Replica(self.model, self.optimizer, self._copies)
        if self.replica.error is not None:
            reason = one_line(self.replica.error)
            troubles.note(
                self.evidence, f"the model cannot be copied ({reason}): it is not tried out"
            )
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        watched = sorted(
            (p for p in self.model.parameters() if p.requires_grad and id(p) in held),
            key=Tensor.numel,
        )
        self._handles += self._stale.watch(watched[:2])

    def _random_state(self) -> list[Tensor]:
        device = self.replica.device if self.replica is not None else torch.device("cpu")
        return random_state(device)

    def _state_before_pass(self) -> list[Tensor]:
        """Return the random state before this step's forward pass; the present one without it."""
        pending = self._passes.pending
        return pending[-1].random_state if pending else self._random_state()

    @property
    def _due(self) -> bool:
        """True if this step is one of a probe."""
        return self._loop.steps % self._every == 0 or self._loop.steps in _EARLY_PROBES

    # --- a step -----------------------------------------------------------------------------------

    def step(self, loss: Any, inputs: Any = None, targets: Any = None) -> None:
        """Take note of one training step, after the optimiser's."""
        self._note_step(loss, inputs, targets)
        # Counted whatever happens above, so that probes stay where they belong.
        self._loop.steps += 1
        self._passes.pending.clear()
        self._outputs = None
        self._layers.drop()
        if self.replica is not None:
            self.replica.rest()

    @guarded("a step")
    def _note_step(self, loss: Any, inputs: Any, targets: Any) -> None:
        if not self._begun:
            self._begin()  # a model that is never called with gradients
        step, due = self._loop.steps, self._due
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss))
        if value.numel() != 1:
            shape = tuple(value.shape)
            troubles.note(self.evidence, f"the loss has shape {shape}: its mean is taken")
            value = value.float().mean()
        call = self._passes.call_of(inputs)
        if any(t.numel() == 0 for t in call.tensors()):
            self._losses.add(value, None)
            return
        self.buffer.take(call, inputs, targets, due)
        if self.task is None:
            self._examine()
        self._losses.add(value, step)
        if due or self._at_once or not devices.waits(value):
            self._losses.read()
            self._look_for_jump(step, targets)
            self._look_for_nonfinite(value, call, targets)
            if self._at_once and self.evidence.nonfinite is None:
                self.evidence.nonfinite = self._spoilt_by_update()
        if due:
            self._compare_loss(value, targets)
            model = None
            if self.replica is not None and self._layers.wants_activations:
                model = self.replica.current() if step > 0 else self.replica.model
            self._layers.finish(model, call)

    def _look_for_nonfinite(self, loss: Tensor, call: Call, targets: Any) -> None:
        """Repeat this step on a copy, where it is the first that broke."""
        step, broke = self._loop.steps, self._losses.broke_at
        # A loss that is read late, on a GPU, has reached the weights: they no longer tell where it
        # came from.
        late = devices.waits(loss) and broke is not None and broke < step
        if self.evidence.nonfinite is not None or late:
            return
        if not self.nonfinite.pending:
            if math.isfinite(self._losses.values[-1]):
                return
            self.nonfinite.keep(self.model, self._state_before_pass())
        found = self.nonfinite.repeat(step, call, targets, self.replica, self.loss_fn)
        if found.where == "parameter":
            found.layer = found.name.rpartition(".")[0]
            if step > 0:
                found.line = self._loop.update_line
        self.evidence.nonfinite = found
        if self._save_to is not None:
            found.replay = str(self.nonfinite.save(self._save_to, step))

    def _look_for_jump(self, step: int, targets: Any) -> None:
        """Keep the samples' own losses, where this loss is among those that jump the most."""
        values = self._losses.values
        if len(values) != step + 1 or not self._jumps.is_among_the_largest(values):
            return
        with undisturbed(), torch.no_grad():
            own = own_losses(copied_loss(self.loss_fn), self._outputs, targets)
        self._jumps.add(step, values, own)

    def _spoilt_by_update(self) -> NonFinite | None:
        """Return the first weight that is not finite after an update; None if all are finite."""
        weights = {n: p.detach() for n, p in self.model.named_parameters() if p.is_floating_point()}
        if all(map(math.isfinite, read_together(torch._foreach_norm(list(weights.values()))))):
            return None
        for name, values in weights.items():
            if not torch.isfinite(values).all():  # and not only its norm
                finite = values[torch.isfinite(values)]
                return NonFinite(
                    self._loop.steps,
                    "update",
                    name,
                    layer=name.rpartition(".")[0],
                    kind="nan" if torch.isnan(values).any() else "inf",
                    samples=[],
                    count=values.numel() - finite.numel(),
                    magnitude=finite.abs().max().item() if len(finite) else 0.0,
                    overflow=False,
                    outputs=[described(values)],
                    line=self._loop.update_line,
                )
        return None

    @guarded("the loss beside loss_fn's value")
    def _compare_loss(self, loss: Tensor, targets: Any) -> None:
        if self.loss_fn is not None and self._outputs is not None:
            self._losses.compare(loss, self.loss_fn, self._outputs, targets)

    @guarded("the first batch")
    def _examine(self) -> None:
        """Try out the network and the loss function as they are at the start."""
        self.task = Task("unknown")
        if self.replica is None or self.replica.model is None or not self.buffer.early:
            return
        batch, model = self.buffer.early[0], self.replica.start()
        if model is None:
            return
        loss_fn = copied_loss(self.loss_fn)
        with undisturbed():
            self.task = first_batch.examine(
                model, batch.call, batch.targets, loss_fn, self.evidence
            )
            found = outputs_of(model, [batch], training=True)
            rarest = self.buffer.rarest(self.task)
            self.evidence.outcome.initial = score_of(found, self.task, rarest)

    # --- validation -------------------------------------------------------------------------------

    @guarded("a validation")
    def validate(self, inputs: Any, targets: Any) -> None:
        """Evaluate a copy of the model, in evaluation mode, on some validation samples."""
        self._loop.validations += 1
        if self.model.training and not torch.is_grad_enabled():
            self._loop.validated_in_train_mode += 1
        if not self._begun:
            self._begin()
        model = self.replica.current() if self.replica is not None else None
        if model is None or not isinstance(targets, Tensor):
            return
        call = reshaped_like(as_call(inputs), self._passes.last_call)
        batch = batch_size(call, len(targets))
        count, given = min(batch or 1, _VALIDATED), rows_of(inputs)
        if batch is not None and count < batch:
            rows = torch.linspace(0, batch - 1, count).long()
            call, targets = call.take(rows, batch), take(targets, rows, batch)
            given = None if given is None else take(given, rows, batch)
        with undisturbed(), torch.no_grad(), without_dropout(model, training=False):
            outputs = run_in_chunks(model, call, count)
            loss = self._value(outputs, targets)
        task, step = self.task or read(outputs, targets), self._loop.steps
        found = score(task, outputs, targets, self.buffer.rarest(task))
        self.evidence.outcome.validations.append(Validation(step, loss, found))
        self._validation = ValidationBatch(
            call=call.map(copied),
            inputs=None if given is None else copied(given),
            targets=copied(targets),
            count=count,
            size=batch or 1,
            step=step,
            outputs=outputs,
        )

    def _value(self, outputs: Any, targets: Any) -> float | None:
        """Return the loss function's own value."""
        if self.loss_fn is None:
            return None
        return copied_loss(self.loss_fn)(outputs, targets).detach().float().mean().item()

    # --- the evidence -----------------------------------------------------------------------------

    def gather(self) -> None:
        """Bring the evidence up to date."""
        self._gather_loop()
        self._gather_data()
        self._gather_outcome()
        if self.replica is not None:
            self.replica.rest()

    @guarded("the optimiser and the losses")
    def _gather_loop(self) -> None:
        self._losses.read()
        self.buffer.fingerprint()
        groups = self.replica.groups if self.replica is not None else []
        initial = self.replica.initial if self.replica is not None else {}
        network = self.evidence.network
        self.evidence.optimizer = optimizer_facts(self.model, self.optimizer, groups, initial)
        network.unreached = still_unreached(network.unreached, self._layers.graded)
        note_losses(self.evidence, self._losses.values, self._losses.ratios)
        self.evidence.outcome.jumps = self._jumps.largest(self._losses.values, self.buffer.prints)

    @guarded("the data")
    def _gather_data(self) -> None:
        current = self.replica.current if self.replica is not None else lambda: None
        note_data(
            self.evidence, self.buffer, self._validation, self.task, current, self._loop.steps
        )

    @guarded("the outcome")
    def _gather_outcome(self) -> None:
        replica, outcome = self.replica, self.evidence.outcome
        model = None if replica is None else replica.current()
        if replica is not None and model is not None and self.task is not None:
            with undisturbed():
                note_scores(outcome, self.buffer, self.task, model)
            note_movement(outcome, self.model, replica.groups, replica.initial)

    def consider(
        self, batches: Sequence[tuple[Any, Any]], validation: Sequence[tuple[Any, Any]] | None
    ) -> None:
        """Take note of batches that nothing is trained on, for a check before a training.

        Args:
            batches: inputs and targets of each.
            validation: the same of a validation set; None without one.
        """
        self._begin()
        for inputs, targets in batches:
            self.buffer.take(as_call(inputs), inputs, targets, self._due)
        self._examine()
        if validation:
            inputs, targets = validation[0]
            if all(isinstance(i, Tensor) and isinstance(t, Tensor) for i, t in validation):
                inputs, targets = (torch.cat(parts) for parts in zip(*validation, strict=True))
            self.validate(inputs, targets)
        self.gather()

    def close(self) -> None:
        """Take all hooks off the model and the optimiser, and let go of copies and batches."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.replica is not None:
            self.replica.release()
        self.buffer.clear()
        self._passes.pending.clear()
        self._layers.release()
        self._validation = None
