"""Follows non-finite gradients from the operation that made them."""

import re
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from debugnn.doctor.nonfinite.forward import ForwardTrace, is_leaf
from debugnn.doctor.nonfinite.origin import Origin, Source
from debugnn.doctor.nonfinite.overflow import overflows, plain_name
from debugnn.doctor.nonfinite.values import (
    census,
    described,
    is_finite,
    is_watched,
    magnitude_of,
    watched_tensors,
)


class BackwardSearch:
    """Follows non-finite gradients from the node that made them down to the parameters."""

    def __init__(self, trace: ForwardTrace) -> None:
        self._trace = trace
        self._sources: dict[tuple[Node | None, int], Source] = {}  # (node, which of its inputs)
        self._reached: list[Source] = []

    def search(self, loss: Any, leaves: list[Tensor]) -> Source | None:
        """Back-propagate, and return the source of non-finite gradients; None if all are finite."""
        if not isinstance(loss, Tensor) or loss.grad_fn is None or not leaves:
            return None
        nodes = _graph(loss.grad_fn)
        handles = [node.register_hook(partial(self._look, node)) for node in nodes]
        try:
            # Into the model's own leaves alone: the loss may hold other parameters.
            torch.autograd.backward(loss, torch.ones_like(loss), inputs=leaves)
        finally:
            for handle in handles:
                handle.remove()
        return min(self._reached, default=None)

    def _look(self, node: Node, outgoing: tuple, incoming: tuple) -> None:
        fed = [
            self._sources.get((node, i)) or self._overflowing_sum(node, gradient)
            for i, gradient in enumerate(incoming)
            if is_watched(gradient) and not is_finite(gradient)
        ]
        if is_leaf(node):
            self._reached += fed
            return
        for gradient, edge in zip(outgoing, node.next_functions, strict=False):
            if is_watched(gradient) and not is_finite(gradient):
                source = min(fed, default=None) or self._explain(node, edge[0], gradient, incoming)
                self._sources[edge] = min(source, self._sources.get(edge, source))

    def _overflowing_sum(self, node: Node, gradient: Tensor) -> Source:
        # Autograd adds the gradients of a tensor that is used more than once: hooks see the sum.
        bad = census(gradient, None if is_leaf(node) else self._trace.batch)
        layer, line = self._trace.place_of(node)
        return self._trace.source(
            Origin(
                "backward", "add", layer, **bad,
                magnitude=torch.finfo(gradient.dtype).max, overflow=True,
                outputs=[described(gradient)], line=line,
            )
        )  # fmt: skip

    def _explain(
        self, node: Node, target: Node | None, gradient: Tensor, incoming: tuple
    ) -> Source:
        spoiler = self._trace.spoiler_of(node)
        if spoiler is not None:
            return spoiler
        name = plain_name(re.sub(r"Backward\d*$", "", node.name().rpartition(":")[2]))
        met = [*watched_tensors(incoming), *_saved(node)]
        magnitude = magnitude_of(met)
        bad = census(gradient, None if is_leaf(target) else self._trace.batch)
        layer, line = self._trace.place_of(node)
        return self._trace.source(
            Origin(
                "backward", name, layer, **bad, magnitude=magnitude,
                overflow=all(map(is_finite, met)) and overflows(name, gradient.dtype, magnitude),
                inputs=[described(tensor) for tensor in watched_tensors(incoming)],
                outputs=[described(gradient)], line=line,
            )
        )  # fmt: skip


def _graph(root: Node) -> list[Node]:
    seen, pending = {root}, [root]
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                pending.append(node)
    return list(seen)


def _saved(node: Node) -> list[Tensor]:
    """Return the tensors that the node saved in the forward pass."""
    saved: list[Tensor] = []
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            # A checkpoint recomputes its saved tensors only once.
            with suppress(RuntimeError):
                saved.extend(watched_tensors(getattr(node, name)))
    return saved
