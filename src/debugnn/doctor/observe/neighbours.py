"""Along which of two axes of a batch neighbours depend on each other, as steps of a sequence do.

A network may keep the entries of the second axis apart and let those of the first one depend on
each other: of sequences whose time axis comes first that is right, of others the network runs over
the batch instead of over time. The data tell which it is. Neighbours along time depend on each
other; neighbours in a shuffled batch do not, beyond what their place in the sequence says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from debugnn.doctor.evidence import NeighbourFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import is_plain
from debugnn.doctor.observe.layout import Layout

_LEAST = 4  # entries along either axis
# Pairs of neighbours that are the same as another pair, at least: fewer come about by chance.
_COLLISIONS = 400


def neighbour_facts(batches: Sequence[Batch], layout: Layout) -> NeighbourFacts | None:
    """Measure how much neighbours along the first and along the second axis depend on each other.

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
    measure = _of_values if inputs[0].is_floating_point() else _of_symbols
    first = measure([x.transpose(0, 1) for x in inputs])
    second = measure(inputs)
    return None if first is None or second is None else NeighbourFacts(first, second)


def _of_symbols(inputs: Sequence[Tensor]) -> float | None:
    """Return how many more pairs of symbols come again than do by chance, as a share of them.

    Pairs of neighbours along the second axis. By chance: the second of a pair is taken from another
    entry of the first axis, at the same place. 0 of independent symbols, 1 of those that say all of
    their neighbour.
    """
    kinds = max(int(x.max()) for x in inputs) + 1
    pairs, others = [], []
    for x in inputs:
        x = x.flatten(2)[..., 0] if x.dim() > 2 else x
        following = x[:, 1:]
        pairs.append((x[:, :-1] * kinds + following).flatten())
        others.append((x[:, :-1] * kinds + _of_another(following)).flatten())
    own, chance = _collisions(torch.cat(pairs)), _collisions(torch.cat(others))
    return None if max(own, chance) < _COLLISIONS else max(0.0, 1 - chance / max(own, 1))


def _collisions(values: Tensor) -> int:
    """Return how many pairs of equal values there are."""
    _, counts = values.unique(return_counts=True)
    return int((counts * (counts - 1)).sum()) // 2


def _of_values(inputs: Sequence[Tensor]) -> float | None:
    """Return the mean squared correlation of neighbours along the second axis, over features.

    Less the mean of each place along it, and that of values of other entries of the first axis.
    """
    own, others = [], []
    for x in inputs:
        x = x.double()
        x = x - x.mean(dim=0)
        here, following = x[:, :-1].flatten(0, 1), x[:, 1:]
        own.append((here, following.flatten(0, 1)))
        others.append((here, _of_another(following).flatten(0, 1)))
    return max(0.0, _squared_correlation(own) - _squared_correlation(others))


def _squared_correlation(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    left, right = (torch.cat(side) for side in zip(*pairs, strict=True))  # (N, features)
    left, right = left - left.mean(dim=0), right - right.mean(dim=0)
    size = (left.square().sum(dim=0) * right.square().sum(dim=0)).clamp_min(1e-300)
    return ((left * right).sum(dim=0).square() / size).mean().item()


def _of_another(x: Tensor) -> Tensor:
    """Return each entry's values as those of another one, half of the first axis away."""
    return x.roll(len(x) // 2, dims=0)
