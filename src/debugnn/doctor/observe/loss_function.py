"""Tests of a loss function on outputs that are made up: what it rewards, and what it can reach."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.task import Task, first_tensor, space

Loss = Callable[[Any, Any], Tensor]


@torch.enable_grad()
def examine(loss_fn: Loss, outputs: Any, targets: Tensor, task: Task) -> LossFacts:
    """What `loss_fn(outputs, targets)` does with a batch of at least two samples.

    The loss function is called some ten times; it must not keep a state.
    """
    facts = LossFacts()
    tensor = first_tensor(outputs)
    if tensor is not None and isinstance(targets, Tensor):
        facts.shapes = [list(tensor.shape), list(targets.shape)]
    try:
        value = loss_fn(outputs, targets)
    except Exception as error:  # whatever the user's function raises
        facts.error = f"{type(error).__name__}: {error}"
        return facts
    facts.scalar = isinstance(value, Tensor) and value.numel() == 1
    if not facts.scalar:
        facts.reduction = "none"
    if not isinstance(outputs, Tensor) or task.kind == "unknown":
        return facts

    if outputs.device.type != "cpu":
        try:
            loss_fn, outputs, targets = _on_cpu(loss_fn, outputs, targets)
        except Exception:  # a function that holds tensors of its device
            facts.tried = False
            return facts

    def value_of(made_up: Tensor, of: Tensor = targets) -> float:
        return loss_fn(made_up, of).detach().float().mean().item()

    outputs = outputs.detach().float()  # of half precision the differences looked for are lost
    if not torch.isfinite(outputs).all():
        outputs = torch.randn_like(outputs)
    if facts.scalar:
        facts.reduction = _reduction(value_of, outputs, targets)
    gradient = _gradient(loss_fn, outputs, targets)
    facts.gradient = gradient is not None and bool(gradient.any())
    if targets.is_floating_point() and task.kind == "classes" and targets.max() < 0.99:
        return facts  # soft targets: nothing can be made up for them
    if task.kind == "values":
        _examine_values(facts, value_of, outputs, targets)
    elif task.kind == "binary":
        _examine_binary(facts, value_of, outputs, targets, task)
    else:
        _examine_classes(facts, loss_fn, value_of, outputs, targets, task)
    return facts


def _on_cpu(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> tuple[Loss, Tensor, Tensor]:
    """All three on the CPU. There an output outside of a loss's domain is an exception; on a GPU
    an assertion, after which the process can do nothing more with it."""
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).cpu()
    outputs, targets = outputs.detach().cpu(), targets.cpu()
    loss_fn(outputs, targets)
    return loss_fn, outputs, targets


def _reduction(value_of: Callable, outputs: Tensor, targets: Tensor) -> str:
    if outputs.shape[:1] != targets.shape[:1]:
        return "mean"
    once = value_of(outputs)
    try:
        twice = value_of(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    except Exception:  # a function for one batch size alone
        return "mean"
    if abs(once) < 1e-9:
        return "mean"
    # A broadcast (B, B) loss is a mean here and is found by its floor.
    return "sum" if abs(twice / once - 2) < 0.02 else "mean"


def _gradient(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> Tensor | None:
    leaf = outputs.clone().requires_grad_()
    value = loss_fn(leaf, targets)
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value.mean(), leaf, allow_unused=True)[0]


def _pairwise(value_of: Callable, outputs: Tensor, targets: Tensor, classes: int) -> bool:
    """Whether only the equality of labels counts, as in metric learning: names do not."""
    if targets.is_floating_point():
        return False
    here, renamed = value_of(outputs), value_of(outputs, (targets + 1) % classes)
    others = value_of(outputs, torch.arange(targets.numel(), device=targets.device)
                      .remainder(classes).reshape(targets.shape))  # fmt: skip
    near = 1e-4 * max(abs(here), 1e-6)
    return abs(here - renamed) < near < abs(here - others)


def _rewards(pairs: list[tuple[float, float]]) -> bool | None:
    """Whether a loss is lower where the outputs are right; pairs of (right, wrong).

    None where it cannot be told: a loss whose sign was flipped goes below zero, and one that does
    not (of a distance, say) has another idea of what is right.
    """
    values = [value for pair in pairs for value in pair]
    if not all(map(math.isfinite, values)):
        return None
    if any(right < wrong for right, wrong in pairs):
        return True
    return False if min(values) < 0 else None


def _examine_values(facts: LossFacts, value_of: Callable, outputs: Tensor, targets: Tensor) -> None:
    ideal = targets.to(outputs.dtype).reshape(outputs.shape)
    spread = ideal.std(correction=0)
    if not spread > 0:
        return
    noise = torch.linspace(-1, 1, ideal.numel()).roll(ideal.numel() // 3).reshape(ideal.shape)
    noise = noise.to(ideal) * spread
    perfect = [ideal]
    if ideal.min() >= 0:  # and the loss may be for positive outputs alone
        noise = noise.abs()
    if ideal.min() >= 0:  # counts: the output may be the logarithm of a rate
        perfect.append(ideal.clamp_min(0.1).log())
    constant = [torch.full_like(made_up, made_up.mean().item()) for made_up in perfect]
    values = [(value_of(best), value_of(best + 2 * noise)) for best in perfect]
    facts.better_when_right = _rewards(values)
    best, base = min(v for v, _ in values), min(map(value_of, constant))
    if base > 0 and len(perfect) == 1:
        facts.floor = best / base
    # Nothing holds the loss: a log-likelihood whose targets are no probabilities.
    side = (ideal - ideal.mean()).sign()
    far = [value_of(1e3 * sign) for sign in (side, -side, side.abs(), -side.abs())]
    facts.unbounded = min(far) < min(best, -10.0)


def _examine_binary(
    facts: LossFacts, value_of: Callable, outputs: Tensor, targets: Tensor, task: Task
) -> None:
    ones = targets.to(outputs.dtype).reshape(outputs.shape)
    share = ones.mean().clamp(0.05, 0.95)
    facts.output_space = "unit" if task.squashed else "real"
    if facts.output_space == "unit":
        right = ones * 0.998 + 0.001
        wrong, constant = 1 - right, torch.full_like(ones, share.item())
    else:
        right = (2 * ones - 1) * 12
        wrong, constant = -right, torch.full_like(ones, share.logit().item())
        # A squared error of {0, 1} by a real output: the regression's ideal is not far out.
        if value_of(ones) < min(value_of(right), value_of(constant)):
            facts.shift_invariant = False
            right, wrong, constant = ones, 1 - ones, torch.full_like(ones, share.item())
    best, worst, base = value_of(right), value_of(wrong), value_of(constant)
    facts.better_when_right = _rewards([(best, worst)])
    if base > 0 and facts.better_when_right is not None:
        facts.floor = best / base


def _examine_classes(
    facts: LossFacts,
    loss_fn: Loss,
    value_of: Callable,
    outputs: Tensor,
    targets: Tensor,
    task: Task,
) -> None:
    rows, classes = task.pair(outputs, targets)
    if len(classes) < outputs.numel() // task.classes:
        return  # ignored or impossible labels: nothing can be made up for them
    facts.output_space = space(rows)
    if task.squashed and facts.output_space == "real":
        facts.output_space = "unit"
    hot = F.one_hot(classes, task.classes).to(outputs.dtype)

    def shaped(made_up: Tensor) -> Tensor:
        moved = outputs.movedim(task.axis, -1)
        return made_up.to(outputs.dtype).reshape(moved.shape).movedim(-1, task.axis)

    if facts.output_space in ("simplex", "unit", "log_simplex"):
        right = hot * 0.998 + 0.001 / task.classes
        wrong = (1 - hot) / (task.classes - 1) * 0.998 + 0.001 / task.classes
        flat = torch.full_like(hot, 1 / task.classes)
        if facts.output_space == "log_simplex":
            right, wrong, flat = right.log(), wrong.log(), flat.log()
        candidates = [right]
    else:
        # Label smoothing punishes confidence, a squared error punishes distance: the best of a row.
        candidates = [hot * size for size in (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 30.0)]
        right, wrong, flat = candidates[3], -candidates[3], torch.zeros_like(hot)
    values = [value_of(shaped(candidate)) for candidate in candidates]
    best, base = min(values), value_of(shaped(flat))
    best_value, worst_value = value_of(shaped(right)), value_of(shaped(wrong))
    if math.isfinite(best_value) and math.isfinite(worst_value):
        facts.better_when_right = best_value < worst_value
    # Where more confidence costs again, the smallest loss lies at a finite one: smoothed labels.
    smoothed = facts.output_space == "real" and values[-1] > 1.5 * best + 1e-3
    if base > 0 and not smoothed:
        facts.floor = best / base
    probe = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    if facts.output_space == "simplex":
        probe = probe.softmax(dim=1)
    elif facts.output_space == "log_simplex":
        probe = probe.log_softmax(dim=1)
    elif facts.output_space == "unit":
        probe = probe.sigmoid()
    probe = shaped(probe)
    if facts.output_space == "real":
        here, there = value_of(probe), value_of(probe + 3)
        # A small term beside the cross-entropy (on the logits' size) is none of these.
        facts.shift_invariant = abs(here - there) <= 0.01 * max(abs(here), abs(there), 1e-6)
    facts.pairwise = _pairwise(value_of, probe, targets, task.classes)
    gradient = _gradient(loss_fn, probe, targets)
    if gradient is None or len(probe) < 2:
        return
    by_row = gradient.movedim(task.axis, -1).reshape(-1, task.classes)
    others = (by_row * (1 - hot)).abs().sum()
    facts.target_entry_only = bool(others <= 1e-6 * by_row.abs().sum())
    changed = probe.clone()
    half = len(probe) // 2
    changed[half:] = probe[half:].flip(0) * 0.5 if len(probe) - half > 1 else probe[half:] * 0.5
    again = _gradient(loss_fn, changed, targets)
    difference = (again[:half] - gradient[:half]).abs().max()
    facts.mixes_samples = bool(difference > 1e-3 * gradient[:half].abs().max())
