"""Short trainings of a copy under one change, to see which change mends a training.

A fork starts from the weights and the optimiser state that the training began with, sees its first
batches, and runs a plain loop. Nothing of the training's own is touched.
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import Fork
from debugnn.doctor.observe import samples
from debugnn.doctor.observe.first_look import batch_size
from debugnn.doctor.observe.network import DROPOUT, Call, with_rate
from debugnn.doctor.observe.task import Task, constant_loss, reference_loss

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


class Trial:
    """A plain training loop over a copy of a model, on given batches in turn.

    Args:
        model: copied as it stands.
        optimizer: gives the class; its state is not used.
        groups: settings of its groups at the start, `names` being the parameters' names.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[dict[str, Any]],
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Sequence[Batch],
        change: Change,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.model.train()
        if change.trainable:
            self.model.requires_grad_(True)
        if change.initial is not None:
            change.initial(self.model)
        if not change.regularised:
            for module in self.model.modules():
                if isinstance(module, DROPOUT):
                    module.p = 0.0
            for module in with_rate(self.model):
                module.dropout = 0.0
        self.optimizer = _optimizer(self.model, optimizer, groups, change)
        self.batches = [_changed(batch, change) for batch in batches]
        self.taken = 0
        self._loss_fn = change.loss or loss_fn
        self._clip = change.clip
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        self._closure = closure is not None and closure.default is inspect.Parameter.empty

    def step(self) -> tuple[Any, Any, Tensor]:
        """Outputs, targets and loss of the next batch, before the update that it makes."""
        batch = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        outputs = batch.call(self.model)
        loss = self._loss_fn(outputs, batch.targets).mean()
        if torch.isfinite(loss) and loss.requires_grad:
            self._backward(loss)
            if self._closure:
                self.optimizer.step(lambda: self._again(batch))
            else:
                self.optimizer.step()
        return outputs, batch.targets, loss.detach()

    def _again(self, batch: Batch) -> Tensor:
        with torch.enable_grad():
            loss = self._loss_fn(batch.call(self.model), batch.targets).mean()
            self._backward(loss)
        return loss

    def _backward(self, loss: Tensor) -> None:
        """Gradients of the copy's parameters alone: the loss may hold others that are not ours."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = None
        # Not `autograd.grad`, whose gradients may lie in memory as no weight does: PyTorch's fused
        # optimisers on a CPU then add up numbers of different places.
        if parameters:
            torch.autograd.backward(loss, inputs=parameters)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(parameters, self._clip)

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def _changed(batch: Batch, change: Change) -> Batch:
    return Batch(
        batch.call if change.inputs is None else batch.call.map(change.inputs),
        batch.targets if change.targets is None else change.targets(batch.targets),
    )


def run(trial: Trial, task: Task, steps: int) -> Fork:
    """Train for `steps` steps, or until the loss is not finite."""
    constant = _constant(task, trial.batches)
    curve: list[float] = []
    while len(curve) < steps and (not curve or math.isfinite(curve[-1])):
        curve.append(_relative(task, *trial.step(), constant))
    finite = math.isfinite(curve[-1])
    return Fork(
        steps=len(curve),
        start=fmean(curve[:2]),
        end=fmean(curve[-_SMOOTHED:]) if finite else math.inf,
    )


def _constant(task: Task, batches: Sequence[Batch]) -> float | None:
    """The best constant predictor's loss over all batches: of one batch it would be too low."""
    targets = [batch.targets for batch in batches if isinstance(batch.targets, Tensor)]
    return constant_loss(task, torch.cat(targets)) if targets else None


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


def change(name: str, loss_fn: Callable[[Any, Any], Tensor], batches: Sequence[Batch]) -> Change:
    """What the fork of a name that a rule can ask for does differently.

    Raises:
        ValueError: no fork of that name.
    """
    if name.startswith("lr"):  # lr*10, lr/10
        factor = float(name[3:])
        return Change(lr=factor if name[2] == "*" else 1 / factor)
    match name:
        case "same":
            return Change()
        case "unregularised":
            return Change(regularised=False)
        case "init":
            return Change(initial=reset)
        case "unfrozen":
            return Change(trainable=True)
        case "mean":
            count = max(batch_size(batches[0].call) or 1, 1)
            return Change(loss=lambda o, t: loss_fn(o, t) / count)
        case "inputs":
            rows = torch.cat([batch.call.tensors()[0] for batch in batches])
            mean, std = samples.standardise_like(rows.float())
            shape = rows.shape[1:]
            return Change(inputs=lambda x: (x - mean) / std if x.shape[1:] == shape else x)
        case "targets":
            values = torch.cat([batch.targets.float() for batch in batches])
            mean, std = values.mean(), values.std().clamp_min(1e-12)
            return Change(targets=lambda t: (t - mean) / std)
    raise ValueError(name)


def reset(model: nn.Module) -> None:
    """PyTorch's own initialisation, of every module that has one."""
    for module in model.modules():
        if callable(getattr(module, "reset_parameters", None)):
            module.reset_parameters()
        elif callable(getattr(module, "_reset_parameters", None)):
            module._reset_parameters()
