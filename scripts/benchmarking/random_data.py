"""Random images in place of MNIST and CIFAR-10; the time of a step is the same.

Readers for `data.reader`, and a data set that replaces torchvision's in the notebooks' loop.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from debugnn.data import Arrays

SHAPES = {"mnist": (60_000, (1, 28, 28)), "cifar10": (50_000, (3, 32, 32))}


def arrays(name: str, times: int = 1, test: int = 10_000) -> Arrays:
    """Return as many random images as the data set has, for training `times` as many."""
    train, shape = SHAPES[name]
    random = np.random.default_rng(0)
    halves = []
    for size in (times * train, test):
        halves += [
            random.integers(0, 256, (size, *shape), dtype=np.uint8),
            random.integers(0, 10, size),
        ]
    return Arrays(*halves)


def mnist(root: str, download: bool, times: int = 1) -> Arrays:
    """Return `times` as many random training images as MNIST has, 47 MB each time."""
    return arrays("mnist", times)


def cifar10(root: str, download: bool, times: int = 1) -> Arrays:
    """Return `times` as many random training images as CIFAR-10 has, 154 MB each time."""
    return arrays("cifar10", times)


class Images:
    """A data set like torchvision's: PIL images to which a transform is applied."""

    def __init__(self, name: str, train: bool, transform: Callable[[Any], Any]) -> None:
        halves = arrays(name)
        images, self.targets = halves[:2] if train else halves[2:]
        self.images = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.targets[index])
