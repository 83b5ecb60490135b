"""Initialisation of a network's weights and biases.

The initialisers are functions of `torch.nn.init`, or any others that fill a tensor in place;
`conf/init/*.yaml` names them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from debugnn.errors import ConfigError, one_line

Fill = Callable[[Tensor], object]

LAYERS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "all": (nn.Conv2d, nn.Linear),
    "conv": (nn.Conv2d,),
}


@torch.no_grad()
def initialise(
    model: nn.Module, weight: Fill | None = None, bias: Fill | None = None, layers: str = "all"
) -> int:
    """Fill the weights and biases of the model's layers in place.

    Args:
        model: the network. Its normalisation layers are left as they are.
        weight: fills a weight (out, in, …) in place; None leaves PyTorch's default, Kaiming uniform
            with a = √5, which is U(−1/√fan_in, 1/√fan_in).
        bias: fills a bias (out,) in place; None leaves PyTorch's default, U(−1/√fan_in, 1/√fan_in).
        layers: `all` convolutions and fully connected layers, or only convolutions, `conv`.

    Returns:
        The number of tensors that were filled.

    Raises:
        ConfigError: a function does not fill a tensor of such a shape, or refuses its arguments.
    """
    filled = 0
    for module in model.modules():
        if not isinstance(module, LAYERS[layers]):
            continue
        for name, fill, tensor in (
            ("weight", weight, module.weight),
            ("bias", bias, module.bias),
        ):
            if fill is not None and isinstance(tensor, Tensor):
                try:
                    fill(tensor)
                except Exception as error:  # whatever a user's function raises
                    shape = tuple(tensor.shape)
                    raise ConfigError(f"init.{name}, on {shape}: {one_line(error)}") from error
                filled += 1
    return filled
