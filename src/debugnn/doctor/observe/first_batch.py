"""What one batch tells before the first step: the task, the loss function, the initial network."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor import troubles
from debugnn.doctor.copies import copied_model, own_hooks
from debugnn.doctor.data_inputs import data_inputs
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe.architecture import network_facts
from debugnn.doctor.observe.broken_path import broken_path_facts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call, copied, first_tensor, is_plain
from debugnn.doctor.observe.forward_passes import ForwardPass
from debugnn.doctor.observe.latent import latent_facts
from debugnn.doctor.observe.loss_function.facts import loss_facts
from debugnn.doctor.observe.loss_function.ignored_classes import ignored_classes
from debugnn.doctor.observe.loss_function.made_up import LossFunction
from debugnn.doctor.observe.loss_function.policy import policy_facts
from debugnn.doctor.observe.loss_parameters import LossParameters
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.module_state import kept_state
from debugnn.doctor.observe.operations import SQUASHING, TABLES, trace
from debugnn.doctor.observe.outcome import outputs_of, score_of
from debugnn.doctor.observe.parts import find_parts, without_gradient
from debugnn.doctor.observe.recurrence import recurrence_facts
from debugnn.doctor.observe.risk_sets import risk_sets
from debugnn.doctor.observe.rivals import Rivals
from debugnn.doctor.observe.sample_axis import Samples, find_samples
from debugnn.doctor.observe.task import SOFTMAX, Task, read, reference_loss
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.observe.weights import forward_order, weight_facts
from debugnn.doctor.reachable import Changes
from debugnn.doctor.troubles import guarded
from debugnn.doctor.unit_signals import signal_sizes
from debugnn.random_state import set_random_state

_AGREES = 1e-3  # relative difference of two losses that are the same but for rounding


class FirstBatch:
    """Tries the model and the loss function out on the first batch of a training.

    Args:
        training: what is found out is noted there.
        rivals: is told which parameters the loss function reads.
        loss_parameters: finds those that the loss function learns through.
        sample_axis: the inputs' axis of samples; None where samples are not apart, `FIND` where it
            is to be found.

    Attributes:
        evidence: the training's.
    """

    not_in_state = ("_sample_axis",)

    def __init__(
        self,
        training: WatchedTraining,
        rivals: Rivals,
        loss_parameters: LossParameters,
        sample_axis: int | str | None,
    ) -> None:
        self.evidence = training.evidence
        self._training = training
        self._rivals = rivals
        self._loss_parameters = loss_parameters
        self._sample_axis = sample_axis

    @guarded("the hooks of the model")
    def drop_hooks(self, seen: ForwardPass, outputs: Any) -> None:
        """Take the hooks of the model's own off its copy, unless the copy needs them.

        A hook may count its calls, or write them to a file, which nothing puts back.

        Args:
            seen: the loop's own pass.
            outputs: of this pass.
        """
        replica = self._training.replica
        if replica is None or replica.model is None or not own_hooks(replica.model):
            return
        bare = copied_model(replica.model)
        for hooks, key in own_hooks(bare):
            del hooks[key]
        with self._training.undisturbed():
            try:
                needed = not self._repeats(bare, seen, outputs)
            except Exception:  # what a hook keeps for the forward pass is missing
                return
            # Where neither does as the loop does, another hook has changed what the model computes.
            needed = needed and self._repeats(copied_model(replica.model), seen, outputs)
        if not needed:
            for hooks, key in own_hooks(replica.model):
                del hooks[key]

    def _repeats(self, model: nn.Module, seen: ForwardPass, outputs: Any) -> bool:
        """Return whether a copy gives the outputs that the loop's own pass gave."""
        set_random_state(next(model.parameters()).device, seen.random_state)
        pairs = zip(
            Call((seen.call.map(copied)(model),)).tensors(),
            Call((outputs,)).tensors(),
            strict=False,
        )
        return all(torch.equal(*pair) for pair in pairs)

    @guarded("where the samples of a batch lie")
    def find_samples(self, call: Call, targets: Any) -> Samples | None:
        """Find out along which axis samples lie, and whether the model keeps them apart."""
        replica = self._training.replica
        if replica is None or replica.model is None:
            return None
        model, call = copied_model(replica.model), call.map(copied)
        with self._training.undisturbed():
            with without_dropout(model, training=False):
                state = kept_state(model, call)
            if state:
                replica.keep(state)
                model = replica.fresh() or model
            with without_dropout(model, training=False):
                return find_samples(model, call, targets, self._sample_axis)

    @guarded("the first batch")
    def try_out(self, samples: Samples, handed: tuple[Any, float] | None) -> None:
        """Try out the network and the loss function as they are at the start.

        Args:
            samples: where the batch's samples lie.
            handed: the outputs of the step's own pass, and the loss that was handed over.
        """
        training = self._training
        replica, buffer = training.replica, training.buffer
        if replica is None or replica.model is None or not buffer.early:
            return
        batch, model = buffer.early[0], replica.start()
        if model is None:
            return
        with training.undisturbed() as changes:
            self._try_without_targets(model, batch)
            training.task = examine(
                model,
                batch.call,
                batch.targets,
                training.loss_fn,
                samples,
                self.evidence,
                lambda: self._rivals.note_read(changes),
                handed,
                training.labels_among_inputs is not None,
            )
            self._look_at_loss_parameters(changes, batch)
            self._look_for_ignored_classes(model, batch)
            if training.labels_among_inputs is not None:
                self.evidence.reconstruction = False  # the labels are an input, and not rebuilt
            if training.task.kind == "unknown" and training.loss_fn is not None:
                self._find_parts(model, batch)
                self._look_at_risk_sets(model, batch)
            found = outputs_of(model, [batch], training=True)
            rarest = buffer.rarest(training.task)
            self.evidence.outcome.initial = score_of(found, training.task, rarest)
            # A variational bound reads more than the rebuilt inputs: means and variances of a code.
            several = training.loss_fn is None and len(Call((handed or (),)).tensors()) > 1
            more = self.evidence.loss.other_outputs or several
            bound = self.evidence.reconstruction and more
            if self.evidence.network.evaluation_change or bound:
                latent = latent_facts(model, batch.call, samples.layout)
                self.evidence.outcome.initial_latent = latent
            self._look_at_recurrence(samples, batch)
            self._look_for_broken_path(samples, batch)

    @guarded("the classes that the loss leaves out")
    def _look_for_ignored_classes(self, model: nn.Module, batch: Batch) -> None:
        training = self._training
        loss_fn, task = training.loss_fn, training.task
        if loss_fn is None or task is None or not self.evidence.loss.confirmed:
            return
        with torch.no_grad(), without_dropout(model, training=False):
            outputs = batch.call(model)
        self.evidence.loss.ignored = ignored_classes(
            loss_fn, outputs, batch.targets, task, batch.call
        )

    @guarded("the parameters of the loss function")
    def _look_at_loss_parameters(self, changes: Changes, batch: Batch) -> None:
        replica, loss_fn = self._training.replica, self._training.loss_fn
        model = None if replica is None else replica.start()
        if model is not None and loss_fn is not None and self.evidence.loss.error is None:
            self._loss_parameters.find(changes.reached, model, batch, loss_fn)

    @guarded("whether gradients go back through a recurrence")
    def _look_at_recurrence(self, samples: Samples, batch: Batch) -> None:
        replica = self._training.replica
        model = None if replica is None else replica.start()
        if model is not None:
            with without_dropout(model, training=True):
                self.evidence.network.recurrence = recurrence_facts(
                    model, batch.call, samples.layout
                )

    @guarded("whether gradients go back to the inputs")
    def _look_for_broken_path(self, samples: Samples, batch: Batch) -> None:
        training = self._training
        model = None if training.replica is None else training.replica.start()
        if model is None:
            return
        moved = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
        held = {name for name, p in training.model.named_parameters() if id(p) in moved}
        usable = self.evidence.loss.error is None
        with without_dropout(model, training=True):
            self.evidence.network.broken_path = broken_path_facts(
                model,
                batch.call,
                batch.targets,
                samples.layout,
                held,
                training.loss_fn if usable else None,
            )

    @guarded("the parts of the loss")
    def _find_parts(self, model: nn.Module, batch: Batch) -> None:
        """Find out which outputs are compared with one target each."""
        training = self._training
        if training.loss_fn is None or self.evidence.loss.error is not None:
            return
        with torch.no_grad(), without_dropout(model, training=False):
            outputs = batch.call(model)
        with torch.random.fork_rng([]):
            training.parts, self.evidence.outcome.parts_are_all = find_parts(
                training.loss_fn, outputs, batch.targets
            )
            self.evidence.loss.detached = without_gradient(training.loss_fn, outputs, batch.targets)
            self.evidence.loss.policy = policy_facts(training.loss_fn, outputs, batch.targets)

    @guarded("the risk sets of a partial likelihood")
    def _look_at_risk_sets(self, model: nn.Module, batch: Batch) -> None:
        training = self._training
        if training.loss_fn is None or self.evidence.loss.error is not None:
            return
        with torch.no_grad(), without_dropout(model, training=False):
            outputs = batch.call(model)
        with torch.random.fork_rng([]):
            found = risk_sets(training.loss_fn, outputs, batch.targets)
        if found is not None:
            self.evidence.loss.risk_sets, self.evidence.loss.time_column = found

    def _try_without_targets(self, model: nn.Module, batch: Batch) -> None:
        """Leave the loss function out where it needs targets, and the loop hands none over."""
        training = self._training
        if training.loss_fn is None or batch.targets is not None:
            return
        try:
            with torch.no_grad(), without_dropout(model, training=False):
                training.loss_fn(batch.call(model), None)
            training.needs_no_targets = True
        except Exception:  # whatever a function raises that compares outputs with None
            training.loss_fn = None
            troubles.note(
                self.evidence,
                "the loss function is not looked at: it needs targets, and step() was given none",
            )


