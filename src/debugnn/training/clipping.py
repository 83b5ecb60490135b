"""Gradient rules: what is done to the gradients between the backward pass and the update.

A gradient rule is a callable that takes the parameters, may change their `.grad` in place, and
returns the global L2 norm of the gradients before the change, a scalar tensor.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

GradientRule = Callable[[Iterable[Tensor]], Tensor]


def keep(parameters: Iterable[Tensor]) -> Tensor:
    """Leave the gradients as they are, and return their global norm."""
    return global_norm(list(parameters))


def clip_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to the norm `max_norm` if their global norm is larger.

    Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.

    Returns:
        The global norm before.
    """
    parameters = list(parameters)
    norm = global_norm(parameters)
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def rescale_norm(parameters: Iterable[Tensor], norm: float) -> Tensor:
    """Scale the gradients up or down to the global norm `norm`.

    Gradients that are all zero stay zero.

    Returns:
        The global norm before.
    """
    parameters = list(parameters)
    before = global_norm(parameters)
    factor = torch.where(before > 0, norm / before, 1.0)
    for gradient in _gradients(parameters):
        gradient.mul_(factor)
    return before


def global_norm(parameters: list[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, a scalar; 0 if there are none.

    The squares of float32 gradients overflow above 1e19 and underflow below 1e-23. The norm is
    computed in float64 if that happens, so that exploding and vanishing gradients are measured.
    """
    gradients = _gradients(parameters)
    if any(g.device.type != "cpu" for g in gradients):
        # Always in float64: comparing the norm with 0 or infinity would wait for the GPU.
        return get_total_norm([g.double() for g in gradients])
    if not gradients:
        return torch.tensor(0.0)
    # As `get_total_norm` does, which sorts the gradients by device and type first: on a small net
    # that takes twice as long as the norm.
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.item() in (0.0, math.inf):
        norm = get_total_norm([g.double() for g in gradients])
    return norm


def gradient_rule(max_norm: float | None, rescale: bool) -> GradientRule:
    """Return the rule of the settings in `conf/clip`.

    Args:
        max_norm: the threshold; None leaves the gradients as they are.
        rescale: scale smaller gradients up to `max_norm` too.
    """
    if max_norm is None:
        return keep
    if rescale:
        return partial(rescale_norm, norm=max_norm)
    return partial(clip_norm, max_norm=max_norm)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
