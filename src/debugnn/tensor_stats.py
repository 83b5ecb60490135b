"""Statistics of tensors, computed without changing them and with few waits for a GPU."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from debugnn.records import TensorStats


def read_together(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of scalar tensors; those on one GPU are read in one transfer."""
    # No generator: its start takes as long as a comparison, in every step.
    if False not in [s.is_cpu for s in scalars] or len({s.device for s in scalars}) != 1:
        return [scalar.item() for scalar in scalars]
    return torch.stack([scalar.detach().reshape(()) for scalar in scalars]).tolist()


_SAMPLE_SIZE = 2**12  # moments and histogram are computed from at most this many values
_TINY = 1e-15  # in a smaller norm, squares may have underflowed in float32
# A value nearer to a bound than this share of the range between the bounds is saturated: the slope
# of a sigmoid is a tenth of its largest there.
_EDGE = 0.025


def describe(tensor: Tensor, bins: int = 64, units: bool = False) -> TensorStats:
    """Compute the statistics of a tensor of any shape.

    Norm, range, dead units and the number of non-finite values are exact. Mean, standard deviation,
    zeros and histogram of more than 4,096 values are those of an evenly spaced sample of at most
    that many: with all values, the statistics would take a tenth of a training step. NaN and
    infinite values are counted, and excluded from the moments and the histogram.

    Args:
        bins: number of equal histogram bins between the smallest and the largest finite value.
        units: compute the share of dead units too. The tensor is then (B, units, …), and a unit is
            dead if it is 0 for every sample and position of the batch.
    """
    return summarise(measure([tensor.detach()], [units])[0], bins)


class Measurement(NamedTuple):
    """Exact numbers of a tensor, and a sample of its values for the others."""

    size: int
    nonfinite: int
    norm: float
    low: float  # of the finite values, like all that follow
    high: float
    dead: float | None  # share of dead units
    sample: Tensor  # (n,), evenly thinned, a copy on the CPU


def measure(tensors: Sequence[Tensor], units: Sequence[bool]) -> list[Measurement]:
    """Measure tensors together, with two waits for a GPU in all.

    Args:
        units: for each tensor, whether to compute its share of dead units.
    """
    measured = [_start(tensor, counted) for tensor, counted in zip(tensors, units, strict=True)]
    norms = torch._foreach_norm([m.values for m in measured]) if measured else []
    read = read_together([*norms, *(end for m in measured for end in m.ends)])
    norm_values, numbers = read[: len(norms)], iter(read[len(norms) :])
    samples = _to_cpu([m.sample for m in measured])
    found = []
    for (values, _, ends), norm, sample in zip(measured, norm_values, samples, strict=True):
        low, high, *shares = [next(numbers) for _ in ends] if ends else [math.nan, math.nan]
        dead = shares[0] if shares else None
        if norm < math.inf and (norm > _TINY or low == high == 0):
            found.append(Measurement(values.numel(), 0, norm, low, high, dead, sample))
        else:
            found.append(_measure_extremes(values, norm, dead))
    return found


def _to_cpu(samples: Sequence[Tensor]) -> Sequence[Tensor]:
    """Copy the samples to the CPU; those on one GPU in one transfer."""
    if len({sample.device for sample in samples}) != 1 or samples[0].device.type == "cpu":
        return [sample.cpu() for sample in samples]
    return torch.cat(list(samples)).cpu().split([len(sample) for sample in samples])


class _Unread(NamedTuple):
    """Numbers of a tensor that are still on its device."""

    values: Tensor  # flat, float32
    sample: Tensor  # evenly thinned
    ends: list[Tensor]  # lowest, highest, share of dead units; [] of an empty tensor


def _start(tensor: Tensor, units: bool) -> _Unread:
    # Converted to float32 first: reductions of bfloat16 columns are 10 to 60 times as slow.
    tensor = tensor.float()
    if not tensor.numel():
        return _Unread(tensor.flatten(), tensor.flatten(), [])
    laid_out = in_memory_order(tensor)
    values = laid_out.flatten()
    if units and tensor.dim() >= 2:
        low, high = ends_of_units(tensor)
        ends = [low.min(), high.max(), low.logical_or(high).logical_not_().float().mean()]
    else:
        ends = list(torch.aminmax(values))
    return _Unread(values, _thinned(values, laid_out.shape[-1] if laid_out.dim() else 1), ends)


def _measure_extremes(values: Tensor, norm: float, dead: float | None) -> Measurement:
    """Measure values that are empty, not all finite, or whose squares leave float32's range."""
    size, nonfinite = values.numel(), 0
    if not math.isfinite(norm):
        # The squares of finite values can overflow too, so the norm does not say.
        finite = values[torch.isfinite(values)]
        nonfinite, values = size - finite.numel(), finite
    if not values.numel():
        return Measurement(size, nonfinite, norm, math.nan, math.nan, dead, values.cpu())
    low, high = (end.item() for end in torch.aminmax(values))
    if not nonfinite:
        norm = torch.linalg.vector_norm(values.double()).item()
    return Measurement(size, nonfinite, norm, low, high, dead, _thinned(values).cpu())


def summarise(
    found: Measurement, bins: int, bounds: tuple[float, float] | None = None
) -> TensorStats:
    """Return the statistics; the sample gives moments, zeros, saturated share and histogram.

    Args:
        bins: number of histogram bins.
        bounds: of the values of a bounded activation, between which it is flat at both ends.
    """
    count = found.sample.numel()
    mean = std = math.nan
    zeros, histogram = 0.0, [0] * bins
    saturated = None
    if count:
        if bounds is not None:
            saturated = saturated_share(found.sample, bounds).item()
        sample = found.sample.double()  # the squares of float32 values are finite in float64
        std, mean = (moment.item() for moment in torch.std_mean(sample, correction=0))
        present = torch.count_nonzero(sample).item() / count
        zeros = (1 - present) * (1 - found.nonfinite / found.size)
        if found.low == found.high:
            histogram[bins // 2] = count
        else:
            histogram = torch.histc(sample, bins, found.low, found.high).long().tolist()
    return TensorStats(
        size=found.size,
        nonfinite=found.nonfinite,
        norm=found.norm,
        mean=mean,
        std=std,
        low=found.low,
        high=found.high,
        zeros=zeros,
        histogram=histogram,
        dead_units=found.dead,
        saturated=saturated,
    )


def saturated_share(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return the share of values that are next to one of the bounds, a scalar."""
    bottom, top = bounds
    edge = _EDGE * (top - bottom)
    return ((values < bottom + edge) | (values > top - edge)).float().mean()


def in_memory_order(tensor: Tensor) -> Tensor:
    """Permute the axes of a channels-last tensor so that it can be flattened without a copy."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    return tensor


def _thinned(values: Tensor, width: int = 1) -> Tensor:
    """Return an evenly spaced sample of the values, a copy.

    Args:
        values: (N,), rows of `width` values one after the other.
        width: the sample's spacing has no common factor with it, so that all columns are sampled.
    """
    step = max(1, -(-values.numel() // _SAMPLE_SIZE))
    while math.gcd(step, width) > 1:
        step += 1
    return values.clone() if step == 1 else values[::step].clone()


def ends_of_units(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest value of each unit of (B, units, …), as (units,) each."""
    laid_out = in_memory_order(tensor)
    if laid_out is tensor:
        axes = [0, *range(2, tensor.dim())]
        return tensor.amin(dim=axes), tensor.amax(dim=axes)
    rows = laid_out.flatten(0, 2)
    return rows.amin(dim=0), rows.amax(dim=0)
