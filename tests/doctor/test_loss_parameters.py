"""Parameters of a loss function that no optimiser holds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor

STEPS = 60


class Centres(nn.Module):
    """A loss by the distance to a centre of each class."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.randn(3, 4))

    def forward(self, embedded, labels):
        return F.cross_entropy(-torch.cdist(embedded, self.centre), labels)


def centres(model):
    loss_fn = Centres()
    return loss_fn, list(loss_fn.parameters())


def temperature(model):
    scale = nn.Parameter(torch.ones(()))
    return lambda outputs, labels: F.cross_entropy(outputs * scale, labels), [scale]


def features(model):
    judge = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return lambda outputs, labels: F.cross_entropy(judge(outputs), labels), []


def random_network(model):
    target = nn.Linear(4, 3)
    return lambda outputs, labels: F.cross_entropy(target(outputs), labels), []


def frozen(model):
    head = nn.Linear(4, 3).requires_grad_(False)
    return lambda outputs, labels: F.cross_entropy(head(outputs), labels), []


def teacher(model):
    head = nn.Linear(4, 3)

    def loss_fn(outputs, labels):
        with torch.no_grad():
            wanted = head(outputs).softmax(dim=1)
        return F.cross_entropy(outputs[:, :3], labels) + F.cross_entropy(outputs[:, :3], wanted)

    return loss_fn, []


def train(make, held):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    loss_fn, own = make(model)
    optimizer = torch.optim.Adam([*model.parameters(), *(own if held else [])], lr=1e-2)
    data = torch.randn(300, 6)
    labels = (data[:, 0] > 0).long() + (data[:, 1] > 0).long()
    with Doctor(model, optimizer, loss_fn) as doctor:
        for step in range(STEPS):
            rows = torch.arange(30 * step, 30 * step + 30) % 300
            loss = loss_fn(model(data[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, data[rows], labels[rows])
        return doctor.report()


@pytest.mark.parametrize(
    ("make", "name"), [(centres, "Centres.centre"), (temperature, "a parameter ()")]
)
def test_those_that_nothing_trains_are_named(make, name):
    report = train(make, held=False)
    assert report.troubles == []
    (finding,) = [f for f in report.findings if f.severity != "note"]
    assert (finding.cause, finding.confidence) == ("optimizer_mismatch", "certain")
    assert finding.evidence["parameters"] == [name]
    assert not train(make, held=True).findings


@pytest.mark.parametrize("make", [features, random_network, frozen, teacher])
def test_a_network_that_the_loss_reads_is_trained_elsewhere_or_not_at_all(make):
    report = train(make, held=False)
    assert report.evidence.optimizer.of_loss == []
    assert "optimizer_mismatch" not in {f.cause for f in report.findings}
