"""Forward passes of one batch, as it is and with half of the positions along an axis changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.layout import samples_axis
from debugnn.doctor.observe.modes import BATCH_NORM
from debugnn.random_state import random_state, set_random_state

_ROUNDING = 1e-5  # products of other shapes are rounded differently, by some 1e-6 of the values
_NOISE = 0.1  # scale of what is added to weights that are all equal


class Passes:
    """Forward passes of one model with one batch, changed and unchanged, that draw the same noise.

    Attributes:
        model: in evaluation mode.
        call: of the batch.
        output: the first tensor among the outputs, in float32.
        steady: two passes give the same.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.call = call
        self.model = model
        device = next((t.device for t in call.tensors()), torch.device("cpu"))
        self._device, self._random = device, random_state(device)
        self.output = self.run(call)
        again = self.run(call)
        self.steady = (
            self.output is not None
            and again is not None
            and again.shape == self.output.shape
            and not differ(self.output, again)
        )

    def run(self, call: Call) -> Tensor | None:
        """Return the first tensor among the outputs."""
        set_random_state(self._device, self._random)
        found = first_tensor(call(self.model))
        return None if found is None else found.detach().float()

    def changed(self, inputs: Tensor, axis: int, half: int) -> Tensor | None:
        """Return the same with a half of the inputs' positions changed; None if the model raises.

        Args:
            inputs: the tensor among the call's that is changed, and with it what belongs to it.
            axis: of the inputs.
            half: 0 changes the first half along the axis, 1 the second.
        """
        found = self.run_changed(_with_half_changed(self.call, inputs, axis, half))
        if found is not None and self.output is not None and found.shape == self.output.shape:
            return found
        # Other lengths, say, lead to outputs of another length: the inputs alone do not.
        return self.run_changed(self.call.exchanged(inputs, _half_changed(inputs, axis, half)))

    def run_changed(self, call: Call) -> Tensor | None:
        """Return the same as `run` for inputs with other values; None if the model raises."""
        try:
            return self.run(call)
        except Exception:  # an index out of range, or a check of the inputs by the model itself
            return None


def _with_half_changed(call: Call, inputs: Tensor, axis: int, half: int) -> Call:
    """Return the call with other values in half of the positions along an axis of the inputs."""
    count = inputs.shape[axis]

    def change(tensor: Tensor) -> Tensor:
        if tensor is inputs:
            return _half_changed(tensor, axis, half)
        if axis == 0 and inputs.dim() > 1 and tensor.shape[:1] == (inputs.shape[1],):
            return tensor  # it may belong to the other axis
        own = samples_axis(tensor, count, axis) if is_plain(tensor) else None
        # Along the second axis only what has both is changed: a state or a mask has another one.
        if own is None or (axis == 1 and tensor.shape[:2] != inputs.shape[:2]):
            return tensor
        return _half_changed(tensor, own, half)

    return call.map(change)


def _half_changed(tensor: Tensor, axis: int, half: int) -> Tensor:
    middle = tensor.shape[axis] // 2
    parts = list(tensor.split([middle, tensor.shape[axis] - middle], dim=axis))
    parts[half] = other_values(parts[half], axis)
    return torch.cat(parts, dim=axis)


def other_values(tensor: Tensor, axis: int) -> Tensor:
    """Return other values in the place of a tensor's own, of the same kind.

    Args:
        axis: of the positions.
    """
    if tensor.is_floating_point():
        # One position in place of all: exchanging them would leave an average over them.
        one = tensor.narrow(axis, 0, 1).expand_as(tensor)
        return one * 0.5 + 0.1 * one.abs().amax().clamp_min(1e-3)
    if axis == 0:
        return tensor.narrow(axis, 0, 1).expand_as(tensor)
    # Columns may have alphabets of their own, and an index out of range ends a GPU's context.
    return tensor.narrow(0, 0, 1).expand_as(tensor)


def differ(before: Tensor, after: Tensor) -> bool:
    """True if values have changed by more than rounding. A value that is no number counts not."""
    if not before.numel():
        return False
    change = torch.nan_to_num((after - before).abs(), nan=0.0, posinf=0.0).max().item()
    size = torch.nan_to_num(before.abs(), nan=0.0, posinf=0.0).max().item()
    return change > _ROUNDING * size


@contextmanager
def with_statistics(model: nn.Module) -> Iterator[None]:
    """Give batch norm layers without running statistics some for a while."""
    bare: Sequence[Any] = [
        m for m in model.modules() if isinstance(m, BATCH_NORM) and m.running_mean is None
    ]
    try:
        for module in bare:
            like = next(model.parameters()) if module.weight is None else module.weight
            module.running_mean = torch.zeros(module.num_features, device=like.device)
            module.running_var = torch.ones(module.num_features, device=like.device)
        yield
    finally:
        for module in bare:
            module.running_mean = module.running_var = None


@contextmanager
def without_constants(model: nn.Module) -> Iterator[None]:
    """Add noise to parameters whose values are all equal, for a while.

    A branch that starts closed (a last layer or a gate of zeros, a scale of 1e-6) is opened by it.
    """
    noise = torch.Generator().manual_seed(0)
    constant = []
    for parameter in model.parameters():
        if not parameter.numel() or not is_plain(parameter) or not parameter.is_floating_point():
            continue
        value = parameter.detach().flatten()[0]
        if bool((parameter == value).all()):
            constant.append((parameter, value.item()))
    try:
        for parameter, _ in constant:
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.data.add_((_NOISE * drawn).to(parameter))
        yield
    finally:
        for parameter, number in constant:
            parameter.data.fill_(number)
