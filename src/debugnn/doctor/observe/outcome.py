"""How well a training went: the course of its loss, its scores, how far its weights moved."""

import bisect
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import copied_model
from debugnn.doctor.evidence import Evidence, OutcomeFacts, Score, WeightFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import first_tensor
from debugnn.doctor.observe.modes import BATCH_NORM, NORMALISATIONS, without_dropout
from debugnn.doctor.observe.operations import TABLES
from debugnn.doctor.observe.task import Task, score

_SCORED = 2048  # samples that a score is computed from
_VALUES = (
    2**21
)  # most values of outputs (of a large vocabulary, say): scores take several times their memory
_PART = 2**18  # values of a weight that are subtracted at once: their difference takes memory
_UNITS = 512  # most units of a weight that are compared with each other
_BESIDE = 1e-3  # of the way that a unit's weights went: no farther apart are two that stay equal
_SMOOTHED = 10  # losses of a running mean
_LEVELS = tuple(round(0.99 - index / 100, 2) for index in range(50))  # 0.99, 0.98, …, 0.50


def note_losses(evidence: Evidence, losses: Sequence[float], ratios: Sequence[float]) -> None:
    """Fill in what the evidence holds of the course of the losses.

    Args:
        losses: of all steps.
        ratios: the loss that was handed over / the loss function's own value, at probes.
    """
    outcome, loop = evidence.outcome, evidence.loop
    if not losses:
        return
    finite = [v for v in losses if math.isfinite(v)]
    outcome.nonfinite_step = next((i for i, v in enumerate(losses) if not math.isfinite(v)), None)
    outcome.first_loss = losses[0]
    if finite:
        tenth = max(1, len(losses) // 10)
        outcome.last_loss = statistics.median(losses[-tenth:])
        outcome.highest_loss, outcome.lowest_loss = max(finite), min(finite)
        parts = [losses[i * len(losses) // 10 : (i + 1) * len(losses) // 10] for i in range(10)]
        outcome.tenths = [statistics.median(part) for part in parts if part]
    outcome.first_below = first_below(losses, outcome.initial.relative_loss)
    if ratios:
        loop.loss_ratio = statistics.median(ratios)
        loop.loss_ratio_low, loop.loss_ratio_high = min(ratios), max(ratios)


def first_below(losses: Sequence[float], initial: float | None) -> dict[float, int]:
    """Return level → steps until a mean of ten losses is below level × the loss of guessing.

    All steps where the mean never is below it. Empty of fewer than 20 losses, which have no course.

    Args:
        initial: the initial relative loss. The loss of guessing is the first loss over it.
    """
    if not initial or not math.isfinite(initial) or len(losses) < 2 * _SMOOTHED:
        return {}
    lowest: list[tuple[float, int]] = []  # each mean below all before it, and its first step
    for start in range(len(losses) - _SMOOTHED + 1):
        mean = statistics.fmean(losses[start : start + _SMOOTHED])
        if mean < (lowest[-1][0] if lowest else math.inf):
            lowest.append((mean, start))
    steps = {}
    for level in _LEVELS:
        limit = level * losses[0] / initial
        index = bisect.bisect_right(lowest, -limit, key=lambda found: -found[0])
        steps[level] = lowest[index][1] if index < len(lowest) else len(losses)
    return steps


class Predicted(NamedTuple):
    """A batch, and a model's outputs for it."""

    batch: Batch
    outputs: Any


def predict(
    replica: nn.Module, batches: Sequence[Batch]
) -> tuple[list[Predicted], list[Predicted]]:
    """Return a model's outputs for the latest batches in evaluation and in training mode.

    Most models without batch norm give the same ones in both modes, dropout being off: the second
    list is the first one then.
    """
    plain = outputs_of(replica, batches, training=False)
    last = outputs_of(replica, batches[-1:], training=True)
    if plain and last:
        one, other = (first_tensor(found[0].outputs) for found in (plain, last))
        if one is not None and other is not None and torch.equal(one, other):
            return plain, plain
    return plain, outputs_of(replica, batches, training=True)


def note_scores(
    outcome: OutcomeFacts,
    plain: list[Predicted],
    by_batch: list[Predicted],
    task: Task,
    rarest: Sequence[int],
) -> None:
    """Fill in how well outputs fit their training samples, in evaluation and in training mode."""
    outcome.train = outcome.train_mode = score_of(plain, task, rarest)
    if by_batch is not plain:
        outcome.train_mode = score_of(by_batch, task, rarest)


def with_new_averages(model: nn.Module, batches: Sequence[Batch]) -> list[Predicted]:
    """Return outputs in evaluation mode after batch norm's running averages were taken anew.

    They are the plain means over the batches (PyTorch's cumulative average, `momentum=None`).
    Nothing is returned of a model without such averages.

    Args:
        model: a copy, which is left as it is.
    """
    if not _averaging_norms(model):
        return []
    averaged = copied_model(model)
    for norm in _averaging_norms(averaged):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad(), without_dropout(averaged, training=True):
        for batch in batches:
            batch.call(averaged)
    return outputs_of(averaged, batches, training=False)


def _averaging_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, BATCH_NORM) and m.track_running_stats]


def note_movement(
    outcome: OutcomeFacts,
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    initial: Mapping[str, Tensor],
) -> None:
    """Fill in how far the trained weight tensors (two axes or more) are from where they began.

    Args:
        groups: the optimiser's groups, `names` being the names of their parameters.
        initial: the weights that the training began with.
    """
    held = {name for group in groups for name in group["names"]}
    moved, shrunk = [], []
    for name, parameter in model.named_parameters():
        known = name in held and name in initial
        if known and parameter.requires_grad and parameter.dim() >= 2:
            now = parameter.detach().float()
            start = initial[name].to(now.device).float()
            norm = torch.linalg.vector_norm(start)
            parts = zip(now.flatten().split(_PART), start.flatten().split(_PART), strict=True)
            changes = [torch.linalg.vector_norm(one - other) for one, other in parts]
            change = torch.linalg.vector_norm(torch.stack(changes))
            moved.append((change / norm).item() if norm > 0 else math.inf)
            if norm > 0:
                shrunk.append((torch.linalg.vector_norm(now) / norm).item())
    outcome.movement = statistics.median(moved) if moved else None
    outcome.shrinkage = statistics.median(shrunk) if shrunk else None


def note_thawed(
    weights: Sequence[WeightFacts], model: nn.Module, initial: Mapping[str, Tensor]
) -> None:
    """Note which frozen weights have moved all the same, as those of a mean teacher do.

    Args:
        initial: the weights that the training began with.
    """
    for weight, start, now in _known(weights, model, initial):
        if weight.frozen:
            weight.frozen = torch.equal(now, start.to(now.device))


def zero_scales(model: nn.Module, initial: Mapping[str, Tensor]) -> list[str]:
    """Return the scales of normalisations that are 0 for all units, and began so.

    Args:
        initial: the weights that the training began with.
    """
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, NORMALISATIONS)
        and isinstance(module.weight, nn.Parameter)
        and not module.weight.any()
        and f"{name}.weight" in initial
        and not initial[f"{name}.weight"].any()
    ]


