"""How the terms of a loss are brought to one number, as the graph of its computation tells."""

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from debugnn.doctor.observe.loss_function.graph import VIEWS, inputs_of, operation_of

_NODES = 60  # most nodes of a term that are looked at
_FEWEST = 8  # values whose sum is larger than their mean by more than a weight would be
# Losses that are a mean, a sum, or neither, by a code.
_LOSSES = frozenset(
    {
        "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy",
        "BinaryCrossEntropyWithLogits", "NllLoss", "NllLoss2D",
    }
)  # fmt: skip
_CODES = {1: "mean", 2: "sum"}
_ERRORS = _LOSSES | {"Pow", "Abs"}


class _Term(NamedTuple):
    reduction: str  # mean or sum
    shape: tuple[int, ...]  # of the values that it is of
    factors: int  # by which it is multiplied
    error: bool  # it measures how far something is from what it should be
    divergence: bool  # it is one of two distributions, of which one is normal


def unlike_reductions(loss: Any, samples: Collection[int]) -> tuple[int, ...] | None:
    """Return the shape of errors that one term of a loss sums where another is a mean; else None.

    A sum over the samples of the batch counts that has no weight. The factor of a Kullback-Leibler
    divergence, one half, is part of it; any other may be the weight that makes up for the sum.

    Args:
        loss: as the loop computed it, after `backward` too.
        samples: numbers of samples that the batch may have.
    """
    if not isinstance(loss, Tensor) or loss.dim() or loss.grad_fn is None:
        return None
    terms = list(_terms(loss.grad_fn))
    if not any(term.reduction == "mean" and term.error for term in terms):
        return None
    for term in terms:
        own = term.factors == 0 and (term.error or term.divergence)
        if term.reduction != "sum" or not (own or (term.divergence and term.factors == 1)):
            continue
        if term.shape[0] in samples and math.prod(term.shape) >= _FEWEST:
            return term.shape
    return None


def _terms(root: Any) -> Iterator[_Term]:
    """Yield the terms whose reduction is known."""
    # A factor of the whole loss weighs no term against another.
    while operation_of(root) in ("Mul", "Div", "Neg", *VIEWS) and len(inputs_of(root)) == 1:
        root = inputs_of(root)[0]
    pending = [(root, 0)]
    for _ in range(_NODES):
        if not pending:
            return
        node, factors = pending.pop()
        name, following = operation_of(node), inputs_of(node)
        if name in _LOSSES and node._saved_reduction in _CODES and following:
            shape = _shape(following[0])
            yield _Term(_CODES[node._saved_reduction], shape, factors, error=True, divergence=False)
        elif name in ("Sum", "Mean") and following:
            below = following[0]
            # A sum over the samples of means over their entries, and the other way round.
            while operation_of(below) in ("Sum", "Mean", *VIEWS) and inputs_of(below):
                if operation_of(below) == "Mean" and name == "Sum" and len(_shape(below)) == 0:
                    break
                below = inputs_of(below)[0]
            shape = _shape(below)
            if shape and math.prod(shape) >= _FEWEST:
                yield _Term(name.lower(), shape, factors, _is_error(below), _is_divergence(below))
        elif name in ("Add", "Sub", "Neg", *VIEWS):
            pending += [(each, factors) for each in following]
        elif name == "Mul":
            pending += [(each, factors + 1) for each in following]


def _shape(node: Any) -> tuple[int, ...]:
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[0].shape)


def _is_error(node: Any) -> bool:
    """Return whether a node is one of errors, or adds others to some, of which it may weigh these.

    A penalty of weights is none.
    """
    if operation_of(node) == "Add":
        return any(_is_error(each) for each in inputs_of(node) if _shape(each) == _shape(node))
    return operation_of(node) in _ERRORS and not _is_of_a_leaf(node)


def _is_of_a_leaf(node: Any) -> bool:
    """Return whether an operation is one of a parameter alone, as a penalty of weights."""
    following = inputs_of(node)
    while following and operation_of(following[0]) in VIEWS:
        following = inputs_of(following[0])
    return len(following) == 1 and hasattr(following[0], "variable")


def _is_divergence(node: Any) -> bool:
    """Return whether it is a difference of a square and a logarithm or its exponential.

    1 + log(s²) - m² - s², as of Kingma & Welling 2014, appendix B, with log(s²) or s as outputs.
    """
    names, pending = set(), [node]
    for _ in range(_NODES):
        if not pending:
            break
        each = pending.pop()
        names.add(operation_of(each))
        if operation_of(each) in ("Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Pow", *VIEWS):
            pending += inputs_of(each)
    return "Pow" in names and bool({"Exp", "Log"} & names) and bool({"Add", "Sub", "Rsub"} & names)
