"""What a loss function rewards where one output stands for two classes."""

import math

import torch
from torch import Tensor

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.loss_function.across_samples import cross_gradient, permuted
from debugnn.doctor.observe.loss_function.made_up import (
    REST,
    SURE,
    Loss,
    equal,
    random_numbers,
)
from debugnn.doctor.observe.task import Task, space

_BINARY_LOGIT = 12.0
_WHOLE = 0.05  # what an overlap may differ by from that of equal areas, and of areas apart
# Outputs of 3 in place of 1 have a Dice loss of 1 - 2 * 3 / (3 + 1) = -0.5, and more of Jaccard's.
_BEYOND = 0.2
_OUTSIDE = 1e-3  # how far outside of 0 to 1 an output is no probability
_UNSURE = 0.25  # towards the wrong class, of a probability or a logit
_LESS_SURE = (1.0, 2.0, 3.0, 4.0, 6.0)  # logits that may be best, where the loss smooths labels


def try_binary(facts: LossFacts, loss: Loss, outputs: Tensor, task: Task) -> None:
    """Fill in what the loss makes of outputs that are right for two classes, and of wrong ones."""
    ones = loss.targets.to(outputs.dtype).reshape(outputs.shape)
    share = ones.mean().clamp(0.05, 0.95)
    facts.output_space = "unit" if task.squashed else "real"
    if facts.output_space == "unit":
        right = ones * SURE + REST
        wrong, constant = 1 - right, torch.full_like(ones, share.item())
    else:
        right = (2 * ones - 1) * _BINARY_LOGIT
        wrong, constant = -right, torch.full_like(ones, share.logit().item())
        facts.squared = _is_squared(loss, ones, min(loss(right), loss(constant)))
        outside = (outputs < -_OUTSIDE) | (outputs > 1 + _OUTSIDE)
        facts.overlap = bool(outside.any()) and _is_overlap(loss, ones)
        if facts.squared:
            right, wrong, constant = ones, 1 - ones, torch.full_like(ones, share.item())
    sizes = () if facts.squared or task.squashed else _LESS_SURE
    sure = loss(right)
    facts.best = min([sure, *(loss((2 * ones - 1) * size) for size in sizes)])
    facts.constant = loss(constant)
    between = torch.full_like(ones, 0.5) if facts.squared or task.squashed else 0 * ones
    facts.undecided = loss(between)
    facts.unsure = loss(between + _UNSURE * (between - right) / (between - right).abs())
    facts.rewards = [[sure, loss(wrong)]]
    others = [facts.constant, facts.rewards[0][1]]
    known = all(map(math.isfinite, [sure, *others]))
    facts.confirmed = known and sure < min(others)
    if known and sizes and not facts.confirmed:
        facts.confirmed = _smooths(loss, ones, facts.constant)
    facts.opposed = known and sure > max(others) and min(others) < 0
    noise = torch.randn(outputs.shape, generator=random_numbers()).sigmoid()
    facts.permuted = permuted(loss, noise.to(outputs))
    facts.cross_gradient = cross_gradient(loss, outputs)
    if ones.dim() == 2 and _compete(loss, outputs, task.squashed):
        facts.competing = (ones.sum(dim=1) != 1).float().mean().item()


def _compete(loss: Loss, outputs: Tensor, squashed: bool) -> bool:
    """Return whether a sample's outputs (B, labels) sum to 1, or the loss takes a softmax of them:
    then it stays as it is when all outputs of a sample are shifted alike, and not one alone."""
    if outputs.shape[1] < 2:
        return False
    if squashed:
        return space(outputs) == "simplex"
    generator = random_numbers()
    scores = torch.randn(outputs.shape, generator=generator).to(outputs)
    shift = torch.randn(len(outputs), 1, generator=generator).to(outputs)
    value = loss.within(scores)
    alone = scores.clone()
    alone[:, :1] += shift
    return equal(value, loss.within(scores + shift)) and not equal(value, loss.within(alone))


def _is_overlap(loss: Loss, ones: Tensor) -> bool:
    """Return whether outputs are taken for the degree to which a position belongs to an area.

    The areas themselves cost next to nothing, and all that is outside of them the most that there
    is, 1. Larger outputs cost less than nothing, which is how it differs from a distance.
    """
    same, others, larger = loss(ones), loss(1 - ones), loss(3 * ones)
    return abs(same) < _WHOLE and abs(others - 1) < _WHOLE and larger < same - _BEYOND


def _smooths(loss: Loss, ones: Tensor, constant: float) -> bool:
    """Return whether fairly sure outputs are best, of a loss that takes both classes alike: labels
    are smoothed. A loss of distances takes near and far otherwise."""
    fair = 2 * (2 * ones - 1)
    turned = loss.at(-fair, (1 - ones).reshape(loss.targets.shape).to(loss.targets.dtype))
    lower = loss(fair) < min(constant, loss(-fair))
    return lower and math.isclose(turned, loss(fair), rel_tol=1e-4)


def _is_squared(loss: Loss, ones: Tensor, otherwise: float) -> bool:
    """Return whether a real output is compared with {0, 1} by a distance.

    It is least at 0 and 1, and more confidence costs on either side; a margin is for one alone.
    """
    best = loss(ones)
    beyond = (loss(3 * ones), loss(3 * ones - 2))  # 3 in place of 1, and −2 in place of 0
    return best < otherwise and all(best < value for value in beyond)
