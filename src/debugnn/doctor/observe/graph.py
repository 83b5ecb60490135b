"""Tensors that a model's outputs are learnt through and that the model does not list as its own.

The graph of the outputs is followed to its leaves. What is neither a parameter of the model, nor of
the optimiser, nor an input, lies in a plain list or dict, or is made anew in every forward pass.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from debugnn.doctor.evidence import LeafFacts
from debugnn.doctor.observe.calls import Call

_PASSES = 3  # first forward passes whose graphs are followed
_NODES = 200_000  # most nodes of a graph
_COMPARED = 4096  # values of a leaf by which it is told whether it has moved
_ITEMS = 1_000  # most items of a container
_DEPTH = 4  # containers and objects within each other that are searched for a leaf
# Nodes through which a gradient is zero, whatever it comes from: steps that are flat but for jumps,
# and random numbers that are drawn around a value or by a chance.
_FLAT = (
    "SignBackward", "SgnBackward", "RoundBackward", "FloorBackward", "CeilBackward",
    "TruncBackward", "BernoulliBackward", "NormalBackward",
)  # fmt: skip
# What `nn.Module` itself keeps: the registered tensors and modules, and hooks.
_OWN = frozenset(vars(nn.Module()))
_CODE = (types.FunctionType, types.MethodType, types.ModuleType, type)


@dataclass
class _Seen:
    """A leaf of the first pass."""

    facts: LeafFacts
    leaf: Tensor | None  # None once it is gone
    values: Tensor  # some of its values in the first pass
    passes: int = 1


class UnregisteredLeaves:
    """Follows the graphs of a model's first outputs, and notes the leaves that it does not list.

    Args:
        model: the model whose forward passes are recorded.
        optimizer: what it holds is not noted.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._seen: dict[int, _Seen] = {}  # by the leaf's id
        self._passes = 0

    @property
    def looks(self) -> bool:
        """True as long as forward passes are recorded."""
        return self._passes < _PASSES

    def look(self, call: Call, outputs: Any) -> None:
        """Look at the graph that a forward pass has built."""
        given = call.tensors()
        known = {id(t) for t in (*self._model.parameters(), *self._model.buffers(), *given)}
        known |= _held(self._optimizer)
        found = leaves_of(Call((outputs,)).tensors(), given)
        leaves = {id(leaf): leaf for leaf in found if id(leaf) not in known}
        self._passes += 1
        if self._passes == 1:
            places = {id(p.tensor): p for p in unlisted(self._model)} if leaves else {}
            order = {key: index for index, key in enumerate(places)}
            self._seen = {
                key: _first_seen(leaves[key], places.get(key))
                for key in sorted(leaves, key=lambda key: order.get(key, len(order)))
            }
            return
        self._bring_up_to_date()
        gone = [seen for key, seen in self._seen.items() if key not in leaves]
        for key, seen in self._seen.items():
            seen.passes += key in leaves
        if self._passes == 2:
            # As many others have come as have gone: they are made in the forward pass.
            anew = sum(key not in self._seen for key in leaves) >= len(gone)
            for seen in gone:
                seen.facts.anew = anew
        else:
            for seen in gone:
                seen.leaf = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is known. Leaves that no checkpoint holds are not followed any further."""
        self._bring_up_to_date()
        if self.looks:  # too little is known: the next pass is the first one again
            return {"passes": 0, "seen": []}
        return {
            "passes": self._passes,
            "seen": [replace(s, leaf=None) for s in self._seen.values()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of `state_dict`."""
        self._passes = state["passes"]
        self._seen = {id(seen): seen for seen in state["seen"]}

    def facts(self) -> list[LeafFacts]:
        """Return what is known of the leaves that kept their identity, and of those made anew."""
        self._bring_up_to_date()
        return [s.facts for s in self._seen.values() if s.facts.anew or s.passes > 1]

    def _bring_up_to_date(self) -> None:
        for seen in self._seen.values():
            if seen.leaf is not None:
                seen.facts.graded |= seen.leaf.grad is not None
                seen.facts.moved = not torch.equal(seen.values, _thinned(seen.leaf))

    def forget(self, names: set[str]) -> None:
        """Leave out the leaves of these names."""
        self._seen = {k: s for k, s in self._seen.items() if s.facts.name not in names}

    def release(self) -> None:
        """Let go of the leaves; what is known of them stays."""
        self._bring_up_to_date()
        for seen in self._seen.values():
            seen.leaf = None


