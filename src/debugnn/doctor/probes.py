"""Per-layer statistics of gradients, weights and activations, read without touching the training.

A probe draws no random number and writes no tensor of the model's: the trained weights are the
same, bit for bit, with and without it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        handles = [
            module.register_forward_hook(self._describe_output(activations, name))
            for name, module in model.named_modules()
            if not list(module.children()) and not isinstance(module, _TRANSPARENT)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            named = list(model.named_parameters())
            seen["gradients"] = {
                n: describe(p.grad, self.bins) for n, p in named if p.grad is not None
            }
            seen["parameters"] = {n: describe(p, self.bins) for n, p in named}
            seen["activations"] = activations

    def _describe_output(self, activations: dict[str, TensorStats], name: str) -> Callable:
        # At once, not after the pass: a following layer may work in place on this output.
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                activations[name] = describe(output, self.bins, units=True)

        return hook


_FLOAT32_MAX = torch.finfo(torch.float32).max
_SAMPLED = 2**15  # values that moments and histogram of a larger tensor are taken of


def describe(tensor: Tensor, bins: int = 64, units: bool = False) -> TensorStats:
    """Summarise a tensor of any shape.

    Norm, range, dead units and the count of non-finite values are exact. Mean, standard deviation,
    zeros and histogram of more than 32,768 values are those of an evenly spaced sample, of that
    size or twice it: all of them would cost a tenth of a training step. NaN and infinite values
    are counted apart, and left out of the moments and the histogram.

    Args:
        bins: number of equal histogram bins between the smallest and the largest finite value.
        units: count dead units too; the tensor is (B, units, …), and a unit is dead where it is 0
            for every sample and position of the batch.
    """
    tensor = tensor.detach()
    dead, ends = None, None
    if units and tensor.dim() >= 2:
        dead, ends = _dead_units(tensor)
    values = tensor.float().flatten()
    norm = torch.linalg.vector_norm(values).item()
    size, nonfinite = values.numel(), 0
    if not math.isfinite(norm):
        # The squares of finite values can overflow too, so count before believing it.
        finite = values[torch.isfinite(values)]
        nonfinite, values = size - finite.numel(), finite
    if not values.numel():
        return TensorStats(
            size, nonfinite, norm, mean=float("nan"), std=float("nan"), low=float("nan"),
            high=float("nan"), zeros=0.0, histogram=[0] * bins, dead_units=dead,
        )  # fmt: skip
    if ends is None or nonfinite:
        ends = torch.aminmax(values)
    low, high = (end.item() for end in ends)
    underflowed = norm == 0 and max(abs(low), abs(high)) > 0
    if underflowed or (math.isinf(norm) and not nonfinite):
        norm = torch.linalg.vector_norm(values.double()).item()
    sample = values[:: max(1, values.numel() // _SAMPLED)]
    std, mean = torch.std_mean(sample, correction=0)
    if high - low > _FLOAT32_MAX or not math.isfinite(std) or (std == 0 and low != high):
        # The squares left float32's range: exploding and vanishing values are what is watched for.
        sample = sample.double()
        std, mean = torch.std_mean(sample, correction=0)
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
        histogram=_histogram(sample, bins, low, high),
        dead_units=dead,
    )


def _dead_units(tensor: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
    """Share of the units that are zero throughout, and the tensor's smallest and largest value."""
    axes = [0, *range(2, tensor.dim())]
    low, high = tensor.amin(dim=axes), tensor.amax(dim=axes)
    dead = ((low == 0) & (high == 0)).float().mean().item()
    return dead, (low.min().float(), high.max().float())


def _histogram(values: Tensor, bins: int, low: float, high: float) -> list[int]:
    if low == high:
        counts = [0] * bins
        counts[bins // 2] = values.numel()
        return counts
    return torch.histc(values.cpu(), bins, low, high).long().tolist()
