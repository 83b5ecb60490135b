"""How much a loss weighs the samples of each class."""

import torch
from torch import Tensor

from debugnn.doctor.observe.loss_function.made_up import Loss, random_numbers
from debugnn.doctor.observe.task import Task

_LEAST = 3  # fewest samples of a class
_ALIKE = 0.05  # spread within a class over its mean, at most: the weight is that of the class


def class_weights(loss: Loss, outputs: Tensor, targets: Tensor, task: Task) -> dict[int, float]:
    """Return class → the loss's pull at the score of a sample of it, over that of the mean class.

    At outputs of zero, where a cross-entropy, smoothed or focal, pulls at each sample's own score
    by the sample's weight and nothing else.

    Args:
        outputs: of the model, for the batch; their values are not used.
        targets: classes, or a binary task's 0 and 1.

    Returns:
        {} of samples with several labels, of probabilities, and where samples of one class differ.
    """
    if task.squashed or task.link != "identity" or targets.numel() != len(targets):
        return {}
    gradient = loss.gradient(torch.zeros_like(outputs))
    if gradient is None or not torch.isfinite(gradient).all():
        return {}
    labels = task.labels(targets)
    rows = gradient.reshape(len(targets), -1)
    if task.kind == "classes":
        known = (labels >= 0) & (labels < rows.shape[1])
        rows, labels = rows[known], labels[known]
        pulls = rows.gather(1, labels[:, None])[:, 0].abs()
    else:
        pulls = rows[:, 0].abs()
    found: dict[int, float] = {}
    for label in labels.unique().tolist():
        own = pulls[labels == label]
        if len(own) < _LEAST:
            continue
        mean = own.mean().item()
        if own.std().item() > _ALIKE * mean:
            return {}
        found[label] = mean
    # What pulls at no score of zero, as a distance or a margin, may pull at others.
    if 0 in found.values() and not _left_out(loss, outputs, targets, task, found):
        return {}
    middle = sum(found.values()) / max(len(found), 1)
    return {label: weight / middle for label, weight in found.items()} if middle > 0 else {}


def _left_out(
    loss: Loss, outputs: Tensor, targets: Tensor, task: Task, found: dict[int, float]
) -> bool:
    """Return whether samples of the classes without a pull have none at made-up scores either."""
    noise = torch.randn(outputs.shape, generator=random_numbers()).to(outputs)
    gradient = loss.gradient(noise)
    if gradient is None:
        return False
    labels, rows = task.labels(targets), gradient.reshape(len(targets), -1)
    none = [label for label, pull in found.items() if pull == 0]
    return not any(bool(rows[labels == label].any()) for label in none)
