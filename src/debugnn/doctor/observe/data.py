"""The samples that were kept of a training, and how the latest validation's differ from them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import DataFacts, Evidence, LostShare, SameShares
from debugnn.doctor.observe import samples, simple_models
from debugnn.doctor.observe.alignment import alignment_facts
from debugnn.doctor.observe.buffer import BatchBuffer, ValidationBatch
from debugnn.doctor.observe.calls import Call, first_tensor
from debugnn.doctor.observe.class_shares import of_same_shares
from debugnn.doctor.observe.counters import counter_facts
from debugnn.doctor.observe.drift import drift_facts
from debugnn.doctor.observe.feature_shares import lost_shares
from debugnn.doctor.observe.graph_batches import graph_batch_facts
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.task import Task, score

_RECOGNISED = 64  # classes that a simple model is asked for
_DESCRIBED = 1024  # samples that statistics are computed of
_RENAMED = 1024  # classes, of which every pair is counted; words of a language are more


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
    kept = [(b, b.inputs) for b in buffer.batches if b.inputs is not None]
    if task is None:
        return
    if not kept:  # what the samples are is not known, but what they are called
        counts = buffer.class_counts(task)
        evidence.data.class_counts = {} if counts is None else dict(enumerate(counts.tolist()))
        return
    kept = [(b, rows) for b, rows in kept if rows.shape[1:] == kept[0][1].shape[1:]]
    inputs = torch.cat([rows for _, rows in kept])
    every = [layout.targets_by_sample(b.call, b.targets) for b, _ in kept]
    given = [t for t in every if isinstance(t, Tensor) and t.dim()]
    whole = len(given) == len(kept) and all(
        len(rows) == len(t) and t.shape[1:] == given[0].shape[1:]
        for (_, rows), t in zip(kept, given, strict=True)
    )
    targets = torch.cat(given) if whole else None
    # Batches of a whole set would be the same samples again and again.
    count, distinct = len(inputs), samples.first_of_each(inputs)
    distinct_targets = None if targets is None else len(samples.first_of_each(targets))
    if count > _DESCRIBED:
        chosen = distinct[:_DESCRIBED]
        inputs, targets = inputs[chosen], None if targets is None else targets[chosen]
    facts = samples.data_facts(inputs, targets, task)
    facts.samples, facts.distinct = count, len(distinct)
    facts.distinct_targets = distinct_targets
    facts.same_batch = all(buffer.same) if buffer.same else None
    facts.batch_sizes = len(buffer.sizes)
    facts.drift = drift_facts(
        *(
            [b.inputs for b in batches if b.inputs is not None]
            for batches in (buffer.early, buffer.late)
        )
    )
    evidence.data = facts
    facts.graphs = graph_batch_facts([batch.call for batch in buffer.batches])
    _note_fingerprints(evidence, buffer, layout, task)
    if targets is not None and layout.axis is not None:  # simple models see each sample alone
        keep = samples.first_of_each(inputs)
        predicted = simple_models.predictions(inputs[keep], targets[keep], task)
        if predicted is not None:
            facts.simple_skill = predicted.skill
            wanted = targets[keep][predicted.rows.to(targets.device)]
            evidence.outcome.own_loss.simple = beside_constant(predicted.values, wanted)
        if task.kind in ("classes", "binary") and facts.floating and inputs.dim() == 2:
            facts.counter = counter_facts(inputs[keep], targets[keep], task)
        facts.skill_of_maps = simple_models.skill_of_maps(inputs[keep], targets[keep], task)
        facts.simple_recognition = simple_models.recognition(
            inputs[keep], targets[keep], None, None, task, buffer.rarest(task)
        )
    # Of a graph, or of one set at every step, validation has the same entries by right.
    one_set = evidence.network.mixing and facts.same_batch is not False
    apart = layout.axis is not None and not one_set
    if validation is not None and apart:
        known = buffer.prints.together() if buffer.prints else samples.fingerprints(inputs)
        wanted = layout.targets_by_sample(validation.call, validation.targets)
        whole = layout.is_whole(validation.call)
        if targets is not None and validation.inputs is not None and isinstance(wanted, Tensor):
            facts.alignment = alignment_facts(inputs, targets, validation.inputs, wanted)
        if validation.inputs is not None and whole:
            facts.windows = buffer.ends.facts(inputs, validation.inputs)
        if _compare(facts, known, inputs, targets, validation, wanted, task, whole):
            replica = current()
            if replica is not None:
                _evaluate(facts, buffer, layout, validation, task, replica, steps)


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


def _compare(
    facts: DataFacts,
    known: Tensor,
    inputs: Tensor,
    known_targets: Tensor | None,
    validation: ValidationBatch,
    targets: Any,
    task: Task,
    whole: bool,
) -> bool:
    """Fill in how the validation samples differ from training samples.

    Args:
        known: fingerprints of all training samples.
        inputs: some of these samples.
        known_targets: their targets.
        targets: of the validation samples.
        whole: the inputs are all that a sample consists of. Else those of a pair may come again
            beside another partner, which makes a new sample.

    Returns:
        False where the two have other shapes, and cannot be compared.
    """
    rows = validation.inputs
    if rows is None or rows.shape[1:] != inputs.shape[1:]:
        return False
    prints = samples.fingerprints(rows)
    facts.natural_repeats = 1 - len(prints.unique()) / max(len(prints), 1)
    trained = torch.isin(prints, known)
    if whole:
        facts.overlap = trained.double().mean().item()
    facts.copies = len(prints[trained].unique())
    facts.continuous = samples.distinct_values(rows)
    if task.kind in ("classes", "binary") and targets.shape[:1] == trained.shape:
        labels = task.labels(targets).cpu()
        if labels.shape == trained.shape:
            facts.overlap_of_class = samples.overlap_of_classes(trained, labels)
    facts.covered = torch.isin(known, prints).double().mean().item()
    facts.trained_on, facts.validation_size = len(known.unique()), validation.size
    if facts.floating:
        facts.scale_shift = simple_models.scale_shift(inputs, rows)
    facts.shift = simple_models.told_apart(inputs, rows)
    if known_targets is not None and isinstance(targets, Tensor):
        facts.transfer_skill = simple_models.transfer_skill(
            inputs, known_targets, rows, targets, task
        )
        facts.simple_recognition |= simple_models.recognition(
            inputs, known_targets, rows, targets, task, list(facts.class_counts)[:_RECOGNISED]
        )
        facts.same_shares = _same_shares(inputs, known_targets, rows, targets, task)
        facts.lost_shares = _lost_shares(inputs, known_targets, rows, targets, task)
    return True


def _same_shares(
    inputs: Tensor, known: Tensor, rows: Tensor, targets: Tensor, task: Task
) -> SameShares | None:
    """Compare training samples and validation samples that are drawn to the same class shares.

    Args:
        inputs: of the training.
        known: their targets.
        rows: inputs of the validation.
        targets: theirs.
        task: None is returned of other than classes, one for each sample.
    """
    if task.kind not in ("classes", "binary"):
        return None
    labels = [task.labels(t).cpu() for t in (known, targets)]
    if [len(own) for own in labels] != [len(inputs), len(rows)]:
        return None
    first, second = of_same_shares(*labels)
    if not len(first):
        return None
    known, targets = known[first.to(known.device)], targets[second.to(targets.device)]
    inputs, rows = inputs[first.to(inputs.device)], rows[second.to(rows.device)]
    return SameShares(
        shift=simple_models.told_apart(inputs, rows),
        scale_shift=simple_models.scale_shift(inputs, rows) if rows.is_floating_point() else None,
        transfer_skill=simple_models.transfer_skill(inputs, known, rows, targets, task),
    )


def _lost_shares(
    inputs: Tensor, known: Tensor, rows: Tensor, targets: Tensor, task: Task
) -> list[LostShare]:
    """Compare what the features of a table tell of the targets in both sets.

    Each class is as frequent in one set as in the other, and no training sample counts twice.

    Args:
        inputs: of the training.
        known: their targets.
        rows: inputs of the validation.
        targets: theirs.
    """
    if inputs.dim() != 2 or not inputs.is_floating_point() or inputs.shape[1] > samples.FEATURES:
        return []
    sets = []
    for each, wanted in ((inputs, known), (rows, targets)):
        keep = samples.first_of_each(each)
        own, values = samples.flat(each[keep]), wanted[keep.to(wanted.device)]
        values = values.cpu().double() if task.kind == "values" else task.labels(values).cpu()
        if values.numel() != len(own):
            return []
        values = values.reshape(len(own), 1) if task.kind == "values" else values.flatten()
        finite = torch.isfinite(own).all(dim=1)
        sets.append((own[finite], values[finite]))
    (own, known), (rows, targets) = sets
    if task.kind == "values":
        return lost_shares(own, known, rows, targets, classes=False)
    if task.kind not in ("classes", "binary"):
        return []
    first, second = of_same_shares(known, targets)
    return lost_shares(own[first], known[first], rows[second], targets[second], classes=True)


def _evaluate(
    facts: DataFacts,
    buffer: BatchBuffer,
    layout: Layout,
    validation: ValidationBatch,
    task: Task,
    replica: nn.Module,
    steps: int,
) -> None:
    """Fill in the model's skill on changed validation samples: other labels, another scale.

    For models of one tensor.
    """
    call, targets = validation.call, validation.targets
    if len(call.args) != 1 or not isinstance(call.args[0], Tensor) or call.kwargs:
        return
    if not isinstance(targets, Tensor):
        return
    given = call.args[0]
    trained = [
        b.call.args[0]
        for b in buffer.early
        if b.call.args
        and isinstance(b.call.args[0], Tensor)
        and b.call.args[0].shape[1:] == given.shape[1:]
    ]
    with (
        undisturbed(model=replica),
        torch.no_grad(),
        without_dropout(replica, training=False),
    ):
        outputs = validation.outputs
        if validation.step != steps:
            outputs = layout.run(replica, call)
        if trained and given.is_floating_point() and not _takes_indices(replica, given):
            brought = Call((simple_models.matched(torch.cat(trained), given),))
            at_scale = layout.run(replica, brought)
            facts.matched_skill = score(task, at_scale, targets).skill
    if task.kind == "classes" and task.size <= _RENAMED and first_tensor(outputs) is not None:
        predicted, wanted = task.pair(outputs, targets)
        size = task.size
        pairs = wanted * size + predicted.argmax(dim=1)
        confusion = torch.bincount(pairs, minlength=size * size).reshape(size, size)
        renamed, other = simple_models.renamed_skill(confusion.cpu())
        facts.relabelled_skill = renamed if other else None


def _takes_indices(model: nn.Module, inputs: Tensor) -> bool:
    """True if changed inputs may be indices out of range, which end a GPU's context."""
    embeds = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    return embeds and inputs.device.type != "cpu"
