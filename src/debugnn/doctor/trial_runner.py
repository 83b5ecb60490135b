"""Trials of a training that goes wrong: which to run, on copies of what, within which budget."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch

from debugnn.doctor import causes, troubles
from debugnn.doctor.causes.signals.loss_function import undivided_passes
from debugnn.doctor.copy_training import CopyTraining, run
from debugnn.doctor.evidence import Evidence, Score, TrialOutcome
from debugnn.doctor.observe.buffer import Batch, BatchBuffer
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.outcome import outputs_of, score_of
from debugnn.doctor.observe.padding import without_padding
from debugnn.doctor.observe.samples import fingerprints
from debugnn.doctor.observe.task import Task
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.trials import UNCHANGED, Trial
from debugnn.doctor.troubles import guarded

_BATCHES = 8  # the training's first batches, on which a trial trains
_LEAST_BATCHES = 4  # fewest batches on which a trial is repeated
_STEPS = 24  # steps of a trial; at least half of them have to be within the budget
_STEPS_ON = 72  # steps of a trial that goes on from trained weights, where progress takes longer
# The same of two that are compared with each other: on two sets of batches they take the budget.
_STEPS_BESIDE = 48


class TrialRunner:
    """Trains copies of a watched model, from the weights that its training began with."""

    def __init__(self, watched: WatchedTraining) -> None:
        self._watched = watched

    @property
    def evidence(self) -> Evidence:
        """The watched training's; outcomes of trials are noted there."""
        return self._watched.evidence

    @guarded("the trials")
    def run(self, budget: int) -> None:
        """Run the trials that the causes ask for, one after the other.

        Args:
            budget: the most steps that all trials may take, those of earlier calls included.
        """
        evidence = self.evidence
        sets = _two_sets(self._watched.buffer)
        while True:
            left = budget - evidence.trial_steps
            if left < _STEPS // 2:
                return
            confirmed = next(causes.trials_to_confirm(evidence), None) if sets[1] else None
            if confirmed is not None:
                outcome = self._outcome(confirmed, sets[1], sets[0], left)
                if outcome is None:
                    return
                first = evidence.trials[confirmed.name]
                first.start_again, first.end_again = outcome.start, outcome.end
                first.others_again = outcome.others
            else:
                wanted = causes.trials_wanted(evidence)
                trial = next((t for t in wanted if t.name not in evidence.trials), None)
                outcome = None if trial is None else self._outcome(trial, sets[0], sets[1], left)
                if trial is None or outcome is None:
                    return
                evidence.trials[trial.name] = outcome
            evidence.trial_steps += outcome.steps

    @contextmanager
    def training(self, size: int | None = None) -> Iterator[CopyTraining | None]:
        """Give a training of a copy that the caller steps through.

        The random numbers start from seed 0; the random state is restored afterwards.

        Args:
            size: number of samples to train on; None for the training's first batches.

        Yields:
            The training; None where no copy can be trained.
        """
        with self._seeded():
            yield self._start(UNCHANGED, self._watched.buffer.early[:_BATCHES], size)

    def score_of(self, training: CopyTraining) -> Score:
        """Return how well a copy fits the batches that it is trained on."""
        task = self._watched.task or Task("unknown")
        found = outputs_of(training.model, training.batches, training=True)
        return score_of(found, task, self._watched.buffer.rarest(task))

    def _outcome(
        self, trial: Trial, batches: Sequence[Batch], others: Sequence[Batch], left: int
    ) -> TrialOutcome | None:
        """Return how a trial went, None where no copy can be trained.

        Args:
            batches: that it trains on.
            others: that a copy is measured on besides, without those that it trains on.
            left: steps within the budget.
        """
        with self._seeded():
            try:
                others = _without(others, batches, self._watched.layout)
                if trial.padding is not None:
                    # Two trials of different lengths cannot be compared; shorter ones may follow.
                    if left < _STEPS_BESIDE:
                        return TrialOutcome(0, math.nan, math.nan)
                    left, others = _STEPS_BESIDE, self._without_padding(others)
                    batches = batches if trial.padding else self._without_padding(batches)
                training = self._start(trial, batches)
                task = self._watched.task
                if training is None or task is None:
                    return None
                if trial.resumed:
                    return self._gone_on(training, others, min(_STEPS_ON, left))
                outcome = run(training, task, min(_STEPS, left), self._own_constant(trial))
                # A few batches may be learnt by heart.
                by_heart = trial.lr != 1 or trial.main_alone or not trial.regularised
                if others and (by_heart or task.kind == "unknown"):
                    outcome.others = self._loss_of(training, others)
                return outcome
            except Exception as error:  # whatever model, loss or optimiser raise under the change
                troubles.note_error(self.evidence, f"the trial '{trial.name}'", error)
                return TrialOutcome(0, math.nan, math.nan)

    def _gone_on(self, training: CopyTraining, others: Sequence[Batch], steps: int) -> TrialOutcome:
        """Train a copy that is trained already, and compare its losses of other batches."""
        start = self._loss_of(training, others)
        for _ in range(steps):
            training.step()
        return TrialOutcome(steps=steps, start=start, end=self._loss_of(training, others))

    def _without_padding(self, batches: Sequence[Batch]) -> list[Batch]:
        tail, axis = self.evidence.data.tail, self._watched.layout.axis
        assert tail is not None
        found = (without_padding(batch, tail.symbol, axis) for batch in batches)
        return [batch for batch in found if batch is not None]

    def _loss_of(self, training: CopyTraining, batches: Sequence[Batch]) -> float:
        """Return a copy's relative loss of batches, in evaluation mode; of an unknown task the loss
        itself."""
        task, loss_fn, model = self._watched.task, self._watched.loss_fn, training.model
        if loss_fn is not None and (task is None or task.kind == "unknown"):
            with torch.no_grad(), without_dropout(model, training=False):
                known = [training.changed(batch) for batch in batches]
                return fmean(value_of(loss_fn, b.call(model), b.targets) for b in known)
        found = outputs_of(model, batches, training=False)
        relative = score_of(found, task or Task("unknown"), []).relative_loss
        return math.nan if relative is None else relative

    def _own_constant(self, trial: Trial) -> float | None:
        """Return the loss function's value at the best constant outputs, as the trial has it."""
        loss, own = self.evidence.loss, self.evidence.outcome.own_loss
        changed = trial.averaged_loss or trial.standardised_targets
        return own.constant if loss.confirmed and not (loss.opposed or changed) else None

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed the CPU's generator with 0 for a while, with gradients on; put all back after."""
        watched = self._watched
        with watched.undisturbed(), torch.enable_grad():
            # Not torch.manual_seed, which would wake every GPU.
            torch.random.default_generator.manual_seed(0)
            yield

    def _start(
        self, trial: Trial, batches: Sequence[Batch], size: int | None = None
    ) -> CopyTraining | None:
        """Return a training from the initial weights, or from the present ones where the trial goes
        on from them; None without a model, a loss or a batch."""
        watched = self._watched
        replica, loss_fn = watched.replica, watched.loss_fn
        failed = self.evidence.loss.error is not None
        if replica is None or loss_fn is None or failed or not batches:
            return None
        model = replica.trained() if trial.resumed else replica.fresh()
        if model is None:
            return None
        if size is not None:
            first = batches[0]
            batches = [Batch(*watched.layout.take(first.call, slice(size), first.targets))]
        added = undivided_passes(self.evidence)
        return CopyTraining(
            model,
            watched.optimizer,
            replica.groups,
            loss_fn,
            batches,
            trial,
            watched.layout,
            passes=added or 1,
            undivided=added is not None,
        )


def _without(batches: Sequence[Batch], others: Sequence[Batch], layout: Layout) -> list[Batch]:
    """Return the batches without the samples that the others hold too."""
    known = [fingerprints(batch.inputs) for batch in others if batch.inputs is not None]
    kept = []
    for batch in batches:
        if batch.inputs is None or not known:
            continue
        new = ~torch.isin(fingerprints(batch.inputs), torch.cat(known))
        if new.all():
            kept.append(batch)
        elif new.any():
            part = layout.take(batch.call, new.nonzero()[:, 0], batch.targets)
            kept += [] if part[0] is batch.call else [Batch(*part)]
    return kept


def _two_sets(buffer: BatchBuffer) -> tuple[list[Batch], list[Batch]]:
    """Return the batches of a trial, and those of its repetition, which hold other samples.

    The training's first batches are halved where no others are kept. A training on one batch, the
    whole set, repeats the trial on it.
    """
    first = buffer.early[:_BATCHES]
    second = buffer.batches[len(first) :][:_BATCHES]
    if len(second) >= _LEAST_BATCHES:
        return first, second
    if len(first) < 2:
        return first, first
    return first[::2], first[1::2]
