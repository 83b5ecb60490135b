"""A Flatten that is faster on a CPU than torch.nn's."""

from typing import Any, cast

import torch
from torch import Tensor, nn


class Flatten(nn.Flatten):
    """`nn.Flatten` whose gradient has the memory layout of its input.

    Buys 8 % of a training step of the MNIST net: 60 instead of 66 ms (fp32, batches of 64, one
    thread of an AMD EPYC; median CPU time of 40 alternating rounds of 5 steps), and less than 1 %
    of one of the CIFAR net, whose images are small where they are flattened. A max-pool whose
    output gradient has another layout than its output copies its input gradient, which is four
    times as large, to the other layout and back.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() == 4:
            inputs = cast(Tensor, _KeepGradientLayout.apply(inputs))
        return super().forward(inputs)


class _KeepGradientLayout(torch.autograd.Function):
    """The identity; its gradient (B, C, H, W) is channels-last if its input is."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.channels_last = inputs[0].is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if ctx.channels_last:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        return gradient

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], inputs: Tensor) -> tuple[Tensor, int | None]:
        return inputs, in_dims[0]  # inside of vmap a tensor cannot be asked for its layout
