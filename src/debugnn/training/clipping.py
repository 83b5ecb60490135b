"""What happens to the gradients between the backward pass and the update.

Each is a callable that takes the parameters, may change their `.grad` in place, and returns the
global L2 norm as it was before, a scalar tensor.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

GradientRule = Callable[[Iterable[Tensor]], Tensor]


def keep(parameters: Iterable[Tensor]) -> Tensor:
    """Leave the gradients as they are."""
    return global_norm(list(parameters))


def clip_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm` where their norm is above it.

    Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.
    """
    parameters = list(parameters)
    norm = global_norm(parameters)
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def rescale_norm(parameters: Iterable[Tensor], norm: float) -> Tensor:
    """Scale the gradients up or down to `norm`, whatever their own norm is (gradient scaling).

    Gradients that are all zero stay zero.
    """
    parameters = list(parameters)
    before = global_norm(parameters)
    factor = torch.where(before > 0, norm / before, 1.0)
    for gradient in _gradients(parameters):
        gradient.mul_(factor)
    return before


def global_norm(parameters: list[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, a scalar; 0 where there are none.

    Squares of float32 gradients overflow above 1e19 and vanish below 1e-23: exactly there, where
    gradients explode or vanish, the norm is taken again in float64.
    """
    gradients = _gradients(parameters)
    if any(g.device.type != "cpu" for g in gradients):
        # In float64 at once: to look at a norm is to wait for it.
        return get_total_norm([g.double() for g in gradients])
    norm = get_total_norm(gradients)
    if norm == 0 or torch.isinf(norm):
        norm = get_total_norm([g.double() for g in gradients])
    return norm


def gradient_rule(max_norm: float | None, rescale: bool) -> GradientRule:
    """The rule that `conf/clip` describes."""
    if max_norm is None:
        return keep
    if rescale:
        return partial(rescale_norm, norm=max_norm)
    return partial(clip_norm, max_norm=max_norm)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


# --- stacked gradients ----------------------------------------------------------------------------


def limit_of(rule: GradientRule) -> tuple[float, bool] | None:
    """The norm that one of the rules above holds, and whether it scales up to it.

    (inf, False) for `keep`; None for a rule from elsewhere.
    """
    if rule is keep:
        return math.inf, False
    if isinstance(rule, partial) and not rule.args:
        if rule.func is clip_norm and rule.keywords.keys() == {"max_norm"}:
            return rule.keywords["max_norm"], False
        if rule.func is rescale_norm and rule.keywords.keys() == {"norm"}:
            return rule.keywords["norm"], True
    return None


@dataclass(frozen=True)
class NormLimits:
    """The members' gradient rules as tensors, on their device once: a copy there is waited for."""

    norms: Tensor | None  # (N,), float64, infinite for no limit; None where nobody has one
    rescales: Tensor  # (N,), whether smaller gradients are scaled up to it

    @classmethod
    def of(cls, limits: Sequence[tuple[float, bool]], device: torch.device) -> "NormLimits":
        """From a norm and whether it rescales, for each member."""
        norms, rescales = zip(*limits, strict=True)
        limited = not all(map(math.isinf, norms))
        return cls(
            torch.tensor(norms, dtype=torch.float64, device=device) if limited else None,
            torch.tensor(rescales, device=device),
        )


def clip_each(gradients: Sequence[Tensor], limits: NormLimits) -> Tensor:
    """`keep`, `clip_norm` or `rescale_norm` for each member, in place.

    Args:
        gradients: (N, …) each.

    Returns:
        The members' global L2 norms before, (N,), as float64.
    """
    # As in `global_norm`.
    if gradients[0].device.type != "cpu":
        norms = _norms([g.double() for g in gradients])
    else:
        norms = _norms(gradients)
        beyond = (norms == 0) | torch.isinf(norms)
        if beyond.any():
            norms = torch.where(beyond, _norms([g.double() for g in gradients]), norms)
    limit = limits.norms
    if limit is None:
        return norms
    down = (limit / (norms + 1e-6)).clamp(max=1.0)
    factors = torch.where(limits.rescales, torch.where(norms > 0, limit / norms, 1.0), down)
    factors = torch.where(torch.isinf(limit), 1.0, factors)
    for gradient in gradients:
        gradient.mul_(factors.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    # Over all dimensions but the first. A number a member has no others, and is its own norm.
    of_each = [
        torch.linalg.vector_norm(g, dim=tuple(range(1, g.dim()))) if g.dim() > 1 else g.abs()
        for g in gradients
    ]
    return torch.linalg.vector_norm(torch.stack(of_each), dim=0).double()
