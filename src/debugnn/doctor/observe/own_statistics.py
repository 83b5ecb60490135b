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


def standardised_alone(rows: Tensor) -> bool:
    """Return whether these samples have mean 0 and deviation 1 by their own numbers.

    A scaler that was fitted to other samples leaves means that differ from 0 by chance, about
    1/sqrt(N).

    Args:
        rows: (N, …), all samples of a set, real numbers. Nothing is said of more than 2**24.
    """
    if len(rows) < _FEWEST or rows.dim() < 2 or rows.numel() > _LARGEST:
        return False
    values = rows.detach().cpu().double()
    # One number for each value, for each channel or each column of a sequence, and for all values.
    tables = [values.flatten(1)]
    if rows.dim() > 2:
        tables += [values.transpose(0, axis).flatten(1).T for axis in (1, -1)]
    return any(_columns_are_standardised(table) for table in [*tables, values.reshape(-1, 1)])


def _columns_are_standardised(table: Tensor) -> bool:
    means, deviations = table.mean(dim=0), table.std(dim=0, correction=0)
    varies = deviations > _ROUNDING
    allowed = max(_ROUNDING, _SHARE / math.sqrt(len(table)))
    # A deviation that is divided by N − 1 is larger than one that is divided by N.
    larger = math.sqrt(len(table) / (len(table) - 1))
    off = torch.minimum((deviations - 1).abs(), (deviations * larger - 1).abs())
    exact = varies & (means.abs() < allowed) & (off < allowed)
    return bool(exact.any()) and int(exact.sum()) >= (1 - _MOST) * int(varies.sum())
