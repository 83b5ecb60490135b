"""The loss of validation samples as they are, and prepared otherwise, by the training's own loss.

An image whose channels are in another order has the same mean and the same deviation: no statistic
of the inputs tells. The network does, where its loss comes back as the samples are changed back.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import PreparationFacts
from debugnn.doctor.observe.buffer import Batch, ValidationBatch
from debugnn.doctor.observe.calls import Call
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

    def loss(call: Call, targets: Any, rows: slice) -> float:
        part, wanted = layout.take(call, rows, targets)
        return value_of(loss_fn, part(model), wanted)

    def losses(change: Callable[[Tensor], Tensor]) -> list[float]:
        changed = change(inputs)
        call = validation.call.map(lambda tensor: changed if tensor is inputs else tensor)
        return [loss(call, validation.targets, slice(s, s + size)) for s in starts]

    latest, latest_inputs = trained[-1], layout.inputs(trained[-1].call)

    def of_training(change: Callable[[Tensor], Tensor]) -> float:
        assert latest_inputs is not None
        changed = change(latest_inputs)
        call = latest.call.map(lambda tensor: changed if tensor is latest_inputs else tensor)
        return loss(call, latest.targets, slice(size))

    changes = dict(_changes(inputs, torch.cat(known)))
    with torch.no_grad(), without_dropout(model, training=False):
        return PreparationFacts(
            training=fmean(loss(b.call, b.targets, slice(size)) for b in trained),
            validation=_halves(losses(torch.clone)),
            changed={name: _halves(losses(change)) for name, change in changes.items()},
            training_changed={name: of_training(change) for name, change in changes.items()},
        )


def _halves(losses: Sequence[float]) -> list[float]:
    """Return the means of the losses at even places and at odd ones."""
    return [fmean(losses[::2]), fmean(losses[1::2])]


def _changes(inputs: Tensor, trained: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
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
