"""Readers: functions that return a data set as four arrays.

`data.reader` can name any function that takes `root` and `download` and returns `Arrays`.
scikit-learn takes seconds to import, so the readers that need it import it when they are called.
The readers of MNIST and CIFAR-10 are in `debugnn.data.archives`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Arrays(NamedTuple):
    """A data set: images or features with their targets.

    For a classification, inputs are uint8 images (N, C, H, W) and targets are int64 classes (N,).
    For a regression, inputs are float32 features (N, F) and targets are float32 values (N, 1).
    """

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


Reader = Callable[..., Arrays]  # called with root and download


def digits(root: str, download: bool) -> Arrays:
    """Return scikit-learn's bundled 1,797 handwritten digits at MNIST's size.

    The images are enlarged bicubically from 8×8 to 20×20 and padded with 4 pixels of background on
    each side, as MNIST was made. The first 1,440 are for training and the last 357 for testing:
    the set is ordered by writer, and a random split would put the same writers on both sides.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, size=20, mode="bicubic", align_corners=False)
    images = F.pad(images.clamp(0, 1), (4,) * 4)
    pixels = (images * 255).round().to(torch.uint8).numpy()
    labels = bunch.target.astype(np.int64)
    return Arrays(pixels[:1440], labels[:1440], pixels[1440:], labels[1440:])


def regression(root: str, download: bool) -> Arrays:
    """Return the article's linear regression: 20 features, 500 + 500 samples."""
    from sklearn.datasets import make_regression

    inputs, targets = make_regression(n_samples=1000, n_features=20, noise=0.1, random_state=1)
    inputs, targets = inputs.astype(np.float32), targets.astype(np.float32)[:, None]
    return Arrays(inputs[:500], targets[:500], inputs[500:], targets[500:])
