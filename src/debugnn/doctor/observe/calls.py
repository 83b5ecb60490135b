"""How a model is called with a batch, and the tensors in its arguments."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """The positional and keyword arguments that a model was called with."""

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module) -> Any:
        """Return the model's outputs for clones of the tensors: a forward may work in place."""
        own = self.map(torch.clone)
        return model(*own.args, **own.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return the call with every tensor changed."""
        return Call(
            tuple(map_tensors(value, change) for value in self.args),
            {name: map_tensors(value, change) for name, value in self.kwargs.items()},
        )

    def take(self, rows: slice | Tensor, batch: int | None) -> "Call":
        """Return the call with some of its `batch` samples, see `take`."""
        return self.map(lambda tensor: take(tensor, rows, batch))

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the arguments, in order."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(note)
        return found


def as_call(inputs: Any) -> Call:
    """Return the call that a batch stands for: a tuple or list as arguments, a dict as keywords."""
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, list | tuple):
        return Call(tuple(inputs))
    return Call((inputs,))


def reshaped_like(call: Call, reference: Call | None) -> Call:
    """Return the call with samples of the shape that the reference call's samples have.

    For loops that flatten a batch before they call the model, and hand it to the doctor as it was.
    Only the first argument is reshaped, and only where its samples have as many values.
    """
    if reference is None or not reference.args or not call.args:
        return call
    wanted, given = reference.args[0], call.args[0]
    if not isinstance(wanted, Tensor) or not isinstance(given, Tensor):
        return call
    if wanted.shape[1:] == given.shape[1:] or not len(given):
        return call
    if given[0].numel() != wanted[0].numel():
        return call
    return Call((given.reshape(-1, *wanted.shape[1:]), *call.args[1:]), call.kwargs)


def run_in_chunks(model: nn.Module, call: Call, batch: int, size: int = 64) -> Any:
    """Return the model's outputs for a batch that may be too large for one pass.

    Only outputs that are a single tensor are computed chunk by chunk; anything else in one pass.

    Args:
        batch: number of samples in the call.
        size: samples of a chunk.
    """
    if batch <= size or any(t.dim() == 0 or len(t) != batch for t in call.tensors()):
        return call(model)
    parts = []
    for start in range(0, batch, size):
        part = call.take(slice(start, start + size), batch)(model)
        if not isinstance(part, Tensor) or part.dim() == 0:
            return call(model)
        parts.append(part)
    return torch.cat(parts)


def batch_size(call: Call, targets: int | None = None) -> int | None:
    """Return the number of samples of a batch, None where the call has no tensor with axes.

    Args:
        targets: number of targets. It is the batch size if an input has as many along an axis.
    """
    shapes = [t.shape for t in call.tensors() if t.dim()]
    if targets is not None and any(targets in shape[:2] for shape in shapes):
        return targets
    return shapes[0][0] if shapes else None


def take(tensor: Tensor, rows: slice | Tensor, batch: int | None) -> Tensor:
    """Return the given rows of a tensor that holds `batch` samples, any other tensor whole."""
    if not tensor.dim() or len(tensor) != batch:
        return tensor
    return tensor[rows.to(tensor.device) if isinstance(rows, Tensor) else rows]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of containers with each tensor in it changed, of the same types."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        result = copy.copy(value)  # a subclass may know more than its items
        for name, item in value.items():
            result[name] = map_tensors(item, change)
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in a nest of containers: the outputs of a model that returns several.

    A number among them, such as a loss that the model computes itself, is taken only where there is
    nothing else. Of an object that is no container its `logits` are taken. None without a tensor.
    """
    found = _tensors_in(value)
    return next((t for t in found if t.dim()), found[0] if found else None)


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors_in(item)]
    logits = getattr(value, "logits", None)
    return [logits] if isinstance(logits, Tensor) else []


def rows_of(inputs: Any) -> Tensor | None:
    """Return the tensor that holds the samples of a batch, None where there is none."""
    tensor = first_tensor(inputs) if isinstance(inputs, Tensor | list | tuple | dict) else None
    return tensor if tensor is not None and tensor.dim() else None


def copied(tensor: Tensor) -> Tensor:
    """Return a copy without a graph."""
    return tensor.detach().clone()
