"""Where the samples of a batch lie in the tensors of a call, and how some of them are taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import (
    Call,
    as_call,
    first_tensor,
    in_memory_as,
    is_plain,
    map_tensors,
)

# Samples that a copy of the model is given at once, at least, and more while they are small: the
# activations of large ones take memory.
_SLICE = 64
_VALUES = 2**14

Rows = slice | Tensor


@dataclass(frozen=True)
class Layout:
    """Along which axis the samples of a training's batches lie.

    Attributes:
        axis: of the inputs; None where a batch cannot be parted into samples, as a graph can't.
        main: index of the inputs among the call's tensors; None where each sample is a tensor.
        divisible: False where the model refuses a part of a batch.
        verified: some samples alone were seen to give the outputs that they give among the others.
        offsets: the inputs are the places where samples begin in another tensor of the call.
    """

    axis: int | None = 0
    main: int | None = 0
    divisible: bool = True
    verified: bool = False
    offsets: bool = False

    def inputs(self, call: Call) -> Tensor | None:
        """Return the tensor among the arguments that holds the samples, None without one."""
        tensors = call.tensors()
        if self.main is None:
            return None
        if self.main < len(tensors) and _has_axes(tensors[self.main]):
            return tensors[self.main]
        return next((t for t in tensors if _has_axes(t)), None)

    def count(self, call: Call) -> int | None:
        """Return the number of samples, None where they are not apart."""
        inputs = self.inputs(call)
        if self.axis is None or inputs is None or inputs.dim() <= self.axis:
            return None
        return inputs.shape[self.axis]

    def is_whole(self, call: Call) -> bool:
        """Return whether the inputs are all that a sample consists of.

        They are not where another tensor holds samples too: the second image of a pair, the film
        that a viewer rates, a state handed over from the batch before.
        """
        inputs, count = self.inputs(call), self.count(call)
        return count is None or not any(
            tensor is not inputs and samples_axis(tensor, count, self.axis or 0) is not None
            for tensor in call.tensors()
        )

    def rows(self, call: Call, inputs: Any = None) -> Tensor | None:
        """Return the samples, (samples, …), None where the call has no tensor with axes.

        Samples that are not apart are the entries of the first axis. None too of samples of several
        lengths that lie one after the other in a tensor, of which another one holds the places.

        Args:
            inputs: the batch as the loop handed it over. It is taken where it holds as many samples
                as the call: a loop may reshape a batch before it calls the model.
        """
        own, axis = self.inputs(call), self.axis or 0
        if self.offsets:
            return None
        if own is inputs:
            return _first(own, axis)
        handed = self.inputs(as_call(inputs)) if _is_batch(inputs) else None
        if own is None:
            return _first(handed, axis)
        if handed is not None and min(handed.dim(), own.dim()) > axis:
            own = handed if handed.shape[axis] == own.shape[axis] else own
        return _first(own, axis)

    def size(self, inputs: Tensor) -> int:
        """Return how many samples `rows` returns of a call with these inputs alone; 0 of none."""
        axis = self.axis or 0
        if self.offsets or not _has_axes(inputs):
            return 0
        return inputs.shape[axis if inputs.dim() > axis else 0]

    def take(self, call: Call, rows: Rows, targets: Any = None) -> tuple[Call, Any]:
        """Return the call and the targets with some of the samples.

        Both whole where a tensor among them does not hold them in a known way: the rows of an
        adjacency matrix go with its columns, and edges with their nodes.
        """
        axes = self._axes(call)
        shape = self._shape(call)
        if axes is None or shape is None or not self._fits(targets, shape):
            return call, targets
        part = _part(call, axes, rows)
        return part, map_tensors(targets, lambda tensor: self._part_of_tensor(tensor, shape, rows))

    def part_of(self, call: Call, value: Any, rows: Rows) -> Any:
        """Return a batch's targets or outputs with some of the samples.

        Tensors that do not hold the samples stay whole. None where the first tensor does not.
        """
        shape, first = self._shape(call), first_tensor(value)
        if shape is None or first is None or self.place(first, shape) is None:
            return None
        part = map_tensors(value, lambda tensor: self._part_of_tensor(tensor, shape, rows))
        return None if first_tensor(part) is first else part  # no container of known kind

    def targets_by_sample(self, call: Call, targets: Any) -> Any:
        """Return targets with the samples on the first axis: (T·B,) or (T, B) become (B, T)."""
        shape = self._shape(call)
        if not isinstance(targets, Tensor) or shape is None or not is_plain(targets):
            return targets
        place = self.place(targets, shape)
        if place is None:
            return targets
        axis, parted = place
        return _first(targets.unflatten(0, shape[:2]) if parted else targets, axis)

    def place(self, tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, bool] | None:
        """Return the axis of the samples in targets or outputs, and whether two axes were made one.

        None where their size tells of no such axis.

        Args:
            shape: of the inputs.
        """
        if self.axis is None or len(shape) <= self.axis or tensor.dim() == 0:
            return None
        count = shape[self.axis]
        if len(shape) > 1 and tensor.shape[:2] == shape[:2]:
            return self.axis, False
        if tensor.shape[0] == count:
            return 0, False
        if len(shape) > 1 and tensor.shape[0] == shape[0] * shape[1]:
            return self.axis, True
        if tensor.dim() > self.axis and tensor.shape[self.axis] == count:
            return self.axis, False
        if tensor.dim() == 3 and tensor.shape[1] == count:
            return 1, False  # scores (T, B, classes) of inputs that are not time-major
        return None

    def run(self, model: nn.Module, call: Call) -> Any:
        """Return the model's outputs for a batch that may be too large for one pass.

        Only outputs that are a single tensor are computed part by part, and only of samples that
        are apart. They may lie on the outputs' second axis.
        """
        inputs, count = self.inputs(call), self.count(call)
        axes = self._axes(call)
        if not self.verified or self.axis != 0 or inputs is None or count is None or axes is None:
            return call(model)
        most = max(_SLICE, count * _VALUES // max(inputs.numel(), 1))
        if count <= most:
            return call(model)
        parts: list[Tensor] = []
        sizes = [min(most, count - start) for start in range(0, count, most)]
        for size in sizes:
            start = len(parts) * most
            output = _part(call, axes, slice(start, start + size))(model)
            if not isinstance(output, Tensor) or output.dim() == 0:
                return call(model)
            parts.append(output)
        for axis in (0, 1):
            if all(
                p.dim() > axis and p.shape[axis] == n for p, n in zip(parts, sizes, strict=True)
            ):
                return torch.cat(parts, dim=axis)
        return call(model)

    def _shape(self, call: Call) -> tuple[int, ...] | None:
        inputs = self.inputs(call)
        return None if inputs is None else tuple(inputs.shape)

    def _axes(self, call: Call) -> list[int | None] | None:
        """Return each tensor's axis of samples, None of a tensor that all samples share.

        None altogether where the batch is not to be parted.
        """
        count, inputs = self.count(call), self.inputs(call)
        if count is None or not self.divisible:
            return None
        axes: list[int | None] = []
        for tensor in call.tensors():
            if tensor is inputs:
                axes.append(self.axis)
                continue
            axis = samples_axis(tensor, count, self.axis or 0)
            if axis is None and not self.verified and (not is_plain(tensor) or tensor.numel() > 1):
                return None
            axes.append(axis)
        return axes

    def _fits(self, targets: Any, shape: tuple[int, ...]) -> bool:
        """True if all that the targets hold is one value for each sample, or nothing."""
        if targets is None:
            return True
        if isinstance(targets, Tensor):
            return is_plain(targets) and self.place(targets, shape) is not None
        if isinstance(targets, Mapping):
            return all(self._fits(item, shape) for item in targets.values())
        if isinstance(targets, list | tuple):
            return all(self._fits(item, shape) for item in targets)
        return False

    def _part_of_tensor(self, tensor: Tensor, shape: tuple[int, ...], rows: Rows) -> Tensor:
        place = self.place(tensor, shape) if is_plain(tensor) else None
        if place is None:
            return tensor
        axis, parted = place
        if not parted:
            return _select(tensor, axis, rows)
        return _select(tensor.unflatten(0, shape[:2]), axis, rows).flatten(0, 1)


FIRST_AXIS = Layout()  # what is assumed where nothing was found out


def samples_axis(tensor: Tensor, count: int, axis: int) -> int | None:
    """Return the axis along which a tensor beside the inputs holds `count` samples.

    That of the inputs; or the other one, as in a recurrent net's state. None of a tensor of another
    size, and of a matrix (samples, samples), whose rows go with its columns.

    Args:
        axis: of the samples in the inputs.
    """
    if not _has_axes(tensor) or (tensor.dim() == 2 and tensor.shape == (count, count)):
        return None
    if not tensor.is_floating_point() and tensor.dim() == 2 and tensor.shape[0] == 2 != count:
        return None  # pairs of indices, the edges of a graph
    if tensor.dim() > axis and tensor.shape[axis] == count:
        return axis
    other = 1 - axis
    if tensor.dim() > other and tensor.shape[other] == count and (other == 0 or tensor.dim() == 3):
        return other
    return None


def _has_axes(tensor: Tensor) -> bool:
    return is_plain(tensor) and tensor.dim() > 0


def _is_batch(inputs: Any) -> bool:
    return isinstance(inputs, Tensor | list | tuple | Mapping)


def _first(tensor: Tensor | None, axis: int) -> Tensor | None:
    if tensor is None or tensor.dim() <= axis or axis == 0:
        return tensor
    return tensor.movedim(axis, 0)


def _part(call: Call, axes: Sequence[int | None], rows: Rows) -> Call:
    """Return a call with some of the samples, which lie along these axes of its tensors."""
    order = iter(axes)
    part = call.map(lambda tensor: _select(tensor, next(order), rows))
    part.prepare = None  # a state is one of the whole batch
    return part


def _select(tensor: Tensor, axis: int | None, rows: Rows) -> Tensor:
    if axis is None:
        return tensor
    chosen = rows.to(tensor.device) if isinstance(rows, Tensor) else rows
    return in_memory_as(tensor[(slice(None),) * axis + (chosen,)], tensor)
