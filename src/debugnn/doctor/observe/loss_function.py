"""Tests of a loss function on outputs that are made up: what it rewards, and what it can reach."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.task import Task, first_tensor, space

Loss = Callable[[Any, Any], Tensor]

# Numerical tolerances, of rounding and of reading, not of verdicts.
_ZERO_LOSS = 1e-9  # a loss of this size has no ratio to another that means anything
_SOFT_LABELS = 0.99  # targets whose largest value is smaller are distributions, not one-hot
_EQUAL_LOSSES = 1e-4  # relative difference of two losses that are the same but for rounding


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
        facts.doubling = _doubling(value_of, outputs, targets)
    gradient = _gradient(loss_fn, outputs, targets)
    facts.gradient = gradient is not None and bool(gradient.any())
    if targets.is_floating_point() and task.kind == "classes" and targets.max() < _SOFT_LABELS:
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


def _doubling(value_of: Callable, outputs: Tensor, targets: Tensor) -> float | None:
    """The loss of every sample twice over the loss of every sample once: 1 for a mean, 2 for a sum.

    None where outputs and targets have no common batch axis, or the function takes only one batch
    size, or the loss is 0. A loss that broadcasts to (B, B) gives 1.
    """
    if outputs.shape[:1] != targets.shape[:1]:
        return None
    once = value_of(outputs)
    try:
        twice = value_of(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    except Exception:  # a function for one batch size alone
        return None
    return None if abs(once) < _ZERO_LOSS else twice / once


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
    near = _EQUAL_LOSSES * max(abs(here), 1e-6)
    return abs(here - renamed) < near < abs(here - others)


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
    facts.rewards = [[value_of(right), value_of(right + 2 * noise)] for right in perfect]
    facts.best = min(right for right, _ in facts.rewards)
    if len(perfect) == 1:  # of two readings of the outputs, one is not what the loss is for
        facts.constant = min(map(value_of, constant))
    # Far out a log-likelihood whose targets are no probabilities falls without end.
    side = (ideal - ideal.mean()).sign()
    far = (1e3 * sign for sign in (side, -side, side.abs(), -side.abs()))
    facts.far = min(map(value_of, far))


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
        facts.squared = value_of(ones) < min(value_of(right), value_of(constant))
        if facts.squared:
            right, wrong, constant = ones, 1 - ones, torch.full_like(ones, share.item())
    facts.best, facts.constant = value_of(right), value_of(constant)
    facts.rewards = [[facts.best, value_of(wrong)]]


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
    facts.best, facts.constant = min(values), value_of(shaped(flat))
    facts.rewards = [[value_of(shaped(right)), value_of(shaped(wrong))]]
    if facts.output_space == "real":
        facts.confident = values[-1]
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
        facts.shift_change = abs(here - there) / max(abs(here), abs(there), 1e-6)
    facts.pairwise = _pairwise(value_of, probe, targets, task.classes)
    gradient = _gradient(loss_fn, probe, targets)
    if gradient is None or len(probe) < 2:
        return
    by_row = gradient.movedim(task.axis, -1).reshape(-1, task.classes)
    facts.other_entries = _share((by_row * (1 - hot)).abs().sum(), by_row.abs().sum())
    changed = probe.clone()
    half = len(probe) // 2
    changed[half:] = probe[half:].flip(0) * 0.5 if len(probe) - half > 1 else probe[half:] * 0.5
    again = _gradient(loss_fn, changed, targets)
    difference = (again[:half] - gradient[:half]).abs().max()
    facts.cross_gradient = _share(difference, gradient[:half].abs().max())


def _share(part: Tensor, whole: Tensor) -> float:
    """The ratio of two scalars; 0 where both are 0."""
    return (part / whole).item() if part != 0 else 0.0
