"""What a loss is computed from, as the graph of its computation tells; needs no loss function."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

_NODES = 400  # most nodes of the graph that are searched: the loss's own operation is near
VIEWS = frozenset(
    {
        "View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute", "Clone", "ToCopy",
        "Squeeze", "Unsqueeze", "Slice", "Select", "Expand", "Alias", "Index",
    }
)  # fmt: skip
# Operations of a loss, whose first input is what they take for probabilities, their logarithms, or
# scores. The likelihood of cross_entropy takes the logarithm of its own softmax, and
# torch.distributions.Categorical subtracts the logsumexp of its logits.
_LOSSES = {
    "CtcLoss": "ctc_loss",
    "NllLoss": "nll_loss",
    "NllLoss2D": "nll_loss",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits",
    "Logsumexp": "logsumexp",
}
_SOURCES = {
    "LogSoftmax": "log_softmax",
    "LogSigmoid": "log_sigmoid",
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "Addmm": "linear",
    "Mm": "linear",
    "Convolution": "convolution",
}


def loss_sources(loss: Any) -> dict[str, str]:
    """Return what the operations of a loss are fed with.

    Args:
        loss: as the loop computed it, after `backward` too.

    Returns:
        Names of operations: that of the loss → that which made its first input, views left out:
        {"ctc_loss": "linear"}. A cross-entropy is `cross_entropy`, fed with what made its scores.
        Only operations of which it is known what they give. {} of a number, or of a compiled graph.
    """
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        return {}
    found: dict[str, str] = {}
    for node in _near(loss.grad_fn):
        name = _LOSSES.get(operation_of(node))
        if name is None:
            continue
        source = _source(node)
        if source is not None and name == "nll_loss" and operation_of(source) == "LogSoftmax":
            name, source = "cross_entropy", _source(source)
        if source is not None and operation_of(source) in _SOURCES:
            found[name] = _SOURCES[operation_of(source)]
    return found


# What chooses some of the samples, and leaves the axis of the classes as it is.
_ROWS = frozenset({"Index", "IndexSelect", "MaskedSelect", "Slice", "Clone", "Alias", "ToCopy"})


def samples_compete(loss: Any) -> bool:
    """Return whether a likelihood of classes is computed from a softmax over the samples.

    Scores (B, C), log_softmax(dim=0), and a loss that looks for the classes along axis 1. A square
    matrix, and scores that are matched both ways, are meant so.

    Args:
        loss: as the loop computed it, after `backward` too.
    """
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        return False
    axes = set()
    for node in _near(loss.grad_fn):
        if operation_of(node) != "NllLoss":
            continue
        source = _source(node, _ROWS)
        if source is None or operation_of(source) != "LogSoftmax":
            continue
        shape = shape_of(source)
        if len(shape) == 2 and shape[0] != shape[1]:
            axes.add(_saved_axis(source) % 2)
    return axes == {0}


def _saved_axis(softmax: Any) -> int:
    """Return the axis that a softmax was asked for; below 0 it is kept as an unsigned number."""
    axis: int = softmax._saved_dim
    return axis - 2**64 if axis >= 2**63 else axis


# Between a cross-entropy and the loss that is nothing else: a sign, and a mean of several of them.
_COMBINED = frozenset({"Neg", "Add", "Stack", "Mean", "Div", "Mul"})
_CHOSEN = frozenset({"Diagonal", "Gather", "Index", "Squeeze", "NllLoss", "NllLoss2D"})
_MEAN = 1  # a likelihood's code of this reduction


def candidates(loss: Any) -> int | None:
    """Return among how many candidates the loss makes a choice, if it is a mean cross-entropy.

    It may be the mean of several, as that of image and text, of as many candidates each. A factor
    on the way, whose size the graph does not tell after `backward`, is taken for that of a mean.

    Args:
        loss: as the loop computed it, after `backward` too.
    """
    if not isinstance(loss, Tensor) or loss.dim() or loss.grad_fn is None:
        return None
    counts: set[int] = set()
    pending: list[Any] = [loss.grad_fn]
    for _ in range(_NODES):
        if not pending:
            return counts.pop() if len(counts) == 1 else None
        node = pending.pop()
        name = operation_of(node)
        if name == "LogSoftmax":
            counts.add(shape_of(node)[_saved_axis(node)])
            continue
        # A factor of each sample is a weight, an advantage for one.
        single = name not in ("Div", "Mul") or not shape_of(node)
        whole = not name.startswith("NllLoss") or node._saved_reduction == _MEAN
        if not (name in _COMBINED | _CHOSEN | VIEWS and single and whole):
            return None
        following = inputs_of(node)
        if not following:
            return None
        pending += following
    return None


# What compares outputs with targets, entry by entry, and what may stand between it and the loss.
_COMPARISONS = frozenset({"MseLoss", "SmoothL1Loss", "HuberLoss", "Pow", "Abs"})
_REDUCED = VIEWS | {"Mean", "Sum", "Add", "Sub", "Mul", "Div", "Neg", "Stack"}
# What may stand between the loss and a product of each sample's output with its factor, as the
# ratio of an action's probabilities with its advantage.
_OF_PRODUCTS = frozenset({"Mean", "Neg", "Add", "Sub", "Minimum", "Maximum"})
_OF_NUMBERS = ("Sum", "Mul", "Div")  # the same, where they give a number


def crossed(loss: Any) -> tuple[int, ...] | None:
    """Return the shape in which each output is compared with every target, None where none is.

    Outputs (B, 1) and targets (B,), or the other way round, are broadcast to (B, B). The targets
    have no gradient: outputs that are compared with each other are meant to be.

    Args:
        loss: as the loop computed it, after `backward` too.
    """
    return _first_shape(loss, _COMPARISONS, _REDUCED, _crossed_below)


def multiplied(loss: Any) -> tuple[int, ...] | None:
    """Return the shape in which each output is multiplied with every sample's factor, None where
    none is.

    The mean over all such products is that of the outputs times that of the factors.

    Args:
        loss: as the loop computed it, after `backward` too.
    """
    return _first_shape(loss, frozenset({"Mul"}), _OF_PRODUCTS, _multiplied_below)


def _first_shape(
    loss: Any,
    wanted: frozenset[str],
    passed: frozenset[str],
    shape_below: Callable[[Any, list[Any]], tuple[int, ...] | None],
) -> tuple[int, ...] | None:
    """Return the first shape that a wanted operation has, below operations that are passed."""
    pending = [loss.grad_fn] if isinstance(loss, Tensor) and loss.grad_fn is not None else []
    for _ in range(_NODES):
        if not pending:
            return None
        node = pending.pop()
        following = inputs_of(node)
        if operation_of(node) in wanted:
            shape = shape_below(node, following)
            if shape is not None:
                return shape
        scaled = operation_of(node) in _OF_NUMBERS and not shape_of(node)
        if operation_of(node) in passed or scaled:
            pending += following
    return None


# Operations whose derivative is infinite somewhere, zero most often.
_SINGULAR = {
    "Sqrt": "sqrt", "Rsqrt": "rsqrt", "Pow": "pow", "LinalgVectorNorm": "norm", "Norm": "norm",
    "Std": "std", "StdMean": "std", "Log": "log", "Div": "div", "Acos": "acos", "Asin": "asin",
    "Reciprocal": "reciprocal", "Cdist": "cdist",
}  # fmt: skip


def singular_operations(loss: Any) -> list[str]:
    """Return the operations near the loss whose derivative may be infinite, the nearest first.

    Args:
        loss: as the loop computed it, after `backward` too.
    """
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        return []
    names = (
        _SINGULAR.get(operation_of(node)) for node in _near(loss.grad_fn) if not _is_smooth(node)
    )
    return list(dict.fromkeys(name for name in names if name is not None))


def _is_smooth(node: Any) -> bool:
    """Return whether an operation is a power that has a derivative everywhere, as a square."""
    return operation_of(node) == "Pow" and getattr(node, "_saved_exponent", 0) >= 1


def _multiplied_below(product: Any, nodes: list[Any]) -> tuple[int, ...] | None:
    """Return the shape to which the one factor that has a gradient is broadcast, (B, B)."""
    if len(nodes) != 1 or hasattr(nodes[0], "variable"):
        return None
    shape = shape_of(product)
    own = shape_of(nodes[0])
    square = len(shape) == 2 and shape[0] == shape[1] > 1
    return shape if square and math.prod(own) == shape[0] else None


def _crossed_below(comparison: Any, nodes: list[Any]) -> tuple[int, ...] | None:
    """Return the shape to which the one input of a comparison that has a gradient is broadcast."""
    while len(nodes) == 1 and operation_of(nodes[0]) in ("Expand", "Sub"):
        shape = shape_of(nodes[0])
        nodes = inputs_of(nodes[0])
        if len(nodes) == 1 and not hasattr(nodes[0], "variable"):
            own = shape_of(nodes[0])
            if len(shape) == 2 and shape[0] == shape[1] > 1 and math.prod(own) == shape[0]:
                return shape
    return None


def _near(root: Any) -> Iterator[Any]:
    """Yield the graph's nodes, those near the root first, beyond no loss's own operation."""
    pending, seen = [root], {root}
    while pending and len(seen) < _NODES:
        node = pending.pop(0)
        yield node
        if operation_of(node) in _LOSSES:
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def _source(node: Any, passed: frozenset[str] = VIEWS) -> Any:
    """Return the node that made the first input, beyond views and a bias; None of a leaf.

    Args:
        passed: what counts as a view.
    """
    while node is not None:
        following = [each for each, _ in node.next_functions]
        if _is_biased(node):
            following = [each for each in following if not hasattr(each, "variable")]
        node = following[0] if following else None
        if node is None or not (operation_of(node) in passed or _is_biased(node)):
            return node
    return None


def _is_biased(node: Any) -> bool:
    """Return whether a node adds a leaf to something that is none: a linear layer's bias."""
    following = inputs_of(node)
    leaves = sum(hasattr(each, "variable") for each in following)
    return operation_of(node) == "Add" and len(following) == 2 and leaves == 1


def inputs_of(node: Any) -> list[Any]:
    """Return the nodes that a node's inputs come from, as far as these have a gradient."""
    return [each for each, _ in node.next_functions if each is not None]


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of what a node computes; () of a nested tensor's, whose sizes differ."""
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    shape = tuple(node._input_metadata[0].shape)
    return shape if all(isinstance(size, int) for size in shape) else ()


def operation_of(node: Any) -> str:
    """Return a node's operation: `CtcLoss` of `CtcLossBackward0`."""
    return node.name().partition("Backward")[0]
