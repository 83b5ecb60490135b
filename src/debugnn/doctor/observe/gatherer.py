"""What is brought into the evidence at the report: the outcome, the trained network, the data."""

import statistics
import warnings

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.observe.broken_path import note_left
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.class_shares import adjusted_facts
from debugnn.doctor.observe.data import note_data, note_one_target, note_times
from debugnn.doctor.observe.graph_pairs import told_by_edges
from debugnn.doctor.observe.hooks import TrainingHooks
from debugnn.doctor.observe.label_pull import label_pull
from debugnn.doctor.observe.latent import latent_facts
from debugnn.doctor.observe.loss_jumps import LossJumps
from debugnn.doctor.observe.losses import LossCurve
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.module_state import state_facts
from debugnn.doctor.observe.neighbours import has_both_axes, neighbour_facts
from debugnn.doctor.observe.optimizer import note_never_arrived, optimizer_facts, still_unreached
from debugnn.doctor.observe.outcome import (
    Predicted,
    note_losses,
    note_movement,
    note_scores,
    note_still_equal,
    note_thawed,
    predict,
    score_of,
    with_new_averages,
    zero_scales,
)
from debugnn.doctor.observe.own_inputs import own_input_facts
from debugnn.doctor.observe.own_loss import loss_of_values, note_beside_constant, note_own_loss
from debugnn.doctor.observe.padding import can_be_left_out, tail_facts, without_padding
from debugnn.doctor.observe.pair_labels import pair_facts
from debugnn.doctor.observe.parts import part_facts
from debugnn.doctor.observe.preparations import preparation_facts
from debugnn.doctor.observe.recoded import recoded_facts
from debugnn.doctor.observe.recurrence import note_what_is_remembered
from debugnn.doctor.observe.rescaled import rescaled_skill
from debugnn.doctor.observe.scored_symbols import ScoredSymbols
from debugnn.doctor.observe.sequences import sequence_facts
from debugnn.doctor.observe.targets_among_inputs import target_copy_facts
from debugnn.doctor.observe.task import Task
from debugnn.doctor.observe.trained_network import note_trained_network
from debugnn.doctor.observe.validation import ValidationSamples
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded
from debugnn.doctor.unit_signals import signal_sizes


