"""Training of a copy of the model, under the one change that a trial names.

The copy starts from the weights that the training began with, sees its first batches, and runs a
plain loop. Nothing of the training's own is touched.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.data_inputs import scale_data_inputs
from debugnn.doctor.evidence import TrialOutcome
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import first_tensor, map_tensors, with_first
from debugnn.doctor.observe.layout import FIRST_AXIS, Layout
from debugnn.doctor.observe.modes import turn_dropout_off
from debugnn.doctor.observe.operations import TABLES
from debugnn.doctor.observe.simple_models import mean_and_deviation
from debugnn.doctor.observe.task import Task, constant_loss, reference_loss
from debugnn.doctor.rectified import Rectified
from debugnn.doctor.trials import Trial
from debugnn.doctor.unit_signals import give_unit_signals

_SMALL = 0.1  # factor on the weights of embeddings
_PASSES = 4  # most passes of an update
_FIRST, _LAST = 2, 6  # steps that the relative loss at the start and at the end is the mean of

_Change = Callable[[Batch], Batch]


class CopyTraining:
    """A plain training loop over a copy of a model, on given batches in turn.

    Args:
        model: is trained from its present weights: a copy.
        optimizer: gives the class; its state is not used.
        groups: settings of its parameter groups at the start; `names` holds the parameters' names.
        loss_fn: called as `loss_fn(outputs, targets)`.
        batches: at least one.
        trial: what is different from the training.
        layout: where the samples of the batches lie; on the first axis unless given.
        passes: how many backward passes the training adds up for an update. At most four are run,
            on a batch each, and stand for all.
        undivided: the training does not divide their sum.

    Raises:
        Exception: whatever the model, its optimiser or the batches raise where the change does not
            fit them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[dict[str, Any]],
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Sequence[Batch],
        trial: Trial,
        layout: Layout = FIRST_AXIS,
        passes: int = 1,
        undivided: bool = False,
    ) -> None:
        self.model = model
        self.model.train()
        if trial.unfrozen:
            self.model.requires_grad_(True)
        if trial.reinitialised:
            reset(self.model)
        if trial.small_tables:
            with torch.no_grad():
                for module in self.model.modules():
                    if isinstance(module, TABLES):
                        module.weight.mul_(_SMALL)
        if trial.unit_signals:
            give_unit_signals(self.model, batches[0].call)
        if not trial.regularised:
            turn_dropout_off(self.model)
        if trial.scaled_layers:
            scale_data_inputs(self.model, [batch.call for batch in batches])
        self.optimizer = _optimizer(self.model, optimizer, groups, trial)
        if trial.rectified:
            self.model = Rectified(self.model, batches[0].call)
        self._changes: list[_Change] = []
        if trial.standardised_inputs:
            self._changes.append(_standardises_inputs(batches, layout))
        if trial.standardised_targets:
            self._changes.append(_standardises_targets(batches))
        if trial.exchanged_labels:
            self._changes.append(_exchanges_labels(batches))
        self.batches = [self.changed(batch) for batch in batches]
        self.taken = 0
        self._passes = min(passes, _PASSES, len(self.batches))
        # Of the mean over the passes, or of their sum.
        self._weight = (passes if undivided and not trial.divided else 1) / self._passes
        self._loss_fn = loss_fn
        self._clipped = trial.clipped
        self._main_alone = trial.main_alone
        rows = layout.rows(batches[0].call) if trial.averaged_loss else None
        self._divisor = None if rows is None else max(len(rows), 1)
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty

    def step(self) -> tuple[Any, Any, Tensor]:
        """Train on the next batch, or on as many as there are passes for an update.

        Returns:
            Outputs, targets and loss (a scalar) of the last of them, before the update.
        """
        self._clear()
        for _ in range(self._passes):
            batch = self.batches[self.taken % len(self.batches)]
            self.taken += 1
            outputs = batch.call(self.model)
            loss = self._loss(outputs, batch.targets)
            learnable = bool(torch.isfinite(loss)) and loss.requires_grad
            if not learnable:
                break
            self._backward(loss)
        if learnable:
            if self._needs_closure:
                self.optimizer.step(lambda: self._repeat(batch))  # type: ignore[arg-type,return-value]
            else:
                self.optimizer.step()
        return outputs, batch.targets, loss.detach()

    def changed(self, batch: Batch) -> Batch:
        """Return a batch as the trial changes those that it trains on."""
        for change in self._changes:
            batch = change(batch)
        return batch

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameter groups."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _loss(self, outputs: Any, targets: Any) -> Tensor:
        main = first_tensor(outputs) if self._main_alone else None
        if main is not None:
            outputs = with_first(map_tensors(outputs, Tensor.detach), main)
        loss = self._loss_fn(outputs, targets)
        return (loss if self._divisor is None else loss / self._divisor).mean()

    def _repeat(self, batch: Batch) -> Tensor:
        with torch.enable_grad():
            self._clear()
            loss = self._loss(batch.call(self.model), batch.targets)
            self._backward(loss)
        return loss

    def _clear(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def _backward(self, loss: Tensor) -> None:
        """Add to the gradients of the copy's parameters alone; the loss may hold others."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if self._weight != 1:
            loss = loss * self._weight
        # `autograd.grad` may return gradients whose memory layout differs from the weights'.
        # PyTorch's fused optimisers on a CPU then combine values of different positions.
        if parameters:
            torch.autograd.backward(loss, inputs=parameters)
        if self._clipped is not None:
            nn.utils.clip_grad_norm_(parameters, self._clipped)


def run(
    training: CopyTraining, task: Task, steps: int, own_constant: float | None = None
) -> TrialOutcome:
    """Train for `steps` steps, or until the loss is not finite.

    Args:
        own_constant: the loss function's own value at the best constant outputs. Where it is known,
            the relative loss is the lower one by either loss: the task's own, or the function's,
            which may weigh classes and so ask for other outputs. None where it is not, and where
            the trial changes the loss.
    """
    targets = [batch.targets for batch in training.batches if isinstance(batch.targets, Tensor)]
    # Of all batches together: the targets of one alone vary less.
    constant = constant_loss(task, torch.cat(targets)) if targets else None
    curve: list[float] = []
    while len(curve) < steps and (not curve or math.isfinite(curve[-1])):
        outputs, targets, loss = training.step()
        curve.append(_relative_loss(task, outputs, targets, loss, constant))
        if own_constant is not None and constant is not None:
            curve[-1] = min(curve[-1], loss.float().item() / own_constant)
    finite = math.isfinite(curve[-1])
    return TrialOutcome(
        steps=len(curve),
        start=fmean(curve[:_FIRST]),
        end=fmean(curve[-_LAST:]) if finite else math.inf,
    )


def _relative_loss(
    task: Task, outputs: Any, targets: Any, loss: Tensor, constant: float | None
) -> float:
    """The task's own loss over the best constant predictor's; else the loss as it is."""
    value = reference_loss(task, outputs, targets) if isinstance(targets, Tensor) else None
    if value is None or constant is None:
        return loss.detach().float().mean().item()
    return value / constant


def _standardises_inputs(batches: Sequence[Batch], layout: Layout) -> _Change:
    """Give batches inputs of mean 0 and standard deviation 1, a channel or feature each."""
    inputs = [layout.inputs(batch.call) for batch in batches]
    rows = torch.cat([tensor for tensor in inputs if tensor is not None])
    mean, std = mean_and_deviation(rows.float())

    def change(batch: Batch) -> Batch:
        own = layout.inputs(batch.call)

        def standardise(tensor: Tensor) -> Tensor:
            alike = tensor is own or tensor.shape[1:] == rows.shape[1:]
            return (tensor - mean) / std if alike and tensor.is_floating_point() else tensor

        return Batch(batch.call.map(standardise), batch.targets)

    return change


def _standardises_targets(batches: Sequence[Batch]) -> _Change:
    """Give batches targets of mean 0 and standard deviation 1."""
    values = torch.cat([batch.targets.float() for batch in batches])
    mean, std = values.mean(), values.std().clamp_min(1e-12)
    return lambda batch: Batch(batch.call, (batch.targets - mean) / std)


def _exchanges_labels(batches: Sequence[Batch]) -> _Change:
    """Give each sample of one of two labels the other one."""
    values = torch.cat([batch.targets.flatten() for batch in batches])
    both = values.min() + values.max()
    return lambda batch: Batch(batch.call, both - batch.targets)


def _optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[dict[str, Any]],
    trial: Trial,
) -> torch.optim.Optimizer:
    """A new optimiser of the same class and settings for the model, changed as the trial says.

    It holds all parameters where the trial unfreezes them, or where the training's optimiser holds
    none of this model.
    """
    named = dict(model.named_parameters())
    held: set[str] = set()
    settings = []
    for group in groups:
        own = {key: value for key, value in group.items() if key != "names"}
        own["params"] = [named[name] for name in group["names"] if name in named]
        held |= set(group["names"])
        own["lr"] = own["lr"] * trial.lr
        if not trial.regularised and "weight_decay" in own:
            own["weight_decay"] = 0.0
        settings.append(own)
    rest = [p for name, p in named.items() if name not in held]
    if (trial.unfrozen or not any(group["params"] for group in settings)) and rest:
        settings.append({**settings[0], "params": rest})
    settings = [group for group in settings if group["params"]]
    make: Callable[..., torch.optim.Optimizer] = type(optimizer)
    return make(settings, lr=settings[0]["lr"])  # some optimisers have no default rate


def reset(model: nn.Module) -> None:
    """Draw all weights anew, by the initialisation of each module that has one."""
    for module in model.modules():
        methods = (getattr(module, n, None) for n in ("reset_parameters", "_reset_parameters"))
        draw = next((method for method in methods if callable(method)), None)
        if draw is not None:
            draw()
