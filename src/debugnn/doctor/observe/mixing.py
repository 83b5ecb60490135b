"""How much one sample's output changes with other samples' inputs, in evaluation mode."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import hookable
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.influence import View
from debugnn.doctor.observe.perturbation import Passes, differ

LEAST_BATCH = 4  # samples, of which two halves can be compared
_LISTED = 64  # layers whose change is kept


def evaluation_change(model: nn.Module, call: Call) -> float | None:
    """Return the difference of two evaluations of one batch, as `change_over_spread`.

    None where the model returns no tensor.
    """
    with torch.no_grad():
        first, again = (first_tensor(call(model)) for _ in range(2))
    if first is None or again is None:
        return None
    return change_over_spread(first.float(), again.float())


def change_over_spread(before: Tensor, after: Tensor) -> float:
    """Return the largest change of a value over the largest deviation of a sample from the mean.

    0 for changes that are rounding, and for tensors that cannot be compared.
    """
    if before.shape != after.shape or before.dim() == 0 or len(before) < 2:
        return 0.0
    if not differ(before, after) or not torch.isfinite(before).all():
        return 0.0
    spread = (before - before.mean(dim=0)).abs().max().item()
    return (after - before).abs().max().item() / spread if spread > 0 else 0.0


def measure_mixing(
    passes: Passes, inputs: Tensor, axis: int, count: int, view: View | None
) -> tuple[float, dict[str, float]]:
    """Measure how much one half's outputs change when the inputs of the other half do.

    Each half in turn, and the one that changes more: a recurrence passes information one way only.

    Args:
        inputs: the tensor that holds the samples, `count` of them along `axis`.
        view: how the samples are found in the outputs; None where these follow no input.

    Returns:
        The change of the model's outputs, 0 without a view, and of each module's. Both as in
        `change_over_spread`.
    """
    found = [_changes(passes, inputs, axis, count, view, half) for half in (1, 0)]
    return max(found, key=lambda pair: (pair[0], max(pair[1].values(), default=0.0)))


def gradient_mixes(
    passes: Passes, inputs: Tensor, axis: int, count: int, view: View
) -> bool | None:
    """Return whether one half's outputs have a gradient with respect to the other half's inputs.

    Where they change and have none, what passes from sample to sample is a number taken as a
    constant, such as the scale of a batch that its values are rounded by.

    Args:
        inputs: the tensor that holds the samples, `count` of them along `axis`.
        view: how the samples are found in the outputs.

    Returns:
        None of inputs that have no gradient: those of whole numbers, or behind a step function.
    """
    if not inputs.is_floating_point():
        return None
    leaf = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = first_tensor(passes.call.map(lambda t: leaf if t is inputs else t)(passes.model))
        if output is None or not output.requires_grad:
            return None
        found = view.of(output)
        halves = (slice(count // 2), slice(count // 2, None))
        gradients = [
            torch.autograd.grad(
                found[rows].float().sum(), leaf, retain_graph=True, allow_unused=True
            )[0]
            for rows in halves
        ]
    each = [gradient.movedim(axis, 0) for gradient in gradients if gradient is not None]
    if len(each) < len(halves):
        return None
    if not all(gradient[rows].any() for gradient, rows in zip(each, halves, strict=True)):
        return None
    others = zip(each, reversed(halves), strict=True)
    return any(bool(gradient[rows].any()) for gradient, rows in others)


def _changes(
    passes: Passes, inputs: Tensor, axis: int, count: int, view: View | None, half: int
) -> tuple[float, dict[str, float]]:
    middle = count // 2
    rows = slice(middle) if half == 1 else slice(middle, None)  # of the half that stays

    def staying(value: Any) -> Tensor | None:
        tensor = first_tensor(value)
        if tensor is None or not is_plain(tensor) or not tensor.dim():
            return None  # nested tensors, of a transformer that skips padding, have no sizes
        tensor = tensor.detach().float()
        if axis == 0 and len(tensor) % count == 0:
            return tensor.unflatten(0, (count, len(tensor) // count))[rows].flatten(0, 1)
        # As in the inputs; or as in the outputs, whose first axis may be that of time.
        places = [axis] if view is None else [axis, view.axis]
        own = next((a for a in places if tensor.shape[a : a + 1] == (count,)), None)
        return None if own is None else tensor.movedim(own, 0)[rows]

    before: dict[str, list[Tensor | None]] = {}  # module → its output at each call
    changes: dict[str, float] = {}
    replaced = False

    def compare(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            value = staying(output)
            if not replaced:
                # A copy, because a later layer may change this output in place.
                before.setdefault(name, []).append(None if value is None else value.clone())
                return
            earlier = before[name].pop(0) if before.get(name) else None
            if value is not None and earlier is not None:
                change = change_over_spread(earlier, value)
                changes[name] = max(change, changes.get(name, 0.0))

        return hook

    modules = [(n, m) for n, m in hookable(passes.model) if n]
    handles = [m.register_forward_hook(compare(n)) for n, m in modules]
    try:
        first = passes.run(passes.call)
        replaced = True
        second = passes.changed(inputs, axis, half)
    finally:
        for handle in handles:
            handle.remove()
    if first is None or second is None or first.shape != second.shape:
        return 0.0, {}
    total = 0.0
    if view is not None:
        total = change_over_spread(view.of(first)[rows], view.of(second)[rows])
    if len(changes) > _LISTED:
        changes = {name: change for name, change in changes.items() if change > 0}
    return total, dict(itertools.islice(changes.items(), _LISTED))
