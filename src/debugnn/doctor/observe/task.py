"""What a model's outputs and targets mean, and how well the ones fit the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.evidence import Score

_TINY = 1e-7
_RECALLED = 3  # samples of a class, at least, for a recall: of fewer it says nothing


@dataclass(frozen=True)
class Task:
    """A reading of outputs against targets.

    kind: `classes` (one of C, from C outputs), `binary` (one output for each 0 or 1), `values`
    (regression) or `unknown`. `axis` is the classes' axis in the outputs.
    """

    kind: str
    classes: int | None = None
    axis: int = 1
    squashed: bool = False  # the outputs pass a sigmoid or a softmax: they are probabilities

    def pair(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (N, C) and class indices (N,), or outputs and values of one shape (N,)."""
        outputs = first_tensor(outputs).detach().float()
        targets = targets.detach()
        if self.kind == "classes":
            outputs = outputs.movedim(self.axis, -1).reshape(-1, self.classes)
            if targets.is_floating_point():
                return outputs, targets.reshape(-1, self.classes).argmax(dim=1)
            targets = targets.reshape(-1).long()
            known = (targets >= 0) & (targets < self.classes)
            return outputs[known], targets[known]
        return outputs.reshape(-1), targets.float().reshape(-1)


def first_tensor(outputs: Any) -> Tensor | None:
    """The tensor of a model's outputs; the first, where it returns several."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return next((t for t in map(first_tensor, outputs) if t is not None), None)
    return getattr(outputs, "logits", None)


def read(outputs: Any, targets: Any) -> Task:
    """The task that these shapes, types and values are of."""
    outputs = first_tensor(outputs)
    if outputs is None or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return Task("unknown")
    constant = targets.numel() >= 8 and bool((targets == targets.flatten()[0]).all())
    if not targets.is_floating_point():
        if outputs.dim() >= 2 and outputs.shape[0] == targets.shape[0]:
            if outputs.shape[1] > 1 and outputs.shape[2:] == targets.shape[1:]:
                return Task("classes", outputs.shape[1], 1)
            if outputs.shape[-1] > 1 and outputs.shape[:-1] == targets.shape:
                return Task("classes", outputs.shape[-1], outputs.dim() - 1)
            if outputs.dim() == 2 and outputs.shape[1] > 1 and targets.numel() == len(outputs):
                return Task("classes", outputs.shape[1], 1)
        if outputs.numel() == targets.numel() and not constant:
            return Task("binary" if _zero_one(targets) else "values")
        return Task("unknown")
    if outputs.shape == targets.shape and outputs.dim() == 2 and outputs.shape[1] > 1:
        sums = targets.sum(dim=1)
        if (targets >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            return Task("classes", outputs.shape[1], 1)
    if outputs.numel() != targets.numel() or constant:
        return Task("unknown")  # constant ones are a placeholder: the outputs alone are looked at
    return Task("binary" if _zero_one(targets) else "values")


def _zero_one(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())


def space(outputs: Tensor) -> str:
    """What outputs (N, C) are: distributions (`simplex`), their logarithms, or any numbers."""
    if outputs.numel() == 0 or not torch.isfinite(outputs).all():
        return "real"
    low, high = outputs.min().item(), outputs.max().item()
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        sums = outputs.sum(dim=1)
        if low >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            return "simplex"
        if high <= _TINY:
            logs = outputs.logsumexp(dim=1)
            if torch.allclose(logs, torch.zeros_like(logs), atol=1e-3):
                return "log_simplex"
    return "real"


def reference_loss(task: Task, outputs: Any, targets: Tensor) -> float | None:
    """Cross-entropy in nats, or mean squared error: the loss that belongs to the task.

    Outputs that are probabilities are taken as such. Infinite where an output is not finite.
    """
    if task.kind == "unknown":
        return None
    predicted, wanted = task.pair(outputs, targets)
    if not len(wanted):
        return None
    if not torch.isfinite(predicted).all():
        return math.inf
    if task.kind == "values":
        return (predicted.double() - wanted.double()).square().mean().item()
    if task.kind == "binary":
        if task.squashed:
            predicted = predicted.clamp(_TINY, 1 - _TINY).logit()
        return F.binary_cross_entropy_with_logits(predicted, wanted).item()
    if space(predicted) == "simplex":
        predicted = predicted.clamp_min(_TINY).log()
    return F.cross_entropy(predicted, wanted).item()


def constant_loss(task: Task, targets: Tensor) -> float | None:
    """The reference loss of the best constant predictor: entropy of the classes, or variance."""
    if task.kind == "unknown":
        return None
    if task.kind == "values":
        values = targets.detach().double()
        columns = values.reshape(len(values), -1) if values.dim() > 1 else values[:, None]
        variance = columns.var(dim=0, correction=0).mean().item()
        return variance if variance > 0 else None
    if task.kind == "binary":
        labels, classes = (targets.detach() > 0.5).long().reshape(-1), 2
    elif targets.is_floating_point():
        labels, classes = targets.detach().reshape(-1, task.classes).argmax(dim=1), task.classes
    else:
        labels, classes = targets.detach().reshape(-1).long(), task.classes
    counts = torch.bincount(labels[(labels >= 0) & (labels < classes)]).double()
    shares = counts[counts > 0] / counts.sum()
    # Of one class alone nothing can be learnt; a floor keeps the ratio to it finite.
    return max(-(shares * shares.log()).sum().item(), 0.1)


def relative_loss(task: Task, outputs: Any, targets: Tensor) -> float | None:
    """The reference loss over that of the best constant predictor: 1 is no better than it."""
    return _over_constant(task, reference_loss(task, outputs, targets), targets)


def _over_constant(task: Task, loss: float | None, targets: Tensor) -> float | None:
    constant = constant_loss(task, targets)
    return None if loss is None or constant is None else loss / constant


def score(task: Task, outputs: Any, targets: Tensor, rarest: Sequence[int] = ()) -> Score:
    """How well outputs fit targets.

    Args:
        rarest: classes whose recall is noted, where there are three samples of them.
    """
    if task.kind == "unknown":
        return Score()
    predicted, wanted = task.pair(outputs, targets)
    loss = reference_loss(task, outputs, targets)
    result = Score(_over_constant(task, loss, targets), samples=len(wanted), loss=loss)
    if not len(wanted):
        return result
    if task.kind == "values" and bool((wanted.abs() == 1).all()):  # two classes, coded ±1
        loss = result.relative_loss = None
        share = (wanted > 0).float().mean().item()
        base = max(share, 1 - share)
        right = ((predicted > 0) == (wanted > 0)).float().mean().item()
        result.skill = (right - base) / (1 - base) if base < 1 else None
        return result
    if task.kind == "values":
        loss = result.relative_loss
        result.skill = None if loss is None else (1 - loss if math.isfinite(loss) else -math.inf)
        return result
    if not torch.isfinite(predicted).all():
        predicted = torch.nan_to_num(predicted, nan=0.0)
    if task.kind == "binary":
        right = (predicted > (0.5 if task.squashed else 0.0)) == (wanted > 0.5)
        wanted = wanted.long()
    else:
        right = predicted.argmax(dim=1) == wanted
    counts = torch.bincount(wanted).float()
    base = (counts.max() / counts.sum()).item()
    accuracy = right.float().mean().item()
    result.skill = (accuracy - base) / (1 - base) if base < 1 else None
    recalls = torch.bincount(wanted, weights=right.float(), minlength=len(counts)) / counts
    seen = counts > 0
    result.balanced = recalls[seen].mean().item()
    result.recalls = {
        c: recalls[c].item() for c in rarest if c < len(counts) and counts[c] >= _RECALLED
    }
    return result
