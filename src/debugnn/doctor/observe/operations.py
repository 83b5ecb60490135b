"""The operations of a forward pass, seen as PyTorch dispatches them.

Works for any model, whatever its modules are called. Operations go by their names in `aten`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from debugnn.doctor.evidence import ActivationFacts
from debugnn.doctor.observe import transforms
from debugnn.doctor.observe.calls import Call
from debugnn.tensor_stats import ends_of_units, in_memory_order, read_together, saturated_share

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear,
            nn.MultiheadAttention)  # fmt: skip
TABLES = (nn.Embedding, nn.EmbeddingBag)
SQUASHING = ("sigmoid", "hardsigmoid", "softmax", "safe_softmax")
# Operations that draw a dropout mask.
DROPPING = ("bernoulli_", "native_dropout")

# Nonlinearities, with the bounds at which they are flat.
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
# Operations that a network without any nonlinearity may be made of. A maximum over a window is not
# linear either, but it does not replace an activation.
_LINEAR = {
    "addmm", "mm", "bmm", "matmul", "convolution", "_sparse_addmm", "add", "sub", "mul", "div",
    "sum", "mean", "neg", "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand",
    "unsqueeze", "squeeze", "slice", "select", "cat", "stack", "clone", "detach", "alias",
    "_to_copy", "to", "contiguous", "flatten", "unfold", "split", "chunk", "index", "index_select",
    "embedding", "max_pool2d_with_indices", "max_pool1d_with_indices", "max_pool3d_with_indices",
    "avg_pool2d", "avg_pool1d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "native_batch_norm",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "native_dropout", "bernoulli_", "constant_pad_nd", "empty", "empty_like", "zeros", "ones",
    "full", "lift_fresh", "copy_", "resolve_conj", "is_same_size", "mkldnn_convolution", "linear",
    "_assert_async", "zeros_like", "ones_like", "new_zeros", "scalar_tensor",
}  # fmt: skip
_VIEWS = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "unsqueeze",
    "squeeze", "slice", "select", "clone", "detach", "alias", "_to_copy", "contiguous", "flatten",
}  # fmt: skip
# Operations after which a softmax's output is still a hidden activation: they reshape or pool it.
_PASSED = {
    *_VIEWS, "max_pool2d_with_indices", "max_pool1d_with_indices", "avg_pool2d", "avg_pool1d",
    "_adaptive_avg_pool2d", "native_dropout", "mean", "cat",
}  # fmt: skip
_PRODUCTS = ("addmm", "mm", "bmm", "baddbmm", "convolution", "linear", "_sparse_addmm")
_SOFTMAX = ("_softmax", "_log_softmax", "_safe_softmax")


# Recurrent layers whose hidden state stays between −1 and 1, as Tracer names them.
_RECURRENT = {
    nn.LSTM: "lstm", nn.LSTMCell: "lstm", nn.GRU: "gru", nn.GRUCell: "gru", nn.RNN: "tanh",
}  # fmt: skip


def _is_bounded(module: nn.Module) -> bool:
    plain_rnn = type(module) is nn.RNN and module.nonlinearity != "tanh"
    projected = bool(getattr(module, "proj_size", 0))
    return type(module) in _RECURRENT and not plain_rnn and not projected


class PassWatcher(TorchDispatchMode):
    """Sees each operation of a forward pass, and which weight layer was entered last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to exempt the mode from compilation would import the compiler, for seconds

    def entered(self, layer: str, inputs: tuple) -> None:
        """Note that a weight layer's forward begins."""
        self.layer = layer

    def watch(self, model: nn.Module, call: Call) -> Any:
        """Return the model's outputs of one forward pass without gradients."""

        def entering(name: str) -> Callable:
            return lambda module, inputs: self.entered(name, inputs)

        handles = [
            module.register_forward_pre_hook(entering(name))
            for name, module in model.named_modules()
            if isinstance(module, WEIGHTED)
        ]
        try:
            with torch.no_grad(), self:
                return call(model)
        finally:
            for handle in handles:
                handle.remove()


