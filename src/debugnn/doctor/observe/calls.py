"""How a model is called with a batch, and the tensors in its arguments."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


@dataclass
class Call:
    """The positional and keyword arguments that a model was called with.

    Attributes:
        prepare: gives a copy of the model the state that this call began with, see `module_state`;
            None where the model keeps none.
    """

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], None] | None = None

    def __call__(self, model: nn.Module) -> Any:
        """Return the model's outputs for clones of the tensors: a forward may work in place."""
        own = self.map(torch.clone)
        if self.prepare is not None:
            self.prepare(model)
        return model(*own.args, **own.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return the call with every tensor changed."""
        return Call(
            tuple(map_tensors(value, change) for value in self.args),
            {name: map_tensors(value, change) for name, value in self.kwargs.items()},
            self.prepare,
        )

    def exchanged(self, old: Tensor, new: Tensor) -> "Call":
        """Return the call with another tensor in the place of one of its own."""
        return self.map(lambda tensor: new if tensor is old else tensor)

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the arguments, in order."""
        if len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor):
            return [self.args[0]]
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            _add_tensors(value, found)
        return found


def as_call(inputs: Any, seen: Call | None = None) -> Call:
    """Return the call that a batch stands for: a tuple or list as arguments, a dict as keywords.

    Args:
        seen: another call of the model. Where its only argument is such a container, of as many
            items or the same keys, the batch is one argument too.
    """
    if isinstance(inputs, PackedSequence):  # a tuple too
        return Call((inputs,))
    only = seen.args if seen is not None and not seen.kwargs else ()
    if len(only) == 1 and _same_container(inputs, only[0]):
        return Call((inputs,))
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, tuple) or (isinstance(inputs, list) and Call((inputs,)).tensors()):
        return Call(tuple(inputs))
    return Call((inputs,))


def _same_container(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) <= set(other)  # a model may have written its outputs there
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other)
    return False


def reshaped_like(call: Call, reference: Call | None) -> Call:
    """Return the call with samples of the shape that the reference call's samples have.

    Loops need this that flatten a batch before they call the model, and hand the doctor the
    unflattened batch.
    Only the first argument is reshaped, and only where its samples have as many values.
    """
    if reference is None or not reference.args or not call.args:
        return call
    wanted, given = reference.args[0], call.args[0]
    if not isinstance(wanted, Tensor) or not isinstance(given, Tensor):
        return call
    if not all(is_plain(tensor) and tensor.dim() for tensor in (wanted, given)):
        return call
    if wanted.shape[1:] == given.shape[1:] or not len(given):
        return call
    if given[0].numel() != wanted[0].numel():
        return call
    return Call((given.reshape(-1, *wanted.shape[1:]), *call.args[1:]), call.kwargs)


def is_plain(tensor: Tensor) -> bool:
    """True of a tensor whose axes can be indexed: neither sparse nor nested."""
    return tensor.layout == torch.strided and not tensor.is_nested


def bytes_of(tensor: Tensor) -> int:
    """Return the size of a tensor's values in memory; of a sparse one, of those it holds."""
    if tensor.layout == torch.sparse_coo:
        return sum(bytes_of(part) for part in (tensor._indices(), tensor._values()))
    if tensor.layout != torch.strided:
        return tensor.values().numel() * tensor.element_size()
    return tensor.numel() * tensor.element_size()


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of containers with each tensor in it changed, of the same types."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, MutableMapping):
        result = _copied_mapping(value)
        for name, item in value.items():
            result[name] = map_tensors(item, change)
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def _copied_mapping(value: MutableMapping) -> MutableMapping:
    """Return a copy of a mapping, which knows more than its items where it is of the user's class.

    What such a class keeps its items in is copied too: a copy would write into the original's.
    """
    result = copy.copy(value)
    for name, attribute in vars(result).items() if hasattr(result, "__dict__") else ():
        if isinstance(attribute, MutableMapping | list):
            vars(result)[name] = copy.copy(attribute)
    return result


def _add_tensors(value: Any, found: list[Tensor]) -> None:
    """Add the tensors that `map_tensors` changes, in its order."""
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _add_tensors(item, found)
    elif isinstance(value, MutableMapping):
        for item in value.values():
            _add_tensors(item, found)


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in a nest of containers: the outputs of a model that returns several.

    A number among them, such as a loss that the model computes itself, is taken only where there is
    nothing else. Of an object that is no container its `logits` are taken. None without a tensor.
    """
    found = _tensors_in(value)
    return next((t for t in found if t.dim()), found[0] if found else None)


def scores_of(outputs: Any) -> Tensor | None:
    """Return the first tensor of floats with two axes or more, None where there is none."""
    found = _tensors_in(outputs)
    return next((t for t in found if t.is_floating_point() and t.dim() > 1), None)


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors_in(item)]
    logits = getattr(value, "logits", None)
    return [logits] if isinstance(logits, Tensor) else []


def with_first(value: Any, tensor: Tensor) -> Any:
    """Return a nest of containers with `tensor` in the place of its `first_tensor`.

    Raises:
        TypeError: a nest without a tensor.
    """
    first = first_tensor(value)
    if first is None:
        raise TypeError("the outputs hold no tensor")
    return _exchanged(value, first, tensor)


def _exchanged(value: Any, old: Tensor, new: Tensor) -> Any:
    if isinstance(value, Tensor):
        return new if value is old else value
    if isinstance(value, Mapping):
        result = copy.copy(value)
        for name, item in value.items():
            result[name] = _exchanged(item, old, new)  # type: ignore[index]
        return result
    if isinstance(value, list | tuple):
        items = [_exchanged(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if getattr(value, "logits", None) is old:
        result = copy.copy(value)
        object.__setattr__(result, "logits", new)
        return result
    return value


def copied(tensor: Tensor) -> Tensor:
    """Return a copy without a graph."""
    return tensor.detach().clone()


def in_memory_as(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return a tensor whose axes lie in memory in the order of another one's, without gaps.

    `view` takes what lies in memory as it expects, and raises otherwise: what stands for a model's
    outputs has to lie as these do. The tensor itself where it lies so, or has other axes.
    """
    if not (is_plain(tensor) and is_plain(reference)) or tensor.dim() != reference.dim():
        return tensor
    strides = reference.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    back = sorted(range(tensor.dim()), key=order.__getitem__)
    ordered = tensor.permute(order)
    return tensor if ordered.is_contiguous() else ordered.contiguous().permute(back)


def is_a_part(value: Any) -> bool:
    """Return whether a tensor shares its memory with a larger one, as a slice does."""
    if not isinstance(value, Tensor) or not is_plain(value):
        return False
    return value.untyped_storage().nbytes() > value.numel() * value.element_size()
