"""Weights that an update has made non-finite."""

import math

import torch
from torch import nn

from debugnn.doctor.evidence import NonFinite
from debugnn.doctor.nonfinite.values import census, described, magnitude_of
from debugnn.tensor_stats import read_together


def spoilt_by_update(model: nn.Module, step: int, line: str | None) -> NonFinite | None:
    """Return the first weight that is not finite after an update; None if all are finite.

    Args:
        step: the update's.
        line: of the person's code that called the optimiser.
    """
    weights = {n: p.detach() for n, p in model.named_parameters() if p.is_floating_point()}
    if all(map(math.isfinite, read_together(torch._foreach_norm(list(weights.values()))))):
        return None
    for name, values in weights.items():
        if not torch.isfinite(values).all():  # and not only its norm
            return NonFinite(
                step,
                "update",
                name,
                layer=name.rpartition(".")[0],
                **census(values, None),
                magnitude=magnitude_of([values]),
                overflow=False,
                outputs=[described(values)],
                line=line,
            )
    return None
