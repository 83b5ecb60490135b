"""Gradient clipping of stacked trainings: each member's own rule, on all members at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from debugnn.training.clipping import GradientRule, clip_norm, keep, rescale_norm


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
