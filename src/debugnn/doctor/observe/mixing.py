"""Dependence of a sample's output on the other samples of its batch, in evaluation mode."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import Call, first_tensor

LEAST_BATCH = 4  # samples, of which two halves can be compared
_LISTED = 64  # layers whose change is kept
_ROUNDING = 1e-5  # products of other shapes are rounded differently, by some 1e-6 of the values


def evaluation_change(model: nn.Module, call: Call) -> float | None:
    """Return the difference of two evaluations of one batch, as `change_over_spread`.

    None where the model returns no tensor.
    """
    with torch.no_grad():
        first, again = (first_tensor(call(model)) for _ in range(2))
    if first is None or again is None:
        return None
    return change_over_spread(first.float(), again.float())


def mixing(model: nn.Module, call: Call, batch: int) -> tuple[float | None, dict[str, float]]:
    """Measure how much one half's outputs change when the inputs of the other half do.

    Each half in turn, and the one that changes more: a recurrence over the batch axis passes
    information one way only. The model is to be in evaluation mode, so that batch norm does not
    count.

    Args:
        batch: number of samples, at least `LEAST_BATCH`.

    Returns:
        The change of the model's outputs, None where they have no batch axis; and of each module's
        outputs, in the order of the pass. Of more than 64 modules those that change at all, the
        first 64. Both as in `change_over_spread`.
    """
    if not any(_batch_axis(t, batch) is not None for t in call.tensors()):
        return None, {}
    half = batch // 2
    found = [_influence(model, call, batch, half, changed) for changed in ("second", "first")]
    return max(found, key=lambda pair: pair[0] or 0.0)


def change_over_spread(before: Tensor, after: Tensor) -> float:
    """Return the largest change of a value over the largest deviation of a sample from the mean.

    0 for changes that are rounding, and for tensors that cannot be compared.
    """
    if before.shape != after.shape or before.dim() == 0 or len(before) < 2:
        return 0.0
    change = (after - before).abs().max().item()
    if change <= _ROUNDING * before.abs().max().item() or not torch.isfinite(before).all():
        return 0.0
    spread = (before - before.mean(dim=0)).abs().max().item()
    return change / spread if spread > 0 else 0.0


def _influence(
    model: nn.Module, call: Call, batch: int, half: int, changed: str
) -> tuple[float | None, dict[str, float]]:
    """Measure the change of one half where the inputs of the other, `changed`, are replaced."""
    axes = {id(t): _batch_axis(t, batch) for t in call.tensors()}

    def replace(tensor: Tensor) -> Tensor:
        axis = axes[id(tensor)]
        if axis is None:
            return tensor
        parts = list(tensor.split([half, batch - half], dim=axis))
        index = 1 if changed == "second" else 0
        # One sample in place of all: exchanging samples would leave an average over the batch.
        other = parts[index].narrow(axis, 0, 1).expand_as(parts[index])
        if other.is_floating_point():
            other = other * 0.5 + 0.1 * other.abs().amax().clamp_min(1e-3)
        parts[index] = other
        return torch.cat(parts, dim=axis)

    def unchanged_half(value: Any) -> Tensor | None:
        tensor = first_tensor(value)
        if tensor is None or tensor.dim() == 0 or len(tensor) % batch:
            return None
        edge = len(tensor) // batch * half
        rows = tensor.detach().float()
        return rows[:edge] if changed == "second" else rows[edge:]

    before: dict[str, list[Tensor | None]] = {}  # module → its output at each call
    changes: dict[str, float] = {}
    replaced = False

    def compare(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            value = unchanged_half(output)
            if not replaced:
                before.setdefault(name, []).append(value)
                return
            earlier = before[name].pop(0) if before.get(name) else None
            if value is not None and earlier is not None:
                change = change_over_spread(earlier, value)
                changes[name] = max(change, changes.get(name, 0.0))

        return hook

    handles = [m.register_forward_hook(compare(n)) for n, m in model.named_modules()]
    try:
        with torch.no_grad():
            call(model)
            replaced = True
            call.map(replace)(model)
    finally:
        for handle in handles:
            handle.remove()
    total = changes.pop("", None)
    if len(changes) > _LISTED:
        changes = {name: change for name, change in changes.items() if change > 0}
    return total, dict(itertools.islice(changes.items(), _LISTED))


def _batch_axis(tensor: Tensor, batch: int) -> int | None:
    """Return the axis of the samples: the first, or the second where only that has their number."""
    if tensor.dim() >= 1 and tensor.shape[0] == batch:
        return 0
    return 1 if tensor.dim() >= 2 and tensor.shape[1] == batch else None
