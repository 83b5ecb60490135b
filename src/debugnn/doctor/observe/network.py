"""Trying a network out: what its forward pass is made of, and what depends on what.

Everything here works on a copy of the model that belongs to the doctor.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from debugnn.doctor.evidence import ActivationFacts, NetworkFacts, WeightFacts
from debugnn.doctor.observe.task import first_tensor
from debugnn.tensor_stats import ends_of_units, in_memory_order, read_together

# Nonlinearities by aten's names, with the bounds at which they are flat.
_BOUNDS = {
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "hardtanh": None,  # ReLU6 among others: its bounds are arguments
    "relu": None,
    "leaky_relu": None,
    "threshold": None,
    "clamp_min": None,
    "clamp": None,
    "gelu": None,
    "silu": None,
    "mish": None,
    "elu": None,
    "celu": None,
    "softplus": None,
    "prelu": None,
    "rrelu_with_noise": None,
    "hardswish": None,
    "hardshrink": None,
    "softshrink": None,
    "log_sigmoid_forward": None,
}
_CLIPPING = ("relu", "hardtanh", "threshold", "clamp_min", "clamp")  # zero on an interval
# Operations that a network without any nonlinearity may be made of. A maximum over a window is
# not linear either, but no substitute for an activation.
_LINEAR = {
    "addmm", "mm", "bmm", "matmul", "convolution", "add", "sub", "mul", "div", "sum", "mean", "neg",
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze",
    "squeeze", "slice", "select", "cat", "stack", "clone", "detach", "alias", "_to_copy", "to",
    "contiguous", "flatten", "unfold", "split", "chunk", "index", "index_select", "embedding",
    "max_pool2d_with_indices", "max_pool1d_with_indices", "max_pool3d_with_indices", "avg_pool2d",
    "avg_pool1d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "native_batch_norm",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "native_dropout", "bernoulli_", "constant_pad_nd", "empty", "empty_like", "zeros", "ones",
    "full", "lift_fresh", "copy_", "resolve_conj", "is_same_size", "mkldnn_convolution", "linear",
    "_assert_async", "zeros_like", "ones_like", "new_zeros", "scalar_tensor",
}  # fmt: skip
_VIEWS = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze",
    "squeeze", "slice", "select", "clone", "detach", "alias", "_to_copy", "contiguous", "flatten",
}  # fmt: skip
SQUASHING = ("sigmoid", "hardsigmoid", "softmax", "safe_softmax")
# What changes a distribution's values or shape, and leaves it an activation.
_PASSED = {
    *_VIEWS, "max_pool2d_with_indices", "max_pool1d_with_indices", "avg_pool2d", "avg_pool1d",
    "_adaptive_avg_pool2d", "native_dropout", "mean", "cat",
}  # fmt: skip
_LEAST_BATCH = 4  # samples, of which two halves can be compared
_LISTED = 64  # layers whose change is kept
_ROUNDING = 1e-5  # products of other shapes are rounded differently, by some 1e-6 of the values
_PRODUCTS = ("addmm", "mm", "bmm", "convolution", "linear")
_SOFTMAX = ("_softmax", "_log_softmax", "_safe_softmax")
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
           nn.FeatureAlphaDropout)  # fmt: skip
BATCH_NORM = nn.modules.batchnorm._BatchNorm
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear,
             nn.MultiheadAttention)  # fmt: skip


@dataclass
class Call:
    """How the model was called: its positional and keyword arguments."""

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: nn.Module) -> Any:
        own = self.map(torch.clone)  # a forward may work in place
        return model(*own.args, **own.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """The call with every tensor changed."""
        return Call(
            tuple(mapped(value, change) for value in self.args),
            {name: mapped(value, change) for name, value in self.kwargs.items()},
        )

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nest of tensors with each of them changed, of the same types."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        result = copy.copy(value)  # a subclass may know more than its items
        for name, item in value.items():
            result[name] = mapped(item, change)
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    return value


class Watching(TorchDispatchMode):
    """Sees each operation of a forward pass, and which weight layer was entered last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to exempt the mode from compilation would import the compiler, for seconds

    def entered(self, layer: str, inputs: tuple) -> None:
        self.layer = layer

    def watch(self, model: nn.Module, call: Call) -> Any:
        """The model's outputs in one forward pass without gradients."""

        def entering(name: str) -> Callable:
            return lambda module, inputs: self.entered(name, inputs)

        handles = [
            module.register_forward_pre_hook(entering(name))
            for name, module in model.named_modules()
            if isinstance(module, _WEIGHTED)
        ]
        try:
            with torch.no_grad(), self:
                return call(model)
        finally:
            for handle in handles:
                handle.remove()


