"""What a loss function rewards, tried out on outputs that are made up."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.calls import first_tensor
from debugnn.doctor.observe.task import Task, space

LossFunction = Callable[[Any, Any], Tensor]

# Numerical tolerances, of rounding and of reading, not of verdicts.
_ZERO_LOSS = 1e-9  # a loss of this size has no ratio to another that means anything
_SOFT_LABELS = 0.99  # targets whose largest value is smaller are distributions, not one-hot
_EQUAL_LOSSES = 1e-4  # relative difference of two losses that are the same but for rounding

# Logits of the right class, the others being 0. Label smoothing punishes confidence and a squared
# error punishes distance: the best of these counts.
_LOGITS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 30.0)
_RIGHT = 3  # the index of those that stand for right outputs
_BINARY_LOGIT = 12.0
_SURE, _REST = 0.998, 0.001  # probability of the right class, and what is left for the others
_FAR = 1e3  # size of outputs that are far from all targets


@torch.enable_grad()
def loss_facts(loss_fn: LossFunction, outputs: Any, targets: Any, task: Task) -> LossFacts:
    """Try out `loss_fn(outputs, targets)` with a batch's targets and made-up outputs.

    The loss function is called some twenty times; it must not keep a state. Outputs that are no
    single tensor, and tasks that are unknown, are only tried as they are.

    Args:
        outputs: the model's, for the batch; at least two samples.
        task: how outputs and targets are read.
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

    outputs = outputs.detach().float()  # half precision would hide small differences
    if not torch.isfinite(outputs).all():
        outputs = torch.randn_like(outputs)
    if facts.scalar:
        facts.doubling = _doubling(value_of, outputs, targets)
    gradient = _gradient(loss_fn, outputs, targets)
    facts.gradient = gradient is not None and bool(gradient.any())
    if targets.is_floating_point() and task.kind == "classes" and targets.max() < _SOFT_LABELS:
        return facts  # no outputs can be made up that are right for soft targets
    if task.kind == "values":
        _try_values(facts, value_of, outputs, targets)
    elif task.kind == "binary":
        _try_binary(facts, value_of, outputs, targets, task)
    else:
        _try_classes(facts, loss_fn, value_of, outputs, targets, task)
    return facts


def _on_cpu(
    loss_fn: LossFunction, outputs: Tensor, targets: Tensor
) -> tuple[LossFunction, Tensor, Tensor]:
    """Return all three on the CPU.

    There an output outside of the loss's domain raises an exception. On a GPU it fails an
    assertion, after which the process can do nothing more with that GPU.
    """
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).cpu()
    outputs, targets = outputs.detach().cpu(), targets.cpu()
    loss_fn(outputs, targets)
    return loss_fn, outputs, targets


def _doubling(value_of: Callable, outputs: Tensor, targets: Tensor) -> float | None:
    """Return the loss of every sample twice over that of each once: 1 of a mean, 2 of a sum.

    None where outputs and targets have no common batch axis, where the function takes one batch
    size only, and where the loss is 0. A loss that broadcasts to (B, B) gives 1.
    """
    if outputs.shape[:1] != targets.shape[:1]:
        return None
    once = value_of(outputs)
    try:
        twice = value_of(torch.cat([outputs, outputs]), torch.cat([targets, targets]))
    except Exception:  # a function for one batch size alone
        return None
    return None if abs(once) < _ZERO_LOSS else twice / once


