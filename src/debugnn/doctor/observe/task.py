"""What a model's outputs and targets mean, and how well outputs fit their targets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.evidence import Score
from debugnn.doctor.observe.calls import first_tensor

# Numerical tolerances of reading outputs and targets.
_TINY = 1e-7  # a probability whose logarithm is taken is at least this
_SUM = 1e-3  # largest distance of probabilities' sum from 1
_SUM_OF_TARGETS = 1e-4
_ENTRIES = 32  # samples with several labels each, at least, for frequencies at each place of them
_COUNTED = 2**22  # classes × places that are counted, at most
_FEW = 8  # targets: fewer that are all equal may be so by chance

SOFTMAX = "softmax"  # the link of logits that are compared with logits

_RECALLED = 3  # samples of a class, at least, for a recall: of fewer it says nothing
_ONE_CLASS = 0.1  # nats: the constant loss of a single class, which is 0, is set to this


@dataclass(frozen=True)
class Task:
    """How outputs are read against targets.

    Attributes:
        kind: `classes` (one of C, from C outputs), `binary` (one output for each 0 or 1), `values`
            (regression) or `unknown`.
        classes: C.
        axis: the classes' axis in the outputs.
        squashed: the outputs pass a sigmoid or a softmax: they are probabilities.
        link: what turns outputs into values: `identity`, `sigmoid` of the logits of probabilities,
            or `exp` of the logarithms of rates. `softmax` where outputs and targets are both logits
            of classes, those of another network for example.
    """

    kind: str
    classes: int | None = None
    axis: int = 1
    squashed: bool = False
    link: str = "identity"

    @property
    def size(self) -> int:
        """Number of classes."""
        return self.classes or 2

    def as_logits(self, shape: Sequence[int]) -> "Task":
        """Return the task of logits that are compared with logits, of outputs of this shape."""
        return replace(self, kind="classes", classes=shape[-1], axis=len(shape) - 1, link=SOFTMAX)

    def sized_as(self, outputs: Any) -> "Task":
        """Return the task with as many classes as these outputs have.

        Others than the training's where a class is a place in the batch: samples are told from each
        other, and a batch of another size has other classes.
        """
        tensor = first_tensor(outputs)
        if self.kind != "classes" or tensor is None or tensor.dim() <= self.axis:
            return self
        return replace(self, classes=tensor.shape[self.axis])

    def pair(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets sample by sample.

        Of classes the outputs (N, C) and class indices (N,), without those that no output stands
        for; else outputs and values, (N,) both.

        Raises:
            TypeError: outputs without a tensor.
        """
        tensor = first_tensor(outputs)
        if tensor is None:
            raise TypeError("the outputs hold no tensor")
        predicted, targets = tensor.detach().float(), targets.detach()
        if self.kind == "classes":
            size = self.sized_as(tensor).size
            predicted = predicted.movedim(self.axis, -1).reshape(-1, size)
            if targets.is_floating_point():
                return predicted, targets.reshape(-1, size).argmax(dim=1)
            targets = targets.reshape(-1).long()
            known = (targets >= 0) & (targets < size)
            return predicted[known], targets[known]
        if self.link != "identity":
            predicted = predicted.sigmoid() if self.link == "sigmoid" else predicted.exp()
        return predicted.reshape(-1), targets.float().reshape(-1)

    def labels(self, targets: Tensor) -> Tensor:
        """Return the targets of classes or of a binary task as class indices, (N,)."""
        if targets.is_floating_point():
            if self.kind == "classes":
                return targets.reshape(-1, self.size).argmax(dim=1)
            return (targets > 0.5).long().reshape(-1)
        return targets.reshape(-1).long()


