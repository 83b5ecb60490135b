"""Categories of validation samples that another table numbers than the one of the training.

A network that is given other numbers of the same categories knows nothing of them. Where one table
of new numbers, chosen on half of the samples, brings the loss of the other half down to that of
training samples, the numbers are what differs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import RecodedFacts
from debugnn.doctor.observe.buffer import Batch, ValidationBatch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.made_up import LossFunction
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout

_FEWEST = 4  # categories of a column
_COLUMNS = 8  # most columns of a tensor; more are the positions of a sequence
_SAMPLES = 512  # most validation samples
_TRIED = 128**2  # most pairs of a category and a number, of all columns together
_OF_CATEGORY = 4  # samples of a category, at least on average
_WORSE = 1.25  # loss of validation over that of training samples from which numbers are looked for


class _Column(NamedTuple):
    """A column of categories: the place of its tensor among a call's, and its own there."""

    tensor: int
    place: int | None  # None of a tensor (B,)


def recoded_facts(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    validation: ValidationBatch,
    layout: Layout,
) -> RecodedFacts | None:
    """Return the losses of validation samples as they are, and with their categories renumbered.

    Each category gets a number of its own, one that came in training batches, such that the loss
    of one half of the samples is low; the loss of the other half is noted. Columns are renumbered
    one after the other.

    Args:
        model: a copy of the model as it is now.
        loss_fn: the training's own.
        batches: of the training.
        validation: the latest.
        layout: where the samples lie.

    Returns:
        None without columns of few categories, and where the loss is hardly higher than that of
        training samples.
    """
    count, trained = layout.count(validation.call), [b for b in batches if layout.count(b.call)]
    if layout.axis != 0 or not trained or count is None:
        return None
    known = _numbers_of(trained, validation.call, validation.targets, min(count, _SAMPLES))
    if not known:
        return None
    rows = torch.arange(min(count, _SAMPLES))
    halves = [layout.take(validation.call, part, validation.targets) for part in _halves(rows)]
    latest = trained[-1]

    def loss(call: Call, targets: object) -> float:
        return value_of(loss_fn, call(model), targets)

    with torch.no_grad(), without_dropout(model, training=False):
        try:
            training = loss(latest.call, latest.targets)
            plain = [loss(*half) for half in halves]
            if not 0 < training * _WORSE < min(plain):
                return None
            tables = [_tables(model, loss_fn, layout, half, known) for half in halves]
            changed = [
                loss(_renumbered(call, table), targets)
                for (call, targets), table in zip(halves, reversed(tables), strict=True)
            ]
        except Exception:  # a loss or a model that takes no part of a batch
            return None
    return RecodedFacts(
        training=training,
        validation=plain,
        renumbered=changed,
        categories=[len(old) for old, _ in tables[0].values()],
    )


_Tables = dict[_Column, tuple[Tensor, Tensor]]  # column → its categories, and their new numbers


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows[::2], rows[1::2]


def _numbers_of(
    trained: Sequence[Batch], call: Call, targets: Any, samples: int
) -> dict[_Column, Tensor]:
    """Return the numbers of training samples in each column of few categories."""
    known: dict[_Column, Tensor] = {}
    work = 0
    for number, tensor in enumerate(call.tensors()):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            continue
        if isinstance(targets, Tensor) and torch.equal(tensor, targets):
            continue  # the label, which a loss of margins takes from the model's arguments
        if (tensor.dim() == 2 and tensor.shape[1] > _COLUMNS) or tensor.dim() not in (1, 2):
            continue
        for place in [None] if tensor.dim() == 1 else range(tensor.shape[1]):
            column = _Column(number, place)
            seen = torch.cat([_values(b.call, column) for b in trained]).unique()
            own = len(_values(call, column).unique())
            few = _FEWEST <= own <= len(seen) and samples >= 2 * _OF_CATEGORY * own
            if few and work + own * len(seen) <= _TRIED:
                known[column] = seen
                work += own * len(seen)
    return known


def _values(call: Call, column: _Column) -> Tensor:
    tensor = call.tensors()[column.tensor]
    return tensor if column.place is None else tensor[:, column.place].contiguous()


def _renumbered(call: Call, tables: _Tables) -> Call:
    """Return a call whose categories have the numbers of the tables; unknown ones keep theirs."""
    for column, (old, new) in tables.items():
        values = _values(call, column)
        place = torch.searchsorted(old, values).clamp_max(len(old) - 1)
        call = _with(call, column, torch.where(old[place] == values, new[place], values))
    return call


def _with(call: Call, column: _Column, values: Tensor) -> Call:
    tensor = call.tensors()[column.tensor]
    if column.place is None:
        return call.exchanged(tensor, values)
    changed = tensor.clone()
    changed[:, column.place] = values
    return call.exchanged(tensor, changed)


def _tables(
    model: nn.Module,
    loss_fn: LossFunction,
    layout: Layout,
    half: tuple[Call, object],
    known: dict[_Column, Tensor],
) -> _Tables:
    """Return the table of each column that lowers the loss of these samples."""
    call, targets = half
    tables: _Tables = {}
    for column, numbers in known.items():
        values = _values(call, column)
        categories, of = values.unique(return_inverse=True)
        own = [(of == category).nonzero().flatten() for category in range(len(categories))]
        losses = torch.empty(len(numbers), len(categories))  # summed over a category's samples
        for row, number in enumerate(numbers):
            given = _with(call, column, torch.full_like(values, int(number)))
            outputs = given(model)
            for category, rows in enumerate(own):
                part = layout.part_of(call, outputs, rows)
                wanted = layout.part_of(call, targets, rows)
                losses[row, category] = len(rows) * value_of(loss_fn, part, wanted)
        tables[column] = categories, numbers[_one_to_one(losses)]
        call = _renumbered(call, {column: tables[column]})
    return tables


def _one_to_one(costs: Tensor) -> Tensor:
    """Return a number for each category, none twice, with the least sum of costs.

    The linear assignment problem, by shortest augmenting paths (Crouse 2016, "On implementing 2D
    rectangular assignment algorithms", IEEE Trans. AES 52, section III).

    Args:
        costs: (numbers, categories), at least as many numbers as categories.

    Returns:
        Indices of numbers, (categories,).
    """
    rows = costs.double().T.numpy()
    categories, numbers = rows.shape
    of_category, of_number = np.zeros(categories), np.zeros(numbers)  # dual variables
    owner = np.full(numbers, -1)  # category of each number
    chosen = np.full(categories, -1)
    for start in range(categories):
        distance = np.full(numbers, np.inf)
        before = np.full(numbers, -1)
        done, seen = np.zeros(numbers, dtype=bool), [start]
        category, shortest, number = start, 0.0, -1
        while category >= 0:
            reduced = shortest + rows[category] - of_category[category] - of_number
            closer = ~done & (reduced < distance)
            distance[closer], before[closer] = reduced[closer], category
            number = int(np.where(done, np.inf, distance).argmin())
            shortest, done[number] = distance[number], True
            category = owner[number]
            if category >= 0:
                seen.append(category)
        of_category[start] += shortest
        others = np.array(seen[1:], dtype=int)
        of_category[others] += shortest - distance[chosen[others]]
        of_number[done] -= shortest - distance[done]
        while number >= 0:
            category = before[number]
            owner[number] = category
            chosen[category], number = number, chosen[category]
            if category == start:
                break
    return torch.from_numpy(chosen)
