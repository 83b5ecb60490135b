"""Where a non-finite number came from: the first bad tensor of one training step.

Every operation of the forward pass and the loss is watched. A NaN or an infinity is followed from
the operation that made it, and is accused only where it reaches the loss, the gradients or the
outputs: the −inf of an attention mask ends in a softmax and harms nobody.
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

from debugnn.doctor.observe.calls import as_call

_MOST_SAMPLES = 32

# Finite arguments have a finite result on paper: what is not finite has left the dtype's range.
_CLOSED = {"add", "sub", "rsub", "mul", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot",
           "convolution", "sum", "mean", "cumsum", "prod", "cumprod", "addcmul", "square",
           "mse_loss"}  # fmt: skip
# What is finite on paper here stays in the range.
_BOUNDED = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acos", "asin",
            "acosh", "atanh", "xlogy"}  # fmt: skip
# These leave the range at arguments that no divergence is needed for.
_STEEP = {"exp", "exp2", "expm1", "sinh", "cosh", "pow"}
_DIVERGED = 1e6


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensor in which non-finite numbers first appeared."""

    where: str  # input, target, parameter, buffer, forward, loss or backward
    name: str  # of the input (its key or index), target, parameter or buffer, or of the operation
    layer: str | None  # innermost module the operation ran in, "" for the model itself; None: none
    kind: str  # nan, or inf where there is no NaN among them
    samples: list[int]  # the first 32 bad indices of the batch; [] where they cannot be told
    count: int  # non-finite values in the tensor
    magnitude: float  # largest finite |value| that the operation met, or that the tensor holds
    overflow: bool  # the operation is defined for its arguments: they were too large


