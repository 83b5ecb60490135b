"""How well outputs fit values of new samples after one linear map of all outputs."""

import torch
from torch import Tensor

_LEAST = 32  # values, half of which a map of two numbers is fitted on


def rescaled_skill(predicted: Tensor, wanted: Tensor) -> float | None:
    """Return the R² of outputs that a linear map brings to the scale and offset of their targets.

    The map is fitted by least squares on every other value and tried on those between. What
    outputs tell of their targets stays; that inputs or targets were scaled otherwise is undone.

    Args:
        predicted: (N,) values.
        wanted: their targets, (N,).

    Returns:
        The mean over both halves; None of too few values, of values that are not finite, of a
        constant, and where outputs fall as their targets rise.
    """
    pairs = torch.stack([predicted, wanted]).detach().cpu().double()
    if pairs.shape[1] < _LEAST or not torch.isfinite(pairs).all():
        return None
    halves = (pairs[:, ::2], pairs[:, 1::2])
    found = []
    for (x, y), (x_new, y_new) in (halves, halves[::-1]):
        variance = x.var(correction=0)
        slope = ((x - x.mean()) * (y - y.mean())).mean() / variance
        rest = y_new - (y.mean() + slope * (x_new - x.mean()))
        if variance == 0 or y_new.var() == 0 or slope <= 0:
            return None
        found.append((1 - rest.square().mean() / y_new.var(correction=0)).item())
    return sum(found) / len(found)