class ActivationWatcher(PassWatcher):
    """Measures the outputs of a pass's nonlinearities and the inputs of its weight layers.

    Attributes:
        activations: of each nonlinearity, in the order of the pass.
        inputs: weight layer → root mean square of its input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activations: list[ActivationFacts] = []
        self.inputs: dict[str, float] = {}
        # Scalars that are read after the pass, all at once: a GPU is waited for once.
        self._entered: dict[str, _Scalars] = {}
        self._made: list[tuple[str, str, _Scalars]] = []  # operation, layer

    def entered(self, layer: str, inputs: tuple) -> None:
        self.layer = layer
        if inputs and isinstance(inputs[0], Tensor):
            with _disable_current_modes(), transforms.paused():
                self._entered[layer] = _norm_of(transforms.unwrapped(inputs[0]).detach())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::").rstrip("_")
        if name in _BOUNDS and isinstance(result, Tensor) and result.is_floating_point():
            self._made.append((name, self.layer or "", _measure_activation(name, result)))
        return result

    def watch(self, model: nn.Module, call: Call) -> Any:
        outputs = super().watch(model, call)
        scalars = [*self._entered.values(), *(made for *_, made in self._made)]
        numbers = iter(read_together([tensor for each in scalars for tensor in each.tensors]))
        for layer, norm in self._entered.items():
            self.inputs[layer] = next(numbers) / norm.root
        for name, layer, made in self._made:
            rms = next(numbers) / made.root
            dead = next(numbers) if name in _CLIPPING and made.units else 0.0
            saturated = next(numbers) if _BOUNDS[name] else None
            self.activations.append(ActivationFacts(name, layer, rms, dead, saturated))
        return outputs


class Tracer(PassWatcher):
    """Follows tensors through a forward pass: what the network is made of.

    Tensors are known by the address of their memory. All of them are kept alive during the pass,
    so that no address is used twice.

    Args:
        weights: addresses of the parameters.

    Attributes:
        operations: names in the order of the pass.
        softmax_axes: axis and output shape of each softmax.
        softmax_fed: weight layers that take a softmax's output as their input.
        depth: largest number of products with weights that a tensor has gone through.
    """

    def __init__(self, weights: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.softmax_axes: list[tuple[int, tuple[int, ...]]] = []
        self.softmax_fed: list[str] = []
        self.depth = 0
        self._weights = weights
        self._soft: set[int] = set()  # addresses of softmax outputs
        self._depths: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._makers: dict[int, str] = {}  # address → the operation that filled it last

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
            self._makers[_place(output)] = plain
        elif args and isinstance(args[0], Tensor):
            self._makers.setdefault(_place(output), self._maker(args[0]) or plain)
        self._follow_softmax(plain, args, output)
        self._follow_depth(name, args, output)
        if plain in _SOFTMAX:
            self.softmax_axes.append((args[1] % output.dim(), tuple(output.shape)))
        return result

    def watch(self, model: nn.Module, call: Call) -> Any:
        def leaving(module: nn.Module, inputs: tuple, outputs: Any) -> None:
            states = (t for t in tree_leaves(outputs) if isinstance(t, Tensor))
            self._makers.update((_place(state), _RECURRENT[type(module)]) for state in states)

        handles = [m.register_forward_hook(leaving) for m in model.modules() if _is_bounded(m)]
        try:
            return super().watch(model, call)
        finally:
            for handle in handles:
                handle.remove()

    def made(self, tensor: Tensor) -> str | None:
        """Return the operation that produced a tensor; views of it do not count.

        Recurrent layers, which are made of other operations on each device, count as one.
        """
        name = self._maker(tensor)
        return name.strip("_") if name else None

    @property
    def nonlinear(self) -> bool:
        """True if an operation before the last product with weights is not linear."""
        last = max((i for i, name in enumerate(self.operations) if name in _PRODUCTS), default=0)
        return any(
            name not in _LINEAR and name.rstrip("_") not in _LINEAR
            for name in self.operations[:last]
        )

    def _follow_softmax(self, name: str, args: tuple, output: Tensor) -> None:
        """Find weight layers that are fed with a softmax.

        A softmax that weighs values (attention, a gate) is multiplied with them. One that is a
        hidden activation goes, pooled and reshaped, into the next layer's product with weights.
        """
        self._alive.append(output)
        addresses = [_place(a) for a in args if isinstance(a, Tensor)]
        if name in _SOFTMAX or (name in _PASSED and self._soft.intersection(addresses[:1])):
            self._soft.add(_place(output))
        elif (
            name in _PRODUCTS
            and self._soft.intersection(addresses)
            and self._weights.intersection(addresses)
            and self.layer is not None
            and self.layer not in self.softmax_fed
        ):
            self.softmax_fed.append(self.layer)

    def _follow_depth(self, name: str, args: tuple, output: Tensor) -> None:
        tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        depths = [self._depths.get(_place(t), 0) for t in tensors]
        weighted = any(_place(t) in self._weights for t in tensors)
        depth = max(depths, default=0) + (name in _PRODUCTS and weighted)
        self._depths[_place(output)] = max(depth, self._depths.get(_place(output), 0))
        self.depth = max(self.depth, depth)
        varying = sum(t.numel() > 1 and d > 0 for t, d in zip(tensors, depths, strict=True))
        if name.rstrip("_") in ("mul", "bmm", "matmul", "div") and not weighted and varying > 1:
            # A product of two tensors that both depend on the input is not linear in it.
            self.operations[-1] = "product"

    def _maker(self, tensor: Tensor) -> str | None:
        return self._makers.get(_place(tensor))


def _place(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; of a sparse one, which has none of its own, a name.

    The name is that of the object, below zero, so that it is no other tensor's address.
    """
    return tensor.data_ptr() if tensor.layout == torch.strided else -id(tensor)


def trace(model: nn.Module, call: Call) -> tuple[Any, Tracer]:
    """Return the outputs of one forward pass without gradients, and what it is made of."""
    tracer = Tracer(frozenset(_place(p) for p in model.parameters()))
    return tracer.watch(model, call), tracer


class _Scalars(NamedTuple):
    """Statistics of one tensor that have not been read yet."""

    tensors: list[Tensor]  # L2 norm; share of dead units and of saturated values, where they exist
    root: float  # √(number of values): the norm over it is the root mean square
    units: bool = False  # the share of dead units is among the tensors


def _measure_activation(name: str, output: Tensor) -> _Scalars:
    values = output.detach().float()
    (norm,), root, _ = _norm_of(values)
    found, units = [norm], values.dim() > 1 and values.numel() > 0
    if name in _CLIPPING and units:
        # A unit is a channel of (B, C, H, W), else a feature of the last axis.
        rows = values if values.dim() == 4 else values.flatten(0, -2)
        low, high = ends_of_units(rows)
        found.append(((low == 0) & (high == 0)).float().mean())
    if bounds := _BOUNDS[name]:
        found.append(saturated_share(values, bounds))
    return _Scalars(found, root, units)


def _norm_of(values: Tensor) -> _Scalars:
    norm = torch.linalg.vector_norm(in_memory_order(values.float()))
    return _Scalars([norm], math.sqrt(max(values.numel(), 1)))
