"""Non-finite values of tensors: which there are, of which samples, and how they are described."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from debugnn.doctor.observe.layout import Layout

_MOST_SAMPLES = 32


@dataclasses.dataclass(frozen=True)
class SampleAxis:
    """Finds the axis of a tensor that holds a step's samples, by its size.

    A tensor that happens to have that size is taken for the batch's.
    """

    layout: Layout
    shape: tuple[int, ...]  # of the inputs

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.shape[self.layout.axis or 0]

    def of(self, tensor: Tensor) -> int | None:
        """Return the axis, None where no axis holds the samples and nothing else."""
        place = self.layout.place(tensor, self.shape)
        return None if place is None or place[1] else place[0]


def named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a nest of containers with their keys and indices, joined by dots."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from named(item, f"{name}.{key}" if name else str(key))


def watched_tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in a tree that can hold non-finite values."""
    return (leaf for leaf in tree_leaves(tree) if is_watched(leaf))


def is_watched(value: Any) -> bool:
    """Return whether a value is a tensor that can hold non-finite values."""
    # Other tensors have no storage of their own, no values, or no infinity (the 8-bit floats).
    return (
        isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and value.dtype.itemsize > 1
        and value.layout is torch.strided
        and not (value.is_nested or value.is_meta or is_traceable_wrapper_subclass(value))
    )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite."""
    return bool(torch.isfinite(tensor).all())


def has_nan(tensor: Tensor) -> bool:
    """Return whether a value is NaN."""
    return bool(torch.isnan(tensor).any())


def described(tensor: Tensor) -> str:
    """Return a tensor's type and shape, `float32 (64, 10)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def magnitude_of(tensors: Iterable[Tensor]) -> float:
    """Return the largest finite |value|; 0 if there is none."""
    finite = (tensor.detach()[torch.isfinite(tensor)] for tensor in tensors)
    return max((values.abs().max().item() for values in finite if values.numel()), default=0.0)


def census(tensor: Tensor, batch: SampleAxis | None) -> dict[str, Any]:
    """Return kind, samples and count of the non-finite values.

    Args:
        batch: where the samples lie; None where the tensor holds none.
    """
    bad = ~torch.isfinite(tensor)
    axis = None if batch is None else batch.of(tensor)
    samples = []
    if axis is not None:
        by_sample = bad.movedim(axis, 0).flatten(1) if bad.dim() > 1 else bad[:, None]
        samples = by_sample.any(1).nonzero().flatten()[:_MOST_SAMPLES].tolist()
    return {
        "kind": "nan" if has_nan(tensor) else "inf",
        "samples": samples,
        "count": int(bad.sum()),
    }
