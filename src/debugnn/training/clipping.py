"""Gradient rules that clip or rescale the gradients. `debugnn.training.gradients` chooses one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from debugnn.training.gradients import global_norm, gradients_of


def clip_norm(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to the norm `max_norm` if their global norm is larger.

    Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.

    Returns:
        The global norm before.
    """
    norm = global_norm(parameters)
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def rescale_norm(parameters: Sequence[Tensor], norm: float) -> Tensor:
    """Scale the gradients up or down to the global norm `norm`.

    Gradients that are all zero stay zero.

    Returns:
        The global norm before.
    """
    before = global_norm(parameters)
    factor = torch.where(before > 0, norm / before, 1.0)
    for gradient in gradients_of(parameters):
        gradient.mul_(factor)
    return before
