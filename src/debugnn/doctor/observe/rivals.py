"""Other networks that are trained beside the watched one: adversaries, critics, generators."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from debugnn.doctor.reachable import Changes

_NODES = 10_000  # most nodes of a graph that are searched
_LOOKS = 8  # most graphs that are searched
_KEPT = 16  # parameters of others whose course is followed


class Rivals:
    """Finds networks that train against the watched one.

    A generator's loss reads a network that is trained by another optimiser. A discriminator sees
    data, and also what a generator made, through which the generator's gradient is to flow.

    Args:
        model: the watched one.
        optimizer: its optimiser.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._looks = 0
        self._fed = self._plain = False  # inputs that another network made, and others
        self._read: list[tuple[Tensor, float]] = []  # others' parameters, and their sums
        self._moved = False  # of these, some were seen to move before a checkpoint

    def note_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Note what the model is called with in a pass with gradients."""
        nodes = [node for tensor in inputs if (node := tensor.grad_fn) is not None]
        if not nodes:
            self._plain = True
        elif not self._fed and self._looks < _LOOKS:
            self._looks += 1
            own = {id(parameter) for parameter in self._model.parameters()}
            self._fed = _reaches_others(nodes, own)

    def note_read(self, changes: Changes) -> bool:
        """Note which parameters the loss function has read; return whether there are any."""
        parameters = [
            tensor
            for tensor in changes.reached.tensors
            if isinstance(tensor, nn.Parameter) and changes.reads(tensor)
        ]
        own = {id(p) for p in self._model.parameters()}
        own |= {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        others = [p for p in parameters if id(p) not in own]
        self._read = [(p, _sum(p)) for p in others[:_KEPT]]
        return bool(parameters)

    def found(self) -> bool:
        """Return whether another network has been trained, by this one's loss or against it."""
        self._moved |= any(_sum(parameter) != before for parameter, before in self._read)
        return self._moved or (self._fed and self._plain)

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far. Others' parameters are not followed any further."""
        self.found()
        return {
            "looks": self._looks, "fed": self._fed, "plain": self._plain, "moved": self._moved
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of `state_dict`."""
        self._looks, self._fed, self._plain, self._moved, self._read = (
            state["looks"], state["fed"], state["plain"], state["moved"], []
        )  # fmt: skip


def _sum(parameter: Tensor) -> float:
    return parameter.detach().double().sum().item()


def _reaches_others(nodes: Sequence[Node], own: set[int]) -> bool:
    """Return whether a graph ends in parameters that are not of one's own."""
    waiting, seen = list(nodes), set(nodes)
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return False
