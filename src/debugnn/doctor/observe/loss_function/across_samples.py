"""How a loss function combines the samples of a batch: by mean or sum, each by itself or not."""

import math

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import map_tensors, with_first
from debugnn.doctor.observe.loss_function.made_up import ZERO_LOSS, Loss, equal, ratio

_EXCHANGES = 8  # at most, of outputs among samples


def doubling(loss: Loss, tensor: Tensor) -> float | None:
    """Return the loss of every sample twice over that of each once: 1 of a mean, 2 of a sum.

    None where outputs and targets have no common batch axis, where the function takes one batch
    size only, and where the loss is 0. A loss that broadcasts to (B, B) gives 1.
    """
    targets, batch = loss.targets, len(tensor)
    if tensor.shape[:1] != targets.shape[:1]:
        return None

    def twice(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if value.dim() and len(value) == batch else value

    once = loss(tensor)
    try:
        doubled = map_tensors(with_first(loss.outputs, tensor), twice)
        doubled = with_first(doubled, twice(tensor))
        again = loss.of(doubled, twice(targets))
    except Exception:  # a function for one batch size alone
        return None
    return None if abs(once) < ZERO_LOSS else again / once


def exchangeable(loss: Loss, tensor: Tensor) -> bool:
    """Return whether samples can change places, outputs and targets together.

    They can't where the loss weighs each of them by something of its own, an advantage for example.
    """
    if tensor.shape[:1] != loss.targets.shape[:1]:
        return False
    try:
        turned = loss(tensor.roll(1, dims=0), loss.targets.roll(1, dims=0))
    except Exception:
        return False
    return equal(loss(tensor), turned)


def permuted(loss: Loss, outputs: Tensor) -> float | None:
    """Return the relative change of the loss where samples' outputs, not targets, change places.

    The largest one of several exchanges: the mean over the many pixels of a map changes so little
    at each of them that it may be nothing by chance. And of outputs of unit scale too: beside the
    exponential of large ones nothing else counts.

    Returns:
        None where the targets are equal, so that it does not matter.
    """
    targets = loss.targets
    if len(outputs) < 2 or not targets.dim() or torch.equal(targets, targets.roll(1, dims=0)):
        return None
    largest = outputs.abs().max()
    points = [outputs, outputs / largest] if largest > 1 else [outputs]
    found = [change for each in points if (change := _change(loss, each)) is not None]
    return max(found, default=None)


def _change(loss: Loss, outputs: Tensor) -> float | None:
    here = loss.within(outputs)
    moved = range(1, min(len(outputs), _EXCHANGES + 1))
    there = [loss.within(outputs.roll(places, dims=0)) for places in moved]
    if not all(map(math.isfinite, (here, *there))):
        return None
    return max(abs(here - value) for value in there) / max(abs(here), ZERO_LOSS)


def cross_gradient(loss: Loss, noise: Tensor) -> float | None:
    """Return the relative change of one half's gradient by the other half's outputs."""
    try:
        gradient, changed, half = loss.gradient(noise), noise.clone(), len(noise) // 2
        if gradient is None or half == 0:
            return None
        rest = noise[half:]
        changed[half:] = rest.flip(0) * 0.5 if len(rest) > 1 else rest * 0.5
        again = loss.gradient(changed)
    except Exception:  # a loss that is not defined there
        return None
    if again is None:
        return None
    difference = (again[:half] - gradient[:half]).abs().max()
    return ratio(difference, gradient[:half].abs().max())
