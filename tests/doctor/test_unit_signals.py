"""The signals of a network's layers, and weights that give them one size."""

import copy

import pytest
import torch
from torch import nn

from debugnn.doctor.observe.calls import Call
from debugnn.doctor.unit_signals import give_unit_signals, signal_sizes


class Shared(nn.Module):
    """Calls one layer twice, and makes its outputs far smaller behind the last layer."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.again(self.again(self.first(x).relu()).relu()).relu()
        return 1e-4 * self.last(x)


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (32, 6)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)),
                (32, 6)),
    "positions": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (8, 5, 6)),
    "images": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(),
                                     nn.Linear(64, 3)), (16, 2, 6, 6)),
    "back to images": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(),
                                             nn.Conv2d(6, 2, 1)), (16, 4, 5, 5)),
    "shared": (Shared, (32, 6)),
}  # fmt: skip


def recorded(model, inputs):
    """Each layer → its first output, in a plain pass."""
    outputs = {}

    def keep(layer, args, output):
        outputs.setdefault(layer, output.detach())

    for layer in model.modules():
        if isinstance(getattr(layer, "weight", None), nn.Parameter):
            layer.register_forward_hook(keep)
    model(inputs)
    return outputs


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    make, shape = NETWORKS[request.param]
    return make(), 3 * torch.randn(shape)


def test_a_signal_is_what_outputs_deviate_by_among_samples_and_places(network):
    model, inputs = network
    sizes, outputs = signal_sizes(model, Call((inputs,)))
    names = {layer: name for name, layer in model.named_modules()}
    reference = {}
    for layer, output in recorded(model, inputs).items():
        axis = 1 if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) else output.dim() - 1
        variances = [unit.var(correction=0) for unit in output.unbind(axis)]
        reference[f"{names[layer]}.weight"] = torch.stack(variances).mean().sqrt().item()
    assert sizes == pytest.approx(reference, rel=1e-4)
    rows = model(inputs).detach().flatten(0, -2)
    assert outputs == pytest.approx(rows.var(dim=0, correction=0).mean().sqrt().item(), rel=1e-4)


def test_each_layers_outputs_get_an_rms_of_one(network):
    model, inputs = network
    for parameter in model.parameters():
        parameter.data.mul_(0.01)
    give_unit_signals(model, Call((inputs,)))
    *hidden, last = recorded(model, inputs).values()
    for output in hidden:
        assert output.square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)
    if isinstance(model, Shared):
        last = model(inputs).detach()
        assert last.std(dim=0).square().mean().sqrt().item() == pytest.approx(1, rel=0.05)
    else:
        assert last.square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)


def test_signals_that_are_nothing_or_not_finite_stay(network):
    model, inputs = network
    before = copy.deepcopy(model.state_dict())
    for faulty in (0.0, torch.inf):
        model.load_state_dict(before)
        give_unit_signals(model, Call((torch.full_like(inputs, faulty),)))
        first = next(layer for layer in model.modules() if hasattr(layer, "weight"))
        name = next(name for name, p in model.named_parameters() if p is first.weight)
        assert torch.equal(first.weight, before[name])
