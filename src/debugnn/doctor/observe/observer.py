"""The observer: turns what happens in a training loop into evidence. It judges nothing."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor import troubles
from debugnn.doctor.copies import Relay, copied_model, undisturbed
from debugnn.doctor.evidence import Evidence, NonFinite, Score, Validation
from debugnn.doctor.nonfinite.replay import NonFiniteReplay
from debugnn.doctor.nonfinite.values import described
from debugnn.doctor.observe import devices, first_batch
from debugnn.doctor.observe.buffer import Batch, BatchBuffer, ValidationBatch
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import (
    Call,
    as_call,
    copied,
    map_tensors,
    reshaped_like,
)
from debugnn.doctor.observe.data import note_data
from debugnn.doctor.observe.forward_passes import ForwardPass, ForwardPasses
from debugnn.doctor.observe.graph import UnregisteredLeaves, look_at_copy
from debugnn.doctor.observe.layers import LayerProbes
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_jumps import LossJumps, own_losses
from debugnn.doctor.observe.losses import LossCurve, output_gradient, scores_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.optimizer import RateCurve, optimizer_facts, still_unreached
from debugnn.doctor.observe.outcome import (
    note_losses,
    note_movement,
    note_scores,
    outputs_of,
    score_of,
)
from debugnn.doctor.observe.replica import Replica
from debugnn.doctor.observe.rivals import Rivals
from debugnn.doctor.observe.sample_axis import FIND, Samples, find_samples
from debugnn.doctor.observe.sequences import Scored, scored, sequence_facts
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
        sample_axis: the inputs' axis of samples; None where samples are not apart, "find" where it
            is to be found.
        at_once: look at the loss, all gradients and all weights in every step, to find the first
            non-finite number at its own step.
        copies: keep a copy of the model and its initial weights.

    Attributes:
        evidence: what has been seen.
        layout: where the samples of a batch lie.
        buffer: some of the training's batches.
        replica: a copy of the model, from the first forward pass on.
        task: how outputs and targets are read, from the first step on.
        nonfinite: the step that broke.

    Raises:
        TypeError: an argument of the wrong kind, or a model or optimiser that takes no hooks.
        ValueError: `every` below 1, or a sample axis that is none of the four.
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
        sample_axis: int | str | None = FIND,
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
        if sample_axis not in (0, 1, None, FIND) or isinstance(sample_axis, bool):
            raise ValueError(f"sample_axis={sample_axis!r}: 0, 1, None or {FIND!r} is needed")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.evidence = Evidence()
        self.buffer = BatchBuffer()
        self.replica: Replica | None = None
        self.task: Task | None = None
        self.layout = Layout() if isinstance(sample_axis, str) else Layout(sample_axis)
        self.nonfinite = NonFiniteReplay()
        self._every = every
        self._sample_axis = sample_axis
        self._without_targets = False  # the loss function was seen to need none
        self._save_to = save_to
        self._at_once = at_once
        self._copies = copies
        self._loop = self.evidence.loop
        self._loop.steps_before = steps_before
        self._begun = False
        self._passes = ForwardPasses(self._loop)
        self._outputs: Any = None  # of the latest pass since the last step
        self._output_gradient: Tensor | None = None  # of these outputs, where a probe is due
        self._scored: Scored | None = None  # what the loss pulled the outputs of a batch to
        self._losses = LossCurve()
        self._jumps = LossJumps()
        self._layers = LayerProbes(self.evidence, self.model)
        self._stale = StaleGradients(self._loop, optimizer)
        self._leaves = UnregisteredLeaves(self.model, optimizer)
        self._rates = RateCurve()
        self._validation: ValidationBatch | None = None
        self._rivals = Rivals(self.model, optimizer)
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
            if self._passes.note_evaluation(Call(args, kwargs), self.model.training):
                self._loop.evaluation_line = self._loop.evaluation_line or line_of_caller()
            return
        if not self._begun:
            self._begin()
        call = Call(args, kwargs)
        self._rivals.note_inputs(call.tensors())
        if self._loop.training_line is None:
            self._loop.training_line = line_of_caller()
        if not self.model.training and self._loop.eval_mode_line is None:
            self._loop.eval_mode_line = line_of_caller()
        self._passes.note_training(ForwardPass(call, self.model.training, self._random_state()))

    @guarded("the outputs of a forward pass")
    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self._outputs = map_tensors(output, Tensor.detach)
        if self._due:
            self._outputs = map_tensors(output, Tensor.detach)
            scores = scores_of(output)
            if scores is not None and scores.requires_grad and not scores.is_leaf:
                scores.register_hook(Relay(self, "_note_output_gradient"))
        if self._leaves.looks and self._passes.pending:
            self._leaves.look(self._passes.pending[-1].call, output)

    def _note_output_gradient(self, gradient: Tensor) -> None:
        self._output_gradient = gradient.detach()

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
        self._rates.note(optimizer)
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
            troubles.note(
                self.evidence,
                "the model is not tried out, and its outputs are not looked at: it cannot be "
                f"copied ({one_line(self.replica.error)})",
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
        due = self._due
        self._note_step(loss, inputs, targets)
        # Counted whatever happens above, so that probes stay where they belong.
        self._loop.steps += 1
        self._passes.clear()
        self._outputs = self._output_gradient = None
        self._layers.drop()
        if due:
            self._rest_copy()

    @guarded("the copy of the model")
    def _rest_copy(self) -> None:
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
        if call is None:
            troubles.note(
                self.evidence,
                "data and outputs are not looked at: step() was given no inputs, and no call of "
                "the model was seen in the step",
            )
        elif any(t.numel() == 0 for t in call.tensors()):
            self._losses.add(value, None)
            return
        else:
            self._take(call, inputs, targets, due, value)
        self._losses.add(value, step)
        if due or self._at_once or not devices.waits(value):
            self._losses.read()
            self._look_for_jump(step, targets)
            self._look_for_nonfinite(value, call, targets)
            if self._at_once and self.evidence.nonfinite is None:
                self.evidence.nonfinite = self._spoilt_by_update()
        if due:
            self._compare_loss(value, targets)
            if call is not None:
                self._note_scored(call, targets)
            model = None
            if self.replica is not None and self._layers.wants_activations:
                model = self.replica.current() if step > 0 else self.replica.model
            self._layers.finish(model, call, self.layout)

    def _take(
        self,
        call: Call,
        inputs: Any,
        targets: Any,
        due: bool,
        loss: Tensor | None,
    ) -> None:
        """Keep a batch, and try the model out on the first one.

        Args:
            loss: as it was handed over; None where there is none.
        """
        if self.task is not None:
            self.buffer.take(call, inputs, targets, self.layout, due)
            return
        self.task = Task("unknown")
        samples = self._find_samples(call, targets) or Samples(self.layout)
        self.layout = samples.layout
        self.buffer.take(call, inputs, targets, self.layout, due)
        handed = None
        if loss is not None and self._outputs is not None:
            handed = self._outputs, loss.float().item()
        self._examine(samples, handed)

    def _look_for_nonfinite(self, loss: Tensor, call: Call | None, targets: Any) -> None:
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
        # Without a call the step cannot be repeated; its weights can be saved all the same.
        replica = self.replica if call is not None else None
        found = self.nonfinite.repeat(
            step, call or Call(), targets, replica, self.loss_fn, self.layout
        )
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
        with undisturbed(self.loss_fn, self.model), torch.no_grad():
            own = own_losses(self.loss_fn, self._outputs, targets)
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

    @guarded("loss_fn's value beside the loss")
    def _compare_loss(self, loss: Tensor, targets: Any) -> None:
        if self.loss_fn is not None and self._outputs is not None:
            self._losses.compare(loss, self.loss_fn, self._outputs, targets)
            if self._output_gradient is not None and self._loop.passes_per_update[-1:] > [1]:
                own = output_gradient(self.loss_fn, self._outputs, targets)
                if own is not None:
                    self._losses.compare_gradients(self._output_gradient, own)

    @guarded("what the loss compares at each position")
    def _note_scored(self, call: Call, targets: Any) -> None:
        """Note which symbols the loss pulls a batch's outputs to, once."""
        if self._scored is not None or self._outputs is None:
            return
        scores, gradient = scores_of(self._outputs), self._output_gradient
        if scores is not None and gradient is not None and len(self._passes.pending) == 1:
            self._scored = scored(call, scores, gradient, targets)

    @guarded("where the samples of a batch lie")
    def _find_samples(self, call: Call, targets: Any) -> Samples | None:
        """Find out along which axis samples lie, and whether the model keeps them apart."""
        if self.replica is None or self.replica.model is None:
            return None
        model = copied_model(self.replica.model)
        with undisturbed(self.loss_fn, self.model), without_dropout(model, training=False):
            return find_samples(model, call.map(copied), targets, self._sample_axis)

    @guarded("the first batch")
    def _examine(self, samples: Samples, handed: tuple[Any, float] | None) -> None:
        """Try out the network and the loss function as they are at the start.

        Args:
            samples: where the batch's samples lie.
            handed: the outputs of the step's own pass, and the loss that was handed over.
        """
        if self.replica is None or self.replica.model is None or not self.buffer.early:
            return
        batch, model = self.buffer.early[0], self.replica.start()
        if model is None:
            return
        with undisturbed(self.loss_fn, self.model) as changes:
            self._try_without_targets(model, batch)
            self.task = first_batch.examine(
                model,
                batch.call,
                batch.targets,
                self.loss_fn,
                samples,
                self.evidence,
                lambda: self._rivals.note_read(changes),
                handed,
            )
            found = outputs_of(model, [batch], training=True)
            rarest = self.buffer.rarest(self.task)
            self.evidence.outcome.initial = score_of(found, self.task, rarest)

    def _try_without_targets(self, model: nn.Module, batch: Batch) -> None:
        """Leave the loss function out where it needs targets, and the loop hands none over."""
        if self.loss_fn is None or batch.targets is not None:
            return
        try:
            with torch.no_grad(), without_dropout(model, training=False):
                self.loss_fn(batch.call(model), None)
            self._without_targets = True
        except Exception:  # whatever a function raises that compares outputs with None
            self.loss_fn = None
            troubles.note(
                self.evidence,
                "the loss function is not looked at: it needs targets, and step() was given none",
            )

    # --- validation -------------------------------------------------------------------------------

    @guarded("validation")
    def validate(self, inputs: Any, targets: Any = None) -> None:
        """Evaluate a copy of the model, in evaluation mode, on some validation samples."""
        self._loop.validations += 1
        if self.model.training and not torch.is_grad_enabled():
            self._loop.validated_in_train_mode += 1
        if not self._begun:
            self._begin()
        model = self.replica.current() if self.replica is not None else None
        if model is None:
            return
        whole = reshaped_like(self._passes.validation_call(inputs), self._passes.last_call)
        size = self.layout.count(whole) or 1
        call, kept = whole, targets
        if size > _VALIDATED:
            rows = torch.linspace(0, size - 1, _VALIDATED).long()
            call, kept = self.layout.take(whole, rows, targets)
        with (
            undisturbed(self.loss_fn, self.model),
            torch.no_grad(),
            without_dropout(model, training=False),
        ):
            try:
                outputs = self.layout.run(model, call)
            except Exception as error:  # whatever the model raises of what it was not made for
                troubles.note(self.evidence, self._why_not_validated(inputs, error))
                return
            loss = self._value(outputs, kept)
        task, step = self.task or read(outputs, kept), self._loop.steps
        if loss is not None or isinstance(kept, Tensor):
            rarest = self.buffer.rarest(task)
            found = score(task, outputs, kept, rarest) if isinstance(kept, Tensor) else Score()
            self.evidence.outcome.validations.append(Validation(step, loss, found))
        given = self.layout.rows(call, inputs if call is whole else None)
        self._validation = ValidationBatch(
            call=call.map(copied),
            inputs=None if given is None else copied(given),
            targets=map_tensors(kept, copied),
            size=size,
            step=step,
            outputs=outputs,
        )

    def _why_not_validated(self, inputs: Any, error: Exception) -> str:
        seen, handed = self._passes.last_call, as_call(inputs)
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

    def _value(self, outputs: Any, targets: Any) -> float | None:
        """Return the loss function's own value, None without targets that it needs."""
        if self.loss_fn is None or (targets is None and not self._without_targets):
            return None
        with torch.enable_grad():  # a loss may hold a gradient's norm
            return self.loss_fn(outputs, targets).detach().float().mean().item()

    # --- the evidence -----------------------------------------------------------------------------

    def gather(self) -> None:
        """Bring the evidence up to date."""
        self._gather_rivals()
        self._gather_loop()
        self._gather_data()
        self._gather_sequence()
        self._gather_outcome()
        self._rest_copy()

    @guarded("other networks")
    def _gather_rivals(self) -> None:
        """Know of no task where another network is trained against this one: both may do well, and
        neither loss falls."""
        if self._rivals.found():
            self.evidence.adversarial = True
            self.evidence.task, self.evidence.classes = "unknown", None
            self.task = Task("unknown")

    @guarded("the optimiser and the losses")
    def _gather_loop(self) -> None:
        self._losses.read()
        self.buffer.fingerprint()
        groups = self.replica.groups if self.replica is not None else []
        initial = self.replica.initial if self.replica is not None else {}
        network = self.evidence.network
        self.evidence.optimizer = optimizer_facts(
            self.model, self.optimizer, groups, initial, self._rates.points()
        )
        network.unreached = still_unreached(network.unreached, self._layers.graded)
        network.unregistered = self._leaves.facts()
        note_losses(self.evidence, self._losses.values, self._losses.ratios)
        scales = self._losses.gradient_scales
        self._loop.gradient_scale = statistics.median(scales) if scales else None
        self.evidence.outcome.jumps = self._jumps.largest(self._losses.values, self.buffer.prints)

    @guarded("the data")
    def _gather_data(self) -> None:
        current = self.replica.current if self.replica is not None else lambda: None
        note_data(
            self.evidence,
            self.buffer,
            self.layout,
            self._validation,
            self.task,
            current,
            self._loop.steps,
        )

    @guarded("what the outputs of a sequence see")
    def _gather_sequence(self) -> None:
        model = None if self.replica is None else self.replica.current()
        if model is not None and self._scored is not None:
            with undisturbed():
                self.evidence.data.sequence = sequence_facts(model, self._scored)

    @guarded("the outcome")
    def _gather_outcome(self) -> None:
        replica, outcome = self.replica, self.evidence.outcome
        model = None if replica is None else replica.current()
        if replica is not None and model is not None and self.task is not None:
            with undisturbed(model=self.model):
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
            self._take(as_call(inputs), inputs, targets, self._due, None)
        self._look_for_unregistered()
        self._score_a_copy()
        if validation:
            inputs, targets = validation[0]
            whole = all(isinstance(i, Tensor) and isinstance(t, Tensor) for i, t in validation)
            if whole and self.layout.axis == 0:
                inputs, targets = (torch.cat(parts) for parts in zip(*validation, strict=True))
            self.validate(inputs, targets)
        self.gather()

    @guarded("layers that are not registered")
    def _look_for_unregistered(self) -> None:
        replica = self.replica.model if self.replica is not None else None
        if replica is not None and self.buffer.early:
            call = self.buffer.early[0].call
            with undisturbed(self.loss_fn, self.model), torch.enable_grad():
                self._leaves = look_at_copy(self.model, self.optimizer, copied_model(replica), call)

    @guarded("what the loss compares at each position")
    def _score_a_copy(self) -> None:
        replica = self.replica.model if self.replica is not None else None
        if replica is None or self.loss_fn is None or not self.buffer.early:
            return
        call, targets = self.buffer.early[0].call, self.buffer.early[0].targets
        with (
            undisturbed(self.loss_fn, self.model),
            torch.no_grad(),
            without_dropout(replica, training=False),
        ):
            outputs = call(replica)
        scores, gradient = scores_of(outputs), output_gradient(self.loss_fn, outputs, targets)
        if scores is not None and gradient is not None:
            self._scored = scored(call, scores, gradient, targets)

    def close(self) -> None:
        """Take all hooks off the model and the optimiser, and let go of copies and batches."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.replica is not None:
            self.replica.release()
        self.buffer.clear()
        self._passes.clear()
        self._layers.release()
        self._leaves.release()
        self._scored = self._output_gradient = None
        self._validation = None
