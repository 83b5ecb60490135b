"""Units that start equal and stay equal."""

import torch
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import layers, sequential
from debugnn.faults.nets import Gated, LowRank
from debugnn.faults.program import Setup


def constant_init(setup: Setup, value: float, bias: float = 0.0) -> None:
    """Every weight has the same value."""
    for name, p in setup.model.named_parameters():
        nn.init.constant_(p, value if "weight" in name else bias)


def constant_per_layer(setup: Setup) -> None:
    """Every weight of a layer has the same value, another one in each layer."""
    for layer in layers(setup.model):
        nn.init.constant_(layer.weight, layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)


class Units(nn.Module):
    """A layer that is a list of single units."""

    def __init__(self, units: list[nn.Linear]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([unit(x) for unit in self.units], dim=1)


def one_unit_many_times(setup: Setup) -> None:
    """`[nn.Linear(n, 1)] * width`: a list that holds one and the same unit `width` times."""
    model = sequential(setup)
    for position, module in enumerate(model[:-1]):
        if isinstance(module, nn.Linear):
            model[position] = Units([nn.Linear(module.in_features, 1)] * module.out_features)


def reseeded_units(setup: Setup) -> None:
    """Hidden units that are made one by one, each after the same seed, under a head of zeros."""
    model = sequential(setup)
    hidden, head = layers(model)
    units = []
    for _ in range(hidden.out_features):
        torch.manual_seed(0)
        units.append(nn.Linear(hidden.in_features, 1))
    model[0] = Units(units)
    nn.init.zeros_(head.weight)


def one_filter(setup: Setup) -> None:
    """Every filter of every channel starts as the same blur, under a head of zeros."""
    blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    *convolutions, head = layers(setup.model)
    with torch.no_grad():
        for layer in convolutions:
            layer.weight.copy_((blur / layer.in_channels).expand_as(layer.weight))
            layer.bias.zero_()
    nn.init.zeros_(head.weight)


def both_factors_at_zero(setup: Setup) -> None:
    """Both factors of each low-rank update start at zero."""
    for module in setup.model.modules():
        if isinstance(module, LowRank):
            nn.init.zeros_(module.down.weight)


def zeros_behind_closed_gates(setup: Setup) -> None:
    """The last layers behind gates that start at zero start at zero, too."""
    for module in setup.model.modules():
        if isinstance(module, Gated):
            for p in module.body[-1].parameters():
                nn.init.zeros_(p)


TUNING = [
    case("friedman_closed_gates", zeros_behind_closed_gates, ("vanishing_gradient",)),
    case("low_rank", both_factors_at_zero, ("vanishing_gradient",)),
    case("mlp", constant_init, value=0.1),
    case("mlp_sgd", constant_init, value=0.0),
    case("cnn", constant_init, value=0.1),
    case("lstm", constant_init, value=0.1),
    case("wine", constant_init, value=0.5),
    case("friedman", constant_init, value=0.0),
    case("mlp_tanh", constant_per_layer),
]

HELD_OUT = [
    case("moons", one_unit_many_times),
    case("friedman", one_unit_many_times),
    case("mlp_momentum", reseeded_units),
    case("cnn", one_filter),
]
