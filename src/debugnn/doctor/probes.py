"""Per-layer statistics of gradients, weights and activations, read without touching the training.

A probe draws no random number and writes no tensor of the model's: the trained weights are the
same, bit for bit, with and without it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debugnn.records import TensorStats

# Layers whose output is a rearrangement of their input: nothing is learnt from watching them.
_TRANSPARENT = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
                nn.AlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d)  # fmt: skip

Seen = dict[str, dict[str, TensorStats]]


class LayerProbe:
    """Statistics of every layer at every `every`-th step; never where `every` is None."""

    def __init__(self, every: int | None, bins: int = 64) -> None:
        self.every = every
        self.bins = bins

    def due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    @contextmanager
    def watch(self, model: nn.Module, step: int) -> Iterator[Seen | None]:
        """Wrap the forward and backward pass of one step.

        Yields a dict that is filled when the block ends, with the keys `gradients`, `parameters`
        and `activations`, or None where this step is not watched.
        """
        if not self.due(step):
            yield None
            return
        seen: Seen = {}
        activations: dict[str, TensorStats] = {}
        copies: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(self._describe_output(activations, copies, name))
            for name, module in model.named_modules()
            if not list(module.children()) and not isinstance(module, _TRANSPARENT)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
            seen["gradients"] = describe_all(gradients, self.bins)
            seen["parameters"] = describe_all(parameters, self.bins)
            seen["activations"] = activations | describe_all(copies, self.bins, units=True)

    def _describe_output(
        self, activations: dict[str, TensorStats], copies: dict[str, Tensor], name: str
    ) -> Callable:
        # At once, not after the pass: a following layer may work in place on this output. On a GPU
        # a copy is taken instead, for the pass would wait at each layer.
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                if output.device.type == "cpu":
                    activations[name] = describe(output, self.bins, units=True)
                else:
                    copies[name] = output.detach().clone()

        return hook


def read_together(scalars: Sequence[Tensor]) -> list[float]:
    """The values of scalar tensors; of those on one GPU in one transfer, which it is waited for."""
    devices = {scalar.device for scalar in scalars}
    if len(devices) != 1 or next(iter(devices)).type == "cpu":
        return [scalar.item() for scalar in scalars]
    return torch.stack([scalar.detach().reshape(()) for scalar in scalars]).tolist()


_FLOAT32_MAX = torch.finfo(torch.float32).max
_SAMPLED = 2**12  # values that moments and histogram of a larger tensor are taken of


def describe(tensor: Tensor, bins: int = 64, units: bool = False) -> TensorStats:
    """Summarise a tensor of any shape.

    Norm, range, dead units and the count of non-finite values are exact. Mean, standard deviation,
    zeros and histogram of more than 4,096 values are those of an evenly spaced sample, of that
    size or twice it: all of them would cost a tenth of a training step. NaN and infinite values
    are counted apart, and left out of the moments and the histogram.

    Args:
        bins: number of equal histogram bins between the smallest and the largest finite value.
        units: count dead units too; the tensor is (B, units, …), and a unit is dead where it is 0
            for every sample and position of the batch.
    """
    measured = _measure(tensor.detach(), units)
    return _summary(measured, read_together(measured.numbers), measured.sample.cpu(), bins)


def describe_all(
    tensors: Mapping[str, Tensor], bins: int = 64, units: bool = False
) -> dict[str, TensorStats]:
    """`describe` each of the tensors; a GPU that holds them is waited for twice in all."""
    if len({tensor.device for tensor in tensors.values()}) != 1 or _near(tensors):
        return {name: describe(tensor, bins, units) for name, tensor in tensors.items()}
    measured = [_measure(tensor.detach(), units) for tensor in tensors.values()]
    numbers = iter(read_together([number for m in measured for number in m.numbers]))
    samples = torch.cat([m.sample for m in measured]).cpu()
    parts = samples.split([len(m.sample) for m in measured])
    return {
        name: _summary(m, [next(numbers) for _ in m.numbers], sample, bins)
        for name, m, sample in zip(tensors, measured, parts, strict=True)
    }


def _near(tensors: Mapping[str, Tensor]) -> bool:
    return next(iter(tensors.values())).device.type == "cpu"


class _Measured(NamedTuple):
    """A tensor's statistics where it lies, before any of them has been read."""

    values: Tensor  # flat, float32
    sample: Tensor  # evenly thinned
    numbers: list[Tensor]  # norm, mean, std, low, high, how many are not 0, share of dead units


