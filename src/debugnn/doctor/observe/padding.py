"""Symbols that fill up the ends of sequences, as far as the loss counts them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import TailFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call, map_tensors, scores_of
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.losses import output_gradient
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.scored_symbols import Scored, class_axis, scored

_LEFT_OUT = -100  # the label that torch's cross_entropy leaves out, unless it is told another one
_TRIED = 8  # samples


def tail_facts(found: Scored, sample_axis: int | None) -> TailFacts | None:
    """Describe the symbol that the most sequences of a batch end with.

    Args:
        found: what the loss pulls the outputs of the batch to.
        sample_axis: of the outputs' positions, 0 or 1.

    Returns:
        None where the positions are not those of several sequences, or none is scored at the end.
    """
    shape = found.shape if len(found.shape) == 2 else _shape_of_input(found.call, found.symbols)
    if shape is None or sample_axis not in (0, 1):
        return None
    rows = found.symbols.reshape(shape)
    rows = rows if sample_axis == 0 else rows.t()
    scored_positions = int((rows >= 0).sum())
    last = rows[:, -1][rows[:, -1] >= 0] if rows.shape[1] else rows
    if len(rows) < 2 or not last.numel():
        return None
    symbol = int(last.mode().values)
    at_the_end = _at_the_end(rows == symbol)
    lengths = at_the_end.sum(dim=1)
    return TailFacts(
        symbol=symbol,
        share=int((lengths - 1).clamp_min(0).sum()) / scored_positions,
        only_there=int(lengths.sum()) / int((rows == symbol).sum()),
        sequences=(lengths > 1).double().mean().item(),
        lengths=len(lengths.unique()),
    )


def without_padding(batch: Batch, symbol: int, sample_axis: int | None) -> Batch | None:
    """Return a batch whose targets are -100 at the padding, as cross_entropy leaves them out.

    The first symbol of a run at the end of a sequence stays: it may be the end of the sequence.

    Args:
        symbol: that fills sequences up.
        sample_axis: of the targets' positions, 0 or 1.

    Returns:
        None where the targets are not the symbols of several sequences.
    """
    targets = batch.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point() or sample_axis not in (0, 1):
        return None
    shape = targets.shape if targets.dim() == 2 else _shape_of_input(batch.call, targets)
    if shape is None or not targets.is_signed():
        return None
    rows = targets.reshape(shape)
    rows = rows if sample_axis == 0 else rows.t()
    padding = torch.zeros_like(rows, dtype=torch.bool)
    padding[:, 1:] = _at_the_end(rows == symbol)[:, :-1]
    padding = padding if sample_axis == 0 else padding.t()
    masked = targets.long().masked_fill(padding.reshape(targets.shape), _LEFT_OUT)
    return batch._replace(targets=masked)


def can_be_left_out(
    model: nn.Module,
    batch: Batch,
    symbol: int,
    layout: Layout,
    loss_fn: Callable[[Any, Any], Tensor],
) -> bool:
    """Return whether a loss leaves padding out whose targets are -100, and nothing else with it.

    Args:
        model: a copy.
        batch: of the training.
        symbol: that fills sequences up.
        layout: where the samples of the batch lie.
        loss_fn: the training's.
    """
    call, targets = layout.take(batch.call, slice(_TRIED), batch.targets)
    plain = Batch(call, targets)
    masked = without_padding(plain, symbol, layout.axis)
    if masked is None:
        return False
    with torch.no_grad(), without_dropout(model, training=False):
        outputs = call(model)
    scores = scores_of(outputs)
    if scores is None:
        return False
    # Trained outputs may be so sure of the padding that there is no gradient in any case. On the
    # CPU a label that a loss does not expect raises, and on a GPU it ends the process.
    even = torch.full_like(scores, 1 / scores.shape[class_axis(scores, targets)])
    outputs = map_tensors(outputs, lambda tensor: (even if tensor is scores else tensor).cpu())
    before, after = (_pulls(outputs, each, loss_fn) for each in (plain, masked))
    if before is None or after is None:
        return False
    away = (masked.targets != targets).flatten().cpu()
    if before.symbols.shape != away.shape or not away.any():
        return False
    known = bool((before.symbols[away] == symbol).all() and (after.symbols[away] == -1).all())
    return known and torch.equal(before.symbols[~away], after.symbols[~away])


def _pulls(outputs: Any, batch: Batch, loss_fn: Callable[[Any, Any], Tensor]) -> Scored | None:
    scores, targets = scores_of(outputs), batch.targets.cpu()
    if scores is None:
        return None
    try:
        gradient = output_gradient(loss_fn, outputs, targets)
    except Exception:  # whatever a loss raises at a label that it does not know
        return None
    return None if gradient is None else scored(batch.call, scores, gradient, targets)


def _shape_of_input(call: Call, symbols: Tensor) -> tuple[int, int] | None:
    """Return the shape of an input of symbols with as many positions as are scored."""
    for tensor in call.tensors():
        matrix = tensor.dim() == 2 and not tensor.is_floating_point()
        if matrix and tensor.numel() == symbols.numel():
            return tensor.shape[0], tensor.shape[1]
    return None


def _at_the_end(flags: Tensor) -> Tensor:
    """Return which entries belong to the run of true ones at the end of each row, (rows, N)."""
    return flags.flip(1).long().cumprod(dim=1).flip(1).bool()
