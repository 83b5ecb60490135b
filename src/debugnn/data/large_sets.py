"""What is computed in another way for a data set that is too large for a float copy."""

import torch
from torch import Tensor


def moments_by_counts(images: Tensor, chunk: int = 4096) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images, scaled to [0, 1].

    They are computed from the counts of the 256 values.

    Args:
        images: (N, C, H, W).
        chunk: number of images that are counted at once.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64, device=images.device)
    for part in images.split(chunk):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    total = counts.sum(dim=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(dim=1) / (total - 1)
    return mean.tolist(), variance.sqrt().clamp_min(1e-8).tolist()
