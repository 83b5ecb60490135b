"""The losses of the experiments; those that are wrong on purpose are in `wrong_losses`.

Each takes the outputs and the targets of a batch, (B, C) and class indices (B,), or (B, 1) and
values (B, 1), and returns the mean over the batch, a scalar.
"""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits: log-softmax, then negative log-likelihood."""
    return F.cross_entropy(outputs, classes_of(targets))


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error to the values or, for classes (a wrong loss), to one-hot."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.mse_loss(outputs, one_hot(outputs, targets))


def classes_of(targets: Tensor) -> Tensor:
    """Return the targets.

    Raises:
        TypeError: they are values of a regression.
    """
    if targets.is_floating_point():
        raise TypeError("this loss needs classes, and the targets are real numbers; use loss=mse")
    return targets


def one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the classes as one-hot vectors (B, C), in the outputs' type."""
    return F.one_hot(classes_of(targets), outputs.shape[1]).to(outputs.dtype)
