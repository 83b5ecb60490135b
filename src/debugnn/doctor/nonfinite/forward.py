"""Follows non-finite values through the operations of a forward pass and a loss."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from debugnn.doctor.copies import hookable
from debugnn.doctor.nonfinite.origin import Origin, Source
from debugnn.doctor.nonfinite.overflow import overflows, plain_name
from debugnn.doctor.nonfinite.values import (
    SampleAxis,
    census,
    described,
    has_nan,
    is_finite,
    is_watched,
    magnitude_of,
    named,
    watched_tensors,
)
from debugnn.doctor.observe.callers import line_of_caller


class ForwardTrace(TorchDispatchMode):
    """Follows non-finite values through the operations that run under it.

    Under a dispatch mode torch.compile runs the code as it is written, operation by operation.

    Args:
        model: whose layers are named.
        batch: where the step's samples lie; None where it is not known.
        below: the function of the search: the person's line is looked for in the frames that it
            called.

    Attributes:
        leaves: tensors that were not finite before the step.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, batch: SampleAxis | None, below: CodeType) -> None:
        super().__init__()
        self.batch = batch
        self._below = below
        self.leaves: list[Source] = []
        self._where = "forward"
        self._model = model
        self._layers: list[str | None] = [None]  # the modules whose forward is running
        # By storage, so that views share a source. The weak reference keeps the address from being
        # used for another storage.
        self._sources: dict[StorageWeakRef, Source] = {}
        self._ranks = 0
        # Autograd's sequence number → the layer, the source of non-finite arguments, and the line.
        self._nodes: dict[int, tuple[str | None, Source | None, str | None]] = {}

    @contextmanager
    def watching(self, where: str) -> Iterator[None]:
        """Follow what runs in the block; `where` is forward or loss."""
        self._where = where
        handles: list[Any] = []
        for name, module in hookable(self._model):
            handles += (
                module.register_forward_pre_hook(partial(self._enter, name), prepend=True),
                module.register_forward_hook(self._leave, always_call=True),
            )
        try:
            with torch.enable_grad(), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def seed(self, where: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Note the tensors that are not finite before the step.

        Args:
            where: input, target, parameter or buffer.
            tensors: with their names.
        """
        batch = self.batch if where in ("input", "target") else None
        for name, tensor in tensors:
            if is_watched(tensor) and not is_finite(tensor):
                origin = Origin(
                    where, name or where, None, **census(tensor, batch),
                    magnitude=magnitude_of([tensor]), overflow=False, outputs=[described(tensor)],
                )  # fmt: skip
                # A tensor of 0 and −inf alone is an additive mask.
                mask = bool(((tensor == 0) | (tensor == -math.inf)).all())
                self.leaves.append(self._blame(tensor, self.source(origin, excused=mask)))

    def reaching(self, results: Any) -> Source | None:
        """Return the source of the non-finite values among the results; None if all are finite."""
        sources = []
        for _, tensor in named(results):
            if is_watched(tensor) and not is_finite(tensor):
                # A value from outside of torch, or from a kernel that is not dispatched.
                unseen = self.source(self._origin("unknown", None, [tensor], []))
                sources.append(self._sources.get(_storage(tensor), unseen))
        return min(sources, default=None)

    def place_of(self, node: Node) -> tuple[str | None, str | None]:
        """Return the layer whose forward pass made the node of the graph, and the line of code."""
        if is_leaf(node):
            return None, None
        # Autograd makes some nodes after their operation: they belong to the one that just ran.
        number = max((n for n in self._nodes if n <= node._sequence_nr()), default=None)
        if number is None:
            return None, None
        layer, _, line = self._nodes[number]
        return layer, line

    def spoiler_of(self, node: Node) -> Source | None:
        """Return the source of a non-finite argument of the node's operation, None if excused."""
        _, spoiler, _ = self._nodes.get(node._sequence_nr(), (None, None, None))
        return None if spoiler is None or spoiler.excused else spoiler

    def source(self, origin: Origin, excused: bool = False) -> Source:
        """Return a new source, which comes after all earlier ones."""
        self._ranks += 1
        return Source(excused, self._ranks, origin)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        layer, line = self._layers[-1], line_of_caller(below=self._below)
        operation = func.__name__.partition(".")[0]
        # If this operation gets a node, it is the latest that autograd has numbered.
        number = torch.autograd._get_sequence_nr() - 1
        if getattr(func, "is_view", False) or "empty" in operation:
            # A view computes nothing, and an uninitialised tensor holds no meaningful value.
            self._nodes.setdefault(number, (layer, None, line))
            return func(*args, **kwargs)

        overwrites = operation in ("fill_", "copy_")  # their first argument is not read
        met = list(watched_tensors((args[1:] if overwrites else args, kwargs)))
        sources = [self._sources.get(_storage(tensor)) for tensor in met]
        spoilers = [s for s, t in zip(sources, met, strict=True) if s and not is_finite(t)]
        self._nodes.setdefault(number, (layer, min(spoilers, default=None), line))
        schema = getattr(func, "_schema", None)
        if schema is None or schema.is_mutable:
            met = [tensor.clone() for tensor in met]

        outputs = func(*args, **kwargs)
        bad = [tensor for tensor in watched_tensors(outputs) if not is_finite(tensor)]
        if bad:
            source = self._explain(plain_name(operation), layer, bad, met, sources, (args, kwargs))
            for tensor in bad:
                self._blame(tensor, source)
        return outputs

    def _explain(
        self,
        name: str,
        layer: str | None,
        bad: list[Tensor],
        met: list[Tensor],
        sources: list[Source | None],
        arguments: tuple[tuple, dict],
    ) -> Source:
        magnitude = magnitude_of(met)
        fed = []
        for tensor, source in zip(met, sources, strict=True):
            if not is_finite(tensor):
                # A tensor without a source is a constant of the code, which may be a mask.
                origin = self._origin(name, layer, [tensor], met)
                fed.append(source or self.source(origin, excused=not has_nan(tensor)))
        cause = min(fed, default=None)
        makes_nan = any(map(has_nan, bad))
        # Infinities are passed on. Where a mask's infinities become NaN, this operation made it.
        if cause is not None and not (cause.excused and makes_nan):
            return cause
        args, _ = arguments
        meant = cause is not None or any(
            isinstance(value, float) and math.isinf(value) for value in tree_leaves(arguments)
        )
        by_zero = name == "div" and bool((torch.as_tensor(args[1]) == 0).any())
        overflow = not (meant or by_zero) and overflows(name, bad[0].dtype, magnitude)
        origin = self._origin(name, layer, bad, met, overflow)
        return self.source(origin, excused=meant and not makes_nan)

    def _origin(
        self,
        name: str,
        layer: str | None,
        bad: list[Tensor],
        met: list[Tensor],
        overflow: bool = False,
    ) -> Origin:
        return Origin(
            self._where, name, layer, **census(bad[0], self.batch),
            magnitude=magnitude_of(met or bad), overflow=overflow,
            inputs=[described(tensor) for tensor in met],
            outputs=[described(tensor) for tensor in bad],
            line=line_of_caller(below=self._below),
        )  # fmt: skip

    def _blame(self, tensor: Tensor, source: Source) -> Source:
        # A storage may be written in parts: the earliest source counts.
        storage = _storage(tensor)
        self._sources[storage] = min(source, self._sources.get(storage, source))
        return source

    def _enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self._layers.append(name)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._layers.pop()


def is_leaf(node: Node | None) -> bool:
    """Return True if the node collects the gradient of a parameter or another leaf tensor."""
    return node is not None and hasattr(node, "variable")


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
