"""Dropout that is faster on a CPU than torch.nn's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # values of the 16 random bits that decide about one unit
_LOWEST_INT64 = torch.iinfo(torch.int64).min  # by default random_() draws no negative numbers


class Dropout(nn.Dropout):
    """`nn.Dropout` with cheaper random numbers; see `dropout`.

    Buys 20 % of a training step of the CIFAR net: 46 instead of 58 ms (reg=bn_dropout, fp32,
    batches of 32, one thread of an AMD EPYC; median CPU time of 40 alternating rounds of 5 steps).
    Except on Intel's processors, PyTorch draws a float64 for each unit one after the other.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return dropout(inputs, self.p) if self.training else inputs


def dropout(inputs: Tensor, p: float) -> Tensor:
    """Zero each unit with probability p, and scale the others by 1 / (1 − p).

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting". On
    a CPU, 16 bits of torch's global generator decide about each unit, so that p is rounded to a
    multiple of 2⁻¹⁶ (the scale is that of the rounded p). On a GPU, for other than floating-point
    inputs and for p = 0 or 1 it is `F.dropout`.

    Args:
        inputs: any shape and memory layout; the result has the same.
        p: probability, 0 to 1.
    """
    if inputs.device.type != "cpu" or not inputs.is_floating_point() or p in (0, 1):
        return F.dropout(inputs, p)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    count = inputs.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(_LOWEST_INT64, None)
    values = bits.view(torch.int16)[:count].float()  # exact; comparing floats is 4 times as fast
    lowest = torch.iinfo(torch.int16).min
    noise = values.ge_(lowest + dropped).mul_(_LEVELS / (_LEVELS - dropped)).to(inputs.dtype)
    return inputs * _arranged_as(inputs, noise)


def _arranged_as(inputs: Tensor, values: Tensor) -> Tensor:
    """Give the values (N,) the shape of the inputs, and channels-last layout if these have it."""
    if inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = inputs.shape
        return values.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return values.view(inputs.shape)
