"""What happens to the gradients between the backward pass and the update.

Each is a callable that takes the parameters, may change their `.grad` in place, and returns the
global L2 norm as it was before, a scalar tensor.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

GradientRule = Callable[[Iterable[Tensor]], Tensor]


def keep(parameters: Iterable[Tensor]) -> Tensor:
    """Leave the gradients as they are."""
    return get_total_norm(_gradients(list(parameters)))


def clip_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm` where their norm is above it.

    Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.
    """
    parameters = list(parameters)
    norm = get_total_norm(_gradients(parameters))
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def rescale_norm(parameters: Iterable[Tensor], norm: float) -> Tensor:
    """Scale the gradients up or down to `norm`, whatever their own norm is (gradient scaling).

    Gradients that are all zero stay zero.
    """
    gradients = _gradients(list(parameters))
    before = get_total_norm(gradients)
    if gradients:
        torch._foreach_mul_(gradients, norm / before.clamp_min(torch.finfo(before.dtype).tiny))
    return before


def gradient_rule(max_norm: float | None, rescale: bool) -> GradientRule:
    """The rule that `conf/clip` describes."""
    if max_norm is None:
        return keep
    if rescale:
        return partial(rescale_norm, norm=max_norm)
    return partial(clip_norm, max_norm=max_norm)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