class Gatherer:
    """Brings the evidence of a training up to date, at its end or whenever a report is asked for.

    Args:
        training: what is watched.
        hooks: hold what was noted of its passes and updates.
        losses: of its steps.
        jumps: the steps whose loss rose the most.
        scored: the symbols that the loss compared in a batch.
        validation: the latest validation samples.
        sample_axis: the inputs' axis of samples; None where samples are not apart, `FIND` where it
            is to be found.

    Attributes:
        evidence: the training's.
    """

    not_in_state = ("_sample_axis",)

    def __init__(
        self,
        training: WatchedTraining,
        hooks: TrainingHooks,
        losses: LossCurve,
        jumps: LossJumps,
        scored: ScoredSymbols,
        validation: ValidationSamples,
        sample_axis: int | str | None,
    ) -> None:
        self.evidence = training.evidence
        self._training = training
        self._hooks = hooks
        self._losses = losses
        self._jumps = jumps
        self._scored = scored
        self._validation = validation
        self._sample_axis = sample_axis

    def gather(self) -> None:
        """Bring the evidence up to date."""
        self._gather_rivals()
        self._gather_loop()
        self._gather_network()
        self._gather_data()
        self._gather_preparations()
        self._gather_adjusted()
        self._gather_sequence()
        self._gather_neighbours()
        self._gather_pairs()
        self._gather_edges()
        self._gather_target_copies()
        self._gather_own_inputs()
        self._gather_outcome()

    @guarded("other networks")
    def _gather_rivals(self) -> None:
        """Know of no task where another network is trained against this one: both may do well, and
        neither loss falls."""
        if self._hooks.rivals.found():
            self.evidence.adversarial = True
            self.evidence.task, self.evidence.classes = "unknown", None
            self._training.task = Task("unknown")

    @guarded("the optimiser and the losses")
    def _gather_loop(self) -> None:
        training, network = self._training, self.evidence.network
        self._losses.read()
        training.buffer.fingerprint()
        groups = training.replica.groups if training.replica is not None else []
        initial = training.replica.initial if training.replica is not None else {}
        self.evidence.optimizer = optimizer_facts(
            training.model, training.optimizer, groups, initial, self._hooks.rates.points()
        )
        self.evidence.optimizer.of_loss = self._hooks.loss_parameters.unmoved()
        loss = self.evidence.loss
        loss.policy = loss.policy or self._hooks.policy.facts()
        network.unreached = still_unreached(network.unreached, self._hooks.layers.graded)
        network.unused = still_unreached(network.unused, self._hooks.layers.graded)
        arrived = self._hooks.layers.arrived
        note_never_arrived(network, training.model, training.optimizer, arrived)
        network.unregistered = self._hooks.leaves.facts()
        note_losses(self.evidence, self._losses.values, self._losses.ratios)
        scales = self._losses.gradient_scales
        self.evidence.loop.gradient_scale = statistics.median(scales) if scales else None
        with training.undisturbed(), torch.no_grad():
            buffer = training.buffer
            self.evidence.outcome.jumps = self._jumps.largest(
                self._losses.values, buffer.prints.each(), buffer.numbers, training.loss_fn
            )

    @guarded("the network after the training")
    def _gather_network(self) -> None:
        training, model = self._training, self._training.current_model()
        if model is None or not training.buffer.early or not self.evidence.loop.optimizer_steps:
            return
        with training.undisturbed():
            batch = training.buffer.early[0]
            note_trained_network(
                self.evidence.network, model, batch, training.layout, self._sample_axis
            )
            self._gather_state(batch)

    def _gather_state(self, batch: Batch) -> None:
        training, between = self._training, self._hooks.state
        model = training.replica.with_state() if training.replica and between.places else None
        if model is not None:
            self.evidence.network.state = state_facts(
                between, model, batch.call, training.layout, training.buffer.prints.each()
            )

    @guarded("the data")
    def _gather_data(self) -> None:
        training = self._training
        note_data(
            self.evidence,
            training.buffer,
            training.layout,
            self._validation.latest,
            training.task,
            training.current_model,
            self.evidence.loop.steps,
            self._beside_constant,
        )
        note_times(self.evidence, training.buffer)
        note_one_target(self.evidence.data, training.buffer, self._validation.latest)

    @guarded("the preparation of the validation inputs")
    def _gather_preparations(self) -> None:
        training, validation = self._training, self._validation.latest
        loss_fn, model = training.loss_fn, training.current_model()
        if loss_fn is None or model is None or validation is None or validation.targets is None:
            return
        data, batches, layout = self.evidence.data, training.buffer.batches, training.layout
        with training.undisturbed():
            data.preparations = preparation_facts(
                model, loss_fn, batches, validation, layout, training.task
            )
            data.recoded = recoded_facts(model, loss_fn, batches, validation, layout)

    @guarded("what the outputs tell of the validation's targets")
    def _gather_adjusted(self) -> None:
        task, validation = self._training.task, self._validation.latest
        if task is None or validation is None or not isinstance(validation.targets, Tensor):
            return
        if task.kind == "values":
            pair = task.pair(validation.outputs, validation.targets)
            self.evidence.outcome.rescaled = rescaled_skill(*pair)
            return
        inputs = None if self.evidence.positions else validation.inputs
        self.evidence.outcome.adjusted = adjusted_facts(
            task, validation.outputs, validation.targets, inputs
        )

    def _beside_constant(self, values: Tensor, targets: Tensor) -> float | None:
        """Return the loss function's value of predicted values over that of a constant."""
        training = self._training
        if training.loss_fn is None or training.task is None:
            return None
        with training.undisturbed(), warnings.catch_warnings(action="ignore"):
            return loss_of_values(
                values, targets, training.loss_fn, training.task, self.evidence.loss
            )

    @guarded("what the outputs of a sequence see")
    def _gather_sequence(self) -> None:
        model, found = self._training.current_model(), self._scored.of_batch
        if found is not None:
            self.evidence.data.tail = tail_facts(found, self._training.layout.axis)
            self._try_without_padding(model)
        if model is not None and found is not None:
            with undisturbed():
                self.evidence.data.sequence = sequence_facts(model, found)

    def _try_without_padding(self, model: nn.Module | None) -> None:
        training, tail = self._training, self.evidence.data.tail
        loss_fn, task, early = training.loss_fn, training.task, training.buffer.early
        if tail is None or model is None or loss_fn is None or task is None or not early:
            return
        if task.kind == "classes":
            with training.undisturbed(), warnings.catch_warnings(action="ignore"):
                tail.can_be_left_out = can_be_left_out(
                    model, early[0], tail.symbol, training.layout, loss_fn
                )

    @guarded("which axis of the inputs is that of time")
    def _gather_neighbours(self) -> None:
        """Where the network takes one axis for time, and the data alone tell whether it is."""
        training, network = self._training, self.evidence.network
        axis, runs_over = network.sample_axis, network.axis_dependence
        if axis is None or network.sample_axis_told or training.layout.axis != axis:
            return
        if runs_over.get(axis) != "apart" or runs_over.get(1 - axis) == "apart":
            return
        batches = training.buffer.batches
        # One target for each entry of the first axis tells that it holds the samples.
        if axis == 1 or all(has_both_axes(batch, training.layout) for batch in batches):
            self.evidence.data.neighbours = neighbour_facts(batches, training.layout)

    @guarded("a graph's edges beside its pairs of nodes")
    def _gather_edges(self) -> None:
        data, early = self.evidence.data, self._training.buffer.early
        if early:
            data.told_by_edges = told_by_edges(early[0].call, early[0].targets)
        latest = self._validation.latest
        if latest is not None:
            data.validation_told_by_edges = told_by_edges(latest.call, latest.targets)

    @guarded("labels of pairs")
    def _gather_pairs(self) -> None:
        training, model = self._training, self._training.current_model()
        loss_fn, batches = training.loss_fn, training.buffer.for_trained
        if model is None or loss_fn is None or self.evidence.loss.error is not None:
            return
        if self.evidence.task == "unknown" or self.evidence.loss.pairwise:
            with training.undisturbed():
                self.evidence.data.pairs = pair_facts(model, batches, loss_fn)
                start = None if training.replica is None else training.replica.start()
                if start is not None:
                    pull = label_pull(start, training.buffer.early, loss_fn)
                    self.evidence.loss.label_pull = pull

    @guarded("target values among the inputs")
    def _gather_target_copies(self) -> None:
        training, model = self._training, self._training.current_model()
        # A loss of several quantiles, say, is unknown, and may have one target for all outputs.
        numbers = training.task is not None and training.task.kind in ("values", "unknown")
        if model is None or not numbers or self.evidence.reconstruction:
            return
        with training.undisturbed():
            self.evidence.data.target_copies = target_copy_facts(
                model, training.buffer.for_trained, training.layout
            )

    @guarded("targets that are inputs")
    def _gather_own_inputs(self) -> None:
        training, model = self._training, self._training.current_model()
        batches, task = training.buffer.for_trained, training.task
        if model is None or task is None or task.kind == "unknown" or not batches:
            return
        with training.undisturbed():
            self.evidence.data.own_inputs = own_input_facts(
                model, batches[-1], training.layout, task
            )

    @guarded("the outcome")
    def _gather_outcome(self) -> None:
        training, outcome = self._training, self.evidence.outcome
        replica, model, task = training.replica, training.current_model(), training.task
        if replica is None or model is None or task is None:
            return
        with training.undisturbed():
            plain, by_batch = predict(model, training.buffer.for_trained)
            rarest = training.buffer.rarest(task)
            note_scores(outcome, plain, by_batch, task, rarest)
            if by_batch is not plain:
                averaged = with_new_averages(model, training.buffer.for_trained)
                outcome.train_averaged = score_of(averaged, task, rarest)
            self._gather_own_loss(plain, by_batch)
            self._gather_other_symbols(plain, task)
            if self.evidence.network.recurrence is not None:
                note_what_is_remembered(
                    self.evidence.network.recurrence, (plain, by_batch), task, training.layout
                )
            if self.evidence.network.broken_path is not None:
                first = training.buffer.early[0].call
                note_left(self.evidence.network.broken_path, model, first, training.layout)
            if training.parts:
                outcome.parts = part_facts(
                    model,
                    training.buffer.batches,
                    training.parts,
                    lambda b, targets: training.layout.targets_by_sample(b.call, targets),
                )
            with torch.no_grad(), without_dropout(model, training=False):
                outcome.output_signal = signal_sizes(model, training.buffer.early[0].call)[1]
            if outcome.initial_latent is not None:
                first = training.buffer.early[0].call
                outcome.latent = latent_facts(model, first, training.layout)
        note_movement(outcome, training.model, replica.groups, replica.initial)
        note_thawed(self.evidence.weights, training.model, replica.initial)
        self.evidence.network.zero_scales = zero_scales(training.model, replica.initial)
        note_still_equal(self.evidence.weights, training.model, replica.initial)

    def _gather_other_symbols(self, plain: list[Predicted], task: Task) -> None:
        tail, axis = self.evidence.data.tail, self._training.layout.axis
        if tail is None or not tail.can_be_left_out:
            return
        kept = ((without_padding(p.batch, tail.symbol, axis), p.outputs) for p in plain)
        tail.others = score_of([Predicted(b, out) for b, out in kept if b is not None], task, [])

    @guarded("the training's own loss")
    def _gather_own_loss(self, plain: list[Predicted], by_batch: list[Predicted]) -> None:
        training, facts = self._training, self.evidence.outcome.own_loss
        loss_fn, buffer = training.loss_fn, training.buffer
        if loss_fn is None or self.evidence.loss.error is not None:
            return
        one_batch = bool(buffer.same) and all(buffer.same)
        # Of a batch of another size a loss warns again, in words that have not been shown yet.
        with warnings.catch_warnings(action="ignore"):
            note_own_loss(
                facts,
                plain,
                by_batch,
                buffer.late,
                self._validation.latest,
                training.layout,
                loss_fn,
                one_batch,
            )
            if training.task is not None:
                note_beside_constant(facts, plain, by_batch, loss_fn, training.task)
