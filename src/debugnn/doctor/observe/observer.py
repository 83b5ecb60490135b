"""The observer: turns what happens in a training loop into evidence. It judges nothing."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor import troubles
from debugnn.doctor.copies import copied_model, undisturbed
from debugnn.doctor.hopeless import why_hopeless
from debugnn.doctor.nonfinite.replay import NonFiniteReplay
from debugnn.doctor.nonfinite.weights import spoilt_by_update
from debugnn.doctor.observe import devices
from debugnn.doctor.observe.calls import Call, as_call, is_a_part, is_plain, map_tensors, scores_of
from debugnn.doctor.observe.first_batch import FirstBatch
from debugnn.doctor.observe.gatherer import Gatherer
from debugnn.doctor.observe.graph import look_at_copy
from debugnn.doctor.observe.hooks import TrainingHooks
from debugnn.doctor.observe.labels_among_inputs import find_labels
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.graph import (
    candidates,
    crossed,
    loss_sources,
    multiplied,
    samples_compete,
    singular_operations,
)
from debugnn.doctor.observe.loss_function.reductions import unlike_reductions
from debugnn.doctor.observe.loss_jumps import LossJumps
from debugnn.doctor.observe.losses import LossCurve, gradient_of, value_of
from debugnn.doctor.observe.rest import Rest
from debugnn.doctor.observe.sample_axis import FIND, Samples
from debugnn.doctor.observe.scored_symbols import ScoredSymbols
from debugnn.doctor.observe.task import Task
from debugnn.doctor.observe.validation import ValidationSamples
from debugnn.doctor.observe.volume import volume_facts
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.state import flattened, put_back
from debugnn.doctor.troubles import guarded

_COMPARED = 16  # fewest outputs whose gradient is compared with their errors
_NAMED = 3  # operations that may have made a gradient infinite
_VOLUME_TRIES = 6  # probes at which outputs are compared with a change of volume


class Observer:
    """Watches a training through hooks and through what its loop hands over.

    Nothing that it does raises after the constructor: what it cannot look at is a line of
    `evidence.troubles`.

    Args:
        model: any module; one from `torch.compile` too.
        optimizer: any of `torch.optim`.
        loss_fn: called as `loss_fn(model(inputs), targets)`; None where there is none.
        every: steps between two probes of the layers; see `cadence.is_due`.
        save_to: folder for the batch and the weights of a first non-finite number.
        steps_before: steps that the training took before.
        sample_axis: the inputs' axis of samples; None where samples are not apart, "find" where it
            is to be found.
        at_once: look at the loss, all gradients and all weights in every step, to find the first
            non-finite number at its own step.
        copies: keep a copy of the model and its initial weights.

    Attributes:
        training: what is watched, and what is known of it.
        evidence: what has been seen of it.
        nonfinite: the step that broke.
        rest: for a loop that says itself what it does.

    Raises:
        TypeError: an argument of the wrong kind, or a model or optimiser that takes no hooks.
        ValueError: `every` below 1, or a sample axis that is none of the four.
    """

    not_in_state = ("_at_once",)

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
        layout = Layout() if isinstance(sample_axis, str) else Layout(sample_axis)
        self.training = WatchedTraining(
            model,
            optimizer,
            loss_fn,
            every=every,
            steps_before=steps_before,
            layout=layout,
            copies=copies,
        )
        self.evidence = self.training.evidence
        self.nonfinite = NonFiniteReplay()
        self._save_to = save_to
        self._at_once = at_once
        self._loop = self.evidence.loop
        self._passes = self.training.passes
        self._hooks = TrainingHooks(self.training, model, self.nonfinite, at_once)
        self._layers = self._hooks.layers
        self._first_batch = FirstBatch(
            self.training, self._hooks.rivals, self._hooks.loss_parameters, sample_axis
        )
        self._validation = ValidationSamples(self.training)
        self._volume_tries = 0
        self._losses = LossCurve()
        self._jumps = LossJumps()
        compiled = model is not self.training.model
        allowed = not (at_once or compiled)
        self.rest = Rest(self.training, self._hooks, self._losses, self._jumps, allowed)
        self._scored = ScoredSymbols(self.training, self._hooks)
        self._gatherer = Gatherer(
            self.training,
            self._hooks,
            self._losses,
            self._jumps,
            self._scored,
            self._validation,
            sample_axis,
        )

    # --- a step -----------------------------------------------------------------------------------

    def step(self, loss: Any, inputs: Any = None, targets: Any = None) -> None:
        """Take note of one training step, after the optimiser's."""
        due = self.training.probe_due
        self._hooks.loss_calls.take(loss)  # before anything that the doctor calls itself
        self._note_step(loss, inputs, targets)
        # Counted whatever happens above, so that probes stay where they belong.
        self.training.end_steps()
        self._passes.clear()
        self._hooks.clear()
        if due:
            self._rest_copy()

    @guarded("the copy of the model")
    def _rest_copy(self) -> None:
        if self.training.replica is not None:
            self.training.replica.rest()

    @guarded("a step")
    def _note_step(self, loss: Any, inputs: Any, targets: Any) -> None:
        self._hooks.begin()  # for a model that is never called with gradients
        step, due = self._loop.steps, self.training.probe_due
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
        elif 0 in [t.numel() for t in call.tensors()]:
            self._losses.add(value, None)
            return
        else:
            targets = self._labels_of(call, targets)
            self._take(call, inputs, targets, value)
            self._hooks.opponents.note_batch(call, targets)
        if step == 0:
            self._note_computation(loss, call, targets)
        self._losses.add(value, step)
        if self._at_once or not devices.waits(value) or self.training.reading_due:
            self._losses.read()
            losses = self._losses.values
            if self._jumps.rises(step, losses):
                rows = None if call is None else self.training.layout.rows(call, inputs)
                self._jumps.note(step, losses, self._hooks.outputs, targets, rows)
            self._look_for_nonfinite(loss, value, call, targets)
            if self._at_once and self.evidence.nonfinite is None:
                self.evidence.nonfinite = spoilt_by_update(
                    self.training.model, step, self._loop.update_line
                )
        if due:
            self._note_probe(loss, value, call, targets)

    def _note_probe(self, loss: Any, value: Tensor, call: Call | None, targets: Any) -> None:
        """Look at what is looked at in a few steps alone, with the layers last.

        Args:
            loss: as it was handed over.
            value: without its graph.
        """
        count = candidates(loss)
        if count is not None:
            self.evidence.loss.candidates = max(count, self.evidence.loss.candidates or 0)
        if self._layers.is_thorough:
            self._compare_loss(value, targets)
        self._compare_gradient(targets)
        self._note_derivatives()
        self._hooks.opponents.compare(self._hooks.outputs, targets)
        if call is not None:
            self._scored.note_step(call, targets)
            self._note_volume(call)
        model, replica = None, self.training.replica
        if replica is not None and self._layers.is_thorough:
            model = replica.current() if self._loop.steps > 0 else replica.model
        self._layers.finish(model, call, self.training.layout)

    @guarded("how the loss is computed")
    def _note_computation(self, loss: Any, call: Call | None, targets: Any) -> None:
        facts = self.evidence.loss
        facts.sources = loss_sources(loss)
        facts.targets_are_a_part = is_a_part(targets)
        facts.crossed = list(crossed(loss) or ()) or None
        facts.samples_compete = samples_compete(loss)
        products = multiplied(loss)
        # A matrix that is made for it weighs each pair on purpose: a column is none.
        columns = Call((targets,)).tensors()
        if products is not None and any(t.shape == (products[0], 1) for t in columns):
            facts.multiplied = list(products)
        inputs = [] if call is None else list(filter(is_plain, call.tensors()))
        sizes = {tensor.shape[0] for tensor in inputs if tensor.dim()}
        found = unlike_reductions(self._before_backward(targets), sizes)
        found = found or unlike_reductions(loss, sizes)
        if found is not None:
            facts.summed_term, facts.summed_term_is_sure = list(found.shape), found.sure

    def _before_backward(self, targets: Any) -> Tensor | None:
        """Return the loss function's value whose graph holds all numbers, None without one."""
        loss_fn, outputs = self.training.loss_fn, self._hooks.outputs
        if loss_fn is None or outputs is None:
            return None
        leaves = map_tensors(
            outputs, lambda t: t.clone().requires_grad_() if t.is_floating_point() else t
        )
        with undisturbed(loss_fn), torch.enable_grad():
            try:
                return loss_fn(leaves, targets)
            except Exception:  # whatever a loss function raises of outputs that are leaves
                return None

    def _labels_of(self, call: Call, targets: Any) -> Any:
        """Return the targets; labels that the model was called with where there are none."""
        training = self.training
        if targets is not None or training.loss_fn is not None:
            return targets
        if training.task is None:
            found = find_labels(call, self._hooks.outputs, self._hooks.output_gradient)
            training.labels_among_inputs = found
        labels = training.labels_among_inputs
        return None if labels is None else labels.of(call)

    def _take(self, call: Call, inputs: Any, targets: Any, loss: Tensor | None) -> None:
        """Keep a batch, and try the model out on the first one.

        Args:
            loss: as it was handed over; None where there is none.
        """
        training, due = self.training, self.training.probe_due
        if training.task is not None:
            training.buffer.take(call, inputs, targets, training.layout, due)
            return
        training.task = Task("unknown")
        if self._passes.pending and self._hooks.outputs is not None:
            self._first_batch.drop_hooks(self._passes.pending[-1], self._hooks.outputs)
        samples = self._first_batch.find_samples(call, targets) or Samples(training.layout)
        training.layout = samples.layout
        if training.replica is not None:
            self._hooks.state.places = training.replica.state
        training.buffer.take(call, inputs, targets, training.layout, due)
        handed = None
        if loss is not None and self._hooks.outputs is not None:
            handed = self._hooks.outputs, loss.float().item()
        self._first_batch.try_out(samples, handed)

    def _look_for_nonfinite(
        self, loss: Any, value: Tensor, call: Call | None, targets: Any
    ) -> None:
        """Repeat this step on a copy, where it is the first that broke.

        Args:
            loss: as it was handed over.
            value: without its graph.
        """
        step, broke = self._loop.steps, self._losses.broke_at
        finite = math.isfinite(self._losses.values[-1])
        if not self.nonfinite.pending and finite:
            return
        # A loss that is read late, on a GPU, has reached the weights: they no longer tell where it
        # came from.
        late = devices.waits(value) and broke is not None and broke < step
        if self.evidence.nonfinite is not None or late:
            return
        if not self.nonfinite.pending:
            self.nonfinite.keep(self.training.model, self.training.state_before_pass())
        # Without a call the step cannot be repeated; its weights can be saved all the same.
        replica = self.training.replica if call is not None else None
        found = self.nonfinite.repeat(
            step, call or Call(), targets, replica, self.training.loss_fn, self.training.layout
        )
        if found.where == "unknown" and finite:
            if all(bool(torch.isfinite(p).all()) for p in self.training.model.parameters()):
                self.nonfinite.drop()  # the optimiser, or a hook on it, left these gradients out
                return
            found.where, found.overflow = "gradient", False
            found.name = " or ".join(singular_operations(loss)[:_NAMED]) or "an operation"
        if found.where == "parameter":
            found.layer = found.name.rpartition(".")[0]
            if step > 0:
                found.line = self._loop.update_line
        self.evidence.nonfinite = found
        if self._save_to is not None:
            found.replay = str(self.nonfinite.save(self._save_to, step))

    @guarded("the second derivatives of the layers")
    def _note_derivatives(self) -> None:
        self._hooks.derivatives.count(self.training)

    @guarded("the volume that a flow changes")
    def _note_volume(self, call: Call) -> None:
        volume, gradients = self._hooks.volume, self._hooks.volume_gradients
        facts = self.evidence.loss.volume
        # A flow may begin with its codes alone, and read its change of volume later.
        known = facts is not None and facts.gradient != 0
        if volume is None or not gradients or known or self._volume_tries >= _VOLUME_TRIES:
            return
        self._volume_tries += 1
        model = self.training.current_model()
        if model is not None:
            with self.training.undisturbed():
                self.evidence.loss.volume = volume_facts(
                    model, call, volume, gradients, self._hooks.outputs
                )

    @guarded("loss_fn's value beside the loss")
    def _compare_loss(self, loss: Tensor, targets: Any) -> None:
        loss_fn, outputs = self.training.loss_fn, self._hooks.outputs
        if loss_fn is None or outputs is None:
            return
        gradient, plain = self._hooks.output_gradient, None
        with undisturbed(loss_fn):
            with self._hooks.loss_calls.of_loss_function():
                own = value_of(loss_fn, outputs, targets)
            self._losses.compare(loss.item(), own)
            if gradient is not None and self._loop.passes_per_update[-1:] > [1]:
                plain = gradient_of(loss_fn, outputs, targets)
        if gradient is not None and plain is not None:
            self._losses.compare_gradients(gradient, plain)

    @guarded("the loss's gradient beside the targets")
    def _compare_gradient(self, targets: Any) -> None:
        gradient, outputs = self._hooks.output_gradient, scores_of(self._hooks.outputs)
        if self.training.loss_fn is not None or gradient is None or outputs is None:
            return
        if not isinstance(targets, Tensor) or targets.shape != outputs.shape:
            return
        # The cosine of few numbers is near 1 by chance.
        if not targets.is_floating_point() or targets.numel() < _COMPARED:
            return
        errors = (outputs - targets).flatten().double()
        found = torch.nn.functional.cosine_similarity(errors, gradient.flatten().double(), dim=0)
        facts = self.evidence.loss
        least = 1.0 if facts.towards_targets is None else facts.towards_targets
        facts.towards_targets = min(found.item(), least)

    # --- validation -------------------------------------------------------------------------------

    @guarded("validation")
    def validate(self, inputs: Any, targets: Any = None, unchanged: bool = False) -> None:
        """Evaluate a copy of the model, in evaluation mode, on some validation samples.

        Of many validations some are left out, see `ValidationSamples`.

        Args:
            inputs: of all samples.
            targets: theirs.
            unchanged: the loop leaves them as they are.
        """
        self.rest.flush()
        self._loop.validations += 1
        if self.training.model.training and not torch.is_grad_enabled():
            self._loop.validated_in_train_mode += 1
        self._hooks.begin()
        self._validation.note(inputs, targets, unchanged)

    # --- the evidence -----------------------------------------------------------------------------

    def gather(self) -> None:
        """Bring the evidence up to date."""
        self.rest.flush()
        self._catch_up()
        self._gatherer.gather()
        self._rest_copy()

    @guarded("validation")
    def _catch_up(self) -> None:
        self._validation.catch_up()

    @guarded("whether it can still learn")
    def why_hopeless(self) -> str | None:
        """Return in a clause why the training cannot come to learn, None where it may."""
        self.rest.flush()
        self._losses.read()
        reason = why_hopeless(self.training, self._losses.values)
        self._rest_copy()
        return reason

    def consider(
        self, batches: Sequence[tuple[Any, Any]], validation: Sequence[tuple[Any, Any]] | None
    ) -> None:
        """Take note of batches that nothing is trained on, for a check before a training.

        Args:
            batches: inputs and targets of each.
            validation: the same of a validation set; None without one.
        """
        self._hooks.begin()
        for inputs, targets in batches:
            self._take(as_call(inputs), inputs, targets, None)
        self._look_for_unregistered()
        self._scored.note_copy()
        if validation:
            inputs, targets = validation[0]
            whole = all(isinstance(i, Tensor) and isinstance(t, Tensor) for i, t in validation)
            if whole and self.training.layout.axis == 0:
                inputs, targets = (torch.cat(parts) for parts in zip(*validation, strict=True))
            self.validate(inputs, targets)
        self.gather()

    @guarded("layers that are not registered")
    def _look_for_unregistered(self) -> None:
        training, early = self.training, self.training.buffer.early
        replica = training.replica.model if training.replica is not None else None
        if replica is not None and early:
            with training.undisturbed(), torch.enable_grad():
                self._hooks.leaves = look_at_copy(
                    training.model, training.optimizer, copied_model(replica), early[0].call
                )

    # --- checkpoints ------------------------------------------------------------------------------

    def state(self) -> Any:
        """Return the plain form of what is known between two steps, see `doctor.state`.

        Raises:
            NotKeptError: a part of it has none.
        """
        self.rest.flush()
        self._validation.copy()
        return flattened(self, self.training.model)

    def restore(self, state: Any) -> None:
        """Go on from the result of `state`, before the first step.

        Raises:
            ValueError: it is of another version.
        """
        self._hooks.begin()
        replica = self.training.replica
        device = torch.device("cpu") if replica is None else replica.device
        put_back(state, self, self.training.model, device)
        self.training.plan_step()
        self._hooks.settle()
        self.rest.restore()

    def close(self) -> None:
        """Take all hooks off the model and the optimiser, and let go of copies and batches."""
        self.rest.close()
        self._hooks.release()
        self.training.release()
        self._validation.release()
        self._scored.of_batch = None
