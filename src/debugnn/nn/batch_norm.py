"""Batch norm of images whose sums do not depend on the memory layout.

PyTorch's own, in channels-last on a CPU, loses digits that ReLUs and max-pools then multiply.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that is as accurate in channels-last as it is in the contiguous layout.

    PyTorch's contiguous kernel on a CPU adds up a channel in float64; its channels-last one in a
    single float32, so that its statistics, outputs and gradients are 8 to 170 times as far from
    float64: 1e-6 to 1e-5 for a batch of images. A ReLU or a max-pool that falls the other way for
    that, one of a batch, moves the gradients of the layers before it by up to 1e-2.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.numel() // inputs.shape[1]
        plain = self.affine and self.track_running_stats and self.momentum is not None
        single = plain and self.weight.dtype == torch.float32
        if inputs.device.type == "cuda" and single and values > 1:
            return self._on_gpu(inputs)
        if (
            not (self.training and plain)
            or inputs.device.type != "cpu"
            or inputs.dtype != self.weight.dtype  # bfloat16 rounds by more than all of this
            or values < 2  # refused with PyTorch's own words
        ):
            return super().forward(inputs)
        self.num_batches_tracked.add_(1)
        outputs, *_ = _BatchNorm.apply(
            inputs, self.weight, self.bias, self.running_mean, self.running_var,
            self.momentum, self.eps,
        )  # fmt: skip
        return outputs

    def _on_gpu(self, inputs: Tensor) -> Tensor:
        """By PyTorch's own kernel in float32: cuDNN's asks for the memory layout, which nobody can
        know inside of `vmap`, and half precision there has no backward pass."""
        if self.training:
            self.num_batches_tracked.add_(1)
        outputs, *_ = torch.native_batch_norm(
            inputs.float(), self.weight, self.bias, self.running_mean, self.running_var,
            self.training, self.momentum, self.eps,
        )  # fmt: skip
        return outputs.to(inputs.dtype)


class _BatchNorm(torch.autograd.Function):
    """Training-mode `torch.native_batch_norm`, its sums in two levels where it is channels-last.

    PyTorch's kernels sum the columns of the images, W · C of them, as channels of their own; what
    is left to add up is W numbers a channel. No sum is then longer than B · H, and memory is gone
    through about as often as for the single sum: a training step of the CIFAR net takes 3 % longer,
    where copies to the contiguous layout and back would take 20 %.
    """

    @staticmethod
    def forward(
        inputs: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
        momentum: float, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if not inputs.is_contiguous(memory_format=torch.channels_last):
            return torch.native_batch_norm(
                inputs, weight, bias, running_mean, running_var, True, momentum, eps
            )
        width, values = inputs.shape[3], inputs.numel() // inputs.shape[1]
        means, variances = (
            column.view(width, -1)
            for column in torch.batch_norm_update_stats(_columns(inputs), None, None, 0.0)
        )
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (values / (values - 1)), momentum)
        outputs = F.batch_norm(inputs, mean, variance, weight, bias, training=False, eps=eps)
        return outputs, mean, torch.rsqrt(variance + eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        images, weight, *_, ctx.eps = inputs
        _, mean, inverse_std = output
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.save_for_backward(images, weight, mean, inverse_std)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, inverse_std = ctx.saved_tensors
        native = torch.ops.aten.native_batch_norm_backward
        channels_last = inputs.is_contiguous(memory_format=torch.channels_last)
        # PyTorch's knows its own derivative, which a second backward pass asks for.
        if not channels_last or torch.is_grad_enabled():
            found = native(
                gradient, inputs, weight, None, None, mean, inverse_std, True, ctx.eps, [True] * 3
            )
            return *found, None, None, None, None
        width, values = inputs.shape[3], inputs.numel() // inputs.shape[1]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        _, products, sums = native(
            _columns(gradient), _columns(inputs), None, None, None, mean.repeat(width),
            torch.ones_like(mean).repeat(width), True, ctx.eps, [False, True, True],
        )  # fmt: skip
        bias_gradient = sums.view(width, -1).sum(0)
        weight_gradient = products.view(width, -1).sum(0) * inverse_std
        # scale · (gradient - mean gradient - normalised inputs · mean of their product with it)
        scale = weight * inverse_std
        slope = -scale * inverse_std * weight_gradient / values
        offset = -scale * bias_gradient / values - slope * mean
        scale, slope, offset = (term.view(-1, 1, 1) for term in (scale, slope, offset))
        input_gradient = torch.addcmul(offset, inputs, slope).addcmul_(gradient, scale)
        return input_gradient, weight_gradient, bias_gradient, None, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, *arguments: Any
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        *tensors, momentum, eps = arguments

        def one(inputs: Tensor, weight: Tensor, bias: Tensor, *running: Tensor) -> tuple:
            return torch.native_batch_norm(inputs, weight, bias, *running, True, momentum, eps)

        return torch.vmap(one, in_dims[:5])(*tensors), (0, 0, 0)


def _columns(images: Tensor) -> Tensor:
    """Channels-last images (B, C, H, W) as (1, W · C, B · H, 1), without a copy."""
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(1, batch * height, 1, width * channels)
    return rows.permute(0, 3, 1, 2)
