"""A copy of a network with ReLUs for its hidden activations, which a trial trains beside it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.operations import WEIGHTED

# Activations that flatten out on both sides, or make units compete, as functions.
_FLAT = {
    torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid,
    torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh,
    F.hardsigmoid, F.hardtanh, F.logsigmoid, F.softsign,
}  # fmt: skip


class Rectified(nn.Module):
    """A network whose hidden sigmoids and tanhs are ReLUs, its weights drawn by Kaiming's rule.

    A network without any activation gets a ReLU after each weight layer but the last one called.
    The last activation of a pass stays, where nothing with weights comes after it: it may belong to
    the output.

    He et al. 2015, arXiv:1502.01852, eq. 10.

    Args:
        network: is changed.
        call: how it is called with a batch.
    """

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network = network
        self._first = _Activations()
        layers = [m for m in network.modules() if isinstance(m, WEIGHTED)]
        handles = [m.register_forward_hook(self._first.layer_called) for m in layers]
        try:
            with torch.no_grad(), self._first:
                call(network)
        finally:
            for handle in handles:
                handle.remove()
        if not self._first.flat:
            for layer in self._first.layers[:-1]:
                if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                    layer.register_forward_hook(lambda module, args, output: output.relu())
        for parameter in network.parameters():
            if parameter.dim() >= 2 and parameter.requires_grad:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        for layer in layers:
            bias = getattr(layer, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Activations(replaced=self._first.hidden):
            return self.network(*args, **kwargs)


class _Activations(TorchFunctionMode):
    """Counts the flat activations of a pass, and makes the first `replaced` of them ReLUs.

    Attributes:
        flat: how many there were.
        hidden: how many of them came before the last weight layer.
        layers: the weight layers in the order of their calls.
    """

    def __init__(self, replaced: int = 0) -> None:
        super().__init__()
        self.flat = self.hidden = 0
        self.layers: list[nn.Module] = []
        self._replaced = replaced

    def layer_called(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Note a call of a weight layer; a forward hook."""
        self.layers.append(module)
        self.hidden = self.flat

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in _FLAT:
            self.flat += 1
            if self.flat <= self._replaced:
                return F.relu(args[0])
        return function(*args, **(kwargs or {}))
