"""Per-layer statistics of gradients, weights and activations, read without touching the training.

A probe draws no random number and writes no tensor of the model's: the trained weights are the
same, bit for bit, with and without it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
        looks: dict[str, _Look] = {}
        copies: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(self._look_at_output(looks, copies, name))
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
            kinds = {"gradients": gradients, "parameters": parameters, "activations": copies}
            named = {(kind, n): t for kind, tensors in kinds.items() for n, t in tensors.items()}
            units = [kind == "activations" for kind, _ in named]
            found = dict(zip(named, _look(list(named.values()), units), strict=True))
            found |= {("activations", name): look for name, look in looks.items()}
            seen.update({kind: {} for kind in kinds})
            for (kind, name), look in found.items():
                seen[kind][name] = _described(look, self.bins)

    def _look_at_output(
        self, looks: dict[str, "_Look"], copies: dict[str, Tensor], name: str
    ) -> Callable:
        # At once, not after the pass: a following layer may work in place on this output. On a GPU
        # a copy is taken instead, for the pass would wait at each layer.
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                if output.device.type == "cpu":
                    looks[name] = _look([output.detach()], [True])[0]
                else:
                    copies[name] = output.detach().clone()

        return hook


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
    return _described(_look([tensor.detach()], [units])[0], bins)


class _Look(NamedTuple):
    """What was taken of a tensor: exact numbers, and values that tell of the rest."""

    size: int
    nonfinite: int
    norm: float
    low: float  # of the finite values, as all that follows
    high: float
    dead: float | None  # share of dead units
    sample: Tensor  # (n,), evenly thinned, a copy on the CPU


def _look(tensors: Sequence[Tensor], units: Sequence[bool]) -> list[_Look]:
    """A look at each tensor, whose `units` are counted or not; a GPU is waited for twice in all."""
    measured = [_measure(tensor, counted) for tensor, counted in zip(tensors, units, strict=True)]
    norms = torch._foreach_norm([m.values for m in measured]) if measured else []
    numbers = iter(read_together([*norms, *(end for m in measured for end in m.ends)]))
    norms = [next(numbers) for _ in measured]
    samples = _brought_near([m.sample for m in measured])
    looks = []
    for (values, _, ends), norm, sample in zip(measured, norms, samples, strict=True):
        low, high, *dead = (next(numbers) for _ in ends) if ends else (math.nan, math.nan)
        dead = dead[0] if dead else None
        if norm < math.inf and (norm > _TINY or low == high == 0):
            looks.append(_Look(values.numel(), 0, norm, low, high, dead, sample))
        else:
            looks.append(_look_at_extremes(values, norm, dead))
    return looks


def _brought_near(samples: Sequence[Tensor]) -> Sequence[Tensor]:
    """The samples on the CPU; those of one GPU in one transfer."""
    if len({sample.device for sample in samples}) != 1 or samples[0].device.type == "cpu":
        return [sample.cpu() for sample in samples]
    return torch.cat(list(samples)).cpu().split([len(sample) for sample in samples])


class _Measured(NamedTuple):
    """A tensor's numbers where it lies, before any of them has been read."""

    values: Tensor  # flat, float32
    sample: Tensor  # evenly thinned
    ends: list[Tensor]  # lowest, highest, share of dead units; [] of nothing


def _measure(tensor: Tensor, units: bool) -> _Measured:
    # Brought to float32 first: reductions of bfloat16 columns are ten to sixty times as slow.
    tensor = tensor.float()
    if not tensor.numel():
        return _Measured(tensor.flatten(), tensor.flatten(), [])
    laid_out = in_memory_order(tensor)
    values = laid_out.flatten()
    if units and tensor.dim() >= 2:
        low, high = ends_of_units(tensor)
        ends = [low.min(), high.max(), low.logical_or(high).logical_not_().float().mean()]
    else:
        ends = list(torch.aminmax(values))
    return _Measured(values, _thinned(values, laid_out.shape[-1] if laid_out.dim() else 1), ends)


def _look_at_extremes(values: Tensor, norm: float, dead: float | None) -> _Look:
    """A look at values that are not finite, or whose squares leave float32's range, or at none."""
    size, nonfinite = values.numel(), 0
    if not math.isfinite(norm):
        # The squares of finite values can overflow too, so count before believing it.
        finite = values[torch.isfinite(values)]
        nonfinite, values = size - finite.numel(), finite
    if not values.numel():
        return _Look(size, nonfinite, norm, math.nan, math.nan, dead, values.cpu())
    low, high = (end.item() for end in torch.aminmax(values))
    if not nonfinite:
        norm = torch.linalg.vector_norm(values.double()).item()
    return _Look(size, nonfinite, norm, low, high, dead, _thinned(values).cpu())


def _described(look: _Look, bins: int) -> TensorStats:
    """The statistics, of which the sample tells moments, zeros and histogram."""
    count = len(look.sample)
    mean = std = math.nan
    zeros, histogram = 0.0, [0] * bins
    if count:
        sample = look.sample.double()  # whose squares are finite
        std, mean = (moment.item() for moment in torch.std_mean(sample, correction=0))
        present = torch.count_nonzero(sample).item() / count
        zeros = (1 - present) * (1 - look.nonfinite / look.size)
        if look.low == look.high:
            histogram[bins // 2] = count
        else:
            histogram = torch.histc(sample, bins, look.low, look.high).long().tolist()
    return TensorStats(
        size=look.size,
        nonfinite=look.nonfinite,
        norm=look.norm,
        mean=mean,
        std=std,
        low=look.low,
        high=look.high,
        zeros=zeros,
        histogram=histogram,
        dead_units=look.dead,
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
