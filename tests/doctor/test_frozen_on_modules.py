"""`requires_grad = True` on a module, which makes an attribute and unfreezes nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.observe.optimizer import optimizer_facts


class Encoder(nn.Module):
    """Keeps an option of that name, and an encoding of places that is not trained."""

    def __init__(self):
        super().__init__()
        self.requires_grad = True
        self.places = nn.Parameter(torch.randn(8), requires_grad=False)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh())

    def forward(self, x):
        return self.layers(x + self.places)


def frozen_in_named(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    return optimizer_facts(model, optimizer, optimizer.param_groups, {}).frozen_in_named


def test_each_parameter_is_named_once_where_all_modules_have_the_attribute():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    for module in model.modules():
        module.requires_grad = True
    assert frozen_in_named(model) == ["0.0.weight", "0.0.bias"]


def test_an_option_of_a_module_that_learns_is_no_mistake():
    assert frozen_in_named(nn.Sequential(Encoder(), nn.Linear(16, 3))) == []


@pytest.mark.parametrize("unfrozen", ["module", "parameters"])
def test_a_body_that_stays_frozen_is_named_where_little_is_learnt(unfrozen):
    """A body of few features that were trained for something else."""
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    labels = (x[:, 10:14] * torch.tensor([1.0, 2.0, -1.0, 1.0])).sum(dim=1) > 0
    body, head = nn.Sequential(nn.Linear(20, 16), nn.ReLU()), nn.Linear(16, 2)
    with torch.no_grad():
        body[0].weight[:, 10:] = 0  # it looks at other features
    body.requires_grad_(False)
    if unfrozen == "module":
        body.requires_grad = True
    else:
        body.requires_grad_(True)
    model = nn.Sequential(body, head)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    with Doctor(model, optimizer, F.cross_entropy, budget=0) as doctor:
        for _ in range(10):
            for inputs, targets in zip(x.split(32), labels.long().split(32), strict=True):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs, targets)
        report = doctor.report()
    wanted = "frozen_parameters" if unfrozen == "module" else "healthy"
    assert report.main_cause == wanted
