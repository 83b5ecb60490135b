"""How a loss weighs the classes, and weights that make rare ones rarer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.observe.loss_function.class_weights import class_weights
from debugnn.doctor.observe.loss_function.made_up import Loss
from debugnn.doctor.observe.task import Task

WEIGHTS = torch.tensor([1.0, 3.0, 0.5])


def focal(logits, labels):
    own = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return -(WEIGHTS[labels] * (1 - own.exp()) ** 2 * own).mean()


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, y: F.cross_entropy(o, y, WEIGHTS),
        lambda o, y: F.cross_entropy(o, y, WEIGHTS, reduction="sum"),
        lambda o, y: (WEIGHTS[y] * F.cross_entropy(o, y, reduction="none")).mean(),
        focal,
    ],
    ids=["mean", "sum", "by_hand", "focal"],
)
def test_the_weights_of_classes_are_read_off_a_loss(loss_fn):
    torch.manual_seed(0)
    outputs, labels = torch.randn(30, 3), torch.arange(30) % 3
    found = class_weights(Loss(loss_fn, outputs, labels), outputs, labels, Task("classes", 3, 1))
    expected = WEIGHTS / WEIGHTS.mean()
    assert found == pytest.approx(dict(enumerate(expected.tolist())), rel=1e-3)


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
def test_the_weights_of_two_classes_are_read_off_a_loss(shape):
    torch.manual_seed(0)
    outputs, labels = torch.randn(shape), (torch.arange(30) % 3 == 0).float().reshape(shape)

    def loss_fn(logits, targets):
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor(4.0))

    found = class_weights(Loss(loss_fn, outputs, labels), outputs, labels, Task("binary"))
    assert found == pytest.approx({0: 0.4, 1: 1.6}, rel=1e-3)


def test_weights_of_samples_are_none_of_classes():
    torch.manual_seed(0)
    outputs, labels, own = torch.randn(30, 2), torch.arange(30) % 2, torch.rand(30)

    def loss_fn(logits, targets):
        return (own * F.cross_entropy(logits, targets, reduction="none")).mean()

    task = Task("classes", 2, 1)
    assert class_weights(Loss(loss_fn, outputs, labels), outputs, labels, task) == {}


@pytest.mark.parametrize(
    ("weights", "named"),
    [((0.85, 0.15), True), ((0.15, 0.85), False), (None, False), ((0.0, 1.9), True)],
    ids=["shares", "inverse", "none", "logarithms"],
)
def test_weights_that_make_a_rare_class_rarer_or_leave_one_out(weights, named):
    torch.manual_seed(0)
    x = torch.randn(4000, 6)
    y = (x[:, 0] * x[:, 1] + x[:, 2] + 0.5 * torch.randn(4000) > 1.5).long()
    assert 0.1 < y.float().mean() < 0.2
    weight = None if weights is None else torch.tensor(weights)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_fn(logits, labels):
        return F.cross_entropy(logits, labels, weight)

    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for batch in torch.arange(4000).repeat(3).split(64):
            optimizer.zero_grad()
            loss = loss_fn(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            doctor.step(loss, x[batch], y[batch])
        report = doctor.report()
    found = [f for f in report.findings if f.cause == "class_imbalance" and f.severity != "note"]
    assert bool(found) is named, report.details()
    if named:
        assert report.main_cause == "class_imbalance"
        assert found[0].confidence == "certain"
