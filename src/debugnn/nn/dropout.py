"""Dropout whose random numbers do not cost as much as the layers around it.

PyTorch draws a double for each unit on a CPU other than Intel's: 12 ns, in one thread. Two dropouts
of the CIFAR net are a third of its training step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # of the 16 random bits that a unit is decided by
_FULL_RANGE = torch.iinfo(torch.int64).min  # random_() alone leaves out the negative numbers


class Dropout(nn.Dropout):
    """`nn.Dropout` that zeroes the units by `dropout`."""

    def forward(self, inputs: Tensor) -> Tensor:
        return dropout(inputs, self.p) if self.training else inputs


def dropout(inputs: Tensor, p: float) -> Tensor:
    """Zero each unit with probability p, and scale the others so that the mean stays.

    Srivastava et al. 2014. As `F.dropout` does it, from another stream of random numbers: on a CPU
    16 bits of torch's generator decide about a unit, so that p is rounded to a multiple of 2⁻¹⁶
    (the scale fits the rounded one). 0 and 1 draw nothing.
    """
    if inputs.device.type != "cpu" or not inputs.is_floating_point() or p in (0, 1):
        return F.dropout(inputs, p)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    count = inputs.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(_FULL_RANGE, None)
    values = bits.view(torch.int16)[:count].float()  # exact, and compared four times as fast
    lowest = torch.iinfo(torch.int16).min
    noise = values.ge_(lowest + dropped).mul_(_LEVELS / (_LEVELS - dropped)).to(inputs.dtype)
    return inputs * _arranged_as(inputs, noise)


def _arranged_as(inputs: Tensor, values: Tensor) -> Tensor:
    """The values (N,) in the inputs' shape and, where it is one of the two usual, their layout."""
    if inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = inputs.shape
        return values.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return values.view(inputs.shape)
