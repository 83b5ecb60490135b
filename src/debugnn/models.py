"""Every network of the article as one function of numbers."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.errors import ConfigError


class Maxout(nn.Module):
    """The largest of `pieces` linear maps (Goodfellow et al. 2013, arXiv:1302.4389).

    Maps (B, width · pieces, …) to (B, width, …). `expansion` tells the layer before it how many
    times its width it has to produce.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.expansion = pieces

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.unflatten(1, (-1, self.expansion)).amax(dim=2)


class Flatten(nn.Flatten):
    """Flatten whose gradient has the memory layout of its input.

    A max-pool before it that gets its gradient in the other layout copies its own gradient, four
    times as large, there and back: a twentieth of a training step of the MNIST net.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(_GradientLaidOut.apply(inputs))


class _GradientLaidOut(torch.autograd.Function):
    """The identity, its gradient (B, C, H, W) in channels-last where its input was."""

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.laid_out = inputs[0].is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if ctx.laid_out:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        return gradient

    @staticmethod
    def vmap(info: Any, in_dims: tuple, inputs: Tensor) -> tuple[Tensor, int | None]:
        return inputs, in_dims[0]  # a stack's passes have no layout to ask for


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


def network(
    input_shape: Sequence[int],
    outputs: int,
    *,
    activation: Callable[[], nn.Module],
    blocks: Sequence[Sequence[int]] = (),
    hidden: Sequence[int] = (),
    bias: bool = True,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A convolutional network, or a plain multi-layer one where `blocks` is empty.

    Each block is its 3×3 convolutions' widths (stride 1, no padding, an activation after each),
    closed by a 2×2 max-pool. Then come the `hidden` fully connected layers and the output layer,
    which gives logits (or the regression's value).

    The regularisers stand where the article puts them, CONV/FC → BatchNorm → activation →
    Dropout → CONV/FC: batch norm after a block's first convolution, dropout after its last
    activation and before its pool. Without blocks, both stand around every hidden activation.

    Args:
        input_shape: (C, H, W) of an image, or (features,).
        outputs: number of classes, or 1.
        activation: makes a new activation module at each call. ReLUs work in place: what they
            overwrite is needed by nobody, and memory traffic is what small layers wait for.
        dropout: probability of zeroing a unit; 0 leaves the layers out.

    Raises:
        ConfigError: convolutions on inputs that are no images, or too small for them.
    """
    widths = [width for block in blocks for width in block] + list(hidden)
    if not all(isinstance(width, int) and width >= 1 for width in widths):
        raise ConfigError(
            f"model.blocks={[list(b) for b in blocks]}, model.hidden={list(hidden)}: allowed are "
            "whole numbers from 1"
        )
    if not isinstance(bias, bool):
        raise ConfigError(f"model.bias={bias}: allowed are true and false")
    if blocks and len(input_shape) != 3:
        raise ConfigError(
            f"model.blocks={[list(b) for b in blocks]}: convolutions need images (C, H, W), and "
            f"the data has shape {tuple(input_shape)}; use a model without blocks (model=regressor)"
        )
    expansion = getattr(activation(), "expansion", 1)
    layers: dict[str, nn.Module] = {}
    shape = tuple(input_shape)

    convolutions = 0
    for number, widths in enumerate(blocks, start=1):
        for position, width in enumerate(widths):
            convolutions += 1
            layers[f"conv{convolutions}"] = nn.Conv2d(shape[0], width * expansion, 3, bias=bias)
            if batch_norm and position == 0:
                layers[f"bn{convolutions}"] = BatchNorm2d(width * expansion)
            layers[f"act{convolutions}"] = activation()
            shape = (width, shape[1] - 2, shape[2] - 2)
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        shape = (shape[0], shape[1] // 2, shape[2] // 2)
        if min(shape) < 1:
            raise ConfigError(
                f"model.blocks: images of {tuple(input_shape)} are too small for block {number}"
            )

    layers["flatten"] = Flatten()
    features = prod(shape)
    for number, width in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(features, width * expansion, bias=bias)
        if batch_norm and not blocks:
            layers[f"fc{number}_bn"] = nn.BatchNorm1d(width * expansion)
        layers[f"fc{number}_act"] = activation()
        if dropout and not blocks:
            layers[f"fc{number}_dropout"] = nn.Dropout(dropout)
        features = width
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(features, outputs, bias=bias)

    model = nn.Sequential()
    for name, layer in layers.items():
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
        model.add_module(name, layer)
    return model


def parameter_count(model: nn.Module) -> int:
    """Number of trainable numbers in the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
