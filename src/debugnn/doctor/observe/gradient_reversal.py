"""Outputs whose gradient goes back with the opposite sign, as through a gradient reversal layer.

Of Ganin & Lempitsky 2015, Unsupervised domain adaptation by backpropagation, arXiv:1409.7495: what
such an output is made of is trained against it, so that it is to learn nothing in the end.
"""

import math

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.loss_function.made_up import random_numbers

_WEIGHTS = 8  # most weights whose gradients are compared
_STEP = 1e-3  # length of the step along the gradient, over the weight's norm
_OPPOSITE = -0.1  # of the gradient's norm: a slope below it goes the other way


def reversed_outputs(model: nn.Module, call: Call) -> set[int]:
    """Return the places of the outputs that fall along their own gradient.

    The slope of a random sum of an output's values, along its gradient by a weight, is measured by
    a step to either side. It is the gradient's norm where nothing is reversed on the way.

    Args:
        model: a copy, whose weights are put back.
        call: of a batch.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    weights = weights[:: -(-len(weights) // _WEIGHTS)] if weights else []
    with torch.enable_grad():
        outputs = Call((call(model),)).tensors()
    signs = [torch.randn(o.shape, generator=random_numbers()).to(o.device) for o in outputs]
    gradients = [
        torch.autograd.grad((output * sign).sum(), weights, retain_graph=True, allow_unused=True)
        if output.requires_grad and weights
        else []
        for output, sign in zip(outputs, signs, strict=True)
    ]

    def against(place: int, weight: nn.Parameter, gradient: Tensor) -> bool:
        norm, step = float(gradient.double().norm()), _STEP * float(weight.detach().norm())
        up, down = (
            _outputs_at(model, call, weight, gradient, way / norm)[place] for way in (step, -step)
        )
        slope = ((up - down).detach().double() * signs[place]).sum().item() / (2 * step)
        return slope < _OPPOSITE * norm

    return {
        place
        for place, each in enumerate(gradients)
        if any(
            g is not None and 0 < float(g.norm()) < math.inf and against(place, w, g)
            for w, g in zip(weights, each, strict=False)
        )
    }


@torch.no_grad()
def _outputs_at(
    model: nn.Module, call: Call, weight: nn.Parameter, gradient: Tensor, factor: float
) -> list[Tensor]:
    """Return the outputs with a weight moved by a multiple of its gradient."""
    before = weight.clone()
    weight.add_(gradient, alpha=factor)
    outputs = Call((call(model),)).tensors()
    weight.copy_(before)
    return outputs