def _measure(tensor: Tensor, units: bool) -> _Measured:
    # Brought to float32 first: reductions of bfloat16 columns are ten to sixty times as slow.
    tensor = tensor.float()
    if not tensor.numel():
        return _Measured(tensor.flatten(), tensor.flatten(), [])
    dead, ends = [], None
    if units and tensor.dim() >= 2:
        share, ends = _dead_units(tensor)
        dead = [share]
    laid_out = in_memory_order(tensor)
    values = laid_out.flatten()
    low, high = torch.aminmax(values) if ends is None else ends
    sample = _thinned(values, laid_out.shape[-1] if laid_out.dim() else 1)
    mean = sample.mean()
    std = (sample - mean).square_().mean().sqrt()
    present = torch.count_nonzero(sample)
    norm = torch.linalg.vector_norm(values)
    return _Measured(values, sample, [norm, mean, std, low, high, present, *dead])


def _summary(
    measured: _Measured, numbers: Sequence[float], sample: Tensor, bins: int
) -> TensorStats:
    """The statistics that have been read, taken again in float64 where float32 did not do."""
    size = measured.values.numel()
    if not size:
        return _of_nothing(0, 0, 0.0, bins, None)
    norm, mean, std, low, high, present, *dead = numbers
    dead = dead[0] if dead else None
    usual = norm > 0 and high - low <= _FLOAT32_MAX and (std > 0 or low == high)
    if not usual or not math.isfinite(norm + std):
        return _describe_extremes(measured.values, bins, dead)
    return TensorStats(
        size=size,
        nonfinite=0,
        norm=norm,
        mean=mean,
        std=std,
        low=low,
        high=high,
        zeros=1 - present / len(sample),
        histogram=_histogram(sample, bins, low, high),
        dead_units=dead,
    )


def in_memory_order(tensor: Tensor) -> Tensor:
    """The same values, their axes in an order in which they can be flattened without a copy."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    return tensor


def _thinned(values: Tensor, width: int = 1) -> Tensor:
    """Every so manieth of many values, from all columns of rows that are `width` long."""
    step = max(1, values.numel() // _SAMPLED)
    while math.gcd(step, width) > 1:
        step -= 1
    return values[::step].contiguous()  # looked at several times


def _describe_extremes(values: Tensor, bins: int, dead: float | None) -> TensorStats:
    """`describe` for values that are not finite, or whose squares leave float32's range."""
    norm = torch.linalg.vector_norm(values).item()
    size, nonfinite = values.numel(), 0
    if not math.isfinite(norm):
        # The squares of finite values can overflow too, so count before believing it.
        finite = values[torch.isfinite(values)]
        nonfinite, values = size - finite.numel(), finite
    if not values.numel():
        return _of_nothing(size, nonfinite, norm, bins, dead)
    low, high = (end.item() for end in torch.aminmax(values))
    underflowed = norm == 0 and max(abs(low), abs(high)) > 0
    if underflowed or (math.isinf(norm) and not nonfinite):
        norm = torch.linalg.vector_norm(values.double()).item()
    sample = _thinned(values)
    # Exploding and vanishing values are what is watched for.
    std, mean = torch.std_mean(sample.double(), correction=0)
    zeros = 1 - torch.count_nonzero(sample).item() / sample.numel()
    return TensorStats(
        size=size,
        nonfinite=nonfinite,
        norm=norm,
        mean=mean.item(),
        std=std.item(),
        low=low,
        high=high,
        zeros=zeros * values.numel() / size,
        histogram=_histogram(sample.double(), bins, low, high),
        dead_units=dead,
    )


def _of_nothing(
    size: int, nonfinite: int, norm: float, bins: int, dead: float | None
) -> TensorStats:
    """Of a tensor without a finite value."""
    return TensorStats(
        size, nonfinite, norm, mean=math.nan, std=math.nan, low=math.nan, high=math.nan, zeros=0.0,
        histogram=[0] * bins, dead_units=dead,
    )  # fmt: skip


def _dead_units(tensor: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Share of the units that are zero throughout, and the tensor's smallest and largest value."""
    low, high = ends_of_units(tensor)
    dead = ((low == 0) & (high == 0)).float().mean()
    return dead, (low.min(), high.max())


def ends_of_units(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each unit of (B, units, …), (units,) each."""
    laid_out = in_memory_order(tensor)
    if laid_out is tensor:
        axes = [0, *range(2, tensor.dim())]
        return tensor.amin(dim=axes), tensor.amax(dim=axes)
    rows = laid_out.flatten(0, 2)
    return rows.amin(dim=0), rows.amax(dim=0)


def _histogram(values: Tensor, bins: int, low: float, high: float) -> list[int]:
    if low == high:
        counts = [0] * bins
        counts[bins // 2] = values.numel()
        return counts
    return torch.histc(values.cpu(), bins, low, high).long().tolist()
