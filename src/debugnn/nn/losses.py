"""Losses of the experiments, right and deliberately wrong.

Each takes outputs (B, C) and class indices (B,), or outputs (B, 1) and values (B, 1), and returns
the mean over the batch as a scalar.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits: log-softmax, then the negative log-likelihood of the class."""
    return F.cross_entropy(outputs, _classes(targets))


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error: to the value, or, for classes, to the one-hot vector (a wrong loss)."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.mse_loss(outputs, _one_hot(outputs, targets))


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each logit against the one-hot vector: C one-against-all problems."""
    return F.binary_cross_entropy_with_logits(outputs, _one_hot(outputs, targets))


def bce_index(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with the class INDEX as its target, broadcast over the outputs.

    What a two-class program does when it is given ten: a target of 7 is no probability, and every
    output of a sample is told the same.
    """
    broadcast = _classes(targets).unsqueeze(1).expand_as(outputs).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, broadcast)


def softmax_twice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities taken for logits: the softmax is applied twice.

    The best that it can reach is −log(e / (e + C − 1)), 1.46 for ten classes.
    """
    return F.cross_entropy(torch.softmax(outputs, dim=1), _classes(targets))


def sigmoid_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of sigmoids taken for logits, the article's wrong output for many classes.

    The best that it can reach is −log(e / (e + C − 1)), as for `softmax_twice`.
    """
    return F.cross_entropy(torch.sigmoid(outputs), _classes(targets))


def _classes(targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        raise TypeError("this loss needs classes, and the targets are real numbers; use loss=mse")
    return targets


def _one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.one_hot(_classes(targets), outputs.shape[1]).to(outputs.dtype)
