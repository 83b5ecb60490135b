"""Weight layers that take data as they are: how large these are there, and layers that scale them.

A layer takes data if no parameter has had a part in its input, whatever was done to it on the way:
a time beside an image, coordinates put together in `forward`, the second of a model's arguments. Or
if such data stand in its input beside what was learnt: amounts behind the embeddings of words.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.operations import WEIGHTED

_Visit = Callable[[str, nn.Module, Tensor], None]


def data_inputs(model: nn.Module, call: Call) -> dict[str, float]:
    """Return the names of the layers that take data → root mean square of each one's input.

    Of the layer's first call in a pass.
    """
    sizes: dict[str, float] = {}

    def measure(name: str, layer: nn.Module, given: Tensor) -> None:
        if name not in sizes:
            sizes[name] = given.detach().float().square().mean().sqrt().item()

    _visit(model, call, measure)
    return sizes


def scale_data_inputs(model: nn.Module, calls: Sequence[Call]) -> None:
    """Let each layer that takes data divide every feature of them by its root mean square.

    Features that are smaller than 1 stay as they are: of those, zeros may be most values.

    Args:
        calls: of the batches that the root mean squares are taken over, at least one.
    """
    squares: dict[str, list[Tensor]] = {}

    def gather(name: str, layer: nn.Module, given: Tensor) -> None:
        rows = given.detach().float().movedim(_feature_axis(layer, given), -1).flatten(0, -2)
        squares.setdefault(name, []).append(rows.square().mean(dim=0))

    for call in calls:
        _visit(model, call, gather)
    for name, found in squares.items():
        size = torch.stack(found).mean(dim=0).sqrt().clamp_min(1.0)
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(_divide(size))


def _divide(size: Tensor) -> Callable[[nn.Module, tuple], tuple]:
    def divide(layer: nn.Module, args: tuple) -> tuple:
        given, *rest = args
        axis = _feature_axis(layer, given) % given.dim()
        divisor = size.to(given.dtype).view([-1 if i == axis else 1 for i in range(given.dim())])
        return (given / divisor, *rest)

    return divide


def _visit(model: nn.Module, call: Call, visit: _Visit) -> None:
    """Call the model with gradients on, and `visit` with each layer that takes data and its input.

    Without a gradient a parameter's part in an input does not show.
    """

    def entering(name: str) -> Callable[[nn.Module, tuple], None]:
        def enter(layer: nn.Module, args: tuple) -> None:
            given = args[0] if args else None
            if not isinstance(given, Tensor) or given.dim() < 2 or not given.is_floating_point():
                return
            if not given.requires_grad or _holds_data(given):
                visit(name, layer, given)

        return enter

    handles = [
        module.register_forward_pre_hook(entering(name))
        for name, module in model.named_modules()
        if isinstance(module, WEIGHTED)
    ]
    try:
        with torch.enable_grad():
            call(model)
    finally:
        for handle in handles:
            handle.remove()


def _holds_data(given: Tensor) -> bool:
    """Return whether a tensor is a concatenation in which some parts depend on no parameter."""
    node = given.grad_fn
    if node is None or not node.name().startswith("CatBackward"):
        return False
    return any(part is None for part, _ in node.next_functions)


def _feature_axis(layer: nn.Module, given: Tensor) -> int:
    if isinstance(layer, nn.modules.conv._ConvNd):
        return given.dim() - 1 - len(layer.kernel_size)
    return given.dim() - 1
