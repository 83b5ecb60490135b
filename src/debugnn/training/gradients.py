"""The gradients between the backward pass and the update: their norm, and rules that change them.

A gradient rule is a callable that takes the parameters, may change their `.grad` in place, and
returns the global L2 norm of the gradients before the change, a scalar tensor. The rules that
change something are in `debugnn.training.clipping`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

GradientRule = Callable[[Sequence[Tensor]], Tensor]


def keep(parameters: Sequence[Tensor]) -> Tensor:
    """Leave the gradients as they are, and return their global norm."""
    return global_norm(parameters)


def global_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, a scalar; 0 if there are none.

    The squares of float32 gradients overflow above 1e19 and underflow below 1e-23. The norm is
    computed in float64 if that happens, so that exploding and vanishing gradients are measured.
    """
    gradients = gradients_of(parameters)
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
    from debugnn.training.clipping import clip_norm, rescale_norm  # clip=off is the default

    if rescale:
        return partial(rescale_norm, norm=max_norm)
    return partial(clip_norm, max_norm=max_norm)


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]
