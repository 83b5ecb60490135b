"""Target values that stand among the inputs, up to a scale and an offset, and whether outputs see
them.

A forecasting net that is given a window of the past and of the future may be given what it is to
forecast. Every target column is compared with every input value over some samples. Then single
values that are copies of a target change places among the samples, on a copy of the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import TargetCopyFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.own_inputs import is_noisy
from debugnn.doctor.observe.sequences import named_tensors

_SAMPLES = 256  # most samples that are compared
_COLUMNS = 256  # target columns: maps have more, and every one is compared with every input value
_VALUES = 8192  # most values of an input that are compared
_KINDS = 8  # values that a column takes, at least: a column of few values agrees by chance
_PROBES = 4  # columns whose copies change places
_LONG = 16  # fewest positions behind channels, which may be a few frames of one state otherwise
_LEAST_POSITIONS = 4  # fewest positions of a sequence whose targets are its next values
_ROUNDING = 1e-9  # of 1 − r² for a correlation r of numbers that were computed in float32


def target_copy_facts(
    model: nn.Module, batches: Sequence[Batch], layout: Layout
) -> TargetCopyFacts | None:
    """Compare target columns with the values of each input.

    Args:
        model: a copy of the model.
        batches: of the training.
        layout: where their samples lie.

    Returns:
        None where no input holds exactly one copy of each target column, or of those of all
        positions of a sequence but the last ones.
    """
    if layout.axis != 0 or not batches:
        return None
    names = [name for name, _ in named_tensors(model, batches[0].call)]
    for index, name in enumerate(names):
        found = _columns(batches, index, layout)
        if found is None:
            continue
        rows, targets, shape = found
        places = _places_of_copies(rows, targets)
        if places is None:
            continue
        copied = (places >= 0).nonzero()[:, 0]
        facts = TargetCopyFacts(argument=name, columns=len(copied), samples=len(rows))
        facts.varying = int(_varies(rows).sum())
        if len(copied) == len(places):
            _describe_block(facts, places, shape)
        along = {axis: _shift(places, shape, axis) for axis in _time_axes(shape)}
        for axis, shift in along.items():
            if shift == 0:
                facts.alone, facts.positions = len(names) == 1, shape[axis]
                # A part of the only input may be rebuilt from all positions, or without noise.
                facts.aligned = not facts.alone or not (
                    is_noisy(model, batches[0])
                    or _sees_later(model, batches[0], index, axis, layout)
                )
            elif shift:
                facts.shifted, facts.positions = shift, shape[axis]
        if len(copied) < len(places) and not any(along.values()):
            continue
        with torch.no_grad(), without_dropout(model, training=False):
            facts.change = _change(model, batches[0], index, places, layout)
        return facts
    return None


def _columns(
    batches: Sequence[Batch], index: int, layout: Layout
) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
    """Return an input's values (N, D), the target columns (N, K), and the shape of a sample.

    None where the tensor holds no such values for each sample.
    """
    rows, columns, shape = [], [], None
    for batch in batches:
        tensors = batch.call.tensors()
        if index >= len(tensors) or not isinstance(batch.targets, Tensor):
            return None
        given, count = tensors[index], layout.count(batch.call)
        if not is_plain(given) or not given.is_floating_point() or given.dim() < 2:
            return None
        targets = layout.targets_by_sample(batch.call, batch.targets)
        if len(given) != count or len(targets) != count or not is_plain(targets):
            return None
        if shape is not None and given.shape[1:] != shape:
            continue  # sequences of another length
        shape = given.shape[1:]
        rows.append(given.detach().flatten(1).cpu().double())
        columns.append(targets.detach().reshape(count, -1).cpu().double())
        if columns[-1].shape[1] != columns[0].shape[1] or columns[0].shape[1] > _COLUMNS:
            return None
        if rows[0].shape[1] > _VALUES:
            return None
        if sum(map(len, rows)) >= _SAMPLES:
            break
    if shape is None:
        return None
    inputs, targets = torch.cat(rows)[:_SAMPLES], torch.cat(columns)[:_SAMPLES]
    finite = torch.isfinite(inputs).all(dim=1) & torch.isfinite(targets).all(dim=1)
    return inputs[finite], targets[finite], tuple(shape)


def _varies(rows: Tensor) -> Tensor:
    """Return which columns (N, K) take several values, (K,)."""
    ordered = rows.sort(dim=0).values
    return (ordered.diff(dim=0) != 0).sum(dim=0) >= _KINDS - 1


def _places_of_copies(rows: Tensor, targets: Tensor) -> Tensor | None:
    """Return which input value is each target column times a positive number plus a number, (K,).

    −1 of a column that has no copy. None where a target column takes few values, where none has a
    copy, or where one has several input values that are linear in it: those of a trend or of a
    season, which nobody has to copy.
    """
    if len(rows) <= _KINDS or not targets.shape[1] or not bool(_varies(targets).all()):
        return None
    agreement = _standardised(rows).T @ _standardised(targets)  # (D, K), correlations
    linear = 1 - agreement.square() < _ROUNDING
    copies = linear.sum(dim=0)
    copied = copies == 1
    if bool((copies > 1).any()) or not bool(copied.any()):
        return None
    places = linear.double().argmax(dim=0)
    positive = agreement.gather(0, places[None])[0] > 0
    if not bool(positive[copied].all()) or len(places[copied].unique()) < int(copied.sum()):
        return None
    return torch.where(copied, places, -1)


def _time_axes(shape: tuple[int, ...]) -> set[int]:
    """Return the axes of a sample that may be of time: the first one, and the last one of a long
    sequence of channels. That of images is of space, where anything may move as a whole."""
    long = len(shape) == 2 and shape[1] >= _LONG
    return {0, 1} if long else {0}


def _shift(places: Tensor, shape: tuple[int, ...], axis: int) -> int | None:
    """Return how many positions later than its target each copy stands, along an axis of a sample.

    Args:
        places: see `_places_of_copies`.
        shape: of a sample.
        axis: of the positions, the sample's first or last one: (positions, features), or (channels,
            positions). That of the targets is in the same place.

    Returns:
        0 where each target stands at its own position, as the same one of several features. None
        where positions differ in that, or others than the last ones have no copy.
    """
    length, copied = shape[axis], places >= 0
    if len(places) % length or length < _LEAST_POSITIONS:
        return None
    each = torch.arange(len(places), device=places.device)
    of_targets = each // (len(places) // length) if axis == 0 else each % length
    at = torch.unravel_index(places[copied], shape)
    shifts = (at[axis] - of_targets[copied]).unique().tolist()
    if len(shifts) != 1 or not 0 <= shifts[0] < length / 2:
        return None
    if shifts[0] == 0:
        one_each = len(shape) == 2 and len(places) == length and shape[1 - axis] > 1
        return 0 if one_each and len(at[1 - axis].unique()) == 1 else None
    return shifts[0] if bool((copied == (of_targets < length - shifts[0])).all()) else None


def _standardised(columns: Tensor) -> Tensor:
    """Return columns (N, K) of mean 0 and length 1, or of zeros where they do not vary."""
    centred = columns - columns.mean(dim=0)
    length = torch.linalg.vector_norm(centred, dim=0)
    return centred * _varies(columns) / length.clamp_min(1e-300)


def _describe_block(facts: TargetCopyFacts, places: Tensor, shape: tuple[int, ...]) -> None:
    """Note along which axis the copies are the last positions, where they fill a block."""
    indices = torch.stack(torch.unravel_index(places, shape))  # (axes, K)
    kinds = [along.unique() for along in indices]
    volume = 1
    for along in kinds:
        volume *= len(along)
    if volume != len(places):
        return
    for axis, along in enumerate(kinds):
        first = shape[axis] - len(along)
        if first > 0 and along.tolist() == list(range(first, shape[axis])):
            facts.last_of_axis, facts.positions = axis + 1, shape[axis]
            facts.last_positions = len(along)
            return


def _change(
    model: nn.Module, batch: Batch, index: int, places: Tensor, layout: Layout
) -> float | None:
    """Return how much an output changes as the copy of its target changes places among samples.

    Returns:
        Root mean square of the change over the outputs' standard deviation, the least of some
        columns that have a copy. All outputs are those of a single target, as its quantiles are.
        None where outputs cannot be told apart by target.
    """
    before = _outputs(model, batch.call, layout)
    if before is None or (len(places) > 1 and before.shape[1] != len(places)):
        return None
    copied = (places >= 0).nonzero()[:, 0].tolist()
    step = max((len(copied) - 1) // (_PROBES - 1), 1)
    changes = []
    for column in copied[::step][: _PROBES + 1]:
        after = _outputs(model, _exchanged(batch.call, index, int(places[column])), layout)
        own = slice(column, column + 1) if len(places) > 1 else slice(None)
        spread = before[:, own].std(dim=0, correction=0)
        if after is None or not bool((spread > 0).all()):
            return None
        moved = (after - before)[:, own].square().mean(dim=0).sqrt()
        changes.append((moved / spread).min().item())
    return min(changes)


def _sees_later(model: nn.Module, batch: Batch, index: int, axis: int, layout: Layout) -> bool:
    """Return whether the first position's output changes with what the last position is given.

    One that rebuilds a part of its only input from all of it may be meant to.
    """
    given = batch.call.tensors()[index]
    changed = given.clone()
    last = changed.select(axis + 1, -1)
    last.copy_(last.roll(1, dims=0))
    with torch.no_grad(), without_dropout(model, training=False):
        before, after = (
            _outputs(model, call, layout)
            for call in (batch.call, batch.call.exchanged(given, changed))
        )
    return before is None or after is None or not torch.equal(before[:, 0], after[:, 0])


def _exchanged(call: Call, index: int, place: int) -> Call:
    """Return the call with one value of each sample taken from the next sample."""
    given = call.tensors()[index]
    flat = given.flatten(1).clone()
    flat[:, place] = flat[:, place].roll(1)
    return call.exchanged(given, flat.reshape(given.shape))


def _outputs(model: nn.Module, call: Call, layout: Layout) -> Tensor | None:
    """Return the first tensor of the outputs by sample, (B, K)."""
    found: Any = first_tensor(call(model))
    count = layout.count(call)
    if found is None or count is None:
        return None
    found = layout.targets_by_sample(call, found.detach().cpu().double())
    return found.reshape(count, -1) if found.dim() and len(found) == count else None
