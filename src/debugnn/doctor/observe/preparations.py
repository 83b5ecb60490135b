"""The loss of validation samples as they are, and prepared otherwise, by the training's own loss.

An image whose channels are in another order has the same mean and the same deviation: no statistic
of the inputs tells. The network does, where its loss comes back as the samples are changed back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import PreparationFacts
from debugnn.doctor.observe.buffer import Batch, ValidationBatch
from debugnn.doctor.observe.class_shares import in_order_of
from debugnn.doctor.observe.layout import Layout, Rows
from debugnn.doctor.observe.loss_function.made_up import LossFunction
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.simple_models import matched
from debugnn.doctor.observe.task import Task

# Parts of the validation samples, and training batches, the latest ones. A loss may depend on the
# size of a batch, so that all have one size. Changes are compared on the same samples, of which a
# few dozen are enough: thirty passes of them cost no more than a few training steps.
_FEWEST, _PARTS = 2, 4
_SAMPLES = 32  # most samples of a part
_COLOURS = (3, 4)
_BYTE = 255.0

Change = Callable[[Tensor], Tensor]  # of inputs (B, …)


def preparation_facts(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    validation: ValidationBatch,
    layout: Layout,
    task: Task | None,
) -> PreparationFacts | None:
    """Return the losses of validation samples under changes of their inputs.

    The first validation samples are taken as they are, and some again that have the classes of the
    training batches. Where one class is much more frequent in the validation, a change that makes a
    network answer with this class would lower the loss of the first ones.

    Args:
        model: a copy of the model as it is now.
        loss_fn: the training's own.
        batches: of the training, the latest one last.
        validation: the latest.
        layout: where the samples lie.
        task: how targets are read; None where that is not known.

    Returns:
        The losses in evaluation mode, without dropout; None where the validation cannot be parted
        into batches of the training's size, the loss takes no part of a batch, or the inputs are no
        numbers.
    """
    trained = [b for b in batches if layout.count(b.call)][-_PARTS:]
    inputs = layout.inputs(validation.call)
    count = layout.count(validation.call)
    if not trained or inputs is None or count is None or not inputs.is_floating_point():
        return None
    known = [rows for b in trained if (rows := layout.inputs(b.call)) is not None]
    if any(rows.shape[1:] != inputs.shape[1:] for rows in known) or layout.axis != 0:
        return None
    size = min(_SAMPLES, *(len(rows) for rows in known))
    parts = max(_FEWEST, min(_PARTS, _FEWEST * _SAMPLES // size))
    trained = trained[-parts:]
    alike = _rows_alike(trained, validation, layout, task, size)
    sets = [_parts(rows, size, parts) for rows in (torch.arange(count), alike) if rows is not None]
    if any(len(chosen) < _FEWEST for chosen in sets):
        return None

    def losses(
        batch: Batch | ValidationBatch, chosen: Iterable[Rows], change: Change | None = None
    ) -> list[float]:
        call, own = batch.call, layout.inputs(batch.call)
        if change is not None and own is not None:
            call = call.exchanged(own, change(own))
        parts = (layout.take(call, rows, batch.targets) for rows in chosen)
        return [value_of(loss_fn, part(model), targets) for part, targets in parts]

    def of_validation(change: Change | None = None) -> list[float]:
        return [half for rows in sets for half in _halves(losses(validation, rows, change))]

    first, latest = slice(0, size), trained[-1]
    with torch.no_grad(), without_dropout(model, training=False):
        try:
            of_training = fmean(losses(b, [first])[0] for b in trained)
            facts = PreparationFacts(training=of_training, validation=of_validation())
        except Exception:  # a loss that takes no part of a batch: targets are places in it, say
            return None
        for name, change in _changes(inputs, torch.cat(known)):
            try:
                trained_on, changed = losses(latest, [first], change)[0], of_validation(change)
            except Exception:  # a model that takes some columns for indices refuses most changes
                continue
            facts.training_changed[name], facts.changed[name] = trained_on, changed
        return facts


def _parts(rows: Tensor, size: int, most: int) -> list[Tensor]:
    """Return the first parts of `size` rows, at most `most` parts."""
    return [part for part in rows.split(size)[:most] if len(part) == size]


def _rows_alike(
    trained: Sequence[Batch],
    validation: ValidationBatch,
    layout: Layout,
    task: Task | None,
    size: int,
) -> Tensor | None:
    """Return validation samples whose classes are those of the first `size` samples of batches.

    None where samples have no class each.
    """
    if task is None or task.kind not in ("classes", "binary"):
        return None
    wanted, own = [_labels(b, layout, task) for b in trained], _labels(validation, layout, task)
    known = [labels[:size] for labels in wanted if labels is not None]
    if own is None or len(known) < len(wanted):
        return None
    return in_order_of(torch.cat(known), own)


def _labels(batch: Batch | ValidationBatch, layout: Layout, task: Task) -> Tensor | None:
    """Return the class of each sample, None where it has several or none."""
    targets = layout.targets_by_sample(batch.call, batch.targets)
    if not isinstance(targets, Tensor):
        return None
    labels = task.labels(targets).cpu()
    return labels if len(labels) == layout.count(batch.call) else None


def _halves(losses: Sequence[float]) -> list[float]:
    """Return the means of the losses at even places and at odd ones."""
    return [fmean(losses[::2]), fmean(losses[1::2])]


def _changes(inputs: Tensor, trained: Tensor) -> Iterator[tuple[str, Change]]:
    """Yield what a preparation may have done otherwise, and how it is done to inputs (B, …)."""
    if inputs.dim() == 4 and inputs.shape[1] in _COLOURS:
        yield "channels in reverse order", lambda x: x.flip(1)
    elif inputs.dim() == 4 and inputs.shape[-1] in _COLOURS:
        yield "channels in reverse order", lambda x: x.flip(-1)
    if inputs.dim() == 4:
        yield "turned upside down", lambda x: x.flip(-2)
        yield "mirrored", lambda x: x.flip(-1)
        if inputs.shape[-1] == inputs.shape[-2]:
            yield "rows and columns exchanged", lambda x: x.transpose(-1, -2).contiguous()
    if inputs.dim() >= 2:
        yield "light and dark exchanged", lambda x: x.amax() + x.amin() - x
        yield "brought to the training inputs' mean and deviation", lambda x: matched(trained, x)
        yield "multiplied by 255", lambda x: x * _BYTE
        yield "divided by 255", lambda x: x / _BYTE
