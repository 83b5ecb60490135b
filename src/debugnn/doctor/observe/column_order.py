"""Pairs of target values whose order is one in validation samples, and either in the training.

The left eye of a face has the smaller abscissa. An image that is mirrored, with the abscissae of
its points, has its left eye on the right, until the two points are exchanged.
"""

import torch
from torch import Tensor

from debugnn.doctor.evidence import ColumnOrderFacts

_SAMPLES = 50  # fewest, of each set
_COLUMNS = (4, 64)  # fewest and most target values of a sample
_FIXED = 0.99  # share of validation samples from which a pair has one order
_KEPT = 0.95  # the same of training samples
_MIXED = 0.2  # share of either order in the training
_AS_FAR = 0.25  # relative difference of the mean distances of a pair in both sets


def column_order_facts(trained: Tensor, held: Tensor) -> ColumnOrderFacts | None:
    """Return which pairs of columns come in both orders in the training alone.

    Args:
        trained: training targets (N, columns).
        held: validation targets (M, columns).

    Returns:
        None where no pair has both orders, as far apart as in the validation, or where no other
        pair keeps its order: turned images mix all of them.
    """
    columns = trained.shape[1]
    if held.shape[1] != columns or min(len(trained), len(held)) < _SAMPLES:
        return None
    if not _COLUMNS[0] <= columns <= _COLUMNS[1]:
        return None
    first, second = torch.triu_indices(columns, columns, 1)
    before, after = (t[:, first].double() - t[:, second].double() for t in (trained, held))
    fixed = (after > 0).double().mean(dim=0)
    rising = fixed < 0.5
    share = (before > 0).double().mean(dim=0)
    one_way = torch.where(rising, 1 - fixed, fixed) >= _FIXED
    own_way = torch.where(rising, 1 - share, share)
    distances = before.abs().mean(dim=0), after.abs().mean(dim=0)
    alike = (distances[0] / distances[1].clamp_min(1e-30) - 1).abs() < _AS_FAR
    mixed = one_way & alike & (own_way > _MIXED) & (own_way < 1 - _MIXED)
    kept = one_way & (own_way >= _KEPT)
    if not mixed.any() or not kept.any():
        return None
    example = int(mixed.nonzero()[0])
    return ColumnOrderFacts(
        pair=(int(first[example]), int(second[example])),
        mixed=int(mixed.sum()),
        kept=int(kept.sum()),
        reversed=1 - own_way[example].item(),
    )
