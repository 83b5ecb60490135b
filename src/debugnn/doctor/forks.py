"""Short trainings of a copy under one change, to see which change mends a training.

A fork starts from the weights and the optimiser state that the training began with, sees its first
batches, and runs a plain loop. Nothing of the training's own is touched.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import Fork
from debugnn.doctor.network import DROPOUT, Call
from debugnn.doctor.task import Task, constant_loss, reference_loss

_SMOOTHED = 6  # steps of which the first and the last relative loss are the mean


@dataclass(frozen=True)
class Batch:
    call: Call
    targets: Any


@dataclass(frozen=True)
class Change:
    """What a fork does differently."""

    lr: float = 1.0  # factor
    regularised: bool = True  # False: no weight decay, no dropout
    initial: Callable[[nn.Module], None] | None = None  # fills the weights anew
    inputs: Callable[[Tensor], Tensor] | None = None
    targets: Callable[[Any], Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    trainable: bool = False  # True: parameters that were frozen learn too
    clip: float | None = None


def run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[dict[str, Any]],
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Sequence[Batch],
    task: Task,
    steps: int,
    change: Change,
) -> Fork:
    """Train a copy of `model` for `steps` steps, the batches taken in turn.

    Args:
        optimizer: gives the class; its state is not used.
        groups: settings of its groups at the start, `names` being the parameters' names.
    """
    model = copy.deepcopy(model)
    model.train()
    if change.trainable:
        model.requires_grad_(True)
    if change.initial is not None:
        change.initial(model)
    if not change.regularised:
        for module in model.modules():
            if isinstance(module, DROPOUT):
                module.p = 0.0
    constant = _constant(task, batches, change)
    twin = _optimizer(model, optimizer, groups, change)
    loss_fn = change.loss or loss_fn
    curve = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        call = batch.call if change.inputs is None else batch.call.map(change.inputs)
        targets = batch.targets if change.targets is None else change.targets(batch.targets)
        twin.zero_grad()
        outputs = call(model)
        loss = loss_fn(outputs, targets)
        curve.append(_relative(task, outputs, targets, loss, constant))
        if not math.isfinite(curve[-1]):
            break
        loss.mean().backward()
        if change.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), change.clip)
        twin.step()
    finite = all(map(math.isfinite, curve))
    return Fork(
        steps=len(curve),
        start=fmean(curve[:2]),
        end=fmean(curve[-_SMOOTHED:]) if finite else math.inf,
    )


def _constant(task: Task, batches: Sequence[Batch], change: Change) -> float | None:
    """The best constant predictor's loss over all batches: of one batch it would be too low."""
    targets = [batch.targets for batch in batches if isinstance(batch.targets, Tensor)]
    if not targets:
        return None
    targets = [t if change.targets is None else change.targets(t) for t in targets]
    return constant_loss(task, torch.cat([t.reshape(-1, *t.shape[1:]) for t in targets]))


def _relative(
    task: Task, outputs: Any, targets: Any, loss: Tensor, constant: float | None
) -> float:
    value = reference_loss(task, outputs, targets) if isinstance(targets, Tensor) else None
    if value is None or constant is None:
        return loss.detach().float().mean().item()
    return value / constant


def _optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[dict[str, Any]],
    change: Change,
) -> torch.optim.Optimizer:
    named = dict(model.named_parameters())
    held = set()
    settings = []
    for group in groups:
        own = {key: value for key, value in group.items() if key != "names"}
        own["params"] = [named[name] for name in group["names"] if name in named]
        held |= set(group["names"])
        own["lr"] = own["lr"] * change.lr
        if not change.regularised and "weight_decay" in own:
            own["weight_decay"] = 0.0
        settings.append(own)
    rest = [p for name, p in named.items() if name not in held]
    if (change.trainable or not any(group["params"] for group in settings)) and rest:
        settings.append({**settings[0], "params": rest})
    settings = [group for group in settings if group["params"]]
    return type(optimizer)(settings, **_required(settings[0]))


def _required(group: dict[str, Any]) -> dict[str, Any]:
    """Arguments without a default that some optimisers ask for."""
    return {"lr": group["lr"]}


def reset(model: nn.Module) -> None:
    """PyTorch's own initialisation, of every module that has one."""
    for module in model.modules():
        if callable(getattr(module, "reset_parameters", None)):
            module.reset_parameters()
        elif callable(getattr(module, "_reset_parameters", None)):
            module._reset_parameters()


def scale_of(groups: Sequence[dict[str, Any]]) -> float:
    return float(groups[0]["lr"])
