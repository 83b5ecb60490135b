"""Statistics of tensors, read without changing them and with few waits for a GPU."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from debugnn.records import TensorStats


def read_together(scalars: Sequence[Tensor]) -> list[float]:
    """The values of scalar tensors; of those on one GPU in one transfer, which it is waited for."""
    devices = {scalar.device for scalar in scalars}
    if len(devices) != 1 or next(iter(devices)).type == "cpu":
        return [scalar.item() for scalar in scalars]
    return torch.stack([scalar.detach().reshape(()) for scalar in scalars]).tolist()


_SAMPLED = 2**12  # most values that moments and histogram are taken of
_TINY = 1e-15  # a norm below it may lack squares that left float32's range


def describe(tensor: Tensor, bins: int = 64, units: bool = False) -> TensorStats:
    """Summarise a tensor of any shape.

    Norm, range, dead units and the count of non-finite values are exact. Mean, standard deviation,
    zeros and histogram of more than 4,096 values are those of an evenly spaced sample of at most
    as many: all of them would cost a tenth of a training step. NaN and infinite values are counted
    apart, and left out of the moments and the histogram.

    Args:
        bins: number of equal histogram bins between the smallest and the largest finite value.
        units: count dead units too; the tensor is (B, units, …), and a unit is dead where it is 0
            for every sample and position of the batch.
    """
    return summarise(measure([tensor.detach()], [units])[0], bins)


class Measurement(NamedTuple):
    """What was taken of a tensor: exact numbers, and values that tell of the rest."""

    size: int
    nonfinite: int
    norm: float
    low: float  # of the finite values, as all that follows
    high: float
    dead: float | None  # share of dead units
    sample: Tensor  # (n,), evenly thinned, a copy on the CPU


def measure(tensors: Sequence[Tensor], units: Sequence[bool]) -> list[Measurement]:
    """A look at each tensor, whose `units` are counted or not; a GPU is waited for twice in all."""
    measured = [_start(tensor, counted) for tensor, counted in zip(tensors, units, strict=True)]
    norms = torch._foreach_norm([m.values for m in measured]) if measured else []
    numbers = iter(read_together([*norms, *(end for m in measured for end in m.ends)]))
    norms = [next(numbers) for _ in measured]
    samples = _brought_near([m.sample for m in measured])
    looks = []
    for (values, _, ends), norm, sample in zip(measured, norms, samples, strict=True):
        low, high, *dead = (next(numbers) for _ in ends) if ends else (math.nan, math.nan)
        dead = dead[0] if dead else None
        if norm < math.inf and (norm > _TINY or low == high == 0):
            looks.append(Measurement(values.numel(), 0, norm, low, high, dead, sample))
        else:
            looks.append(_measure_extremes(values, norm, dead))
    return looks


def _brought_near(samples: Sequence[Tensor]) -> Sequence[Tensor]:
    """The samples on the CPU; those of one GPU in one transfer."""
    if len({sample.device for sample in samples}) != 1 or samples[0].device.type == "cpu":
        return [sample.cpu() for sample in samples]
    return torch.cat(list(samples)).cpu().split([len(sample) for sample in samples])


class _Unread(NamedTuple):
    """A tensor's numbers where it lies, before any of them has been read."""

    values: Tensor  # flat, float32
    sample: Tensor  # evenly thinned
    ends: list[Tensor]  # lowest, highest, share of dead units; [] of nothing


def _start(tensor: Tensor, units: bool) -> _Unread:
    # Brought to float32 first: reductions of bfloat16 columns are ten to sixty times as slow.
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
    """A look at values that are not finite, or whose squares leave float32's range, or at none."""
    size, nonfinite = values.numel(), 0
    if not math.isfinite(norm):
        # The squares of finite values can overflow too, so count before believing it.
        finite = values[torch.isfinite(values)]
        nonfinite, values = size - finite.numel(), finite
    if not values.numel():
        return Measurement(size, nonfinite, norm, math.nan, math.nan, dead, values.cpu())
    low, high = (end.item() for end in torch.aminmax(values))
    if not nonfinite:
        norm = torch.linalg.vector_norm(values.double()).item()
    return Measurement(size, nonfinite, norm, low, high, dead, _thinned(values).cpu())


def summarise(found: Measurement, bins: int) -> TensorStats:
    """The statistics, of which the sample tells moments, zeros and histogram."""
    count = len(found.sample)
    mean = std = math.nan
    zeros, histogram = 0.0, [0] * bins
    if count:
        sample = found.sample.double()  # whose squares are finite
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
    )


def in_memory_order(tensor: Tensor) -> Tensor:
    """The same values, their axes in an order in which they can be flattened without a copy."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    return tensor


def _thinned(values: Tensor, width: int = 1) -> Tensor:
    """Every so manieth of many values, from all columns of rows that are `width` long; a copy."""
    step = max(1, -(-values.numel() // _SAMPLED))
    while math.gcd(step, width) > 1:
        step += 1
    return values[::step].clone()


def ends_of_units(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each unit of (B, units, …), (units,) each."""
    laid_out = in_memory_order(tensor)
    if laid_out is tensor:
        axes = [0, *range(2, tensor.dim())]
        return tensor.amin(dim=axes), tensor.amax(dim=axes)
    rows = laid_out.flatten(0, 2)
    return rows.amin(dim=0), rows.amax(dim=0)
