"""Whether outputs belong to their own samples: the loss where targets change places in a batch."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.evidence import Pairing
from debugnn.doctor.observe.calls import Call, map_tensors
from debugnn.doctor.observe.layout import Layout, samples_axis
from debugnn.doctor.observe.loss_function.made_up import Loss, LossFunction, equal, random_numbers

_GROUP = 64  # samples that change places with each other
_GROUPS = 48  # most groups that are compared
_LEAST = 2  # fewest samples of a group that get an output of another target
_PARTS = (2, 3, 4)  # of a group, by which its outputs are moved; and by one sample


@torch.enable_grad()  # a loss may hold a gradient's norm
def compare_pairings(
    batches: Sequence[tuple[Call, Any, Any]], layout: Layout, loss_fn: LossFunction
) -> Pairing:
    """Compare the loss of outputs with their own targets to that with other samples' targets.

    A batch is parted into groups. The targets of a group are moved by a few samples, and only the
    samples count whose input and target differ from those of the sample whose target they get. The
    outputs stay where they are: a loss may form pairs or triplets of them. A loss that does not
    read the targets, or is the same whichever output stands beside which target, as a distance of
    two sets is, is not looked at: it is tried with made-up outputs. Nor are targets that name
    places in the batch, as where each sample's partner is to be told from all others: they mean
    nothing in a part of it.

    Args:
        batches: call, outputs and targets of each.
        layout: where their samples lie.
        loss_fn: the training's.
    """
    gaps: list[float] = []
    better: list[float] = []
    own: list[float] = []
    for call, outputs, targets in batches:
        count = layout.count(call) or 0
        if _are_places(targets, count):
            continue
        for rows in _groups(count):
            if len(gaps) == _GROUPS:
                break
            found = list(_exchanges(call, outputs, targets, rows, layout, loss_fn))
            if found:
                gaps.append(statistics.fmean(other - mine for mine, other in found))
                own.append(statistics.fmean(mine for mine, _ in found))
                better += [0.5 if equal(*pair) else float(pair[0] < pair[1]) for pair in found]
    if not gaps:
        return Pairing()
    spread = statistics.stdev(gaps) if len(gaps) > 1 else math.inf
    return Pairing(
        groups=len(gaps),
        better=statistics.fmean(better),
        own=statistics.fmean(own),
        gap=statistics.fmean(gaps),
        error=spread / math.sqrt(len(gaps)),
    )


def _are_places(targets: Any, count: int) -> bool:
    """Return whether the targets are whole numbers that name each sample of a batch once."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.numel() != count:
        return False
    return bool((targets.flatten().sort().values.cpu() == torch.arange(count)).all())


def _groups(count: int) -> Iterator[Tensor]:
    """Yield the indices of each group of a batch, all groups as large as can be."""
    if count >= _LEAST:
        parts = max(1, round(count / _GROUP))
        yield from torch.arange(count).tensor_split(parts)


def _exchanges(
    call: Call, outputs: Any, targets: Any, rows: Tensor, layout: Layout, loss_fn: LossFunction
) -> Iterator[tuple[float, float]]:
    """Yield the loss of the samples' own outputs and that of others', for each move of a group."""
    sizes = {max(1, len(rows) // part) for part in _PARTS} | {1}
    tried = False
    for size in sorted(sizes):
        others = rows.roll(size)
        differ = _differ(call, targets, rows, others, layout)
        if differ is None or int(differ.sum()) < _LEAST:
            continue
        here, there = rows[differ], others[differ]
        mine = layout.part_of(call, outputs, here)
        own, others_own = (layout.part_of(call, targets, index) for index in (here, there))
        if mine is None or own is None or others_own is None:
            return
        loss = Loss(loss_fn, mine, own)
        if not tried and not _tells_apart(loss, layout.part_of(call, targets, here.roll(1))):
            return
        tried = True
        pair = loss.at(mine), loss.at(mine, others_own)
        if all(map(math.isfinite, pair)):
            yield pair


def _differ(
    call: Call, targets: Any, rows: Tensor, others: Tensor, layout: Layout
) -> Tensor | None:
    """Return which samples have another input and another target than those beside them."""

    def differing(tensors: list[Tensor], axes: list[int | None]) -> Tensor | None:
        found = None
        for tensor, axis in zip(tensors, axes, strict=True):
            if axis is not None:
                lying = tensor.movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor[:, None]
                index = rows.to(lying.device), others.to(lying.device)
                unequal = (lying[index[0]] != lying[index[1]]).any(dim=1).cpu()
                found = unequal if found is None else found | unequal
        return found

    count, given = layout.count(call), call.tensors()
    main = layout.inputs(call)
    if count is None or main is None:
        return None
    axis = layout.axis or 0
    inputs = differing(given, [axis if t is main else samples_axis(t, count, axis) for t in given])
    by_sample = map_tensors(targets, lambda t: layout.targets_by_sample(call, t))
    wanted = [t for t in Call((by_sample,)).tensors() if t.dim() and len(t) == count]
    labels = differing(wanted, [0] * len(wanted))
    return None if inputs is None or labels is None else inputs & labels


def _tells_apart(loss: Loss, moved: Any) -> bool:
    """Return whether the loss of made-up outputs changes as targets change places.

    Args:
        moved: the loss's own targets in another order.
    """
    random = random_numbers()

    def shrunk(tensor: Tensor) -> Tensor:  # stays a probability, or a logarithm of one
        return tensor * (1 - 0.5 * torch.rand(tensor.shape, generator=random).to(tensor))

    def drawn(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=random).to(tensor)

    for change in (shrunk, drawn):
        made_up = map_tensors(loss.outputs, partial(_if_floating, change))
        values = loss.at(made_up), loss.at(made_up, moved)
        if all(map(math.isfinite, values)) and not equal(*values):
            return True
    return False


def _if_floating(change: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    return change(tensor) if tensor.is_floating_point() else tensor
