"""Every network of the article as one function of numbers."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.errors import ConfigError
from debugnn.nn.batch_norm import BatchNorm2d
from debugnn.nn.dropout import Dropout


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
        if inputs.dim() == 4:
            inputs = _GradientLaidOut.apply(inputs)
        return super().forward(inputs)


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
            layers[f"dropout{number}"] = Dropout(dropout)
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
            layers[f"fc{number}_dropout"] = Dropout(dropout)
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
