"""Outputs that what they are made of is trained against."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.gradient_reversal import reversed_outputs


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class TwoHeads(nn.Module):
    """A class, and the domain of the sample, behind a reversal, a detach or nothing."""

    def __init__(self, between):
        super().__init__()
        self.domain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.kind = nn.Linear(16, 3)
        self.between = between

    def forward(self, x):
        hidden = self.body(x)
        return {"kind": self.kind(hidden), "domain": self.domain(self.between(hidden))}


def reverse(hidden):
    return Reverse.apply(hidden, 0.5)


def round_straight_through(hidden):
    return hidden + (hidden.round() - hidden).detach()


@pytest.mark.parametrize(
    ("between", "places"),
    [
        (reverse, {1}),
        (lambda h: Reverse.apply(h, 0.01), {1}),
        (lambda h: h, set()),
        (round_straight_through, set()),
    ],
)
def test_a_reversed_gradient_is_told_from_the_slope(between, places):
    torch.manual_seed(0)
    model = TwoHeads(between)
    before = [p.clone() for p in model.parameters()]
    assert reversed_outputs(model, Call((torch.randn(64, 8),))) == places
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("between", [reverse, torch.Tensor.detach])
def test_an_output_that_is_trained_against_may_learn_nothing(between):
    """The domain is in all features; a head on detached ones learns it."""
    torch.manual_seed(0)
    model = TwoHeads(between)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(outputs, targets):
        kind, domain = targets
        return F.cross_entropy(outputs["kind"], kind) + F.cross_entropy(outputs["domain"], domain)

    with Doctor(model, optimizer, loss_fn) as doctor:
        for _ in range(300):
            domain = torch.randint(2, (64,))
            x = torch.randn(64, 8)
            kind = x[:, :3].argmax(dim=1)
            x[:, 3:] += 2 * domain[:, None] - 1
            loss = loss_fn(model(x), (kind, domain))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, (kind, domain))
        report = doctor.report()
    assert report.troubles == []
    assert report.healthy is not False
    parts = {part.name: part for part in report.evidence.outcome.parts}
    assert parts["domain"].against is (between is reverse)
    assert not parts["kind"].against
