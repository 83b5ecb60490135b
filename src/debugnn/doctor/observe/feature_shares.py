"""How much of each feature's variance the targets explain, in the training and on new samples."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.evidence import LostShare

# What a share of variance can be computed from.
_LEAST_SAMPLES = 30
_LEAST_OF_CLASS = 8  # the mean of fewer samples lies close to each of them
_VARYING = 0.01  # smallest share of samples that differ from a feature's commonest value
_ZERO_VARIANCE = 1e-12
_LARGEST = 1 - 1e-9  # share whose correlation has a finite Fisher transform
_LISTED = 64  # most features whose shares in two sets are kept


def shares_of_classes(rows: Tensor, labels: Tensor) -> Tensor | None:
    """Return the share of each feature's variance that lies between the classes, (features,).

    1 − (sum of squares within the classes) / (total sum of squares), the correlation ratio η²;
    0 of a feature that hardly ever varies, which says nothing about labels that it happens to go
    with. None of too few samples.
    """
    counts = torch.bincount(labels)
    enough = counts[labels] >= _LEAST_OF_CLASS
    rows, labels = rows[enough], labels[enough]
    if len(rows) < _LEAST_SAMPLES or len(labels.unique()) < 2:
        return None
    hot = F.one_hot(labels).double()
    hot = hot[:, hot.sum(dim=0) > 0]
    means = (hot.T @ rows) / hot.sum(dim=0)[:, None]
    total = (rows - rows.mean(dim=0)).square().sum(dim=0)
    within = (rows - hot @ means).square().sum(dim=0)
    common = (rows != rows.mode(dim=0).values).double().mean(dim=0) > _VARYING
    return torch.where(common & (total > _ZERO_VARIANCE), 1 - within / total.clamp_min(1e-30), 0.0)


def shares_of_values(rows: Tensor, targets: Tensor) -> Tensor | None:
    """Return each feature's squared correlation with the targets (N, 1), (features,).

    None of too few samples.
    """
    if len(rows) < _LEAST_SAMPLES:
        return None
    centred, wanted = rows - rows.mean(dim=0), targets - targets.mean()
    power = centred.square().sum(dim=0) * wanted.square().sum()
    return (centred * wanted).sum(dim=0).square() / power.clamp_min(1e-30)


def shares_of_ranks(rows: Tensor, targets: Tensor) -> Tensor | None:
    """Return each feature's squared rank correlation with the targets (N, 1), (features,).

    Spearman's ρ²: 1 of a feature that rises, or falls, with the target, whatever the curve. Equal
    values have their mean rank. None of too few samples.
    """
    if len(rows) < _LEAST_SAMPLES:
        return None
    ranked = torch.stack([_ranks(column) for column in rows.T], dim=1)
    return shares_of_values(ranked, _ranks(targets.flatten())[:, None])


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value (N,), float64."""
    _, kind, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    return (last - (counts - 1) / 2)[kind]


def lost_shares(
    rows: Tensor, targets: Tensor, new_rows: Tensor, new_targets: Tensor, classes: bool
) -> list[LostShare]:
    """Return the features that tell more of the training targets than of new ones, at most 64.

    By the difference of the two correlations in standard errors, after Fisher's transformation
    (Fisher 1921, On the "probable error" of a coefficient of correlation), the largest first.

    Args:
        rows: training samples (N, features), float64.
        targets: of these, class indices (N,), or values (N, 1).
        new_rows: validation samples (M, features).
        new_targets: theirs.
        classes: whether the targets are classes.

    Returns:
        Nothing where there are too few samples.
    """
    shares_of = shares_of_classes if classes else shares_of_values
    before, after = shares_of(rows, targets), shares_of(new_rows, new_targets)
    if before is None or after is None:
        return []
    told, tells = (share.clamp(0, _LARGEST).sqrt().atanh() for share in (before, after))
    errors = (told - tells) / math.sqrt(1 / (len(rows) - 3) + 1 / (len(new_rows) - 3))
    return [
        LostShare(feature, before[feature].item(), after[feature].item(), errors[feature].item())
        for feature in errors.argsort(descending=True)[:_LISTED].tolist()
    ]
