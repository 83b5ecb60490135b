"""How the terms of a loss are brought to one number, as the graph of its computation tells."""

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from debugnn.doctor.observe.loss_function.graph import VIEWS, inputs_of, operation_of, shape_of

_NODES = 60  # most nodes of a term that are looked at
_FEWEST = 8  # values whose sum is larger than their mean by more than a weight would be
# Losses that are a mean, a sum, or neither, by a code. The input of a likelihood has classes.
_LIKELIHOODS = frozenset({"NllLoss", "NllLoss2D"})
_LOSSES = _LIKELIHOODS | {
    "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits",
}  # fmt: skip
_CODES = {1: "Mean", 2: "Sum"}
_TURNED = frozenset({"Transpose", "T", "Permute"})  # views that may have another first axis
# A factor that is smaller than this is a weight, which may make up for a sum.
_UNWEIGHTED = 0.99
_PENALTY = 0.1  # of the sum's factor: a mean that weighs less is a penalty
_OF_A_SQUARE = 0.5  # factor of the squared mean in the divergence from a normal distribution


class SummedTerm(NamedTuple):
    """A term of a loss that is summed over the samples, beside one that is a mean."""

    shape: tuple[int, ...]  # of the values that are summed
    sure: bool  # the factors of both are known


class _Term(NamedTuple):
    reduction: str  # Mean or Sum, over the samples
    shape: tuple[int, ...]  # of the values that it is of
    factor: float | None  # size of what it is multiplied by; None where it is not known


def unlike_reductions(loss: Any, samples: Collection[int]) -> SummedTerm | None:
    """Return what one term of a loss sums where another is a mean over the samples; else None.

    Terms are errors, and divergences of a code from a normal distribution. A sum counts whose
    factor is known, and does not make up for it: 1, or the half that a divergence has by itself.

    Args:
        loss: as the loss function returned it. After `backward` its factors are unknown: then
            errors count that have none, and no divergences.
        samples: numbers of samples that the batch may have.
    """
    if not isinstance(loss, Tensor) or loss.dim() or loss.grad_fn is None:
        return None
    terms = list(_terms(loss.grad_fn))
    means = [t.factor for t in terms if t.reduction == "Mean"]
    for term in terms:
        size = math.prod(term.shape)
        if term.reduction != "Sum" or term.shape[0] not in samples or size < _FEWEST:
            continue
        if term.factor is None or term.factor < _UNWEIGHTED:
            continue
        known = [factor for factor in means if factor is not None]
        # A mean of little weight is a penalty beside what is summed; a large one makes up for it.
        if any(_PENALTY * term.factor <= m <= term.factor * size / 2 for m in known):
            return SummedTerm(term.shape, sure=True)
        if len(known) < len(means):
            return SummedTerm(term.shape, sure=False)
    return None


def _terms(root: Any) -> Iterator[_Term]:
    """Yield the terms, errors and divergences, whose reduction over the samples is known."""
    # A factor of the whole loss weighs no term against another.
    while operation_of(root) in ("Mul", "Div", "Neg", *VIEWS) and len(inputs_of(root)) == 1:
        root = inputs_of(root)[0]
    for node, factor in _summands(root, ("Sum", "Mean", *_LOSSES)):
        name, following = operation_of(node), inputs_of(node)
        if name in _LOSSES and following and node._saved_reduction in _CODES:
            shape = shape_of(following[0])
            if name in _LIKELIHOODS:
                shape = shape[:1] + shape[2:]
            yield _Term(_CODES[node._saved_reduction], shape, factor)
        elif name in ("Sum", "Mean"):
            reduction, values = _over_samples(node)
            own = 1.0 if _is_error(values) else _factor_of_divergence(values)
            if reduction is None or own == 0 or not shape_of(values):
                continue
            both = None if own is None or factor is None else own * factor
            yield _Term(reduction, shape_of(values), both)


def _summands(root: Any, ends: Collection[str]) -> Iterator[tuple[Any, float | None]]:
    """Yield the nodes of some operations that a node is a sum of, and the size of their factors."""
    pending: list[tuple[Any, float | None]] = [(root, 1.0)]
    for _ in range(_NODES):
        if not pending:
            return
        node, factor = pending.pop()
        name, following = operation_of(node), inputs_of(node)
        if name in ends:
            yield node, factor
        elif name in ("Add", "Sub", "Rsub", "Neg", *VIEWS):
            pending += [(each, factor) for each in following]
        elif name in ("Mul", "Div"):
            number = _number(node) if len(following) == 1 else None
            if factor is None or number is None:
                factor = None
            else:
                factor = factor * number if name == "Mul" else factor / number
            pending += [(each, factor) for each in following]


def _number(node: Any) -> float | None:
    """Return the size of the number that a product or a quotient has as its other factor.

    None after `backward`, of a tensor with axes, and of zero.
    """
    try:
        saved = [t for t in (node._saved_other, node._saved_self) if isinstance(t, Tensor)]
    except (RuntimeError, AttributeError):
        return None
    numbers = [abs(t.item()) for t in saved if not t.dim()]
    return (numbers[0] or None) if len(numbers) == 1 else None


def _over_samples(node: Any) -> tuple[str | None, Any]:
    """Return what is done over the first axis, Sum or Mean, and the values below.

    `x.mean(dim=0).sum()` is a mean over the samples, `x.mean(dim=1).sum()` a sum. None in place of
    the former where a view has put another axis first.
    """
    found: str | None = None
    while operation_of(node) in ("Sum", "Mean", *VIEWS) and inputs_of(node):
        below = inputs_of(node)[0]
        if operation_of(node) in _TURNED:
            found = None
        if operation_of(node) in ("Sum", "Mean") and 0 in _reduced_axes(node, len(shape_of(below))):
            found = operation_of(node)
        node = below
    return found, node


def _reduced_axes(node: Any, dims: int) -> set[int]:
    """Return the axes that a sum or a mean of a tensor with so many axes reduces."""
    saved = getattr(node, "_saved_dim", None)
    if not saved:
        return set(range(dims))
    return {(axis - 2**64 if axis >= 2**63 else axis) % max(dims, 1) for axis in saved}


def _is_error(node: Any) -> bool:
    """Return whether a node is one of errors, powers or sizes of differences, or adds others to
    some, of which it may weigh these.

    A penalty of weights is none.
    """
    if operation_of(node) == "Add":
        return any(_is_error(each) for each in inputs_of(node) if shape_of(each) == shape_of(node))
    if operation_of(node) in _LOSSES:
        return True
    below = inputs_of(node)
    while below and operation_of(below[0]) in VIEWS:
        below = inputs_of(below[0])
    differs = bool(below) and operation_of(below[0]) in ("Add", "Sub", "Rsub")
    return operation_of(node) in ("Pow", "Abs") and differs


def _factor_of_divergence(node: Any) -> float | None:
    """Return the factor of a divergence from a normal distribution; 0 of anything else.

    ½(m² + s² - 1 - log(s²)), as of Kingma & Welling 2014 (arXiv:1312.6114), appendix B, with
    log(s²) or s as outputs.
    """
    parts = list(_summands(node, ("Pow", "Exp", "Log")))
    names = {operation_of(part) for part, _ in parts}
    if "Pow" not in names or not {"Exp", "Log"} & names:
        return 0.0
    factor = next(factor for part, factor in parts if operation_of(part) == "Pow")
    return None if factor is None else factor / _OF_A_SQUARE
