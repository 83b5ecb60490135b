"""What can be told of a training from what was kept of it, when a report is asked for.

Each function fills in one part of the evidence.
"""

import bisect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import DataFacts, Evidence, Score
from debugnn.doctor.observe import network, samples
from debugnn.doctor.observe.kept import Kept, KeptBatch, ValidationSet
from debugnn.doctor.observe.network import Call
from debugnn.doctor.observe.task import Task, first_tensor, score

_DESCRIBED = 1024  # samples that statistics of the data are taken of
_SMOOTHED = 10  # losses that a running mean is taken of
_LEVELS = tuple(round(0.99 - index / 100, 2) for index in range(50))  # 0.99, 0.98, …, 0.50


def optimizer(
    evidence: Evidence,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Mapping[str, Any]],
    initial: Mapping[str, Tensor],
    graded: set[str],
) -> None:
    """What the optimiser holds of the model.

    Args:
        groups: the optimiser's groups as they began, with the largest learning rate seen.
        initial: the weights that the training began with.
        graded: names of the parameters that have had a gradient.
    """
    facts = evidence.optimizer
    parameters = dict(model.named_parameters())
    own = {id(p) for p in parameters.values()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {n: p for n, p in parameters.items() if p.requires_grad}
    facts.name = type(optimizer).__name__
    facts.trainable = len(trainable)
    facts.held = sum(id(p) in held for p in trainable.values())
    # What another optimiser moves is not missing.
    facts.missing = [
        n
        for n, p in trainable.items()
        if id(p) not in held and (n not in initial or torch.equal(initial[n], p.detach()))
    ]
    facts.foreign = len(held - own)
    frozen = {n: p for n, p in parameters.items() if not p.requires_grad}
    facts.frozen_held = [n for n, p in frozen.items() if id(p) in held]
    facts.lr = max((float(g["lr"]) for g in groups), default=None)
    facts.weight_decay = max(
        (float(g.get("weight_decay") or 0) for g in optimizer.param_groups), default=0.0
    )
    # One pass may leave out a layer at random that others reach.
    evidence.network.unreached = [n for n in evidence.network.unreached if n not in graded]


def losses(evidence: Evidence, losses: Sequence[float], ratios: Sequence[float]) -> None:
    """The course of the losses.

    Args:
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
        outcome.highest_loss = max(finite)
    outcome.first_below = _first_below(losses, outcome.initial.relative_loss)
    if ratios:
        loop.loss_ratio = statistics.median(ratios)
        loop.loss_ratio_low, loop.loss_ratio_high = min(ratios), max(ratios)


def _first_below(losses: Sequence[float], initial: float | None) -> dict[float, int]:
    """Level → steps until a mean of ten losses is below level × the loss of guessing.

    The loss of guessing is the first loss / `initial`, the initial relative loss. All steps where
    the mean never is below it. Empty of fewer than 20 losses, which have no course.
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


def data(
    evidence: Evidence,
    kept: Kept,
    validation: ValidationSet | None,
    task: Task | None,
    current: Callable[[], nn.Module | None],
    steps: int,
) -> None:
    """The samples that were kept, and how those of the latest validation differ from them.

    Args:
        current: brings a copy of the model up to date, which can fail; None without a copy.
        steps: how many have been taken.
    """
    pairs = [(b.inputs, b.targets) for b in kept.batches if isinstance(b.inputs, Tensor)]
    if not pairs or task is None:
        return
    shape = pairs[0][0].shape[1:]
    pairs = [(rows, t) for rows, t in pairs if rows.shape[1:] == shape]
    inputs = torch.cat([rows for rows, _ in pairs])
    tensors = [t for _, t in pairs if isinstance(t, Tensor)]
    whole = len(tensors) == len(pairs) and all(
        len(r) == len(t) and t.shape[1:] == tensors[0].shape[1:] for r, t in pairs
    )
    targets = torch.cat(tensors) if whole else None
    # Steps over the whole set would be the same samples again and again.
    count, distinct = len(inputs), _distinct(inputs)
    chosen = distinct[:_DESCRIBED] if count > _DESCRIBED else slice(None)
    inputs = inputs[chosen]
    targets = targets[chosen] if targets is not None else None
    facts = samples.describe(inputs, targets, task)
    facts.samples, facts.distinct = count, len(distinct)
    prints = kept.prints.each()
    several = [p for p in prints if len(p) > 1]
    same = sum(bool((p == p[0]).all()) for p in several)
    facts.constant_batches = same / len(several) if several else 0.0
    evidence.data = facts
    counts = kept.class_counts(task)
    if counts is not None:
        facts.class_counts = dict(enumerate(counts.tolist()))
    if task.kind in ("classes", "binary"):
        facts.conflicting, facts.repeated, facts.repeats_within = samples.conflicts(
            prints, kept.labels.each()
        )
    seen, times = samples.repeats(prints)
    evidence.outcome.epochs = times if seen else None
    if targets is not None:
        keep = _distinct(inputs)
        facts.simple_skill = samples.simple_skill(inputs[keep], targets[keep], task)
    if validation is not None:
        _compare(facts, inputs, targets, kept, validation, task, current, steps)


def _compare(
    facts: DataFacts,
    inputs: Tensor,
    known_targets: Tensor | None,
    kept: Kept,
    validation: ValidationSet,
    task: Task,
    current: Callable[[], nn.Module | None],
    steps: int,
) -> None:
    """How the validation samples differ from the training's, and what the model makes of them."""
    call, rows, targets = validation.call, validation.inputs, validation.targets
    if rows is None or rows.shape[1:] != inputs.shape[1:]:
        return
    known = kept.prints.together() if kept.prints else samples.fingerprints(inputs)
    prints = samples.fingerprints(rows)
    facts.natural_repeats = 1 - len(prints.unique()) / max(len(prints), 1)
    facts.overlap = torch.isin(prints, known).double().mean().item()
    facts.covered = torch.isin(known, prints).double().mean().item()
    facts.trained_on, facts.validation_size = len(known.unique()), validation.size
    if facts.floating:
        facts.scale_shift = samples.scale_shift(inputs, rows)
    facts.shift = samples.told_apart(inputs, rows)
    if known_targets is not None:
        facts.transfer_skill = samples.transfer_skill(inputs, known_targets, rows, targets, task)
    twin = current()
    plain = len(call.args) == 1 and isinstance(call.args[0], Tensor) and not call.kwargs
    if twin is None or not plain:
        return
    given = call.args[0]
    trained = [
        b.call.args[0] for b in kept.early
        if b.call.args and isinstance(b.call.args[0], Tensor)
        and b.call.args[0].shape[1:] == given.shape[1:]
    ]  # fmt: skip
    with undisturbed(), torch.no_grad(), network.no_dropout(twin, training=False):
        outputs = validation.outputs
        if validation.step != steps:
            outputs = in_chunks(twin, call, len(rows))
        if trained and given.is_floating_point() and not _indexes(twin, given):
            brought = Call((samples.matched(torch.cat(trained), given),))
            matched = in_chunks(twin, brought, len(rows))
            facts.matched_skill = score(task, matched, targets).skill
    if task.kind == "classes" and first_tensor(outputs) is not None:
        predicted, wanted = task.pair(outputs, targets)
        size = task.classes
        pairs = wanted * size + predicted.argmax(dim=1)
        confusion = torch.bincount(pairs, minlength=size * size).reshape(size, size)
        renamed, other = samples.renamed_skill(confusion.cpu())
        facts.relabelled_skill = renamed if other else None


def _indexes(model: nn.Module, inputs: Tensor) -> bool:
    """True if the inputs may hold indices, of which one out of range ends a GPU's context."""
    embeds = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    return embeds and inputs.device.type != "cpu"


def outcome(
    evidence: Evidence,
    kept: Kept,
    task: Task,
    model: nn.Module,
    twin: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    initial: Mapping[str, Tensor],
) -> None:
    """What a copy of the model, `twin`, makes of what it learnt; how far the weights moved."""
    facts = evidence.outcome
    with undisturbed():
        batches = kept.batches
        plain = outputs_of(twin, batches, training=False)
        facts.train = facts.train_mode = score_of(plain, task, kept)
        last = outputs_of(twin, batches[-1:], training=True)
        # Without batch norm the mode is the same to most models, dropout left out.
        if not (plain and last and torch.equal(plain[0][0], last[0][0])):
            facts.train_mode = score_of(outputs_of(twin, batches, training=True), task, kept)
    held = {n for group in groups for n in group["names"]}
    moved, sizes = [], []
    for name, parameter in model.named_parameters():
        if name in held and parameter.requires_grad and parameter.dim() >= 2:
            start = initial[name].float()
            norm = torch.linalg.vector_norm(start)
            change = torch.linalg.vector_norm(parameter.detach().float() - start)
            moved.append((change / norm).item() if norm > 0 else math.inf)
            sizes.append((torch.linalg.vector_norm(parameter.detach().float()), norm))
    facts.movement = statistics.median(moved) if moved else None
    ratios = [(now / start).item() for now, start in sizes if start > 0]
    facts.shrinkage = statistics.median(ratios) if ratios else None


def outputs_of(
    model: nn.Module, batches: Sequence[KeptBatch], training: bool
) -> list[tuple[Tensor, Tensor]]:
    """Outputs and targets of the latest batches, the last one first, without dropout."""
    found: list[tuple[Tensor, Tensor]] = []
    count = 0
    with torch.no_grad(), network.no_dropout(model, training):
        for call, _, targets in reversed(batches):
            if isinstance(targets, Tensor) and count < 2 * _DESCRIBED:
                count += len(targets) if targets.dim() else 1
                outputs = first_tensor(call(model))
                if outputs is not None:
                    found.append((outputs, targets))
    return found


def score_of(found: list[tuple[Tensor, Tensor]], task: Task, kept: Kept) -> Score:
    """How well outputs fit their targets, all together."""
    if not found:
        return Score()
    shapes = {(o.shape[1:], t.shape[1:]) for o, t in found}
    if len(shapes) > 1:  # sequences of several lengths
        found = found[:1]
    outputs, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return score(task, outputs, targets, kept.rarest(task))


def _distinct(inputs: Tensor) -> Tensor:
    """Index of the first of each group of equal samples."""
    seen: dict[float, int] = {}
    for index, value in enumerate(samples.fingerprints(inputs).tolist()):
        seen.setdefault(value, index)
    return torch.tensor(sorted(seen.values()), device=inputs.device)


def in_chunks(model: nn.Module, call: Call, batch: int, size: int = 64) -> Any:
    """The model's outputs over a batch that may be too large for one pass; a plain tensor alone is
    put together from several."""
    if batch <= size or any(t.dim() == 0 or len(t) != batch for t in call.tensors()):
        return call(model)
    parts = []
    for start in range(0, batch, size):
        part = call.map(lambda t, start=start: t[start : start + size])(model)
        if not isinstance(part, Tensor) or part.dim() == 0:
            return call(model)
        parts.append(part)
    return torch.cat(parts)
