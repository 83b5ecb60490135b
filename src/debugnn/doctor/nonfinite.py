"""The origin of a non-finite number: the first bad tensor of one training step.

Every operation of the forward pass and the loss is watched. A NaN or an infinity is followed from
the operation that made it, and is reported only where it reaches the loss, the gradients or the
outputs: the −inf of an attention mask ends in a softmax and does no harm.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from debugnn.doctor.evidence import NonFinite
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import as_call

_MOST_SAMPLES = 32

# Operations whose result is finite, mathematically, for all finite arguments: a result that is not
# finite has left the dtype's range.
_CLOSED = {"add", "sub", "rsub", "mul", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot",
           "convolution", "sum", "mean", "cumsum", "prod", "cumprod", "addcmul", "square",
           "mse_loss"}  # fmt: skip
# Operations whose mathematically finite results stay in the dtype's range.
_BOUNDED = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acos", "asin",
            "acosh", "atanh", "xlogy"}  # fmt: skip
# Operations that leave the range at arguments of ordinary size.
_STEEP = {"exp", "exp2", "expm1", "sinh", "cosh", "pow"}
_DIVERGED = 1e6  # arguments above this have diverged themselves
# The other operations square and sum at most. Arguments above max^0.4 of the dtype (2.6e15 in
# float32, where 5e7 squares of it add up to the limit) can leave the range.
_SQUARES_OVERFLOW = 0.4


class NonFiniteError(ArithmeticError):
    """A NaN or an infinite number appeared in a training that asked to be stopped there.

    Attributes:
        found: where the number came from.
    """

    def __init__(self, message: str, found: NonFinite) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensor in which non-finite numbers first appeared."""

    where: str  # input, target, parameter, buffer, forward, loss or backward
    name: str  # of the input (its key or index), target, parameter or buffer, or of the operation
    layer: str | None  # innermost module that the operation ran in; "" is the model itself
    kind: str  # nan, or inf where there is no NaN among them
    samples: list[int]  # the first 32 bad indices of the batch; [] where they are not known
    count: int  # non-finite values in the tensor
    magnitude: float  # largest finite |value| that the operation met, or that the tensor holds
    overflow: bool  # the operation is defined for its arguments: they were too large
    # Types and shapes: of what the operation took, and of what it gave; of an input, a target, a
    # parameter or a buffer its own alone.
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    line: str | None = None  # `file:line` of the person's code that called the operation


def find_origin(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    inputs: Any,
    targets: Any,
    call: Callable[[nn.Module, Any], Any] | None = None,
) -> Origin | None:
    """Repeat a training step and find the first non-finite number in it that did harm.

    The number that made the loss non-finite is returned; if there is none, the number that made a
    gradient non-finite; if there is none, one that reached the outputs; if there is none, an input,
    target, parameter or buffer that is not finite.

    The pass draws the same random numbers as the model: restore the generators to their state
    before the step, and again afterwards where it matters. The pass moves running statistics and
    leaves gradients behind, so pass a copy of the model.

    Args:
        model: in its state before the update, in the mode (train or eval) of the step.
        loss_fn: maps (outputs, targets) to the loss; without it only the forward pass is searched.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of named ones.
        targets: what the loss function compares the outputs with.
        call: calls the model with `inputs` where it takes them in another way; the place for
            autocast, too.

    Returns:
        The origin; None if everything is finite, or only a mask is not. Its samples are rows of
        axis 0 of tensors that have as many rows as the first input: a tensor that happens to have
        that size is taken for the batch's.

    Raises:
        Exception: whatever the model or the loss function raises.
    """
    trace = _Trace(model, _batch_size(inputs, targets))
    trace.seed("input", _named(inputs))
    trace.seed("target", _named(targets))
    trace.seed("parameter", model.named_parameters())
    trace.seed("buffer", model.named_buffers())
    with trace.watching("forward"):
        outputs = _called(model, inputs) if call is None else call(model, inputs)
    in_outputs = trace.reaching(outputs)
    if loss_fn is not None:
        with trace.watching("loss"):
            loss = loss_fn(outputs, targets)
        in_loss = trace.reaching(loss)
        if in_loss is not None:
            return _with_samples(in_loss.origin, outputs, trace.batch)
        leaves: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        leaves += [t for t in _tensors(inputs) if t.requires_grad and t.is_leaf]
        in_backward = _Backward(trace).search(loss, leaves)
        if in_backward is not None:
            return in_backward.origin
    if in_outputs is not None and not in_outputs.excused:
        return in_outputs.origin
    return next((leaf.origin for leaf in trace.leaves if not leaf.excused), None)


