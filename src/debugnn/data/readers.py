"""Readers: functions that return a data set as four arrays.

`data.reader` can name any function that takes `root` and `download` and returns `Arrays`.
torchvision and scikit-learn take seconds to import, so each reader imports what it needs.
"""

import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from debugnn.errors import ConfigError, first_line

log = logging.getLogger(__name__)


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


def mnist(root: str, download: bool) -> Arrays:
    """Return MNIST, 60,000 + 10,000 images of 1×28×28, read or downloaded by torchvision.

    Raises:
        ConfigError: the files are missing and cannot be downloaded, or are damaged.
    """
    from torchvision.datasets import MNIST

    halves = _through_torchvision("mnist", MNIST, root, download, Path(root) / "MNIST" / "raw")
    arrays = [array for half in halves for array in (half.data.numpy()[:, None], half.targets)]
    return _checked("mnist", root, arrays, (1, 28, 28))


def cifar10(root: str, download: bool) -> Arrays:
    """Return CIFAR-10, 50,000 + 10,000 images of 3×32×32, read or downloaded by torchvision.

    Raises:
        ConfigError: the files are missing and cannot be downloaded, or are damaged.
    """
    from torchvision.datasets import CIFAR10

    where = Path(root) / "cifar-10-batches-py"
    halves = _through_torchvision("cifar10", CIFAR10, root, download, where)
    arrays = [array for half in halves for array in (half.data.transpose(0, 3, 1, 2), half.targets)]
    return _checked("cifar10", root, arrays, (3, 32, 32))


def _through_torchvision(
    name: str, dataset: Callable, root: str, download: bool, where: Path
) -> list:
    try:
        try:
            return [dataset(root, train=train, download=False) for train in (True, False)]
        except RuntimeError:  # raised for files that are missing or whose checksum is wrong
            if not download or _damaged(where):
                raise
            log.info("data=%s: not in %s, downloading", name, where)
            return [dataset(root, train=train, download=True) for train in (True, False)]
    except _UNREADABLE as error:
        state = "the files are damaged" if _damaged(where) else "the files are missing"
        raise ConfigError(
            f"data={name}: {state} ({first_line(error)}); looked in {where.absolute()} "
            "(data.root, or the environment variable DEBUGNN_DATA); fetch them on a machine with "
            f"network by python scripts/prepare_data.py {name}; data=digits and data=shapes need "
            "no files"
        ) from None


# What torchvision's readers raise on files that are truncated or of another content.
_UNREADABLE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, TypeError, KeyError,
               pickle.UnpicklingError)  # fmt: skip


def _damaged(where: Path) -> bool:
    return where.is_dir() and any(path.is_file() for path in where.iterdir())


def _checked(name: str, root: str, arrays: Sequence, shape: tuple[int, ...]) -> Arrays:
    train_inputs, train_targets, test_inputs, test_targets = (np.asarray(a) for a in arrays)
    for half, inputs, targets in (
        ("training", train_inputs, train_targets),
        ("test", test_inputs, test_targets),
    ):
        if inputs.shape[1:] != shape or len(inputs) != len(targets) or not len(inputs):
            raise ConfigError(
                f"data={name}: the {half} files in {Path(root).absolute()} hold {len(inputs)} "
                f"images of {inputs.shape[1:]} and {len(targets)} labels; expected are images of "
                f"{shape} and a label for each"
            )
        if not 0 <= targets.min() <= targets.max() < 10:
            raise ConfigError(
                f"data={name}: the {half} files in {Path(root).absolute()} hold labels from "
                f"{targets.min()} to {targets.max()}; expected are 0 to 9"
            )
    return Arrays(
        np.ascontiguousarray(train_inputs), train_targets.astype(np.int64),
        np.ascontiguousarray(test_inputs), test_targets.astype(np.int64),
    )  # fmt: skip