class Signals(Watching):
    """The values of a forward pass: its nonlinearities' outputs, its weight layers' inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.activations: list[ActivationFacts] = []
        self.inputs: dict[str, float] = {}  # weight layer → RMS of its input
        # What they will be made of, as scalars that are read after the pass.
        self._entered: dict[str, _Scalars] = {}
        self._made: list[tuple[str, str, _Scalars]] = []  # operation, layer

    def entered(self, layer: str, inputs: tuple) -> None:
        self.layer = layer
        if inputs and isinstance(inputs[0], Tensor):
            with _disable_current_modes():
                self._entered[layer] = _size(inputs[0])

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::").rstrip("_")
        if name in _BOUNDS and isinstance(result, Tensor) and result.is_floating_point():
            self._made.append((name, self.layer or "", _activation(name, result)))
        return result

    def watch(self, model: nn.Module, call: Call) -> Any:
        outputs = super().watch(model, call)
        scalars = [*self._entered.values(), *(made for *_, made in self._made)]
        numbers = iter(read_together([tensor for each in scalars for tensor in each.tensors]))
        for layer, size in self._entered.items():
            self.inputs[layer] = next(numbers) / size.root
        for name, layer, made in self._made:
            rms = next(numbers) / made.root
            dead = next(numbers) if name in _CLIPPING and made.units else 0.0
            saturated = next(numbers) if _BOUNDS[name] else None
            self.activations.append(ActivationFacts(name, layer, rms, dead, saturated))
        return outputs


class Tracer(Watching):
    """Follows a forward pass, operation by operation: what the network is made of."""

    def __init__(self, weights: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.softmax_axes: list[tuple[int, tuple[int, ...]]] = []  # axis, shape
        self.softmax_fed: list[str] = []  # weight layers that a softmax's output goes straight into
        self._weights = weights  # addresses of parameters
        self._soft: set[int] = set()
        self._depths: dict[int, int] = {}  # weight products that a tensor has gone through
        self.depth = 0
        self._alive: list[Tensor] = []  # an address must not be taken again during the pass
        self._makers: dict[int, str] = {}  # address of a tensor's memory → what filled it last

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        plain = name.rstrip("_") if not name.startswith("_") else name
        self.operations.append(name)
        output = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(output, Tensor):
            return result
        if plain not in _VIEWS:
            self._makers[output.data_ptr()] = plain
        elif args and isinstance(args[0], Tensor):
            self._makers.setdefault(output.data_ptr(), self._maker(args[0]) or plain)
        self._follow_softmax(plain, args, output)
        self._follow_depth(name, args, output)
        if plain in _SOFTMAX:
            self.softmax_axes.append((args[1] % output.dim(), tuple(output.shape)))
        return result

    def _follow_softmax(self, name: str, args: tuple, output: Tensor) -> None:
        """A softmax that weighs values (attention, a gate) is multiplied with them; one that is a
        hidden activation goes, pooled and reshaped, into the next layer's weights."""
        self._alive.append(output)
        addresses = [a.data_ptr() for a in args if isinstance(a, Tensor)]
        if name in _SOFTMAX or (name in _PASSED and self._soft.intersection(addresses[:1])):
            self._soft.add(output.data_ptr())
        elif (
            name in _PRODUCTS
            and self._soft.intersection(addresses)
            and self._weights.intersection(addresses)
            and self.layer not in (None, *self.softmax_fed)
        ):
            self.softmax_fed.append(self.layer)

    def _follow_depth(self, name: str, args: tuple, output: Tensor) -> None:
        tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        depths = [self._depths.get(t.data_ptr(), 0) for t in tensors]
        weighted = any(t.data_ptr() in self._weights for t in tensors)
        depth = max(depths, default=0) + (name in _PRODUCTS and weighted)
        self._depths[output.data_ptr()] = max(depth, self._depths.get(output.data_ptr(), 0))
        self.depth = max(self.depth, depth)
        varying = sum(t.numel() > 1 and d > 0 for t, d in zip(tensors, depths, strict=True))
        if name.rstrip("_") in ("mul", "bmm", "matmul", "div") and not weighted and varying > 1:
            # Of two things that both vary with the input, a product is no linear map.
            self.operations[-1] = "product"

    def _maker(self, tensor: Tensor) -> str | None:
        return self._makers.get(tensor.data_ptr())

    def made(self, tensor: Tensor) -> str | None:
        """The operation that produced a tensor, views of it left out."""
        name = self._maker(tensor)
        return name.strip("_") if name else None

    @property
    def nonlinear(self) -> bool:
        """Whether anything before the last product with weights is no linear map."""
        last = max((i for i, name in enumerate(self.operations) if name in _PRODUCTS), default=0)
        return any(
            name not in _LINEAR and name.rstrip("_") not in _LINEAR
            for name in self.operations[:last]
        )