def _with_samples(origin: Origin, outputs: Any, batch: int | None) -> Origin:
    """The origin; where its samples are not known, with those whose outputs are not finite."""
    tensor = next((t for t in _tensors(outputs) if not _is_finite(t)), None)
    if origin.samples or tensor is None or origin.where not in ("input", "forward"):
        return origin
    samples = _census(tensor, batch)["samples"]
    # All samples of the batch are none in particular.
    return origin if len(samples) == batch else dataclasses.replace(origin, samples=samples)


@dataclass(frozen=True, order=True, slots=True)
class _Source:
    """The origin of a non-finite tensor. Of several the smallest is reported."""

    excused: bool  # infinities that the code contains as constants, on purpose
    rank: int  # in order of appearance
    origin: Origin = field(compare=False)


class _Trace(TorchDispatchMode):
    """Follows non-finite values through the operations that run under it.

    Under a dispatch mode torch.compile runs the code as it is written, operation by operation.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.batch = batch
        self.leaves: list[_Source] = []
        self._where = "forward"
        self._model = model
        self._layers: list[str | None] = [None]  # the modules whose forward is running
        # By storage, so that views share a source. The weak reference keeps the address from being
        # used for another storage.
        self._sources: dict[StorageWeakRef, _Source] = {}
        self._ranks = 0
        # Autograd's sequence number → the layer, the source of non-finite arguments, and the line.
        self._nodes: dict[int, tuple[str | None, _Source | None, str | None]] = {}

    @contextmanager
    def watching(self, where: str) -> Iterator[None]:
        """Follow what runs in the block; `where` is forward or loss."""
        self._where = where
        handles: list[Any] = []
        for name, module in self._model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
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

    def seed(self, where: str, named: Iterable[tuple[str, Tensor]]) -> None:
        """Note the tensors that are not finite before the step.

        Args:
            where: input, target, parameter or buffer.
        """
        batch = self.batch if where in ("input", "target") else None
        for name, tensor in named:
            if _is_watched(tensor) and not _is_finite(tensor):
                origin = Origin(
                    where, name or where, None, **_census(tensor, batch),
                    magnitude=_magnitude([tensor]), overflow=False, outputs=[described(tensor)],
                )  # fmt: skip
                # A tensor of 0 and −inf alone is an additive mask.
                mask = bool(((tensor == 0) | (tensor == -math.inf)).all())
                self.leaves.append(self._blame(tensor, self.source(origin, excused=mask)))

    def reaching(self, results: Any) -> _Source | None:
        """Return the source of the non-finite values among the results; None if all are finite."""
        sources = []
        for _, tensor in _named(results):
            if _is_watched(tensor) and not _is_finite(tensor):
                # A value from outside of torch, or from a kernel that is not dispatched.
                unseen = self.source(self._origin("unknown", None, [tensor], []))
                sources.append(self._sources.get(_storage(tensor), unseen))
        return min(sources, default=None)

    def place_of(self, node: Node) -> tuple[str | None, str | None]:
        """Return the layer whose forward pass made the node of the graph, and the line of code."""
        if _is_leaf(node):
            return None, None
        # Autograd makes some nodes after their operation: they belong to the one that just ran.
        number = max((n for n in self._nodes if n <= node._sequence_nr()), default=None)
        if number is None:
            return None, None
        layer, _, line = self._nodes[number]
        return layer, line

    def spoiler_of(self, node: Node) -> _Source | None:
        """Return the source of a non-finite argument of the node's operation, None if excused."""
        _, spoiler, _ = self._nodes.get(node._sequence_nr(), (None, None, None))
        return None if spoiler is None or spoiler.excused else spoiler

    def source(self, origin: Origin, excused: bool = False) -> _Source:
        """Return a new source, which comes after all earlier ones."""
        self._ranks += 1
        return _Source(excused, self._ranks, origin)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        layer, line = self._layers[-1], line_of_caller(below=find_origin.__code__)
        operation = func.__name__.partition(".")[0]
        # If this operation gets a node, it is the latest that autograd has numbered.
        number = torch.autograd._get_sequence_nr() - 1
        if getattr(func, "is_view", False) or "empty" in operation:
            # A view computes nothing, and an uninitialised tensor holds no meaningful value.
            self._nodes.setdefault(number, (layer, None, line))
            return func(*args, **kwargs)

        overwrites = operation in ("fill_", "copy_")  # their first argument is not read
        met = list(_tensors((args[1:] if overwrites else args, kwargs)))
        sources = [self._sources.get(_storage(tensor)) for tensor in met]
        spoilers = [s for s, t in zip(sources, met, strict=True) if s and not _is_finite(t)]
        self._nodes.setdefault(number, (layer, min(spoilers, default=None), line))
        schema = getattr(func, "_schema", None)
        if schema is None or schema.is_mutable:
            met = [tensor.clone() for tensor in met]

        outputs = func(*args, **kwargs)
        bad = [tensor for tensor in _tensors(outputs) if not _is_finite(tensor)]
        if bad:
            source = self._explain(_plain(operation), layer, bad, met, sources, (args, kwargs))
            for tensor in bad:
                self._blame(tensor, source)
        return outputs

    def _explain(
        self,
        name: str,
        layer: str | None,
        bad: list[Tensor],
        met: list[Tensor],
        sources: list[_Source | None],
        arguments: tuple[tuple, dict],
    ) -> _Source:
        magnitude = _magnitude(met)
        fed = []
        for tensor, source in zip(met, sources, strict=True):
            if not _is_finite(tensor):
                # A tensor without a source is a constant of the code, which may be a mask.
                origin = self._origin(name, layer, [tensor], met)
                fed.append(source or self.source(origin, excused=not _has_nan(tensor)))
        cause = min(fed, default=None)
        has_nan = any(map(_has_nan, bad))
        # Infinities are passed on. Where a mask's infinities become NaN, this operation made it.
        if cause is not None and not (cause.excused and has_nan):
            return cause
        args, _ = arguments
        meant = cause is not None or any(
            isinstance(value, float) and math.isinf(value) for value in tree_leaves(arguments)
        )
        by_zero = name == "div" and bool((torch.as_tensor(args[1]) == 0).any())
        overflow = not (meant or by_zero) and _overflows(name, bad[0].dtype, magnitude)
        origin = self._origin(name, layer, bad, met, overflow)
        return self.source(origin, excused=meant and not has_nan)

    def _origin(
        self,
        name: str,
        layer: str | None,
        bad: list[Tensor],
        met: list[Tensor],
        overflow: bool = False,
    ) -> Origin:
        return Origin(
            self._where, name, layer, **_census(bad[0], self.batch),
            magnitude=_magnitude(met or bad), overflow=overflow,
            inputs=[described(tensor) for tensor in met],
            outputs=[described(tensor) for tensor in bad],
            line=line_of_caller(below=find_origin.__code__),
        )  # fmt: skip

    def _blame(self, tensor: Tensor, source: _Source) -> _Source:
        # A storage may be written in parts: the earliest source counts.
        storage = _storage(tensor)
        self._sources[storage] = min(source, self._sources.get(storage, source))
        return source

    def _enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self._layers.append(name)

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._layers.pop()


