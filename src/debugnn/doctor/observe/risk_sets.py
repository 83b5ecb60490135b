"""Which samples a Cox partial likelihood compares an event with: its risk set.

The likelihood of an event is a softmax over the samples at risk, which are those whose time is at
least as long (Cox 1972, Regression models and life-tables). Such a loss is known by its
gradient where one sample alone has an event: scores outside of the risk set get none, those within
it get their share of the softmax. A ranking loss that compares pairs gives other shares.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import (
    Call,
    first_tensor,
    in_memory_as,
    is_plain,
    map_tensors,
)
from debugnn.doctor.observe.loss_function.made_up import Loss, LossFunction, random_numbers

_LEAST = 8  # fewest samples: fewer may lie in the order of their times by chance
_COLUMNS = 4  # most columns of a tensor of targets
_TIMES = 3  # fewest different values of times
_TRIED = (0.25, 0.5, 0.75)  # events that are tried, as shares of the samples in order of time
# Numerical tolerances, of logarithms of sums in single precision.
_ALIKE = 0.999  # cosine of two vectors of shares that are the same
_BALANCED = 1e-2  # relative difference of two sums that cancel

Link = Callable[[Tensor], tuple[Tensor, Tensor]]
# Outputs of logarithms of hazards, and their derivatives by these: a model may give the hazards.
_LINKS: tuple[Link, ...] = (lambda h: (h, torch.ones_like(h)), lambda h: (h.exp(), h.exp()))


class _Column(NamedTuple):
    """A column of targets: of which tensor, at which place in it, and its values (N,)."""

    tensor: int
    place: int
    values: Tensor


class RiskSets(NamedTuple):
    """Which samples an event is compared with, and where its time stands among the targets."""

    compared: str  # later or earlier
    time: tuple[int, int]  # number of the tensor, and its column


def times_of(targets: Any, time: tuple[int, int], count: int) -> Tensor | None:
    """Return the times (count,) of a batch's targets, None where they are not as expected."""
    found = [column.values for column in _columns(targets, count) if column[:2] == time]
    return found[0] if found else None


@torch.enable_grad()
def risk_sets(loss_fn: LossFunction, outputs: Any, targets: Any) -> RiskSets | None:
    """Return which samples an event of a Cox partial likelihood is compared with.

    Targets hold a column of events, 0 or 1, and one of times. Numbers below zero are not taken for
    times: they may be times whose sign is turned, so that the longest comes first. The loss is
    called with made-up scores, times and events, ten times for each pair of such columns. Where the
    batch is in the order of its times, the made-up ones have this order too: the loss may rely on
    it.

    Args:
        outputs: the model's for a batch, a score for each sample.
        targets: the batch's: a tensor or a nest of containers.

    Returns:
        `later`: with samples whose time is at least as long, as it should be. `earlier`: with those
        whose time is at most as long. None of another loss.
    """
    scores = first_tensor(outputs)
    if scores is None or not scores.is_floating_point() or scores.numel() < _LEAST:
        return None
    columns = _columns(targets, scores.numel())
    events = [column for column in columns if _is_indicator(column.values)]
    times = [column for column in columns if _is_time(column.values)]
    loss = Loss(loss_fn, outputs, targets)
    for event, time, link in itertools.product(events, times, _LINKS):
        try:
            found = _direction(loss, scores, event, time, link)
        except Exception:  # whatever the user's function raises of made-up values
            continue
        if found is not None:
            return RiskSets(found, time[:2])
    return None


def _columns(targets: Any, count: int) -> list[_Column]:
    """Return the columns (N,) of those tensors of the targets that have a few for each sample."""
    return [
        _Column(number, place, values)
        for number, tensor in enumerate(Call((targets,)).tensors())
        if is_plain(tensor) and tensor.shape[:1] == (count,) and tensor[0].numel() <= _COLUMNS
        for place, values in enumerate(tensor.detach().cpu().reshape(count, -1).unbind(dim=1))
    ]


def _is_indicator(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _is_time(values: Tensor) -> bool:
    known = values.dtype != torch.bool and bool(torch.isfinite(values).all())
    return known and values.min().item() >= 0 and len(values.unique()) >= _TIMES


def _direction(loss: Loss, scores: Tensor, event: _Column, time: _Column, link: Link) -> str | None:
    """Return `later` or `earlier`, None where it is neither."""
    count, random = scores.numel(), random_numbers()
    hazards = torch.randn(count, generator=random)
    made_up, slope = link(hazards)
    made_up = made_up.reshape(scores.shape).to(scores.device)
    ranks = _ranks(time.values, random)
    lengths = ranks + 1.0
    if time.values.is_floating_point():  # in the unit of the batch's
        lengths *= time.values.max().item() / count

    def pull(rank: int) -> Tensor:
        """Return the gradient by log hazards where the sample of this rank has the only event."""
        values = {event[:2]: (ranks == rank).float(), time[:2]: lengths}
        gradient = loss.gradient(made_up, _filled(loss.targets, values))
        if gradient is None:
            return torch.full_like(hazards, math.nan)
        return gradient.flatten().float().cpu() * slope

    tried = [(rank, pull(rank)) for rank in (int(share * count) for share in _TRIED)]
    # An event that is alone in its risk set has no gradient but that of penalties.
    for name, alone in (("later", count - 1), ("earlier", 0)):
        rest = pull(alone)
        sets = [(ranks >= r) if name == "later" else (ranks <= r) for r, _ in tried]
        if all(
            _are_shares(found - rest, ranks == rank, at_risk & (ranks != rank), hazards)
            for (rank, found), at_risk in zip(tried, sets, strict=True)
        ):
            return name
    return None


def _ranks(times: Tensor, random: torch.Generator) -> Tensor:
    """Return the rank of each sample by its made-up time, (N,)."""
    steps = times.double().diff()
    ascending = torch.arange(len(times))
    if (steps >= 0).all():
        return ascending
    return ascending.flip(0) if (steps <= 0).all() else torch.randperm(len(times), generator=random)


def _are_shares(pull: Tensor, own: Tensor, others: Tensor, hazards: Tensor) -> bool:
    """Return whether a gradient is that of minus the logarithm of a softmax over a risk set.

    Args:
        pull: (N,).
        own: which sample has the event.
        others: which other samples are at risk.
    """
    shares = torch.where(others, hazards.exp(), 0.0)
    theirs = torch.where(own, 0.0, pull)
    alike = torch.nn.functional.cosine_similarity(theirs, shares, dim=0)
    against, towards = theirs.sum().item(), -pull[own].item()
    return alike.item() > _ALIKE and math.isclose(against, towards, rel_tol=_BALANCED)


def _filled(targets: Any, values: dict[tuple[int, int], Tensor]) -> Any:
    """Return targets with other values in some columns.

    Args:
        values: number of the tensor and place of the column in it → (N,).
    """
    numbers = itertools.count()

    def change(tensor: Tensor) -> Tensor:
        number, rows = next(numbers), None
        for (where, place), column in values.items():
            if where == number:
                rows = tensor.reshape(len(tensor), -1).clone() if rows is None else rows
                rows[:, place] = column.to(rows)
        return tensor if rows is None else in_memory_as(rows.reshape(tensor.shape), tensor)

    return map_tensors(targets, change)
