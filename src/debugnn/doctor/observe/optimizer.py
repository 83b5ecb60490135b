"""What the optimiser holds of the model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import OptimizerFacts


def optimizer_facts(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Mapping[str, Any]],
    initial: Mapping[str, Tensor],
) -> OptimizerFacts:
    """Compare the optimiser's parameters with the model's.

    Args:
        groups: the optimiser's groups as they began, with the largest learning rate seen.
        initial: the weights that the training began with.
    """
    parameters = dict(model.named_parameters())
    own = {id(p) for p in parameters.values()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {n: p for n, p in parameters.items() if p.requires_grad}
    decays = (float(g.get("weight_decay") or 0) for g in optimizer.param_groups)
    return OptimizerFacts(
        name=type(optimizer).__name__,
        held=sum(id(p) in held for p in trainable.values()),
        trainable=len(trainable),
        # What another optimiser moves is not missing.
        missing=[
            n
            for n, p in trainable.items()
            if id(p) not in held
            and (n not in initial or torch.equal(initial[n].to(p.device), p.detach()))
        ],
        foreign=len(held - own),
        frozen_held=[n for n, p in parameters.items() if not p.requires_grad and id(p) in held],
        lr=max((float(g["lr"]) for g in groups), default=None),
        weight_decay=max(decays, default=0.0),
    )


def still_unreached(unreached: Sequence[str], graded: Collection[str]) -> list[str]:
    """Return the parameters of the first pass without a gradient that have never had one.

    One pass may leave out a layer at random that others reach.

    Args:
        unreached: parameters that the outputs of the first pass depended on without a gradient.
        graded: parameters that have had a gradient in a training step.
    """
    return [name for name in unreached if name not in graded]