class _Scalars(NamedTuple):
    """Statistics of one tensor that have not been read yet."""

    tensors: list[Tensor]  # L2 norm; share of dead units, where it has some; share saturated
    root: float  # of the number of values: the norm over it is their root mean square
    units: bool = False


def _activation(name: str, output: Tensor) -> _Scalars:
    values = output.detach().float()
    (norm,), root, _ = _size(values)
    found, units = [norm], values.dim() > 1 and values.numel() > 0
    if name in _CLIPPING and units:
        # A unit is a channel (B, C, H, W), else a feature of the last axis.
        rows = values if values.dim() == 4 else values.flatten(0, -2)
        low, high = ends_of_units(rows)
        found.append(((low == 0) & (high == 0)).float().mean())
    if bounds := _BOUNDS[name]:
        low, high = bounds
        edge = 0.025 * (high - low)
        found.append(((values < low + edge) | (values > high - edge)).float().mean())
    return _Scalars(found, root, units)


def _size(values: Tensor) -> _Scalars:
    """The norm of a tensor of any layout."""
    norm = torch.linalg.vector_norm(in_memory_order(values.float()))
    return _Scalars([norm], math.sqrt(max(values.numel(), 1)))


def with_rate(model: nn.Module) -> list[nn.Module]:
    """Layers that drop out by a rate of their own, `dropout`, without a layer for it."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention)
        and isinstance(module.dropout, int | float)
    ]


@contextmanager
def no_dropout(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode for a while, its dropout layers off."""
    modes = [(module, module.training) for module in model.modules()]
    # By their rate, not their mode: cuDNN's recurrent layers have no backward pass in evaluation.
    rates = [(module, module.dropout) for module in with_rate(model)] if training else []
    try:
        model.train(training)
        for module in model.modules():
            if isinstance(module, DROPOUT):
                module.eval()
        for module, _ in rates:
            module.dropout = 0.0
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, rate in rates:
            module.dropout = rate


def trace(model: nn.Module, call: Call) -> tuple[Any, Tracer]:
    """One forward pass without gradients, its outputs and what it is made of."""
    tracer = Tracer(frozenset(p.data_ptr() for p in model.parameters()))
    return tracer.watch(model, call), tracer


def forward_order(model: nn.Module, call: Call) -> list[str]:
    """Names of the weight tensors (two axes or more) in the order in which they are used."""
    order: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: order.append(module))
        for module in model.modules()
    ]
    try:
        with torch.no_grad():
            call(model)
    finally:
        for handle in handles:
            handle.remove()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    used = []
    for module in order:
        for parameter in module.parameters(recurse=not list(module.children())):
            name = names[id(parameter)]
            if parameter.dim() >= 2 and name not in used:
                used.append(name)
    left = [n for n, p in model.named_parameters() if p.dim() >= 2 and n not in used]
    # What no module uses by itself is used by its parent's forward: kept in order of registration.
    return sorted(used + left, key=list(names.values()).index) if left else used


def examine(model: nn.Module, call: Call, batch: int | None, loss: Callable) -> NetworkFacts:
    """What the network is, tried out on one batch.

    Args:
        batch: number of samples, None where inputs and outputs have no common batch axis.
        loss: outputs → a scalar with a gradient, the user's loss or a stand-in for it.
    """
    facts = NetworkFacts(parameters=sum(p.numel() for p in model.parameters()))
    modules = list(model.modules())
    facts.dropout = max(
        [*(m.p for m in modules if isinstance(m, DROPOUT)), *(m.dropout for m in with_rate(model))],
        default=0.0,
    )
    facts.mode_sensitive = facts.dropout > 0 or any(
        isinstance(m, BATCH_NORM) or (isinstance(m, nn.RNNBase) and m.dropout > 0) for m in modules
    )
    facts.weight_layers = sum(
        isinstance(m, _WEIGHTED) and any(p.dim() >= 2 for p in m.parameters()) for m in modules
    )
    with no_dropout(model, training=False):
        outputs, tracer = trace(model, call)
        # A pass of its own: what the hooks compute would be traced.
        with _softmax_inputs(model, call, facts.softmax_inputs), torch.no_grad():
            call(model)
        facts.softmax_inputs += [n for n in tracer.softmax_fed if n not in facts.softmax_inputs]
        facts.nonlinear, facts.depth = tracer.nonlinear, tracer.depth
        first = first_tensor(outputs)
        if first is not None:
            facts.last_op = tracer.made(first)
            facts.batch_softmax = any(
                axis == 0 and len(shape) >= 2 and shape[0] == batch and shape == tuple(first.shape)
                for axis, shape in tracer.softmax_axes
            )
        # Sampling in evaluation can be meant, dropout is not.
        masks = {"bernoulli_", "native_dropout"}
        facts.drops_in_evaluation = not masks.isdisjoint(tracer.operations)
        facts.evaluation_change = _evaluation_change(model, call)
        if batch is not None and batch >= _LEAST_BATCH:
            facts.mixing, facts.mixing_layers = _mixing(model, call, batch, outputs)
    with no_dropout(model, training=True):
        facts.unreached, facts.unused = _unreached(model, call, loss)
        facts.time_gradient = _time_gradient(model, call, loss)
    return facts