def read(outputs: Any, targets: Any) -> Task:
    """Return the task that outputs and targets of these shapes, types and values belong to."""
    outputs = first_tensor(outputs)
    if outputs is None or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return Task("unknown")
    if outputs.dim() == 0:  # a loss that the model computes itself comes first
        return Task("unknown")
    constant = targets.numel() >= _FEW and bool((targets == targets.flatten()[0]).all())
    if not targets.is_floating_point():
        if outputs.dim() >= 2 and outputs.shape[0] == targets.shape[0]:
            if outputs.shape[1] > 1 and outputs.shape[2:] == targets.shape[1:]:
                return Task("classes", outputs.shape[1], 1)
            if outputs.shape[-1] > 1 and outputs.shape[:-1] == targets.shape:
                return Task("classes", outputs.shape[-1], outputs.dim() - 1)
            if outputs.dim() == 2 and outputs.shape[1] > 1 and targets.numel() == len(outputs):
                return Task("classes", outputs.shape[1], 1)
        if outputs.numel() == targets.numel() and not constant:
            return Task("binary" if _all_zero_or_one(targets) else "values")
        return Task("unknown")
    if outputs.shape == targets.shape and outputs.dim() == 2 and outputs.shape[1] > 1:
        sums = targets.sum(dim=1)
        if (targets >= 0).all() and torch.allclose(
            sums, torch.ones_like(sums), atol=_SUM_OF_TARGETS
        ):
            return Task("classes", outputs.shape[1], 1)
    if outputs.numel() != targets.numel() or constant:
        return Task("unknown")  # constant targets are placeholders: the loss reads outputs alone
    return Task("binary" if _all_zero_or_one(targets) else "values")


def _all_zero_or_one(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())


def space(outputs: Tensor) -> str:
    """Return what outputs (N, C) are: `simplex` (distributions), `log_simplex`, or `real`."""
    if outputs.numel() == 0 or not torch.isfinite(outputs).all():
        return "real"
    low, high = outputs.min().item(), outputs.max().item()
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        sums = outputs.sum(dim=1)
        if low >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=_SUM):
            return "simplex"
        if high <= _TINY:
            logs = outputs.logsumexp(dim=1)
            if torch.allclose(logs, torch.zeros_like(logs), atol=_SUM):
                return "log_simplex"
    return "real"


def reference_loss(task: Task, outputs: Any, targets: Tensor) -> float | None:
    """Return the loss that belongs to the task: cross-entropy in nats, or mean squared error.

    Outputs that are probabilities are taken as such. Infinite where an output is not finite; None
    of an unknown task or of no sample.
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


def log_probabilities(task: Task, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the classes' probabilities, and the class indices of the targets.

    Args:
        task: classes or binary.

    Returns:
        (N, classes), two of a binary task, and (N,); without samples whose label no output stands
        for.
    """
    predicted, wanted = task.pair(outputs, targets)
    if task.kind == "binary":
        if task.squashed:
            predicted = predicted.clamp(_TINY, 1 - _TINY).logit()
        pairs = torch.stack([F.logsigmoid(-predicted), F.logsigmoid(predicted)], dim=1)
        return pairs, (wanted > 0.5).long()
    if space(predicted) == "simplex":
        return predicted.clamp_min(_TINY).log(), wanted
    return predicted.log_softmax(dim=1), wanted


def constant_loss(task: Task, targets: Tensor) -> float | None:
    """Return the best constant predictor's reference loss: entropy of the classes, or variance.

    Samples with several labels or values each, such as maps, have a constant for each place. The
    constant for labels is measured on other samples than it was counted on, see `_by_entry`.

    The result for classes is at least 0.1 nats, so that a ratio to it is finite where only one
    class occurs. It is None for an unknown task, and for values that do not vary.
    """
    if task.kind == "unknown":
        return None
    if task.kind == "values":
        values = targets.detach().double()
        columns = values.reshape(len(values), -1) if values.dim() > 1 else values[:, None]
        variance = columns.var(dim=0, correction=0).mean().item()
        return variance if variance > 0 else None
    targets = targets.detach()
    binary = task.kind == "binary"
    labels = (targets > 0.5).long().reshape(-1) if binary else task.labels(targets)
    counts = torch.bincount(labels[(labels >= 0) & (labels < task.size)]).double()
    shares = counts[counts > 0] / counts.sum()
    alike, own = -(shares * shares.log()).sum().item(), _by_entry(task, targets)
    return max(alike if own is None else min(alike, own[0]), _ONE_CLASS)


def labels_by_entry(task: Task, targets: Tensor) -> Tensor | None:
    """Return the labels of samples that have several each, (N, places); None of others.

    None too where all samples have the same labels. A place stands for a role then, as where one
    right answer comes first and wrong ones follow, and no output may know of its place.
    """
    if not isinstance(targets, Tensor) or targets.dim() < 2 or targets[0].numel() < 2:
        return None
    if task.kind == "binary":
        labels = (targets.detach() > 0.5).long().flatten(1)
    elif task.kind == "classes" and not targets.is_floating_point():
        labels = targets.detach().long().flatten(1)
    else:
        return None
    return None if len(labels) > 1 and bool((labels == labels[0]).all()) else labels


