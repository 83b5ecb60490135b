"""Whether samples were standardised with their own mean and deviation."""

import math

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
        known: samples of the training, (M, …), of the same type. A feature whose values all occur
            among theirs was scaled as they were: an hour of the day has one mean on any whole
            number of days.
    """
    if len(rows) < _FEWEST or rows.dim() < 2 or rows.numel() > _LARGEST:
        return False
    values = rows.detach().cpu()
    other = None if known is None else known.detach().cpu()
    # All values, each value, channels, and columns of a sequence.
    axes = (None, 0) if rows.dim() == 2 else (None, 0, 1, -1)
    return any(_columns_are_standardised(values, other, axis) for axis in axes)


def _columns(samples: Tensor, axis: int | None) -> Tensor:
    """Return samples as columns: one for each place along an axis, for each value where it is that
    of the samples, and one of all values without an axis."""
    if axis is None:
        return samples.reshape(-1, 1)
    return samples.flatten(1) if axis == 0 else samples.transpose(0, axis).flatten(1).T


def _columns_are_standardised(samples: Tensor, known: Tensor | None, axis: int | None) -> bool:
    table = _columns(samples, axis)
    exact, varies = _exact(table)
    if not exact.any():
        return False
    # Of samples that are standardised each by itself, and of cycles, the half is exact too.
    by_design = exact & _exact(_columns(samples[: len(samples) // 2], axis))[0]
    if known is not None and axis is not None:
        given = _columns(known, axis)
        columns = (exact & ~by_design).nonzero().flatten().tolist()
        looked_at = columns[:: max(1, len(columns) // _LOOKED_AT)]
        came = [c for c in looked_at if bool(torch.isin(table[:, c], given[:, c]).all())]
        # Where all that were looked at came, so did those between them.
        by_design[columns if len(came) == len(looked_at) else came] = True
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
