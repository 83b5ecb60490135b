"""Whether an output is the logarithm of a map's change of volume, as a normalising flow gives it.

A flow returns codes z of inputs x and log |det dz/dx|. Both are computed again from the network's
derivatives, on a few samples.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import VolumeFacts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.modes import without_dropout

_SAMPLES = 12
_FEATURES = 64  # most values of a sample: each takes a backward pass
_TENSORS = 4  # most tensors of the outputs
# Numerical tolerances: of a determinant that is computed in single precision, and of one that is
# told from 1.
_EQUAL = 1e-2
_MOVED = 1e-2
# Spread of what the model returns less the true logarithm, over the spread of this, from which it
# is another number: a constant, as of a change of units before the model, takes nothing away.
_OTHER = 0.2
# Relative difference of the gradients by the number of each sample, and of that by the codes over
# the codes: all are one number where the loss is half of the codes' squares less the number.
_EVEN = 1e-3


class Volume(NamedTuple):
    """Places of the codes and of the logarithm among the outputs' tensors."""

    codes: int
    logarithm: int


def volume_like(outputs: Any) -> Volume | None:
    """Return which outputs may be codes (B, …) and a number for each sample (B,) or (B, 1)."""
    tensors = Call((outputs,)).tensors()
    if not 2 <= len(tensors) <= _TENSORS:
        return None
    found: dict[str, int] = {}
    for place, tensor in enumerate(tensors):
        if not (tensor.is_floating_point() and tensor.requires_grad and tensor.dim()):
            continue
        kind = "logarithm" if tensor.numel() == len(tensor) else "codes"
        found.setdefault(kind, place)
    if len(found) < 2 or len(tensors[found["codes"]]) != len(tensors[found["logarithm"]]):
        return None
    return Volume(**found)


def volume_facts(
    model: nn.Module, call: Call, volume: Volume, gradients: dict[int, Tensor], outputs: Any
) -> VolumeFacts | None:
    """Return how the loss pulls at a change of volume.

    Args:
        model: a copy of the model as it is now, whose samples are apart.
        call: of a batch.
        volume: places of the outputs in question.
        gradients: place → gradient of the loss with respect to this output, at some step.
        outputs: of the model at that step.

    Returns:
        None where no volume changes yet; where the output is neither the logarithm nor its
        negative, unless the loss is a likelihood of which it is to be the logarithm.
    """
    given = [t for t in call.tensors() if t.is_floating_point() and t.dim() > 1]
    inputs = next(iter(given), None)
    if inputs is None or not 2 <= inputs[0].numel() <= _FEATURES or volume.codes not in gradients:
        return None
    with torch.enable_grad(), without_dropout(model, training=False):
        leaf = inputs.detach().clone().requires_grad_()
        made = call.exchanged(inputs, leaf)
        tensors = Call((model(*made.args, **made.kwargs),)).tensors()
        codes, said = tensors[volume.codes], tensors[volume.logarithm].detach().flatten()
        if (
            not codes.requires_grad
            or codes.shape[0] != leaf.shape[0]
            or codes[0].numel() != leaf[0].numel()
        ):
            return None
        flat = codes.reshape(len(codes), -1)
        rows = [
            torch.autograd.grad(
                flat[:, entry].sum(), leaf, retain_graph=True, materialize_grads=True
            )[0][:_SAMPLES]
            for entry in range(flat.shape[1])
        ]
    jacobian = torch.stack([row.reshape(len(row), -1) for row in rows], dim=1)
    true = torch.linalg.slogdet(jacobian.double()).logabsdet
    said = said[: len(true)].double()
    if not torch.isfinite(true).all() or true.abs().max() < _MOVED:
        return None
    sign = next((s for s in (1, -1) if _same(s * said, true)), None)
    pull = gradients.get(volume.logarithm)
    where = Call((outputs,)).tensors()[volume.codes].flatten().double()
    drawn = gradients[volume.codes].flatten().double()
    if sign is None:
        # Which of several inputs is mapped is not known.
        if pull is None or len(given) > 1 or not _is_likelihood(pull, where, drawn):
            return None
        with torch.no_grad(), without_dropout(model, training=False):
            again = Call((call(model),)).tensors()[volume.logarithm].flatten()[: len(said)]
        if not torch.equal(said, again.double()) or not _is_other(said, true):
            return None
    towards = torch.nn.functional.cosine_similarity(where, drawn, dim=0)
    return VolumeFacts(
        gradient=0.0 if pull is None else (sign or 1) * pull.sign().mean().item(),
        towards_centre=towards.item() if math.isfinite(towards.item()) else 0.0,
        exact=sign is not None,
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= _EQUAL * second.abs().max().clamp_min(1.0))


def _is_other(said: Tensor, true: Tensor) -> bool:
    return len(true) > 1 and bool((said - true).std() > _OTHER * true.std().clamp_min(_MOVED))


def _is_likelihood(pull: Tensor, codes: Tensor, drawn: Tensor) -> bool:
    """Return whether gradients are those of half of the codes' squares less a number."""
    scale = (drawn @ codes / (codes @ codes)).item()
    return scale > 0 and bool((pull + scale).abs().max() <= _EVEN * scale)
