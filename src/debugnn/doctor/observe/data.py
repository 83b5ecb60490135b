"""The samples that were kept of a training, and how the latest validation's differ from them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import DataFacts, Evidence
from debugnn.doctor.observe import samples, simple_models
from debugnn.doctor.observe.buffer import BatchBuffer, ValidationBatch
from debugnn.doctor.observe.counters import counter_facts
from debugnn.doctor.observe.drift import drift_facts
from debugnn.doctor.observe.graph_batches import graph_batch_facts
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.risk_sets import times_of
from debugnn.doctor.observe.task import Task
from debugnn.doctor.observe.validation_data import compare, evaluate_changed

_DESCRIBED = 1024  # samples that statistics are computed of


@dataclass(frozen=True)
class KeptSamples:
    """Samples of the kept batches, up to 1,024 distinct ones where there are more in all.

    Attributes:
        inputs: (N, …).
        targets: (N, …); None where the batches have none that lie beside their samples.
        count: samples of all kept batches.
        distinct: of these, those that differ.
        distinct_targets: the same of the targets.
    """

    inputs: Tensor
    targets: Tensor | None
    count: int
    distinct: int
    distinct_targets: int | None

    def first_of_each(self) -> tuple[Tensor, Tensor | None]:
        """Return the inputs and the targets without samples that came before."""
        keep = samples.first_of_each(self.inputs)
        return self.inputs[keep], None if self.targets is None else self.targets[keep]


def kept_samples(buffer: BatchBuffer, layout: Layout) -> KeptSamples | None:
    """Return the samples of the batches that have the first one's shape; None without inputs.

    Args:
        buffer: training batches.
        layout: where their samples lie.
    """
    kept = [(b, b.inputs) for b in buffer.batches if b.inputs is not None]
    if not kept:
        return None
    kept = [(b, rows) for b, rows in kept if rows.shape[1:] == kept[0][1].shape[1:]]
    inputs = torch.cat([rows for _, rows in kept])
    every = [layout.targets_by_sample(b.call, b.targets) for b, _ in kept]
    given = [t for t in every if isinstance(t, Tensor) and t.dim()]
    beside = len(given) == len(kept) and all(
        len(rows) == len(t) and t.shape[1:] == given[0].shape[1:]
        for (_, rows), t in zip(kept, given, strict=True)
    )
    targets = torch.cat(given) if beside else None
    # Batches of a whole set would be the same samples again and again.
    count, distinct = len(inputs), samples.first_of_each(inputs)
    distinct_targets = None if targets is None else len(samples.first_of_each(targets))
    if count > _DESCRIBED:
        chosen = distinct[:_DESCRIBED]
        inputs, targets = inputs[chosen], None if targets is None else targets[chosen]
    return KeptSamples(inputs, targets, count, len(distinct), distinct_targets)


def note_data(
    evidence: Evidence,
    buffer: BatchBuffer,
    layout: Layout,
    validation: ValidationBatch | None,
    task: Task | None,
    current: Callable[[], nn.Module | None],
    steps: int,
    beside_constant: Callable[[Tensor, Tensor], float | None],
) -> None:
    """Fill in what the evidence holds of the data.

    Args:
        buffer: training batches.
        layout: where their samples lie.
        validation: the latest.
        task: how outputs and targets are read; nothing is noted without it.
        current: returns a copy of the model as it is now, None without a copy. It may raise.
        steps: number of training steps taken.
        beside_constant: returns the training's own loss of predicted values, with their targets,
            over that of the best constant one.
    """
    if task is None:
        return
    kept = kept_samples(buffer, layout)
    if kept is None:  # what the samples are is not known, but what they are called
        counts = buffer.class_counts(task)
        evidence.data.class_counts = {} if counts is None else dict(enumerate(counts.tolist()))
        return
    evidence.data = _described(kept, buffer, task)
    _note_fingerprints(evidence, buffer, layout, task)
    if layout.axis is not None:  # simple models see each sample alone
        _note_simple_models(evidence, kept, buffer.rarest(task), task, beside_constant)
    # Of a graph, or of one set at every step, validation has the same entries by right.
    one_set = evidence.network.mixing and evidence.data.same_batch is not False
    if validation is None or layout.axis is None or one_set:
        return
    known = buffer.prints.together() if buffer.prints else samples.fingerprints(kept.inputs)
    if layout.is_whole(validation.call) and validation.inputs is not None:
        evidence.data.windows = buffer.ends.facts(kept.inputs, validation.inputs)
    if compare(evidence.data, known, kept.inputs, kept.targets, validation, layout, task):
        replica = current()
        if replica is not None:
            evaluate_changed(evidence.data, buffer.early, layout, validation, task, replica, steps)


def note_times(evidence: Evidence, buffer: BatchBuffer) -> None:
    """Note whether a feature of a table goes with the times that a survival loss is given."""
    where = evidence.loss.time_column
    if where is None:
        return
    rows: list[Tensor] = []
    times: list[Tensor] = []
    for batch in buffer.batches:
        inputs = batch.inputs
        if inputs is None or inputs.dim() != 2 or not inputs.is_floating_point():
            return
        found = times_of(batch.targets, where, len(inputs))
        if found is None or (rows and inputs.shape[1] != rows[0].shape[1]):
            return
        rows.append(inputs)
        times.append(found)
    if rows:
        samples.describe_times(evidence.data, torch.cat(rows), torch.cat(times))


def note_one_target(
    facts: DataFacts, buffer: BatchBuffer, validation: ValidationBatch | None
) -> None:
    """Fill in whether all training targets are one real number, and the validation's are not.

    Args:
        buffer: training batches.
        validation: the latest.
    """
    if not buffer.labels or validation is None or not isinstance(validation.targets, Tensor):
        return
    targets, held = buffer.labels.together(), validation.targets
    if targets.is_floating_point() and held.is_floating_point() and held.numel():
        first = targets[0].item()
        if bool((targets == first).all()):
            facts.one_target = first
            facts.other_targets = (held != first).double().mean().item()


def _described(kept: KeptSamples, buffer: BatchBuffer, task: Task) -> DataFacts:
    """Return what the kept samples and batches tell by themselves."""
    facts = samples.data_facts(kept.inputs, kept.targets, task)
    facts.samples, facts.distinct = kept.count, kept.distinct
    facts.distinct_targets = kept.distinct_targets
    facts.same_batch = all(buffer.same) if buffer.same else None
    facts.same_tensor = buffer.same_tensor
    facts.batch_sizes = len(buffer.sizes)
    facts.targets_moved = task.kind == "values" and buffer.targets_moved
    early, late = (
        [b.inputs for b in batches if b.inputs is not None]
        for batches in (buffer.early, buffer.late)
    )
    facts.drift = drift_facts(early, late)
    facts.graphs = graph_batch_facts([batch.call for batch in buffer.batches])
    return facts


def _note_fingerprints(evidence: Evidence, buffer: BatchBuffer, layout: Layout, task: Task) -> None:
    """Fill in what fingerprints and labels of all batches tell."""
    facts, prints = evidence.data, buffer.prints.each()
    several = [p for p in prints if len(p) > 1]
    same = sum(bool((p == p[0]).all()) for p in several)
    facts.constant_batches = same / len(several) if several else 0.0
    counts = buffer.class_counts(task)
    if counts is not None:
        facts.class_counts = dict(enumerate(counts.tolist()))
        whole = all(layout.is_whole(batch.call) for batch in buffer.batches)
        if layout.axis is not None and whole:  # else a label may be of a sample and its partner
            facts.conflicting, facts.repeated, facts.repeats_within = samples.conflicts(
                prints, buffer.labels.each()
            )
        (facts.one_class_batches, facts.one_class_by_chance, facts.one_class_run) = (
            samples.one_class_batches(prints, buffer.labels.each())
        )
    seen, times = samples.repeats(prints)
    evidence.outcome.epochs = times + buffer.left_out / seen if seen else None


def _note_simple_models(
    evidence: Evidence,
    kept: KeptSamples,
    rarest: list[int],
    task: Task,
    beside_constant: Callable[[Tensor, Tensor], float | None],
) -> None:
    """Fill in what simple models make of the samples, each of which they are given once."""
    inputs, targets = kept.first_of_each()
    if targets is None:
        return
    facts = evidence.data
    predicted = simple_models.predictions(inputs, targets, task)
    if predicted is not None:
        facts.simple_skill = predicted.skill
        wanted = targets[predicted.rows.to(targets.device)]
        evidence.outcome.own_loss.simple = beside_constant(predicted.values, wanted)
    if task.kind in ("classes", "binary") and facts.floating and inputs.dim() == 2:
        facts.counter = counter_facts(inputs, targets, task)
    facts.skill_of_maps = simple_models.skill_of_maps(inputs, targets, task)
    facts.simple_recognition = simple_models.recognition(inputs, targets, None, None, task, rarest)
