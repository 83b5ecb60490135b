"""The readers of MNIST and CIFAR-10, whose files torchvision reads and downloads.

torchvision takes seconds to import, so each reader imports it when it is called.
"""

import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from debugnn.data.readers import Arrays
from debugnn.errors import ConfigError, first_line

log = logging.getLogger(__name__)


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
