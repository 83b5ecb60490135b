"""Whether samples were standardised with their own mean and deviation."""

import math

import torch
from torch import Tensor

_FEWEST = 32  # samples
# Of what chance lets a mean and a deviation differ from 0 and 1 by: far less, and it is no chance.
_SHARE = 0.003
_ROUNDING = 1e-6  # what float32 leaves
_LARGEST = 2**24  # values, of which float64 takes 128 MiB
_MOST = 0.5  # share of the features that vary which may be left as they are, such as flags


def standardised_alone(rows: Tensor, known: Tensor | None = None) -> bool:
    """Return whether these samples have mean 0 and deviation 1 by their own numbers.

    A scaler that was fitted to other samples leaves means that differ from 0 by chance, about
    1/sqrt(N).

    Args:
        rows: (N, …), all samples of a set, real numbers. Nothing is said of more than 2**24.
        known: samples of the training, (M, …). A feature whose values all occur among theirs was
            scaled as they were: an hour of the day has one mean on any whole number of days.
    """
    if len(rows) < _FEWEST or rows.dim() < 2 or rows.numel() > _LARGEST:
        return False
    values = rows.detach().cpu()
    other = None
    if known is not None and known.shape[1:] == rows.shape[1:] and known.dtype == rows.dtype:
        other = known.detach().cpu()
    if _columns_are_standardised(values.reshape(-1, 1), None):
        return True
    for axis in [0] if rows.dim() == 2 else [0, 1, -1]:  # values, channels, columns of a sequence
        of_known = None if other is None else _columns(other, axis)
        if _columns_are_standardised(_columns(values, axis), of_known):
            return True
    return False


def _columns(samples: Tensor, axis: int) -> Tensor:
    """Return samples as columns: one for each value, or one for each place along an axis."""
    return samples.flatten(1) if axis == 0 else samples.transpose(0, axis).flatten(1).T


def _columns_are_standardised(table: Tensor, known: Tensor | None) -> bool:
    values = table.double()
    means, deviations = values.mean(dim=0), values.std(dim=0, correction=0)
    varies = deviations > _ROUNDING
    allowed = max(_ROUNDING, _SHARE / math.sqrt(len(table)))
    # A deviation that is divided by N − 1 is larger than one that is divided by N.
    larger = math.sqrt(len(table) / (len(table) - 1))
    off = torch.minimum((deviations - 1).abs(), (deviations * larger - 1).abs())
    exact = varies & (means.abs() < allowed) & (off < allowed)
    if known is not None:
        for column in exact.nonzero().flatten().tolist():
            if bool(torch.isin(table[:, column], known[:, column]).all()):
                exact[column] = varies[column] = False
    return bool(exact.any()) and int(exact.sum()) >= (1 - _MOST) * int(varies.sum())
