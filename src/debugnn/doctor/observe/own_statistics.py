"""Whether samples were standardised with their own mean and deviation."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

_FEWEST = 32  # samples
# Of what chance lets a mean and a deviation differ from 0 and 1 by: far less, and it is no chance.
_SHARE = 0.003
_ROUNDING = 1e-6  # what float32 leaves
_LARGEST = 2**24  # values, of which float64 takes 128 MiB
_LOOKED_AT = 64  # columns, of which each value is looked for among the training's
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
    if _columns_are_standardised(values, None, _whole):
        return True
    if _columns_are_standardised(values, other, partial(_places, axis=0)):
        return True
    # Channels, and columns of a sequence.
    return rows.dim() > 2 and any(
        _columns_are_standardised(values, other, partial(_places, axis=axis)) for axis in (1, -1)
    )


def _whole(samples: Tensor) -> Tensor:
    """Return all values as one column."""
    return samples.reshape(-1, 1)


def _places(samples: Tensor, axis: int) -> Tensor:
    """Return samples as columns: one for each value, or one for each place along an axis."""
    return samples.flatten(1) if axis == 0 else samples.transpose(0, axis).flatten(1).T


def _columns_are_standardised(
    samples: Tensor, known: Tensor | None, columns_of: Callable[[Tensor], Tensor]
) -> bool:
    table = columns_of(samples)
    exact, varies = _exact(table)
    if not exact.any():
        return False
    # Of samples that are standardised each by itself, and of cycles, the half is exact too.
    by_design = exact & _exact(columns_of(samples[: len(samples) // 2]))[0]
    if known is not None:
        given = columns_of(known)
        columns = (exact & ~by_design).nonzero().flatten().tolist()
        looked_at = columns[:: max(1, len(columns) // _LOOKED_AT)]
        came = [c for c in looked_at if bool(torch.isin(table[:, c], given[:, c]).all())]
        by_design[columns if looked_at and came == looked_at else came] = True
    exact, varies = exact & ~by_design, varies & ~by_design
    return bool(exact.any()) and int(exact.sum()) >= (1 - _MOST) * int(varies.sum())


def _exact(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return which columns have mean 0 and deviation 1, and which vary at all."""
    values = table.double()
    means, deviations = values.mean(dim=0), values.std(dim=0, correction=0)
    varies = deviations > _ROUNDING
    allowed = max(_ROUNDING, _SHARE / math.sqrt(len(table)))
    # A deviation that is divided by N − 1 is larger than one that is divided by N.
    larger = math.sqrt(len(table) / (len(table) - 1))
    off = torch.minimum((deviations - 1).abs(), (deviations * larger - 1).abs())
    return varies & (means.abs() < allowed) & (off < allowed), varies
