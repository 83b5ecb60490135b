"""The samples that were kept of a training, and how the latest validation's differ from them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import DataFacts, Evidence
from debugnn.doctor.observe import samples, simple_models
from debugnn.doctor.observe.buffer import BatchBuffer, ValidationBatch
from debugnn.doctor.observe.calls import Call, first_tensor, run_in_chunks
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.task import Task, score

_DESCRIBED = 1024  # samples that statistics are computed of
_RENAMED = 1024  # classes, of which every pair is counted; words of a language are more


def note_data(
    evidence: Evidence,
    buffer: BatchBuffer,
    validation: ValidationBatch | None,
    task: Task | None,
    current: Callable[[], nn.Module | None],
    steps: int,
) -> None:
    """Fill in what the evidence holds of the data.

    Args:
        buffer: training batches.
        validation: the latest.
        task: how outputs and targets are read; nothing is noted without it.
        current: returns a copy of the model as it is now, None without a copy. It may raise.
        steps: number of training steps taken.
    """
    batches = [b for b in buffer.batches if isinstance(b.inputs, Tensor)]
    if not batches or task is None:
        return
    shape = batches[0].inputs.shape[1:]
    batches = [b for b in batches if b.inputs.shape[1:] == shape]
    inputs = torch.cat([b.inputs for b in batches])
    given = [b.targets for b in batches if isinstance(b.targets, Tensor)]
    whole = len(given) == len(batches) and all(
        len(b.inputs) == len(t) and t.shape[1:] == given[0].shape[1:]
        for b, t in zip(batches, given, strict=True)
    )
    targets = torch.cat(given) if whole else None
    # Batches of a whole set would be the same samples again and again.
    count, distinct = len(inputs), samples.first_of_each(inputs)
    if count > _DESCRIBED:
        chosen = distinct[:_DESCRIBED]
        inputs, targets = inputs[chosen], None if targets is None else targets[chosen]
    facts = samples.data_facts(inputs, targets, task)
    facts.samples, facts.distinct = count, len(distinct)
    evidence.data = facts
    _note_fingerprints(evidence, buffer, task)
    if targets is not None:
        keep = samples.first_of_each(inputs)
        facts.simple_skill = simple_models.simple_skill(inputs[keep], targets[keep], task)
    if validation is not None:
        known = buffer.prints.together() if buffer.prints else samples.fingerprints(inputs)
        if _compare(facts, known, inputs, targets, validation, task):
            replica = current()
            if replica is not None:
                _evaluate(facts, buffer, validation, task, replica, steps)


def _note_fingerprints(evidence: Evidence, buffer: BatchBuffer, task: Task) -> None:
    """Fill in what fingerprints and labels of all batches tell."""
    facts, prints = evidence.data, buffer.prints.each()
    several = [p for p in prints if len(p) > 1]
    same = sum(bool((p == p[0]).all()) for p in several)
    facts.constant_batches = same / len(several) if several else 0.0
    counts = buffer.class_counts(task)
    if counts is not None:
        facts.class_counts = dict(enumerate(counts.tolist()))
        facts.conflicting, facts.repeated, facts.repeats_within = samples.conflicts(
            prints, buffer.labels.each()
        )
    seen, times = samples.repeats(prints)
    evidence.outcome.epochs = times if seen else None


def _compare(
    facts: DataFacts,
    known: Tensor,
    inputs: Tensor,
    known_targets: Tensor | None,
    validation: ValidationBatch,
    task: Task,
) -> bool:
    """Fill in how the validation samples differ from training samples.

    Args:
        known: fingerprints of all training samples.
        inputs: some of these samples.
        known_targets: their targets.

    Returns:
        False where the two have other shapes, and cannot be compared.
    """
    rows, targets = validation.inputs, validation.targets
    if rows is None or rows.shape[1:] != inputs.shape[1:]:
        return False
    prints = samples.fingerprints(rows)
    facts.natural_repeats = 1 - len(prints.unique()) / max(len(prints), 1)
    facts.overlap = torch.isin(prints, known).double().mean().item()
    facts.covered = torch.isin(known, prints).double().mean().item()
    facts.trained_on, facts.validation_size = len(known.unique()), validation.size
    if facts.floating:
        facts.scale_shift = simple_models.scale_shift(inputs, rows)
    facts.shift = simple_models.told_apart(inputs, rows)
    if known_targets is not None:
        facts.transfer_skill = simple_models.transfer_skill(
            inputs, known_targets, rows, targets, task
        )
    return True


def _evaluate(
    facts: DataFacts,
    buffer: BatchBuffer,
    validation: ValidationBatch,
    task: Task,
    replica: nn.Module,
    steps: int,
) -> None:
    """Fill in the model's skill on changed validation samples: other labels, another scale.

    For models of one tensor.
    """
    call, targets, count = validation.call, validation.targets, validation.count
    if len(call.args) != 1 or not isinstance(call.args[0], Tensor) or call.kwargs:
        return
    given = call.args[0]
    trained = [
        b.call.args[0]
        for b in buffer.early
        if b.call.args
        and isinstance(b.call.args[0], Tensor)
        and b.call.args[0].shape[1:] == given.shape[1:]
    ]
    with undisturbed(), torch.no_grad(), without_dropout(replica, training=False):
        outputs = validation.outputs
        if validation.step != steps:
            outputs = run_in_chunks(replica, call, count)
        if trained and given.is_floating_point() and not _takes_indices(replica, given):
            brought = Call((simple_models.matched(torch.cat(trained), given),))
            at_scale = run_in_chunks(replica, brought, count)
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
