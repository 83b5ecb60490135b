"""Along which of two axes of a batch neighbours depend on each other, as steps of a sequence do.

A network may keep the entries of one axis apart and let those of the other one depend on each
other: of sequences whose time lies along the other axis that is right, else the network runs over
the batch instead of over time. The data tell which it is. Neighbours along time depend on each
other, more than values that are far apart; neighbours in a shuffled batch do not, beyond what their
place in the sequence says.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from debugnn.doctor.evidence import NeighbourFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import is_plain
from debugnn.doctor.observe.layout import Layout

_LEAST = 4  # entries along either axis
_NONE = 0.04  # dependence that chance gives
# Pairs of neighbours that are the same as another pair, at least: fewer come about by chance.
_COLLISIONS = 400


def neighbour_facts(batches: Sequence[Batch], layout: Layout) -> NeighbourFacts | None:
    """Measure how much neighbours along the first and along the second axis depend on each other.

    Of the inputs; of targets for each of their positions, where no inputs depend on each other.

    Args:
        batches: of the training.
        layout: names the inputs; their first two axes are compared.

    Returns:
        None where the inputs have no two such axes, or too few values come again to tell.
    """
    given = [layout.inputs(batch.call) for batch in batches]
    inputs = [x for x in given if x is not None and is_plain(x) and x.dim() in (2, 3)]
    inputs = [x.detach().cpu() for x in inputs if min(x.shape[:2]) >= _LEAST]
    if not inputs or any(x.dim() == 2 and x.is_floating_point() for x in inputs):
        return None  # of a table, the second axis holds features
    along = _along_both(inputs)
    if along is None:
        return None
    if max(along) > _NONE:
        return NeighbourFacts(*along)
    # Inputs may be noise; what is asked of each of them may still depend on what came before.
    targets = [
        batch.targets.detach().cpu()
        for batch, x in zip(batches, given, strict=True)
        if x is not None and isinstance(batch.targets, Tensor) and is_plain(batch.targets)
        if batch.targets.shape[:2] == x.shape[:2] and min(x.shape[:2]) >= _LEAST
    ]
    targets = [y.unsqueeze(2) if y.dim() == 2 and y.is_floating_point() else y for y in targets]
    of_targets = _along_both(targets) if targets and targets[0].dim() in (2, 3) else None
    return NeighbourFacts(*along) if of_targets is None else NeighbourFacts(*of_targets, "targets")


def has_both_axes(batch: Batch, layout: Layout) -> bool:
    """Return whether there is a target for each position along the inputs' first two axes."""
    inputs, targets = layout.inputs(batch.call), batch.targets
    if inputs is None or not isinstance(targets, Tensor) or not is_plain(targets):
        return False
    return targets.dim() >= 2 and is_plain(inputs) and targets.shape[:2] == inputs.shape[:2]


def _along_both(values: Sequence[Tensor]) -> tuple[float, float] | None:
    """Return how much neighbours along the first and along the second axis depend on each other."""
    measure = _of_values if values[0].is_floating_point() else _of_symbols
    first = measure([x.transpose(0, 1) for x in values])
    second = measure(values)
    return None if first is None or second is None else (first, second)


def _of_symbols(inputs: Sequence[Tensor]) -> float | None:
    """Return how many more pairs of symbols come again than do by chance, as a share of them.

    Pairs of neighbours along the second axis. 0 of symbols that depend on their place alone, 1 of
    those that say all of their neighbour.
    """
    kinds = max(int(x.max()) for x in inputs) + 1
    flat = [x.flatten(2)[..., 0] if x.dim() > 2 else x for x in inputs]

    def collisions(second: Callable[[Tensor], Tensor]) -> int:
        pairs = [(x[:, :-1] * kinds + second(x)).flatten() for x in flat]
        _, counts = torch.cat(pairs).unique(return_counts=True)
        return int((counts * (counts - 1)).sum()) // 2

    own, chance = collisions(_next), max(map(collisions, _BY_CHANCE))
    return None if max(own, chance) < _COLLISIONS else max(0.0, 1 - chance / max(own, 1))


def _of_values(inputs: Sequence[Tensor]) -> float | None:
    """Return the mean squared correlation of neighbours along the second axis, over features.

    Less the means of each place along either axis, and what correlates by chance.
    """
    centred = [x.double() for x in inputs]
    for axis in (0, 1):
        centred = [x - x.mean(dim=axis, keepdim=True) for x in centred]

    def correlation(second: Callable[[Tensor], Tensor]) -> float:
        left = torch.cat([x[:, :-1].flatten(0, 1) for x in centred])  # (pairs, features)
        right = torch.cat([second(x).flatten(0, 1) for x in centred])
        size = (left.square().sum(dim=0) * right.square().sum(dim=0)).clamp_min(1e-300)
        return ((left * right).sum(dim=0).square() / size).mean().item()

    return max(0.0, correlation(_next) - max(map(correlation, _BY_CHANCE)))


def _next(x: Tensor) -> Tensor:
    """Return what follows each value but the last one along the second axis."""
    return x[:, 1:]


def _next_of_another(x: Tensor) -> Tensor:
    """Return the same of another entry of the first axis, half of it away."""
    return _next(x).roll(len(x) // 2, dims=0)


def _far_away(x: Tensor) -> Tensor:
    """Return what stands half of the second axis behind each value but the last one."""
    return x.roll(-(x.shape[1] // 2), dims=1)[:, :-1]


# What is alike because of the places alone, whichever axis is that of the samples.
_BY_CHANCE = (_next_of_another, _far_away)