def examine(
    model: nn.Module,
    call: Call,
    targets: Any,
    loss_fn: LossFunction | None,
    samples: Samples,
    evidence: Evidence,
    reads_parameters: Callable[[], bool],
    handed: tuple[Any, float] | None = None,
    labels_by_gradient: bool = False,
) -> Task:
    """Fill in what the evidence holds of the task, the loss, the network and its weights.

    Args:
        model: a copy of the model as it starts. Its weights and buffers stay.
        call: how the model is called with the batch.
        targets: the batch's targets.
        samples: where the batch's samples lie.
        evidence: where the facts are noted.
        reads_parameters: returns whether the loss function has read any parameters.
        handed: the outputs of the training's own pass, and the loss that it handed over; None
            where they are not known.
        labels_by_gradient: the targets were found by the gradient of a cross-entropy.

    Returns:
        How outputs and targets are read.
    """
    with without_dropout(model, training=False):
        outputs, tracer = trace(model, call)
    first = first_tensor(outputs)
    task = read(outputs, targets)
    squashed = first is not None and tracer.made(first) in SQUASHING
    task = Task(task.kind, task.classes, task.axis, squashed)
    if loss_fn is not None:
        evidence.loss = loss_facts(loss_fn, outputs, targets, task)
        evidence.loss.parameters = reads_parameters()
        if evidence.loss.parameters:  # a penalty, or a network of its own, adds to it
            evidence.loss.best = evidence.loss.constant = evidence.loss.confident = None
        on_a_device = first is not None and first.device.type != "cpu"
        if not evidence.loss.tried and on_a_device:
            evidence.troubles.append("the loss function cannot be tried out on the CPU")
    usable = loss_fn is not None and evidence.loss.error is None
    evidence.reconstruction = _is_reconstruction(call, targets)
    # A loss that raises may have been tried out without the labels that it raises for.
    tried = evidence.loss.tried and (usable or evidence.loss.confirmed)
    by_gradient = labels_by_gradient and task.kind == "classes"
    if not by_gradient:
        task = _settled(task, evidence, tried, targets, handed)
    evidence.task = task.kind
    evidence.classes = 2 if task.kind == "binary" else task.classes
    evidence.positions = _has_positions(task, call, targets)

    def loss(value: Any) -> Tensor:
        if loss_fn is not None and usable:
            return loss_fn(value, targets).float().mean()
        tensor = first_tensor(value)
        assert tensor is not None
        return tensor.float().square().mean()

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if first is None and not usable:
        kind = type(outputs).__name__
        troubles.note(evidence, f"the outputs are not looked at: no tensor is found in a {kind}")
    else:
        evidence.network = network_facts(model, call, samples, loss)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    with without_dropout(model, training=False):
        signals, evidence.network.output_signal = signal_sizes(model, call)
        evidence.network.data_inputs = data_inputs(model, call)
    evidence.network.table_rms = _table_rms(model)
    evidence.weights = weight_facts(model, forward_order(model, call), signals)
    return task


