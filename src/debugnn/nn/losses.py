"""The losses of the experiments, the right ones and the deliberately wrong ones.

Each takes the outputs and the targets of a batch, (B, C) and class indices (B,), or (B, 1) and
values (B, 1), and returns the mean over the batch, a scalar.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits: log-softmax, then negative log-likelihood."""
    return F.cross_entropy(outputs, _classes(targets))


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error to the values or, for classes (a wrong loss), to one-hot."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.mse_loss(outputs, _one_hot(outputs, targets))


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of the logits with the one-hot vector, one class vs rest."""
    return F.binary_cross_entropy_with_logits(outputs, _one_hot(outputs, targets))


def bce_index(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy with the class INDEX as the target of every output.

    This is what a program for two classes computes when it is given ten: a target of 7 is not a
    probability, and all outputs of a sample have the same target.
    """
    broadcast = _classes(targets).unsqueeze(1).expand_as(outputs).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, broadcast)


def softmax_twice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of probabilities instead of logits: softmax is applied twice.

    Its lowest value is −log(e / (e + C − 1)), 1.46 for ten classes.
    """
    return F.cross_entropy(torch.softmax(outputs, dim=1), _classes(targets))


def sigmoid_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of sigmoids instead of logits, the article's wrong output layer.

    Its lowest value is that of `softmax_twice`.
    """
    return F.cross_entropy(torch.sigmoid(outputs), _classes(targets))


def _classes(targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        raise TypeError("this loss needs classes, and the targets are real numbers; use loss=mse")
    return targets


def _one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.one_hot(_classes(targets), outputs.shape[1]).to(outputs.dtype)