def look_at_copy(
    model: nn.Module, optimizer: torch.optim.Optimizer, replica: nn.Module, call: Call
) -> UnregisteredLeaves:
    """Look at two forward passes of a copy of the model, before any training.

    Args:
        model: its tensors are those that the optimiser may hold.
        replica: the copy; its running statistics move.
        call: of a batch.
    """
    leaves = UnregisteredLeaves(replica, optimizer)
    for _ in range(2):
        outputs = call(replica)
        leaves.look(call, outputs)
        for tensor in Call((outputs,)).tensors():
            if tensor.requires_grad:
                tensor.square().sum().backward()
                break
    held = _held(optimizer)
    names = {place.name for place in unlisted(model) if id(place.tensor) in held}
    leaves.forget(names)
    return leaves


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class Place(NamedTuple):
    """Where a tensor lies in a plain attribute: the path to it, as `hidden.0.weight`, the path of
    the attribute, `hidden`, and the attribute's type, `list`."""

    tensor: Tensor
    name: str
    attribute: str
    holder: str


def _first_seen(leaf: Tensor, place: Place | None) -> _Seen:
    values = _thinned(leaf)
    facts = LeafFacts(
        name=None if place is None else place.name,
        attribute=None if place is None else place.attribute,
        holder=None if place is None else place.holder,
        shape=list(leaf.shape),
        parameter=isinstance(leaf, nn.Parameter),
        constant=bool((values == values[:1]).all()),
    )
    return _Seen(facts, leaf, values)


def _thinned(leaf: Tensor) -> Tensor:
    """Return a copy of some of a tensor's values, evenly spaced."""
    flat = leaf.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _COMPARED)].clone()


def leaves_of(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves, which require a gradient, of the graph between inputs and outputs.

    Args:
        outputs: tensors with or without a graph.
        inputs: what made them, in another network say, is left out.
    """
    return _followed(outputs, inputs, through_flat=True)[0]


def with_derivative(outputs: Sequence[Tensor]) -> set[int] | None:
    """Return the ids of the leaves to which a path of the graph leads that lets a gradient through.

    A path does not where a step of it has no derivative but zero, such as `sign` or `round`. None
    of a graph that is too large to be followed to its end.
    """
    leaves, whole = _followed(outputs, [], through_flat=False)
    return {id(leaf) for leaf in leaves} if whole else None


def _followed(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], through_flat: bool
) -> tuple[list[Tensor], bool]:
    """Return the leaves of a graph, and whether it was followed to its end.

    Args:
        through_flat: follow it through steps whose derivative is zero, too.
    """
    seen = {t.grad_fn for t in inputs if t.grad_fn is not None}
    pending = [t.grad_fn for t in outputs if t.grad_fn is not None and t.grad_fn not in seen]
    seen.update(pending)
    leaves: list[Tensor] = []
    while pending and len(seen) < _NODES:
        node = pending.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        if not through_flat and node.name().startswith(_FLAT):
            continue
        following: list[Node] = [n for n, _ in node.next_functions if n is not None]
        for each in following:
            if each not in seen:
                seen.add(each)
                pending.append(each)
    return leaves, not pending


def unlisted(model: nn.Module) -> Iterator[Place]:
    """Yield tensors in plain attributes of a model, where `parameters()` does not find them.

    Those that require a gradient.
    """
    listed = {id(m) for m in model.modules()}
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in _OWN:
                path = f"{prefix}.{attribute}" if prefix else attribute
                for name, tensor in _within(value, path, listed, _DEPTH):
                    yield Place(tensor, name, path, type(value).__name__)


def _within(value: Any, path: str, listed: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors within a value, with their paths.

    Args:
        listed: ids of modules that are not entered: the model registers them.
        depth: containers and objects within each other, at most.
    """
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield path, value
    elif isinstance(value, nn.Module):
        if id(value) not in listed:
            yield from ((f"{path}.{name}", p) for name, p in value.named_parameters())
    elif depth and isinstance(value, Mapping | list | tuple | set):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in islice(items, _ITEMS):
            yield from _within(item, f"{path}.{key}", listed, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, _CODE):
        for key, item in vars(value).items():
            yield from _within(item, f"{path}.{key}", listed, depth - 1)
