"""Gradients that are cleared between two backward passes of one update."""

import pytest
import torch
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes.frozen_parameters import CLEARED_STEPS

STEPS = 12


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.one, self.other = nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.body(x)
        return self.one(hidden), self.other(hidden)


def size(outputs):
    return outputs.square().mean()


def erased_first_loss(model, optimizer, x):
    one, other = model(x)
    optimizer.zero_grad()
    size(one).backward(retain_graph=True)
    optimizer.zero_grad()
    size(other).backward()


def zeroed_first_loss(model, optimizer, x):
    one, other = model(x)
    optimizer.zero_grad(set_to_none=False)
    size(one).backward(retain_graph=True)
    optimizer.zero_grad(set_to_none=False)
    size(other).backward()


def both_losses(model, optimizer, x):
    one, other = model(x)
    optimizer.zero_grad()
    size(one).backward(retain_graph=True)
    size(other).backward()


def one_head_kept_as_it_is(model, optimizer, x):
    """The first loss trains the body through a head that is not to learn."""
    one, other = model(x)
    optimizer.zero_grad()
    size(one).backward(retain_graph=True)
    model.one.zero_grad()
    size(other).backward()


def first_loss_looked_at(model, optimizer, x):
    """The gradient of one loss is measured before that of the sum is taken."""
    one, other = model(x)
    optimizer.zero_grad()
    size(one).backward(retain_graph=True)
    _ = sum(p.grad.norm() for p in model.parameters() if p.grad is not None)
    optimizer.zero_grad()
    (size(one) + size(other)).backward()


def merged_by_hand(model, optimizer, x):
    """Gradients of both losses are taken apart, and their sum is put in their place."""
    outputs, found = model(x), []
    for loss in map(size, outputs):
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    for parameter, *parts in zip(model.parameters(), *found, strict=True):
        parameter.grad = sum(part for part in parts if part is not None)


def clipped_between(model, optimizer, x):
    one, other = model(x)
    optimizer.zero_grad()
    size(one).backward(retain_graph=True)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    size(other).backward()


def dropped_at_the_end(model, optimizer, x):
    """A head's gradient is dropped before the update: the head is kept as it is."""
    both_losses(model, optimizer, x)
    for parameter in model.one.parameters():
        parameter.grad = None


def watched(gradients):
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            gradients(model, optimizer, torch.randn(16, 5))
            optimizer.step()
            doctor.step(0.0)
        return doctor.report()


@pytest.mark.parametrize("gradients", [erased_first_loss, zeroed_first_loss])
def test_a_first_loss_that_is_erased_is_named(gradients):
    report = watched(gradients)
    assert (report.main_cause, report.main.confidence) == ("frozen_parameters", "certain")
    assert set(report.evidence.loop.erased) == {"one.weight", "one.bias"}
    assert report.evidence.loop.erased_updates == STEPS > CLEARED_STEPS
    assert "between two backward passes" in report.main.summary


@pytest.mark.parametrize(
    "gradients",
    [both_losses, one_head_kept_as_it_is, first_loss_looked_at, merged_by_hand, clipped_between,
     dropped_at_the_end],
)  # fmt: skip
def test_gradients_that_are_meant_to_go_are_left_alone(gradients):
    report = watched(gradients)
    assert report.evidence.loop.looked_for_erased == STEPS
    assert report.evidence.loop.erased_updates == 0
    assert "frozen_parameters" not in [f.cause for f in report.findings]


# --- micro-batches --------------------------------------------------------------------------------


def cleared_before_each(model, optimizer, parts):
    for part in parts:
        optimizer.zero_grad()
        sum(map(size, model(part))).backward()


def added_up(model, optimizer, parts):
    optimizer.zero_grad()
    for part in parts:
        (sum(map(size, model(part))) / len(parts)).backward()


def attacked(model, optimizer, parts):
    """Steps up the loss of the same samples, and trains on what they lead to."""
    x = parts[0].clone()
    for _ in range(3):
        x = x.detach().requires_grad_()
        optimizer.zero_grad()
        sum(map(size, model(x))).backward()
        x = x + 0.1 * x.grad.sign()
    optimizer.zero_grad()
    sum(map(size, model(x.detach()))).backward()


def the_same_samples(model, optimizer, parts):
    """As with a step to where the loss is sharp, and back."""
    for _ in range(3):
        optimizer.zero_grad()
        sum(map(size, model(parts[0]))).backward()


def measured_before(model, optimizer, parts):
    """Gradients of small batches are looked at before that of all samples is used."""
    for part in parts:
        optimizer.zero_grad()
        sum(map(size, model(part))).backward()
        _ = sum(p.grad.square().sum() for p in model.parameters())
    optimizer.zero_grad()
    sum(map(size, model(torch.cat(parts)))).backward()


def put_together_by_hand(model, optimizer, parts):
    """Gradients of several samples' sets are taken apart, clipped, and their sum is used."""
    found = []
    for part in parts:
        optimizer.zero_grad()
        sum(map(size, model(part))).backward()
        found.append([p.grad.clone() / (1 + p.grad.norm()) for p in model.parameters()])
    for parameter, *grads in zip(model.parameters(), *found, strict=True):
        parameter.grad.copy_(sum(grads))


@pytest.mark.parametrize(
    ("loop", "named"),
    [
        (cleared_before_each, True),
        (added_up, False),
        (attacked, False),
        (the_same_samples, False),
        (measured_before, False),
        (put_together_by_hand, False),
    ],
)
def test_only_the_last_of_several_micro_batches_counts(loop, named):
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            parts = torch.randn(4, 6, 5).unbind()
            loop(model, optimizer, parts)
            optimizer.step()
            doctor.step(1.0, parts[-1])
        report = doctor.report()
    found = [f for f in report.findings if f.cause == "missing_zero_grad"]
    assert bool(found) is named
    if named:
        assert found[0].confidence == "certain"
        assert found[0].evidence == {
            "passes": 4, "updates": STEPS, "updates_looked_at": STEPS
        }  # fmt: skip
