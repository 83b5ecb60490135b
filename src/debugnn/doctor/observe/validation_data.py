"""How the samples of the latest validation differ from those of the training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import DataFacts, LostShare, SameShares
from debugnn.doctor.observe import samples, simple_models
from debugnn.doctor.observe.alignment import alignment_facts
from debugnn.doctor.observe.buffer import Batch, ValidationBatch
from debugnn.doctor.observe.calls import Call, first_tensor
from debugnn.doctor.observe.class_shares import of_same_shares
from debugnn.doctor.observe.column_order import column_order_facts
from debugnn.doctor.observe.feature_shares import lost_shares
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.task import Task, score

_RECOGNISED = 64  # classes that a simple model is asked for
_RENAMED = 1024  # classes, of which every pair is counted; words of a language are more


def compare(
    facts: DataFacts,
    known: Tensor,
    inputs: Tensor,
    known_targets: Tensor | None,
    validation: ValidationBatch,
    layout: Layout,
    task: Task,
) -> bool:
    """Fill in how the validation samples differ from training samples.

    Args:
        known: fingerprints of all training samples.
        inputs: some of these samples.
        known_targets: their targets.
        validation: the latest.
        layout: where samples lie. Where an input is not all that a sample consists of, as one of a
            pair, it may come again beside another partner, which makes a new sample.
        task: how outputs and targets are read.

    Returns:
        False where the two have other shapes, and cannot be compared.
    """
    rows = validation.inputs
    targets = layout.targets_by_sample(validation.call, validation.targets)
    labelled = isinstance(targets, Tensor)
    if labelled and known_targets is not None:
        if rows is not None:
            facts.alignment = alignment_facts(inputs, known_targets, rows, targets)
        if task.kind == "values" and known_targets.dim() == targets.dim() == 2:
            facts.column_order = column_order_facts(known_targets, targets)
    if rows is None or rows.shape[1:] != inputs.shape[1:]:
        return False
    prints = samples.fingerprints(rows)
    facts.natural_repeats = 1 - len(prints.unique()) / max(len(prints), 1)
    trained = torch.isin(prints, known)
    if layout.is_whole(validation.call):
        facts.overlap = trained.double().mean().item()
    facts.copies = len(prints[trained].unique())
    facts.continuous = samples.distinct_values(rows)
    classes = labelled and task.kind in ("classes", "binary")
    if classes and targets.shape[:1] == trained.shape:
        labels = task.labels(targets).cpu()
        if labels.shape == trained.shape:
            facts.overlap_of_class = samples.overlap_of_classes(trained, labels)
    facts.covered = torch.isin(known, prints).double().mean().item()
    facts.trained_on, facts.validation_size = len(known.unique()), validation.size
    if facts.floating:
        facts.scale_shift = simple_models.scale_shift(inputs, rows)
        facts.standardised_alone = validation.standardised_alone
    facts.shift = simple_models.told_apart(inputs, rows)
    if labelled and known_targets is not None:
        facts.transfer_skill = simple_models.transfer_skill(
            inputs, known_targets, rows, targets, task
        )
        if task.kind != "unknown" and not facts.floating and len(targets) == len(rows):
            halves = rows[::2], targets[::2], rows[1::2], targets[1::2]
            facts.within_validation = simple_models.transfer_skill(*halves, task)
        facts.simple_recognition |= simple_models.recognition(
            inputs, known_targets, rows, targets, task, list(facts.class_counts)[:_RECOGNISED]
        )
        both = _in_same_shares(_Labelled(inputs, known_targets), _Labelled(rows, targets), task)
        if both is not None:
            facts.lost_shares = _lost_shares(*both, task)
            facts.same_shares = None if task.kind == "values" else _same_shares(*both, task)
    return True


class _Labelled(NamedTuple):
    """Samples (N, …) and their targets (N, …)."""

    inputs: Tensor
    targets: Tensor

    def at(self, rows: Tensor) -> "_Labelled":
        """Return the samples of some indices."""
        inputs, targets = self
        return _Labelled(inputs[rows.to(inputs.device)], targets[rows.to(targets.device)])


def _in_same_shares(
    first: _Labelled, second: _Labelled, task: Task
) -> tuple[_Labelled, _Labelled] | None:
    """Return samples of both sets, none twice, with each class as frequent in one as in the other.

    None of other tasks than values, and classes of which a sample has one.
    """
    first, second = (s.at(samples.first_of_each(s.inputs)) for s in (first, second))
    if task.kind == "values":
        return first, second
    if task.kind not in ("classes", "binary"):
        return None
    labels = [task.labels(s.targets).cpu().flatten() for s in (first, second)]
    if [len(own) for own in labels] != [len(first.inputs), len(second.inputs)]:
        return None
    one, other = of_same_shares(*labels)
    return (first.at(one), second.at(other)) if len(one) else None


def _same_shares(first: _Labelled, second: _Labelled, task: Task) -> SameShares:
    """Compare training samples and validation samples, whose classes have the same shares."""
    inputs, rows = first.inputs, second.inputs
    return SameShares(
        shift=simple_models.told_apart(inputs, rows),
        scale_shift=simple_models.scale_shift(inputs, rows) if rows.is_floating_point() else None,
        transfer_skill=simple_models.transfer_skill(*first, *second, task),
    )


def _lost_shares(first: _Labelled, second: _Labelled, task: Task) -> list[LostShare]:
    """Compare what the features of a table tell of the targets in both sets."""
    rows, new_rows = first.inputs, second.inputs
    if rows.dim() != 2 or not rows.is_floating_point() or rows.shape[1] > samples.FEATURES:
        return []
    targets, new_targets = (_numbers(s.targets, task) for s in (first, second))
    if len(targets) != len(rows) or len(new_targets) != len(new_rows):
        return []
    rows, new_rows = samples.flat(rows), samples.flat(new_rows)
    kept, new = (torch.isfinite(each).all(dim=1) for each in (rows, new_rows))
    return lost_shares(
        rows[kept], targets[kept], new_rows[new], new_targets[new], classes=task.kind != "values"
    )


def _numbers(targets: Tensor, task: Task) -> Tensor:
    """Return all values in a column (N, 1), or all class indices (N,)."""
    if task.kind == "values":
        return targets.cpu().double().reshape(-1, 1)
    return task.labels(targets).cpu().flatten()


def evaluate_changed(
    facts: DataFacts,
    early: Sequence[Batch],
    layout: Layout,
    validation: ValidationBatch,
    task: Task,
    replica: nn.Module,
    steps: int,
) -> None:
    """Fill in the model's skill on changed validation samples: other labels, another scale.

    Another scale for models of one tensor.

    Args:
        early: the first batches of the training.
        layout: where samples lie.
        validation: the latest.
        task: how outputs and targets are read.
        replica: a copy of the model as it is now.
        steps: number of training steps taken.
    """
    call, targets = validation.call, validation.targets
    if not isinstance(targets, Tensor):
        return
    with (
        undisturbed(model=replica),
        torch.no_grad(),
        without_dropout(replica, training=False),
    ):
        outputs = validation.outputs
        if validation.step != steps:
            outputs = layout.run(replica, call)
        brought = _at_training_scale(call, early, replica)
        if brought is not None:
            facts.matched_skill = score(task, layout.run(replica, brought), targets).skill
    confusion = _confusion(outputs, targets, task)
    if confusion is not None:
        renamed, other = simple_models.renamed_skill(confusion)
        facts.relabelled_skill = renamed if other else None


def _at_training_scale(call: Call, early: Sequence[Batch], model: nn.Module) -> Call | None:
    """Return a call of one tensor whose values have the training inputs' mean and deviation."""
    if len(call.args) != 1 or not isinstance(call.args[0], Tensor) or call.kwargs:
        return None
    given = call.args[0]
    trained = [
        b.call.args[0]
        for b in early
        if b.call.args
        and isinstance(b.call.args[0], Tensor)
        and b.call.args[0].shape[1:] == given.shape[1:]
    ]
    if not trained or not given.is_floating_point() or _takes_indices(model, given):
        return None
    return Call((simple_models.matched(torch.cat(trained), given),))


def _confusion(outputs: Any, targets: Tensor, task: Task) -> Tensor | None:
    """Return how often each class (row) is predicted as each class, None of other tasks."""
    if task.kind not in ("classes", "binary") or first_tensor(outputs) is None:
        return None
    size = task.size if task.kind == "classes" else 2
    if size > _RENAMED:
        return None
    predicted, wanted = task.pair(outputs, targets)
    if task.kind == "classes":
        predicted = predicted.argmax(dim=1)
    else:
        predicted, wanted = (predicted > 0.5).long(), task.labels(targets)
    counts = torch.bincount(wanted * size + predicted, minlength=size * size)
    return counts.reshape(size, size).cpu()


def _takes_indices(model: nn.Module, inputs: Tensor) -> bool:
    """True if changed inputs may be indices out of range, which end a GPU's context."""
    embeds = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    return embeds and inputs.device.type != "cpu"
