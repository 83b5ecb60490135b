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
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.made_up import LossFunction
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.simple_models import matched

# Parts of the validation samples, and training batches, the latest ones. A loss may depend on the
# size of a batch, so that all have one size. Changes are compared on the same samples, of which a
# few dozen are enough: thirty passes of them cost no more than a few training steps.
_FEWEST, _PARTS = 2, 4
_SAMPLES = 32  # of a part, at most
_COLOURS = (3, 4)
_BYTE = 255.0

Change = Callable[[Tensor], Tensor]  # of inputs (B, …)


def preparation_facts(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    validation: ValidationBatch,
    layout: Layout,
) -> PreparationFacts | None:
    """Return the losses of validation samples under changes of their inputs.

    Args:
        model: a copy of the model as it is now.
        loss_fn: the training's own.
        batches: of the training, the latest one last.
        validation: the latest.
        layout: where the samples lie.

    Returns:
        The losses in evaluation mode, without dropout; None where the validation cannot be parted
        into batches of the training's size, or its inputs are no numbers.
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
    trained, starts = trained[-parts:], range(0, count - size + 1, size)[:parts]
    if len(starts) < _FEWEST:
        return None

    def losses(
        batch: Batch | ValidationBatch, firsts: Iterable[int], change: Change | None = None
    ) -> list[float]:
        call, own = batch.call, layout.inputs(batch.call)
        if change is not None and own is not None:
            call = call.exchanged(own, change(own))
        parts = (layout.take(call, slice(f, f + size), batch.targets) for f in firsts)
        return [value_of(loss_fn, part(model), targets) for part, targets in parts]

    changes, latest = dict(_changes(inputs, torch.cat(known))), trained[-1]
    with torch.no_grad(), without_dropout(model, training=False):
        return PreparationFacts(
            training=fmean(losses(b, [0])[0] for b in trained),
            validation=_halves(losses(validation, starts)),
            changed={n: _halves(losses(validation, starts, c)) for n, c in changes.items()},
            training_changed={n: losses(latest, [0], c)[0] for n, c in changes.items()},
        )


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
