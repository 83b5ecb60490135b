"""Labels that say which inputs of a pair are alike, and which of them the loss draws together.

A contrastive loss draws the pairs of one label together and pushes those of the other apart
(Hadsell et al. 2006, doi:10.1109/CVPR.2006.100). Which is which is a convention that a data set and
a loss may hold differently. The loss is asked by made-up outputs, the data by distances of inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import PairFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call, is_plain
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.observe.modes import without_dropout

_LEAST = 8  # fewest pairs of each label
_SAME = 1e-3  # distance of equal inputs over that of others, at most: rounding, or an eps
_FAR = 4.0  # times the largest distance that there is: beyond any margin that is in use

LossFunction = Callable[[Any, Any], Tensor]


def pair_facts(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFunction
) -> PairFacts | None:
    """Compare what a loss asks of labelled pairs with how far apart their inputs are.

    Args:
        model: a copy, called with two tensors of the same shape. Its outputs are a distance a pair,
            which is 0 of equal inputs, or an embedding of each input.
        batches: of the training.
        loss_fn: its loss.

    Returns:
        None of other models, of other targets than two labels, and of losses that draw together the
        pairs of both labels or of none.
    """
    first = batches[0] if batches else None
    if first is None or not _is_pairs(first):
        return None
    labels = first.targets.unique().tolist()
    with torch.no_grad(), without_dropout(model, training=False):
        outputs = first.call(model)
        asked = [_draws_together(model, first, outputs, label, loss_fn) for label in labels]
    if None in asked or asked[0] == asked[1]:
        return None
    drawn = labels[asked.index(True)]
    apart, alike = [], []
    for batch in batches:
        if _is_pairs(batch):
            one, other = (t.detach().flatten(1).double() for t in batch.call.tensors())
            distances = (one - other).square().mean(dim=1)
            chosen = batch.targets.flatten() == drawn
            alike.append(distances[chosen])
            apart.append(distances[~chosen])
    near, far = torch.cat(alike), torch.cat(apart)
    if min(len(near), len(far)) < _LEAST:
        return None
    below = (near[:, None] < far[None, :]).double() + 0.5 * (near[:, None] == far[None, :]).double()
    # Standard error of the share where both are alike (Mann & Whitney 1947).
    error = ((len(near) + len(far) + 1) / (12 * len(near) * len(far))) ** 0.5
    return PairFacts(drawn, below.mean().item(), error, len(near) + len(far))


def _is_pairs(batch: Batch) -> bool:
    given, targets = batch.call.tensors(), batch.targets
    if len(given) != 2 or not isinstance(targets, Tensor) or targets.numel() != len(targets):
        return False
    one, other = given
    plain = is_plain(one) and is_plain(other) and one.is_floating_point()
    same = plain and one.shape == other.shape and one.dim() > 1 and one.dtype == other.dtype
    return same and len(one) == len(targets) and len(targets.unique()) == 2


def _draws_together(
    model: nn.Module, batch: Batch, outputs: Any, label: float, loss_fn: LossFunction
) -> bool | None:
    """Return whether pairs of a label have a lower loss where both are at one place than far apart.

    None where outputs are neither distances nor two embeddings.
    """
    targets = torch.full_like(batch.targets, label)
    places = _places(model, batch.call, outputs)
    if places is None:
        return None
    near, far = (value_of(loss_fn, each, targets) for each in places)
    return None if near == far else near < far


def _places(model: nn.Module, call: Call, outputs: Any) -> tuple[Any, Any] | None:
    """Return outputs of pairs at one place, and of pairs far apart, in the form of the model's."""
    if isinstance(outputs, Tensor):
        if outputs.numel() != len(outputs) or not outputs.is_floating_point():
            return None
        one, other = call.tensors()
        equal = call.exchanged(other, one)(model)
        largest = outputs.abs().max()
        distance = bool((outputs >= 0).all()) and bool((equal.abs() <= _SAME * largest).all())
        if not distance or largest == 0:
            return None
        return torch.zeros_like(outputs), torch.full_like(outputs, _FAR * largest.item())
    if not isinstance(outputs, tuple | list) or len(outputs) != 2:
        return None
    one, other = outputs
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return None
    if one.dim() != 2 or len(one) != len(call.tensors()[0]):
        return None
    return (one, one.clone()), (one, -_FAR * one)
