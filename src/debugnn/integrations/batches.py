"""Batches of a data loader: which part is the targets, and validation samples of several."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

_TARGETS = ("labels", "label", "targets", "target", "y")  # keys of a dict, the first one counts
_VALIDATED = 1024  # samples, of which the doctor looks at no more


def split(batch: Any) -> tuple[Any, Any]:
    """Return a batch's inputs and targets.

    Of a tuple or list the last item is the targets; of a dict the first of `labels`, `label`,
    `targets`, `target` and `y`. Any other batch has no targets (None).
    """
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return batch[0] if len(batch) == 2 else tuple(batch[:-1]), batch[-1]
    if isinstance(batch, Mapping):
        key = next((key for key in _TARGETS if key in batch), None)
        if key is not None:
            return {name: value for name, value in batch.items() if name != key}, batch[key]
    return batch, None


def with_targets(batch: Any, targets: Any) -> Any:
    """Return the batch with other targets in the place where `split` finds them."""
    if isinstance(batch, list | tuple):
        return type(batch)([*batch[:-1], targets])
    key = next(key for key in _TARGETS if key in batch)
    return {**batch, key: targets}


class ValidationSamples:
    """The first samples of a validation, of several batches together."""

    def __init__(self) -> None:
        self._parts: list[list[Tensor]] = []
        self._structure: Any = None
        self._count = 0

    def add(self, inputs: Any, targets: Any) -> None:
        """Copy a batch, unless there are enough samples or it is unlike the first one."""
        leaves, structure = tree_flatten((inputs, targets))
        if self._count >= _VALIDATED or not all(isinstance(leaf, Tensor) for leaf in leaves):
            return
        shapes = [leaf.shape[1:] for leaf in leaves]
        if self._parts and (
            structure != self._structure or shapes != [leaf.shape[1:] for leaf in self._parts[0]]
        ):
            return
        self._structure = structure
        with torch.inference_mode(False):
            self._parts.append([leaf.detach().clone() for leaf in leaves])
        self._count += max((len(leaf) for leaf in leaves if leaf.dim()), default=0)

    def taken(self) -> tuple[Any, Any] | None:
        """Return inputs and targets of all samples, and forget them; None without any."""
        parts, self._parts, self._count = self._parts, [], 0
        if not parts:
            return None
        with torch.inference_mode(False):
            together = [
                torch.cat(leaves) if leaves[0].dim() else leaves[0]
                for leaves in zip(*parts, strict=True)
            ]
        inputs, targets = tree_unflatten(together, self._structure)
        return inputs, targets
