"""What settings change about a data set: size, shares of its classes, shape and scale of images.

A data set that is used as it is needs none of this.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.errors import ConfigError


def subset(
    targets: np.ndarray, seed: int, size: int | None, imbalance: float, name: str
) -> np.ndarray:
    """Return the ascending indices of the training samples to keep.

    Args:
        targets: of all training samples (N,).
        seed: selects the samples.
        size: how many are kept; None keeps all that `imbalance` leaves.
        imbalance: the smallest class's size as a share of the largest's; 1 keeps the classes as
            they are. The sizes of the classes between fall off exponentially.
        name: the data set's name, for the error message.

    Raises:
        ConfigError: `size` is larger than the number of samples.
    """
    keep = np.arange(len(targets))
    random = np.random.default_rng(seed)
    if imbalance < 1:
        labels = np.asarray(targets)
        counts = np.bincount(labels)
        last = max(len(counts) - 1, 1)
        parts = []
        for label, count in enumerate(counts):
            share = max(1, round(int(counts.max()) * imbalance ** (label / last)))
            parts.append(random.permutation(np.flatnonzero(labels == label))[: min(share, count)])
        keep = np.sort(np.concatenate(parts))
    if size is not None:
        if size > len(keep):
            raise ConfigError(
                f"data.train_size={size}: allowed is at most {len(keep)}, the training samples of "
                f"data={name}"
            )
        keep = np.sort(random.permutation(keep)[:size])
    return keep


def reshape_images(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Centre images (N, C, H, W) on a black background of another shape.

    A grey channel is repeated and colours are averaged to get the number of channels.

    Args:
        images: uint8 or float images.
        shape: (C, H, W) of the result.

    Raises:
        ConfigError: `shape` is none of images, or smaller than these.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(f"data.as_shape={list(shape)}: allowed are three numbers, C, H and W")
    channels, height, width = shape
    down, right = height - images.shape[2], width - images.shape[3]
    if down < 0 or right < 0:
        raise ConfigError(
            f"data.as_shape={list(shape)}: smaller than the images, {tuple(images.shape[1:])}"
        )
    if images.shape[1] != channels:
        grey = images.float().mean(dim=1, keepdim=True).round().to(images.dtype)
        images = grey.expand(-1, channels, -1, -1)
    top, left = down // 2, right // 2
    return F.pad(images, (left, right - left, top, down - top)).contiguous()


def given_moments(
    name: str,
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    reshaped: bool,
) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation that settings give, for images of these channels.

    Args:
        name: the data set's name, for the error message.
        channels: of the images.
        mean, std: a number for each channel, or one for all.
        reshaped: the images had other channels before.

    Raises:
        ConfigError: they do not fit the images, or are no mean and standard deviation.
    """
    if mean is None or std is None:
        raise ConfigError("data.mean and data.std go together: both, or neither (null)")
    if reshaped and len(mean) not in (1, channels):  # colours were averaged to grey
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    for field, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"data.{field}={list(values)}: the images of data={name} have {channels} channels; "
                "a number for each is needed, or one for all"
            )
    if not all(map(math.isfinite, mean)):
        raise ConfigError(f"data.mean={list(mean)}: allowed are finite numbers")
    if not all(0 < value < math.inf for value in std):
        raise ConfigError(f"data.std={list(std)}: allowed are numbers above 0")
    return list(mean), list(std)


def shift_randomly(inputs: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Shift each image (B, C, H, W) at random by up to `most` pixels in each direction.

    The border is filled by repeating the edge pixels.
    """
    height, width = inputs.shape[-2:]
    padded = F.pad(inputs, (most,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (2, len(inputs)), generator=generator)
    rows, columns = offsets.to(inputs.device, non_blocking=True).unsqueeze(2)
    rows = (rows + torch.arange(height, device=inputs.device))[:, :, None]
    columns = (columns + torch.arange(width, device=inputs.device))[:, None, :]
    samples = torch.arange(len(inputs), device=inputs.device)[:, None, None]
    # Indexing with tensors on both sides of a slice moves the sliced axis last: (B, H, W, C).
    return padded[samples, :, rows, columns].permute(0, 3, 1, 2)
