"""The sizes of the signals that a network's layers make of a batch, and weights that even them out.

A signal is what the outputs of a linear or convolutional layer differ by among the samples of a
batch (and the places of an image or a sequence). What all samples share is none: it tells nothing
of them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import Call, first_tensor

_Layer = nn.Linear | nn.modules.conv._ConvNd

# Deviation of the network's outputs below which they have faded behind the last layer, whose own
# outputs deviate by 1: a sigmoid leaves 0.2.
_FADED = 0.1

_Visit = Callable[[_Layer, Tensor], Tensor | None]


def signal_sizes(model: nn.Module, call: Call) -> tuple[dict[str, float], float | None]:
    """Measure the signals of a batch.

    Returns:
        Each weight's name → the deviation of its layer's outputs, the RMS over its units, at its
        first call; and the deviation of the network's outputs, None where they are no numbers.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sizes: dict[str, float] = {}

    def measure(layer: _Layer, output: Tensor) -> None:
        if id(layer.weight) in names:
            sizes[names[id(layer.weight)]] = _deviation(output, _unit_axis(layer, output))

    return sizes, _size_of(_visit_layers(model, call, measure))


def give_unit_signals(model: nn.Module, call: Call) -> None:
    """Scale each layer's weights so that its outputs have an RMS of 1, and set its biases to 0.

    If the network's outputs are still far smaller, because of what comes after the last layer, that
    one is scaled by them.

    Mishkin & Matas 2016, arXiv:1511.06422: layer-sequential unit-variance initialisation.
    """
    last: list[_Layer] = []

    def rescale(layer: _Layer, output: Tensor) -> Tensor:
        last[:] = [layer]
        if layer.bias is not None:
            axis = _unit_axis(layer, output)
            output = output - layer.bias.view([-1 if i == axis else 1 for i in range(output.dim())])
            layer.bias.zero_()
        size = _rms(output)
        if not 0 < size < math.inf:
            return output
        layer.weight.div_(size)
        return output / size

    size = _size_of(_visit_layers(model, call, rescale))
    if last and size and size < _FADED:
        with torch.no_grad():
            last[0].weight.div_(size)


def _visit_layers(model: nn.Module, call: Call, visit: _Visit) -> Any:
    """Call the model, and `visit` with each layer and its output at the layer's first call.

    What it returns takes the output's place.

    Returns:
        The network's outputs.
    """
    seen: set[int] = set()

    def hook(layer: _Layer, args: tuple, output: Tensor) -> Tensor | None:
        if id(layer) in seen or output.dim() < 2 or not output.is_floating_point():
            return None
        seen.add(id(layer))
        return visit(layer, output)

    layers = [m for m in model.modules() if isinstance(m, _Layer)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with torch.no_grad():
            return call(model)
    finally:
        for handle in handles:
            handle.remove()


def _deviation(outputs: Tensor, axis: int) -> float:
    """Return the deviation of outputs among samples and places, the RMS over the units that lie on
    this axis."""
    rows = outputs.detach().float().movedim(axis, -1).flatten(0, -2)
    return _rms(rows.std(dim=0, correction=0))


def _size_of(outputs: Any) -> float | None:
    tensor = first_tensor(outputs)
    if tensor is None or not tensor.is_floating_point() or tensor.dim() < 2:
        return None
    return _deviation(tensor, tensor.dim() - 1)


def _rms(values: Tensor) -> float:
    return values.float().square().mean().sqrt().item()


def _unit_axis(layer: _Layer, output: Tensor) -> int:
    """Return the axis of the output that holds the layer's units."""
    if isinstance(layer, nn.Linear):
        return output.dim() - 1
    return output.dim() - 1 - len(layer.kernel_size)  # a convolution's, with or without a batch
