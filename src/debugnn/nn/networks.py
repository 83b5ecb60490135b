"""All networks of the article, built by one function."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod

from torch import nn

from debugnn.errors import ConfigError
from debugnn.nn.flatten import Flatten
from debugnn.nn.linear import Linear


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
    own_layers: bool = True,
) -> nn.Sequential:
    """Build a convolutional network, or a fully connected one if `blocks` is empty.

    A block consists of 3×3 convolutions (stride 1, no padding), each followed by an activation, and
    a final 2×2 max-pool. After the blocks come the fully connected `hidden` layers and the output
    layer, which gives logits (or, for a regression, the value).

    The regularisers are where the article puts them, CONV/FC → BatchNorm → activation → Dropout →
    CONV/FC: batch norm after the first convolution of a block, dropout after its last activation
    and before its pool. Without blocks, batch norm is before and dropout after every hidden
    activation.

    Args:
        input_shape: (C, H, W) of an image, or (features,).
        outputs: number of classes, or 1 for a regression.
        activation: returns a new activation module at each call.
        blocks: the widths (output channels) of each block's convolutions.
        hidden: the widths of the hidden fully connected layers.
        bias: whether convolutions and fully connected layers have biases.
        batch_norm: whether to insert batch norm.
        dropout: probability of zeroing a unit; 0 inserts no dropout.
        own_layers: whether BatchNorm2d, Dropout, Flatten and Linear are those of `debugnn.nn`,
            which are faster or more accurate on a CPU (each states by how much), or torch.nn's.

    Raises:
        ConfigError: a width, `bias` or `own_layers` is not allowed, or the inputs are no images or
            too small for the convolutions.
    """
    widths = [width for block in blocks for width in block] + list(hidden)
    if not all(isinstance(width, int) and width >= 1 for width in widths):
        raise ConfigError(
            f"model.blocks={[list(b) for b in blocks]}, model.hidden={list(hidden)}: allowed are "
            "whole numbers from 1"
        )
    for name, value in (("bias", bias), ("own_layers", own_layers)):
        if not isinstance(value, bool):
            raise ConfigError(f"model.{name}={value}: allowed are true and false")
    if blocks and len(input_shape) != 3:
        raise ConfigError(
            f"model.blocks={[list(b) for b in blocks]}: convolutions need images (C, H, W), and "
            f"the data has shape {tuple(input_shape)}; use a model without blocks (model=regressor)"
        )
    expansion = getattr(activation(), "expansion", 1)
    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d
    if own_layers and batch_norm:
        from debugnn.nn.batch_norm import BatchNorm2d  # most runs have none

        norm = BatchNorm2d
    drop: type[nn.Dropout] = nn.Dropout
    if own_layers and dropout:
        from debugnn.nn.dropout import Dropout  # most runs have none

        drop = Dropout
    flatten = Flatten if own_layers else nn.Flatten
    linear = Linear if own_layers else nn.Linear
    layers: dict[str, nn.Module] = {}
    shape = tuple(input_shape)

    convolutions = 0
    for number, block in enumerate(blocks, start=1):
        for position, width in enumerate(block):
            convolutions += 1
            layers[f"conv{convolutions}"] = nn.Conv2d(shape[0], width * expansion, 3, bias=bias)
            if batch_norm and position == 0:
                layers[f"bn{convolutions}"] = norm(width * expansion)
            layers[f"act{convolutions}"] = activation()
            shape = (width, shape[1] - 2, shape[2] - 2)
        if dropout:
            layers[f"dropout{number}"] = drop(dropout)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        shape = (shape[0], shape[1] // 2, shape[2] // 2)
        if min(shape) < 1:
            raise ConfigError(
                f"model.blocks: images of {tuple(input_shape)} are too small for block {number}"
            )

    layers["flatten"] = flatten()
    features = prod(shape)
    for number, width in enumerate(hidden, start=1):
        layers[f"fc{number}"] = linear(features, width * expansion, bias=bias)
        if batch_norm and not blocks:
            layers[f"fc{number}_bn"] = nn.BatchNorm1d(width * expansion)
        layers[f"fc{number}_act"] = activation()
        if dropout and not blocks:
            layers[f"fc{number}_dropout"] = drop(dropout)
        features = width
    layers[f"fc{len(hidden) + 1}"] = linear(features, outputs, bias=bias)

    return nn.Sequential(OrderedDict(layers))


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable scalars of the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