def _time_gradient(model: nn.Module, call: Call, loss: Callable) -> float | None:
    """For a recurrent network on (B, T, features): ‖∂L/∂x‖ of the first tenth over the last."""
    recurrent = any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in model.modules())
    given = call.tensors()
    if not recurrent or len(given) != 1 or given[0].dim() != 3:
        return None
    if not given[0].is_floating_point() or given[0].shape[1] < 10:
        return None
    inputs = given[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        value = loss(call.map(lambda _: inputs)(model))
        if not value.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True)
    if gradient is None:
        return None
    tenth = max(1, inputs.shape[1] // 10)
    ends = [torch.linalg.vector_norm(part.double()).item()
            for part in (gradient[:, :tenth], gradient[:, -tenth:])]  # fmt: skip
    return ends[0] / ends[1] if ends[1] > 0 else None


@contextmanager
def _softmax_inputs(model: nn.Module, call: Call, found: list[str]) -> Iterator[None]:
    """Find layers whose input is a distribution, or its logarithm, that the network itself made."""
    given = call.tensors()

    def watch(name: str, axis: int) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            value = args[0] if args and isinstance(args[0], Tensor) else None
            if value is None or not value.is_floating_point():
                return
            if any(value.shape == t.shape and torch.equal(value, t) for t in given):
                return
            if value.dim() < 2 or value.shape[axis] < 3:
                return
            value = value.detach().float()
            if (value - value[:1]).abs().max() <= 1e-4 * value.abs().max():
                return  # a constant, whose sum is what it is
            if bool(((value == 0) | (value == 1)).all()):
                return  # one-hot codes: an input, wherever they are made
            sums = value.sum(dim=axis)
            distribution = value.min() >= 0 and torch.allclose(
                sums, torch.ones_like(sums), atol=1e-3
            )
            logs = value.logsumexp(dim=axis)
            logarithm = value.max() <= 1e-6 and torch.allclose(
                logs, torch.zeros_like(logs), atol=1e-3
            )
            if distribution or logarithm:
                found.append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            handles.append(module.register_forward_pre_hook(watch(name, 1)))
        elif isinstance(module, nn.Linear | nn.RNNBase):
            handles.append(module.register_forward_pre_hook(watch(name, -1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _evaluation_change(model: nn.Module, call: Call) -> float | None:
    """Relative difference of two evaluations of the same batch."""
    with torch.no_grad():
        first, again = (first_tensor(call(model)) for _ in range(2))
    return None if first is None else _difference(first.float(), again.float())


def _mixing(
    model: nn.Module, call: Call, batch: int, outputs: Any
) -> tuple[float | None, dict[str, float]]:
    """How much one half's outputs change with the other half's inputs: the model's, each layer's.

    In evaluation mode, so that batch norm does not count. Each half in turn, and the one that
    changes more: a recurrence over the batch axis passes information one way only.
    """
    if first_tensor(outputs) is None or not any(
        _batch_axis(t, batch) is not None for t in call.tensors()
    ):
        return None, {}
    half = batch // 2
    found = [_influence(model, call, batch, half, changed) for changed in ("second", "first")]
    return max(found, key=lambda pair: pair[0] or 0.0)


def _influence(
    model: nn.Module, call: Call, batch: int, half: int, changed: str
) -> tuple[float | None, dict[str, float]]:
    axes = {id(t): _batch_axis(t, batch) for t in call.tensors()}

    def swap(tensor: Tensor) -> Tensor:
        axis = axes[id(tensor)]
        if axis is None:
            return tensor
        parts = list(tensor.split([half, batch - half], dim=axis))
        index = 1 if changed == "second" else 0
        # One sample in place of all: an average over the batch does not see an exchange.
        other = parts[index].narrow(axis, 0, 1).expand_as(parts[index])
        if other.is_floating_point():
            other = other * 0.5 + 0.1 * other.abs().amax().clamp_min(1e-3)
        parts[index] = other
        return torch.cat(parts, dim=axis)

    def unchanged(value: Any) -> Tensor | None:
        tensor = first_tensor(value)
        if tensor is None or tensor.dim() == 0 or len(tensor) % batch:
            return None
        edge = len(tensor) // batch * half
        rows = tensor.detach().float()
        return rows[:edge] if changed == "second" else rows[edge:]

    before: dict[str, list[Tensor | None]] = {}  # of each call of a module, in turn
    changes: dict[str, float] = {}
    watching = "before"

    def compare(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            value = unchanged(output)
            if watching == "before":
                before.setdefault(name, []).append(value)
                return
            earlier = before[name].pop(0) if before.get(name) else None
            if value is not None and earlier is not None:
                changes[name] = max(_difference(earlier, value), changes.get(name, 0.0))

        return hook

    handles = [m.register_forward_hook(compare(n)) for n, m in model.named_modules()]
    try:
        with torch.no_grad():
            call(model)
            watching = "after"
            call.map(swap)(model)
    finally:
        for handle in handles:
            handle.remove()
    total = changes.pop("", None)
    if len(changes) > _LISTED:  # what changes comes after what does not
        changes = {name: change for name, change in changes.items() if change > 0}
    return total, dict(itertools.islice(changes.items(), _LISTED))


def _difference(before: Tensor, after: Tensor) -> float:
    """Largest change, over how much the samples differ among themselves."""
    if before.shape != after.shape or len(before) < 2:
        return 0.0
    change = (after - before).abs().max().item()
    if change <= _ROUNDING * before.abs().max().item() or not torch.isfinite(before).all():
        return 0.0
    spread = (before - before.mean(dim=0)).abs().max().item()
    return change / spread if spread > 0 else 0.0


def _batch_axis(tensor: Tensor, batch: int) -> int | None:
    """The axis of the samples: the first, or the second where only that has their number."""
    if tensor.dim() >= 1 and tensor.shape[0] == batch:
        return 0
    return 1 if tensor.dim() >= 2 and tensor.shape[1] == batch else None


def _unreached(model: nn.Module, call: Call, loss: Callable) -> tuple[list[str], list[str]]:
    """Trainable parameters without a gradient: those that outputs depend on, and those unused."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        return [], []
    with torch.enable_grad():
        value = loss(call(model))
        # Not backward(): a loss that holds the user's own parameters would leave gradients there.
        found = (
            torch.autograd.grad(value, [p for _, p in named], allow_unused=True)
            if value.requires_grad
            else [None] * len(named)
        )
    without = [pair for pair, gradient in zip(named, found, strict=True) if gradient is None]
    if not without:
        return [], []
    reached, unused = [], []
    with torch.no_grad():
        before = first_tensor(call(model))
        for name, parameter in without:
            kept = parameter.clone()
            parameter.mul_(1.5).add_(0.1)
            after = first_tensor(call(model))
            parameter.copy_(kept)
            depends = before is not None and not torch.equal(before, after)
            (reached if depends else unused).append(name)
    return reached, unused


def initial_weights(model: nn.Module, order: list[str]) -> list[WeightFacts]:
    """Scale and symmetry of each weight tensor as it stands.

    `gain` is RMS · √fan_in, fan_in being the number of inputs of a unit: all axes but the first;
    the number of hidden units for recurrent layers, as in PyTorch's initialisation of them.
    """
    named = dict(model.named_parameters())
    # Embeddings and tokens are no maps, and have no fan-in.
    maps = {id(p) for m in model.modules() if isinstance(m, _WEIGHTED) for p in m.parameters()}
    hidden = {
        id(p): m.hidden_size
        for m in model.modules()
        if isinstance(m, nn.RNNBase | nn.RNNCellBase)
        for p in m.parameters()
    }
    facts = []
    names = [n for n in order if not maps or id(named[n]) in maps]
    for position, name in enumerate(names):
        weight = named[name].detach().float().flatten(1)
        rms = weight.square().mean().sqrt().item()
        facts.append(
            WeightFacts(
                name=name,
                size=weight.numel(),
                gain=rms * hidden.get(id(named[name]), weight.shape[1]) ** 0.5,
                identical_rows=len(weight) > 1 and bool((weight == weight[:1]).all()),
                identical_columns=weight.shape[1] > 1 and bool((weight == weight[:, :1]).all()),
                constant=bool((weight == weight[0, 0]).all()),
                hidden=position + 1 < len(names),
                norm=torch.linalg.vector_norm(weight).item(),
            )
        )
    return facts