def _table_rms(model: nn.Module) -> float | None:
    tables = [m.weight for m in model.modules() if isinstance(m, TABLES) and m.weight.requires_grad]
    values = sum(table.numel() for table in tables)
    squares = sum(table.detach().double().square().sum().item() for table in tables)
    return (squares / values) ** 0.5 if values else None


def _settled(
    task: Task, evidence: Evidence, tried: bool, targets: Any, handed: tuple[Any, float] | None
) -> Task:
    """Return the task that shapes propose where the loss bears it out, else an unknown one.

    Args:
        tried: the loss function has been tried out on outputs that are right, and on wrong ones.
            Where it has not, the loss that was handed over must be the task's own.
    """
    facts = evidence.loss
    if not tried:
        if handed is None or not isinstance(targets, Tensor) or task.kind == "unknown":
            return Task("unknown")
        outputs, value = handed
        # The latest pass of a step may be of other samples than those of these targets.
        if read(outputs, targets).kind != task.kind:
            return Task("unknown")
        own = reference_loss(task, outputs, targets)
        agrees = own is not None and math.isclose(own, value, rel_tol=_AGREES)
        return task if agrees else Task("unknown")
    # A variational autoencoder's error is one part of a bound: it is not all that is asked for.
    bound = evidence.reconstruction and facts.other_outputs
    flipped = facts.opposed and not facts.parameters
    if bound or not (facts.confirmed or flipped):
        return Task("unknown")
    return (
        task.as_logits(facts.shapes[0]) if facts.link == SOFTMAX else replace(task, link=facts.link)
    )


def _is_reconstruction(call: Call, targets: Any) -> bool:
    """Return whether the targets are the model's inputs.

    A model of texts may be given the labels too, to compute its loss itself: where it is given
    other symbols of this number, the targets are labels.
    """
    if not isinstance(targets, Tensor):
        return False
    alike = [
        torch.equal(given.flatten(), targets.flatten())
        for given in call.tensors()
        if given.layout == targets.layout == torch.strided
        and given.dtype == targets.dtype
        and given.numel() == targets.numel()
    ]
    return any(alike) and (targets.is_floating_point() or all(alike))


def _has_positions(task: Task, call: Call, targets: Any) -> bool:
    """Return whether a sample has several labels, as texts and images have whose parts are named.

    A batch of texts may be flat, (T·B,), or have its time axis first.
    """
    if task.kind not in ("classes", "binary") or not isinstance(targets, Tensor):
        return False
    labels = task.labels(targets).numel()
    axes = [given.shape[:2] for given in call.tensors() if is_plain(given) and given.dim()]
    return bool(axes) and all(labels not in shape for shape in axes)