def note_still_equal(
    weights: Sequence[WeightFacts], model: nn.Module, initial: Mapping[str, Tensor]
) -> None:
    """Note how many units of each weight began equal to another one, and have moved with it.

    The rows of a table are no units: of two words that come alike they may be equal by right.

    Args:
        initial: the weights that the training began with.
    """
    tables = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, TABLES)}
    for weight, start, now in _known(weights, model, initial):
        if 1 < weight.outputs <= _UNITS and weight.name not in tables:
            before, rows = (t.float().flatten(1).cpu() for t in (start, now))
            weight.still_equal = _still_equal(before, rows) / len(rows)


def _known(
    weights: Sequence[WeightFacts], model: nn.Module, initial: Mapping[str, Tensor]
) -> Iterator[tuple[WeightFacts, Tensor, Tensor]]:
    """Yield what is known of each weight, its initial values and its present ones."""
    parameters = dict(model.named_parameters())
    for weight in weights:
        if weight.name in parameters and weight.name in initial:
            yield weight, initial[weight.name], parameters[weight.name].detach()


def _still_equal(start: Tensor, rows: Tensor) -> int:
    """Return the number of rows that began equal to another one and lie beside it: within a
    thousandth of the way that they went."""
    kinds, kind = torch.unique(start, dim=0, return_inverse=True)
    if len(kinds) == len(start):
        return 0
    way = torch.linalg.vector_norm(rows - start, dim=1)
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    others = (kind[:, None] == kind) & ~torch.eye(len(rows), dtype=torch.bool)
    beside = others & (apart < _BESIDE * way[:, None])
    return int(beside.any(dim=1).sum())


def outputs_of(model: nn.Module, batches: Sequence[Batch], training: bool) -> list[Predicted]:
    """Return outputs of the latest batches with targets, the last one first, without dropout.

    Args:
        training: in training mode, else in evaluation mode.
    """
    found: list[Predicted] = []
    count = values = 0
    with torch.no_grad(), without_dropout(model, training):
        for batch in reversed(batches):
            if batch.targets is None or count >= _SCORED or values >= _VALUES:
                continue
            outputs = batch.call(model)
            first, targets = first_tensor(outputs), first_tensor(batch.targets)
            if first is not None and targets is not None:
                count += len(targets) if targets.dim() else 1
                found.append(Predicted(batch, outputs))
                values += first.numel()
    return found


def score_of(predicted: Sequence[Predicted], task: Task, rarest: Sequence[int]) -> Score:
    """Return how well outputs fit their targets, all batches together.

    Args:
        rarest: classes whose recall is noted.
    """
    found = []
    for batch, outputs in predicted:
        first = first_tensor(outputs)
        if first is not None and isinstance(batch.targets, Tensor):
            found.append((first, batch.targets))
    found = [pair for pair in found if all(tensor.dim() for tensor in pair)]
    if not found or task.kind == "unknown":
        return Score()
    shapes = {(o.shape[1:], t.shape[1:]) for o, t in found}
    if len(shapes) > 1:  # sequences of several lengths
        found = found[:1]
    outputs, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return score(task, outputs, targets, rarest)
