"""Whether the layers of a network consist of straight pieces, whatever is made of their output.

A network of ReLUs has no second derivative. What it is multiplied with may have one: x (1 - x) N(x)
is zero at both ends, as a solution of a differential equation is to be.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from debugnn.doctor.observe.calls import Call, first_tensor
from debugnn.doctor.observe.modes import without_dropout

_NODES = 64  # most nodes of the graph of a first layer's input
_ROUNDING = 1e-4  # of a derivative, relative to the largest


def weighted(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have weights of their own and hold no others, and can be hooked."""
    return [
        module
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and next(module.children(), None) is None
        and next(module.parameters(recurse=False), None) is not None
    ]


def leaves_but_weights(tensor: Tensor) -> list[Tensor]:
    """Return the leaves of a tensor's graph, or itself.

    None of them where weights are among them or the graph is large, as a hidden layer's is.
    """
    if tensor.grad_fn is None:
        return [] if isinstance(tensor, nn.Parameter) or not tensor.requires_grad else [tensor]
    pending: list[Node] = [tensor.grad_fn]
    seen, leaves = set(pending), []
    while pending:
        node = pending.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) or len(seen) > _NODES:
            return []
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        pending += dict.fromkeys(following)
    return leaves


def is_straight(model: nn.Module, call: Call) -> bool:
    """Return whether the first layer's input leads to the last layer's output by straight pieces.

    The first derivative has to differ among samples: the layers are not linear altogether. The
    first layer's input has to be linear in the network's: no curved features are made of that.

    Args:
        model: a copy, which stays as it is.
        call: of a batch, along whose first axis samples lie. Derivatives are taken by its leaves
            that require a gradient.
    """
    ends = _Ends()
    handles = []
    for layer in weighted(model):
        handles.append(layer.register_forward_pre_hook(ends.entered))
        handles.append(layer.register_forward_hook(ends.left))
    try:
        with torch.enable_grad(), without_dropout(model, training=False):
            call(model)
    finally:
        for handle in handles:
            handle.remove()
    given, slope = ends.given, ends.slope()
    if given is None or slope is None or len(given) < 2 or not _is_zero(_bent(given, ends.leaves)):
        return False
    if (slope - slope[:1]).abs().max() <= _ROUNDING * slope.abs().max():
        return False
    return _is_zero(_slope(slope, given))


class _Ends:
    """The input of the first layer that is called with inputs, and the outputs of all from there.

    Attributes:
        given: that input.
        leaves: what it is made of, without weights.
        made: those outputs.
    """

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.leaves: list[Tensor] = []
        self.made: list[Tensor] = []

    def entered(self, module: nn.Module, args: tuple) -> None:
        """Note a layer's input; a forward pre-hook."""
        given = args[0] if args else None
        if self.given is None and isinstance(given, Tensor) and given.is_floating_point():
            self.leaves = leaves_but_weights(given)
            self.given = given if self.leaves and given.dim() else None

    def left(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Note a layer's output; a forward hook."""
        made = first_tensor(output)
        if self.given is not None and made is not None and len(made.shape):
            self.made.append(made)

    def slope(self) -> Tensor | None:
        """Return the derivative of the last output that the input leads to.

        None where the inputs lead to a later one on another way, as to a second network's.
        """
        for made in reversed(self.made):
            slope = None if self.given is None else _slope(made, self.given)
            if slope is not None:
                return slope if len(made) == len(slope) else None
            if any(_slope(made, leaf) is not None for leaf in self.leaves):
                return None
        return None


def _bent(given: Tensor, leaves: list[Tensor]) -> Tensor | None:
    """Return a second derivative of a tensor by its leaves; None where it has none."""
    if given.grad_fn is None:
        return None
    for leaf in leaves:
        slope = _slope(given, leaf)
        bent = None if slope is None else _slope(slope, leaf)
        if not _is_zero(bent):
            return bent
    return None


def _slope(made: Tensor, given: Tensor) -> Tensor | None:
    """Return the derivative of a weighted sum of one tensor's values by another one.

    The weights are the same for each sample. None where there is no such derivative.
    """
    if not made.requires_grad:
        return None
    weights = torch.randn(made.shape[1:], device=made.device, dtype=made.dtype)
    (slope,) = torch.autograd.grad(
        (made * weights).sum(), given, create_graph=True, allow_unused=True
    )
    return slope


def _is_zero(slope: Tensor | None) -> bool:
    return slope is None or not bool(slope.any())