def _gradient(loss_fn: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Return the gradient with respect to the outputs, None where the loss has none."""
    leaf = outputs.clone().requires_grad_()
    value = loss_fn(leaf, targets)
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value.mean(), leaf, allow_unused=True)[0]


def _is_pairwise(value_of: Callable, outputs: Tensor, targets: Tensor, classes: int) -> bool:
    """True if labels count only by being equal or not: to rename the classes changes nothing."""
    if targets.is_floating_point():
        return False
    here, renamed = value_of(outputs), value_of(outputs, (targets + 1) % classes)
    in_turn = torch.arange(targets.numel(), device=targets.device).remainder(classes)
    others = value_of(outputs, in_turn.reshape(targets.shape))
    near = _EQUAL_LOSSES * max(abs(here), 1e-6)
    return abs(here - renamed) < near < abs(here - others)


def _try_values(facts: LossFacts, value_of: Callable, outputs: Tensor, targets: Tensor) -> None:
    ideal = targets.to(outputs.dtype).reshape(outputs.shape)
    spread = ideal.std(correction=0)
    if not spread > 0:
        return
    noise = torch.linspace(-1, 1, ideal.numel()).roll(ideal.numel() // 3).reshape(ideal.shape)
    noise = noise.to(ideal) * spread
    perfect = [ideal]
    if ideal.min() >= 0:  # the loss may be for positive outputs alone
        noise = noise.abs()
        # Targets may be counts, and the output the logarithm of a rate.
        perfect.append(ideal.clamp_min(0.1).log())
    constant = [torch.full_like(made_up, made_up.mean().item()) for made_up in perfect]
    facts.rewards = [[value_of(right), value_of(right + 2 * noise)] for right in perfect]
    facts.best = min(right for right, _ in facts.rewards)
    if len(perfect) == 1:  # of two readings of the outputs, one is not what the loss is for
        facts.constant = min(map(value_of, constant))
    # Far out a log-likelihood whose targets are no probabilities falls without end.
    side = (ideal - ideal.mean()).sign()
    far = (_FAR * sign for sign in (side, -side, side.abs(), -side.abs()))
    facts.far = min(map(value_of, far))


def _try_binary(
    facts: LossFacts, value_of: Callable, outputs: Tensor, targets: Tensor, task: Task
) -> None:
    ones = targets.to(outputs.dtype).reshape(outputs.shape)
    share = ones.mean().clamp(0.05, 0.95)
    facts.output_space = "unit" if task.squashed else "real"
    if facts.output_space == "unit":
        right = ones * _SURE + _REST
        wrong, constant = 1 - right, torch.full_like(ones, share.item())
    else:
        right = (2 * ones - 1) * _BINARY_LOGIT
        wrong, constant = -right, torch.full_like(ones, share.logit().item())
        # A squared error of a real output against {0, 1} is least at 0 and 1.
        facts.squared = value_of(ones) < min(value_of(right), value_of(constant))
        if facts.squared:
            right, wrong, constant = ones, 1 - ones, torch.full_like(ones, share.item())
    facts.best, facts.constant = value_of(right), value_of(constant)
    facts.rewards = [[facts.best, value_of(wrong)]]


def _try_classes(
    facts: LossFacts,
    loss_fn: LossFunction,
    value_of: Callable,
    outputs: Tensor,
    targets: Tensor,
    task: Task,
) -> None:
    rows, classes = task.pair(outputs, targets)
    if len(classes) < outputs.numel() // task.size:
        return  # some labels are ignored or impossible: no outputs are right for them
    facts.output_space = space(rows)
    if task.squashed and facts.output_space == "real":
        facts.output_space = "unit"
    hot = F.one_hot(classes, task.size).to(outputs.dtype)

    def shaped(made_up: Tensor) -> Tensor:
        moved = outputs.movedim(task.axis, -1)
        return made_up.to(outputs.dtype).reshape(moved.shape).movedim(-1, task.axis)

    if facts.output_space == "real":
        candidates = [hot * size for size in _LOGITS]
        right, wrong, flat = candidates[_RIGHT], -candidates[_RIGHT], torch.zeros_like(hot)
    else:
        rest = _REST / task.size
        right = hot * _SURE + rest
        wrong = (1 - hot) / (task.size - 1) * _SURE + rest
        flat = torch.full_like(hot, 1 / task.size)
        if facts.output_space == "log_simplex":
            right, wrong, flat = right.log(), wrong.log(), flat.log()
        candidates = [right]
    values = [value_of(shaped(candidate)) for candidate in candidates]
    facts.best, facts.constant = min(values), value_of(shaped(flat))
    facts.rewards = [[value_of(shaped(right)), value_of(shaped(wrong))]]
    if facts.output_space == "real":
        facts.confident = values[-1]
    _try_noise(facts, loss_fn, value_of, shaped(_noise(rows, facts.output_space)), targets, task)


def _noise(rows: Tensor, output_space: str) -> Tensor:
    """Return random outputs (N, C), always the same, in the space of the model's outputs."""
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    if output_space == "simplex":
        return noise.softmax(dim=1)
    if output_space == "log_simplex":
        return noise.log_softmax(dim=1)
    return noise.sigmoid() if output_space == "unit" else noise


def _try_noise(
    facts: LossFacts,
    loss_fn: LossFunction,
    value_of: Callable,
    noise: Tensor,
    targets: Tensor,
    task: Task,
) -> None:
    """Find out which outputs the loss compares with each other, at outputs drawn at random."""
    if facts.output_space == "real":
        here, there = value_of(noise), value_of(noise + 3)
        facts.shift_change = abs(here - there) / max(abs(here), abs(there), 1e-6)
    facts.pairwise = _is_pairwise(value_of, noise, targets, task.size)
    gradient = _gradient(loss_fn, noise, targets)
    if gradient is None or len(noise) < 2:
        return
    _, classes = task.pair(noise, targets)
    hot = F.one_hot(classes, task.size).to(noise.dtype)
    by_row = gradient.movedim(task.axis, -1).reshape(-1, task.size)
    facts.other_entries = _ratio((by_row * (1 - hot)).abs().sum(), by_row.abs().sum())
    changed = noise.clone()
    half = len(noise) // 2
    changed[half:] = noise[half:].flip(0) * 0.5 if len(noise) - half > 1 else noise[half:] * 0.5
    again = _gradient(loss_fn, changed, targets)
    if again is None:
        return
    difference = (again[:half] - gradient[:half]).abs().max()
    facts.cross_gradient = _ratio(difference, gradient[:half].abs().max())


def _ratio(part: Tensor, whole: Tensor) -> float:
    """Return the ratio of two scalars; 0 where both are 0."""
    return (part / whole).item() if part != 0 else 0.0