class _Backward:
    """Follows non-finite gradients from the node that made them down to the parameters."""

    def __init__(self, trace: _Trace) -> None:
        self._trace = trace
        self._sources: dict[tuple[Node | None, int], _Source] = {}  # (node, which of its inputs)
        self._reached: list[_Source] = []

    def search(self, loss: Any, leaves: list[Tensor]) -> _Source | None:
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
            if _is_watched(gradient) and not _is_finite(gradient)
        ]
        if _is_leaf(node):
            self._reached += fed
            return
        for gradient, edge in zip(outgoing, node.next_functions, strict=False):
            if _is_watched(gradient) and not _is_finite(gradient):
                source = min(fed, default=None) or self._explain(node, edge[0], gradient, incoming)
                self._sources[edge] = min(source, self._sources.get(edge, source))

    def _overflowing_sum(self, node: Node, gradient: Tensor) -> _Source:
        # Autograd adds the gradients of a tensor that is used more than once: hooks see the sum.
        census = _census(gradient, None if _is_leaf(node) else self._trace.batch)
        layer, line = self._trace.place_of(node)
        return self._trace.source(
            Origin(
                "backward", "add", layer, **census,
                magnitude=torch.finfo(gradient.dtype).max, overflow=True,
                outputs=[described(gradient)], line=line,
            )
        )  # fmt: skip

    def _explain(
        self, node: Node, target: Node | None, gradient: Tensor, incoming: tuple
    ) -> _Source:
        spoiler = self._trace.spoiler_of(node)
        if spoiler is not None:
            return spoiler
        name = _plain(re.sub(r"Backward\d*$", "", node.name().rpartition(":")[2]))
        met = [*_tensors(incoming), *_saved(node)]
        magnitude = _magnitude(met)
        census = _census(gradient, None if _is_leaf(target) else self._trace.batch)
        layer, line = self._trace.place_of(node)
        return self._trace.source(
            Origin(
                "backward", name, layer, **census, magnitude=magnitude,
                overflow=all(map(_is_finite, met)) and _overflows(name, gradient.dtype, magnitude),
                inputs=[described(tensor) for tensor in _tensors(incoming)],
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


def _is_leaf(node: Node | None) -> bool:
    """Return True if the node collects the gradient of a parameter or another leaf tensor."""
    return node is not None and hasattr(node, "variable")


def _saved(node: Node) -> list[Tensor]:
    """Return the tensors that the node saved in the forward pass."""
    saved: list[Tensor] = []
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            # A checkpoint recomputes its saved tensors only once.
            with suppress(RuntimeError):
                saved.extend(_tensors(getattr(node, name)))
    return saved


def _overflows(name: str, dtype: torch.dtype, magnitude: float) -> bool:
    """Return True if an operation on finite arguments has left the dtype's range.

    Args:
        magnitude: largest |argument|.
    """
    if name in _BOUNDED or (name == "mean" and magnitude == 0):  # the mean of nothing
        return False
    if name in _STEEP:
        return magnitude > _DIVERGED
    return name in _CLOSED or magnitude > torch.finfo(dtype).max ** _SQUARES_OVERFLOW


def _plain(operation: str) -> str:
    """Return an operation's plain name: `batch_norm` of `NativeBatchNorm`, `sqrt` of `sqrt_`."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower().strip("_")
    return re.sub(r"^(native|cudnn|miopen|mkldnn|thnn)_|_layer$", "", snake)


def _called(model: nn.Module, inputs: Any) -> Any:
    """Return the model's outputs for the inputs themselves: clones would hide the origin."""
    call = as_call(inputs)
    return model(*call.args, **call.kwargs)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
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
        yield from _named(item, f"{name}.{key}" if name else str(key))


def _batch_size(inputs: Any, targets: Any) -> int | None:
    """Return the size of axis 0 of the first input; None where the first target's differs."""
    sizes = [
        next((tensor.shape[0] for _, tensor in _named(value) if tensor.dim()), None)
        for value in (inputs, targets)
    ]
    return sizes[0] if sizes[1] in (None, sizes[0]) else None


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if _is_watched(leaf))


def _is_watched(value: Any) -> bool:
    # Other tensors have no storage of their own, no values, or no infinity (the 8-bit floats).
    return (
        isinstance(value, Tensor)
        and (value.is_floating_point() or value.is_complex())
        and value.dtype.itemsize > 1
        and value.layout is torch.strided
        and not (value.is_nested or value.is_meta or is_traceable_wrapper_subclass(value))
    )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(tensor).any())


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def described(tensor: Tensor) -> str:
    """Return a tensor's type and shape, `float32 (64, 10)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _magnitude(tensors: Iterable[Tensor]) -> float:
    """Return the largest finite |value|; 0 if there is none."""
    finite = (tensor.detach()[torch.isfinite(tensor)] for tensor in tensors)
    return max((values.abs().max().item() for values in finite if values.numel()), default=0.0)


def _census(tensor: Tensor, batch: int | None) -> dict[str, Any]:
    """Return kind, samples and count of the non-finite values."""
    bad = ~torch.isfinite(tensor)
    samples = []
    if batch and tensor.dim() and tensor.shape[0] == batch:
        samples = bad.reshape(batch, -1).any(1).nonzero().flatten()[:_MOST_SAMPLES].tolist()
    return {
        "kind": "nan" if _has_nan(tensor) else "inf",
        "samples": samples,
        "count": int(bad.sum()),
    }