def find_origin(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    inputs: Any,
    targets: Any,
    call: Callable[[nn.Module, Any], Any] | None = None,
) -> Origin | None:
    """Repeat a training step and find the first non-finite number of it that did harm.

    What made the loss non-finite comes first, then what made a gradient so, then what did not get
    further than the outputs. An input, target, parameter or buffer that is not finite but reaches
    none of these is told last.

    A sample is a row of dim 0, where the bad tensor has as many as the first input: any other
    tensor of that size passes for the batch's.

    The pass draws the random numbers that the model draws: restore the generators to what they
    were before the step, and again afterwards where it matters. It moves running statistics and
    leaves gradients behind, so pass a copy of the model. What the model raises is not caught.

    Args:
        model: in its state before the update, in the mode (train or eval) of the step.
        loss_fn: maps (outputs, targets) to the loss; without it only the forward pass is searched.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of named ones.
        call: how the model is called with `inputs`, where that is not it (autocast goes here too).

    Returns:
        None if everything is finite, or what is not finite is a mask.
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
            return in_loss.origin
        leaves = [p for p in model.parameters() if p.requires_grad]
        leaves += [t for t in _tensors(inputs) if t.requires_grad and t.is_leaf]
        in_backward = _Backward(trace).search(loss, leaves)
        if in_backward is not None:
            return in_backward.origin
    if in_outputs is not None and not in_outputs.excused:
        return in_outputs.origin
    return next((leaf.origin for leaf in trace.leaves if not leaf.excused), None)


@dataclass(frozen=True, order=True, slots=True)
class _Source:
    """What a non-finite tensor goes back to. The smallest of several is to blame."""

    excused: bool  # infinities that the code wrote down, and so meant
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
        # By storage, so that views share it. The weak reference keeps the address from being
        # given to another storage.
        self._sources: dict[StorageWeakRef, _Source] = {}
        self._ranks = 0
        # Autograd's sequence number → the layer, and what spoilt the operation's arguments.
        self._nodes: dict[int, tuple[str | None, _Source | None]] = {}

    @contextmanager
    def watching(self, where: str) -> Iterator[None]:
        """Follow what runs in the block; `where` is forward or loss."""
        self._where = where
        handles = []
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
        """Blame what is not finite among the tensors that the step starts from."""
        batch = self.batch if where in ("input", "target") else None
        for name, tensor in named:
            if _is_watched(tensor) and not _is_finite(tensor):
                origin = Origin(
                    where, name or where, None, **_census(tensor, batch),
                    magnitude=_magnitude([tensor]), overflow=False,
                )  # fmt: skip
                # An additive mask is made of 0 and −inf, whoever passes it.
                mask = bool(((tensor == 0) | (tensor == -math.inf)).all())
                self.leaves.append(self._blame(tensor, self.source(origin, excused=mask)))

    def reaching(self, results: Any) -> _Source | None:
        """What the non-finite values among the results go back to; None where all are finite."""
        sources = []
        for _, tensor in _named(results):
            if _is_watched(tensor) and not _is_finite(tensor):
                # A value from outside of torch, or from a kernel that is not dispatched.
                unseen = self.source(self._origin("unknown", None, tensor, _magnitude([tensor])))
                sources.append(self._sources.get(_storage(tensor), unseen))
        return min(sources, default=None)

    def layer_of(self, node: Node) -> str | None:
        """The layer whose forward pass made the node of the graph."""
        if _is_leaf(node):
            return None
        # Autograd makes some nodes after the operation: they belong to the one that just ran.
        number = max((n for n in self._nodes if n <= node._sequence_nr()), default=None)
        return None if number is None else self._nodes[number][0]

    def spoiler_of(self, node: Node) -> _Source | None:
        """What made an argument of the node's operation non-finite, if that was not meant."""
        _, spoiler = self._nodes.get(node._sequence_nr(), (None, None))
        return None if spoiler is None or spoiler.excused else spoiler

    def source(self, origin: Origin, excused: bool = False) -> _Source:
        self._ranks += 1
        return _Source(excused, self._ranks, origin)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        layer = self._layers[-1]
        operation = func.__name__.partition(".")[0]
        # The node of this operation, if it gets one, is the last that autograd has numbered.
        number = torch.autograd._get_sequence_nr() - 1
        if getattr(func, "is_view", False) or "empty" in operation:
            # No value is new in a view, and none has a meaning in an uninitialised tensor.
            self._nodes.setdefault(number, (layer, None))
            return func(*args, **kwargs)

        overwrites = operation in ("fill_", "copy_")  # all of their first argument, unread
        met = list(_tensors((args[1:] if overwrites else args, kwargs)))
        sources = [self._sources.get(_storage(tensor)) for tensor in met]
        spoilers = [s for s, t in zip(sources, met, strict=True) if s and not _is_finite(t)]
        self._nodes.setdefault(number, (layer, min(spoilers, default=None)))
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
                # Without a source it is a constant of the code, which may be a mask.
                origin = self._origin(name, layer, tensor, magnitude)
                fed.append(source or self.source(origin, excused=not _has_nan(tensor)))
        cause = min(fed, default=None)
        has_nan = any(map(_has_nan, bad))
        # Infinities pass on what made them. That a mask's become NaN is this operation's doing.
        if cause is not None and not (cause.excused and has_nan):
            return cause
        args, _ = arguments
        meant = cause is not None or any(
            isinstance(value, float) and math.isinf(value) for value in tree_leaves(arguments)
        )
        by_zero = name == "div" and bool((torch.as_tensor(args[1]) == 0).any())
        overflow = not (meant or by_zero) and _overflows(name, bad[0].dtype, magnitude)
        origin = self._origin(name, layer, bad[0], magnitude, overflow)
        return self.source(origin, excused=meant and not has_nan)

    def _origin(
        self,
        name: str,
        layer: str | None,
        tensor: Tensor,
        magnitude: float,
        overflow: bool = False,
    ) -> Origin:
        census = _census(tensor, self.batch)
        return Origin(self._where, name, layer, **census, magnitude=magnitude, overflow=overflow)

    def _blame(self, tensor: Tensor, source: _Source) -> _Source:
        # A storage may be written in parts.
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
        self._sources: dict[tuple[Node, int], _Source] = {}  # (node, which of its inputs)
        self._reached: list[_Source] = []

    def search(self, loss: Any, leaves: list[Tensor]) -> _Source | None:
        """Back-propagate; what the non-finite gradients go back to, None where all are finite."""
        if not isinstance(loss, Tensor) or loss.grad_fn is None or not leaves:
            return None
        nodes = _graph(loss.grad_fn)
        handles = [node.register_hook(partial(self._look, node)) for node in nodes]
        try:
            # Only into the model's own leaves: the loss may hold parameters of the caller's.
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
        # Autograd adds the gradients of a tensor that was used more than once, and shows the sum.
        census = _census(gradient, None if _is_leaf(node) else self._trace.batch)
        return self._trace.source(
            Origin(
                "backward", "add", self._trace.layer_of(node), **census,
                magnitude=torch.finfo(gradient.dtype).max, overflow=True,
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
        return self._trace.source(
            Origin(
                "backward", name, self._trace.layer_of(node), **census, magnitude=magnitude,
                overflow=all(map(_is_finite, met)) and _overflows(name, gradient.dtype, magnitude),
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
    """Whether the node collects the gradient of a parameter, or of another leaf tensor."""
    return node is not None and hasattr(node, "variable")


def _saved(node: Node) -> list[Tensor]:
    """What the node kept of the forward pass."""
    saved = []
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            # A checkpoint recomputes what it saved, once.
            with suppress(RuntimeError):
                saved.extend(_tensors(getattr(node, name)))
    return saved


def _overflows(name: str, dtype: torch.dtype, magnitude: float) -> bool:
    if name in _BOUNDED:
        return False
    if name in _STEEP:
        return magnitude > _DIVERGED
    # The rest squares and sums at most; 2.6e15 in float32, where 5e7 squares add up to its limit.
    return name in _CLOSED or magnitude > torch.finfo(dtype).max ** 0.4


def _plain(operation: str) -> str:
    """`NativeBatchNorm`, `_cudnn_batch_norm`, `sqrt_` → `batch_norm`, `batch_norm`, `sqrt`."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower().strip("_")
    return re.sub(r"^(native|cudnn|miopen|mkldnn|thnn)_|_layer$", "", snake)


def _called(model: nn.Module, inputs: Any) -> Any:
    """Return the model's outputs for the inputs themselves, of which no clones would be blamed."""
    call = as_call(inputs)
    return model(*call.args, **call.kwargs)


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a nest of containers, each by its keys and indices joined with dots."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from _named(item, f"{name}.{key}" if name else str(key))


def _batch_size(inputs: Any, targets: Any) -> int | None:
    """Dim 0 of the first input; None where the first target's is another one."""
    sizes = [
        next((tensor.shape[0] for _, tensor in _named(value) if tensor.dim()), None)
        for value in (inputs, targets)
    ]
    return sizes[0] if sizes[1] in (None, sizes[0]) else None


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if _is_watched(leaf))


def _is_watched(value: Any) -> bool:
    # The rest has no storage of its own, no values, or no infinity (the 8-bit floats).
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


def _magnitude(tensors: Iterable[Tensor]) -> float:
    """The largest finite |value|; 0 where there is none."""
    finite = (tensor.detach()[torch.isfinite(tensor)] for tensor in tensors)
    return max((values.abs().max().item() for values in finite if values.numel()), default=0.0)


def _census(tensor: Tensor, batch: int | None) -> dict[str, Any]:
    """Kind, samples and count of the non-finite values."""
    bad = ~torch.isfinite(tensor)
    samples = []
    if batch and tensor.dim() and tensor.shape[0] == batch:
        samples = bad.reshape(batch, -1).any(1).nonzero().flatten()[:_MOST_SAMPLES].tolist()
    return {
        "kind": "nan" if _has_nan(tensor) else "inf",
        "samples": samples,
        "count": int(bad.sum()),
    }