def shares_by_entry(task: Task, labels: Tensor) -> Tensor | None:
    """Return how often each class comes at each place of a sample, (places, classes), sums of 1.

    Every class has come once more than it has, by its share at all places. None of too many.

    Args:
        labels: (N, places); those of no class are left out.
    """
    places = labels.shape[1]
    if places * task.size > _COUNTED:
        return None
    known = (labels >= 0) & (labels < task.size)
    index = torch.arange(places, device=labels.device) * task.size + labels.clamp(0, task.size - 1)
    counts = torch.bincount(index[known], minlength=places * task.size)
    by_place = counts.reshape(places, task.size).double()
    overall = (by_place.sum(dim=0) / by_place.sum().clamp_min(1)).clamp_min(_TINY)
    smoothed = by_place + overall
    return smoothed / smoothed.sum(dim=1, keepdim=True)


def _by_entry(task: Task, targets: Tensor) -> tuple[float, float] | None:
    """Return the cross-entropy and the accuracy of the frequencies at each place of a sample.

    Counted on one half of the samples and compared with the other half: on few samples frequencies
    fit what they were counted on. None where samples have one label each, or are few.
    """
    labels = labels_by_entry(task, targets)
    if labels is None or len(labels) < _ENTRIES:
        return None
    losses, right = [], []
    for half in (0, 1):
        counted, asked = labels[half::2], labels[1 - half :: 2]
        shares = shares_by_entry(task, counted)
        if shares is None:
            return None
        known = (asked >= 0) & (asked < task.size)
        wanted = asked.clamp(0, task.size - 1)
        given = shares.log().T.gather(0, wanted)  # (samples, places)
        losses.append(-given[known])
        right.append((shares.argmax(dim=1) == wanted)[known].double())
    if not sum(map(len, losses)):
        return None
    return torch.cat(losses).mean().item(), torch.cat(right).mean().item()


def relative_loss(task: Task, outputs: Any, targets: Tensor) -> float | None:
    """Return the reference loss over the best constant predictor's: 1 is no better than it."""
    return _over_constant(task, reference_loss(task, outputs, targets), targets)


def _over_constant(task: Task, loss: float | None, targets: Tensor) -> float | None:
    constant = constant_loss(task, targets)
    return None if loss is None or constant is None else loss / constant


def score(task: Task, outputs: Any, targets: Tensor, rarest: Sequence[int] = ()) -> Score:
    """Measure how well outputs fit targets.

    Args:
        rarest: classes whose recall is noted, where there are three samples of them.
    """
    if task.kind == "unknown":
        return Score()
    task = task.sized_as(outputs)
    predicted, wanted = task.pair(outputs, targets)
    loss = reference_loss(task, outputs, targets)
    result = Score(_over_constant(task, loss, targets), samples=len(wanted), loss=loss)
    if task.link == SOFTMAX:
        # The target's logits are no sure labels, and may have been divided by a temperature.
        result.relative_loss = None
    if not len(wanted):
        return result
    if task.kind == "values" and bool((wanted.abs() == 1).all()):  # two classes, coded ±1
        result.relative_loss = None
        share = (wanted > 0).float().mean().item()
        base = max(share, 1 - share)
        accuracy = ((predicted > 0) == (wanted > 0)).float().mean().item()
        result.skill = (accuracy - base) / (1 - base) if base < 1 else None
        return result
    if task.kind == "values":
        relative = result.relative_loss
        if relative is not None:
            result.skill = 1 - relative if math.isfinite(relative) else -math.inf
        return result
    if not torch.isfinite(predicted).all():
        predicted = torch.nan_to_num(predicted, nan=0.0)
    if task.kind == "binary":
        right = (predicted > (0.5 if task.squashed else 0.0)) == (wanted > 0.5)
        wanted = wanted.long()
    else:
        right = predicted.argmax(dim=1) == wanted
    counts = torch.bincount(wanted).float()
    base, by_entry = (counts.max() / counts.sum()).item(), _by_entry(task, targets)
    if by_entry is not None:
        base = max(base, by_entry[1])
    accuracy = right.float().mean().item()
    result.skill = (accuracy - base) / (1 - base) if base < 1 else None
    recalls = torch.bincount(wanted, weights=right.float(), minlength=len(counts)) / counts
    seen = counts > 0
    result.balanced = recalls[seen].mean().item()
    result.recalls = {
        c: recalls[c].item() for c in rarest if c < len(counts) and counts[c] >= _RECALLED
    }
    return result
