"""Which of its arguments a loss function depends on: targets, and other outputs than the first."""

import math
from functools import partial

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import Call, map_tensors, with_first
from debugnn.doctor.observe.loss_function.made_up import FAR, ZERO_LOSS, Loss, alike, equal
from debugnn.doctor.observe.task import Task


def reads_other_outputs(loss: Loss, tensor: Tensor) -> bool:
    """Return whether the loss depends on other tensors of the outputs than the first."""

    def change(value: Tensor) -> Tensor:
        return value * 1.1 + 0.1 if value.is_floating_point() else value

    changed = with_first(map_tensors(loss.outputs, change), tensor)
    try:
        return not equal(loss(tensor), loss.of(changed))
    except Exception:  # it does something with them
        return True


def far_others(loss: Loss, tensor: Tensor) -> float | None:
    """Return the lowest loss where one of the outputs' other tensors is far out, over the loss.

    A number is left out: a term of the loss that the model computes, as a codebook's. Values of one
    sign keep it: a divergence of each sample, as the model returns it, is never negative.

    Returns:
        None where it is not finite there, or 0.
    """
    _, *others = Call((loss.outputs,)).tensors() or [tensor]
    own = abs(loss(tensor))
    values = []
    for chosen in others:
        if not chosen.is_floating_point() or not chosen.dim():
            continue
        signs = [sign for sign in (1, -1) if bool((sign * chosen > 0).any())]
        # Times a number, the values have their own signs, or the other ones. All on one side, none
        # of them outweighs the others: the exponential of a logarithm does that to the logarithm.
        factors = [1, -1] if len(signs) > 1 else [1]
        sides = [torch.full_like(chosen, sign * FAR) for sign in signs]
        for far in (*(factor * FAR * chosen for factor in factors), *sides):
            moved = map_tensors(loss.outputs, partial(_replaced, chosen, far))
            values.append(loss.at(with_first(moved, tensor)))
    known = [value for value in values if math.isfinite(value)]
    return min(known) / own if known and own > ZERO_LOSS else None


def _replaced(chosen: Tensor, far: Tensor, tensor: Tensor) -> Tensor:
    return far if tensor is chosen else tensor


def _other_targets(targets: Tensor, task: Task) -> list[Tensor]:
    """Return targets of the same kind that differ from the batch's."""
    others = [targets.flatten().roll(1).reshape(targets.shape)]
    if task.kind == "binary":
        others.append(1 - targets if targets.dtype != torch.bool else ~targets)
    elif task.kind == "classes" and not targets.is_floating_point():
        others.append(relabelled(targets, task.size, 1))
    elif task.kind == "classes":
        others.append(targets.roll(1, dims=1))
    else:
        others.append((targets / 2).to(targets.dtype))
    return [other for other in others if not torch.equal(other, targets)]


def relabelled(targets: Tensor, classes: int, by: int) -> Tensor:
    """Return labels with another number for each class; impossible ones stay."""
    known = (targets >= 0) & (targets < classes)
    return torch.where(known, (targets + by) % classes, targets)


def ignores_targets(loss: Loss, tensor: Tensor, task: Task) -> bool:
    """Return whether value and gradient stay as they are under other targets."""
    others = _other_targets(loss.targets, task)
    return bool(others) and all(same_gradient(loss, tensor, other) for other in others)


def same_gradient(loss: Loss, tensor: Tensor, targets: Tensor) -> bool:
    """Return whether other targets leave value and gradient as they are; not if they raise."""
    try:
        there = loss.gradient(tensor, targets)
        if not equal(loss(tensor), loss(tensor, targets)):
            return False
    except Exception:
        return False
    return alike(loss.gradient(tensor), there)
