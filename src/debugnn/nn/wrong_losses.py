"""Losses for classes that are wrong on purpose: mistakes of real programs, for experiments.

Their arguments and results are those of `debugnn.nn.losses`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.nn.losses import classes_of, one_hot


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of the logits with the one-hot vector, one class vs rest."""
    return F.binary_cross_entropy_with_logits(outputs, one_hot(outputs, targets))


def bce_index(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy with the class INDEX as the target of every output.

    This is what a program for two classes computes when it is given ten: a target of 7 is not a
    probability, and all outputs of a sample have the same target.
    """
    broadcast = classes_of(targets).unsqueeze(1).expand_as(outputs).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, broadcast)


def softmax_twice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of probabilities instead of logits: softmax is applied twice.

    Its lowest value is −log(e / (e + C − 1)), 1.46 for ten classes.
    """
    return F.cross_entropy(torch.softmax(outputs, dim=1), classes_of(targets))


def sigmoid_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of sigmoids instead of logits, the article's wrong output layer.

    Its lowest value is that of `softmax_twice`.
    """
    return F.cross_entropy(torch.sigmoid(outputs), classes_of(targets))
