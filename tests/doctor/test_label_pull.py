"""Losses of embeddings: which labels they draw together."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.label_pull import label_pull

KINDS = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))


def triplets(embedded, labels):
    """Anchors, samples like them, and others, one after the other."""
    return F.triplet_margin_loss(*embedded.chunk(3), margin=1.0)


def exchanged_triplets(embedded, labels):
    anchors, alike, others = embedded.chunk(3)
    return F.triplet_margin_loss(anchors, others, alike, margin=1.0)


def supervised(embedded, labels, sign=1):
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, eq. 2)."""
    unit = F.normalize(embedded, dim=1)
    scores = unit @ unit.T / 0.2 - 1e9 * torch.eye(len(unit))
    alike = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    alike = alike if sign > 0 else ~alike & ~torch.eye(len(labels), dtype=torch.bool)
    return -(scores.log_softmax(dim=1) * alike).sum(dim=1).div(alike.sum(dim=1).clamp_min(1)).mean()


def exchanged_supervised(embedded, labels):
    return supervised(embedded, labels, -1)


def batch(size, generator):
    own = torch.randint(6, (size,), generator=generator)
    other = (own + torch.randint(1, 6, (size,), generator=generator)) % 6
    labels = torch.cat([own, own, other])
    return KINDS[labels] + 0.7 * torch.randn(len(labels), 10, generator=generator), labels


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.parametrize("loss", [triplets, supervised, exchanged_triplets, exchanged_supervised])
def test_distances_change_as_by_a_step_down_the_loss(loss):
    """The reference takes the step, and measures the distances again."""
    x, labels = batch(20, torch.Generator().manual_seed(1))
    model = net()
    found = label_pull(model, [Batch(Call((x,)), labels)], loss)
    outputs = model(x).detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(outputs, labels), outputs)
    before = torch.cdist(outputs.detach(), outputs.detach()).square()
    rate = 1e-5
    moved = outputs.detach() - rate * gradient
    change = (torch.cdist(moved, moved).square() - before) / rate
    upper = torch.ones_like(change).triu(1).bool()
    alike = labels[:, None] == labels
    assert found.same == pytest.approx([change[upper & alike].mean().item()], rel=1e-2)
    assert found.different == pytest.approx([change[upper & ~alike].mean().item()], rel=1e-2)
    assert (found.apart[0] > 0) == loss.__name__.startswith("exchanged")


def test_what_is_no_embedding_with_labels_is_left_alone():
    x, labels = batch(20, torch.Generator().manual_seed(1))
    values = [Batch(Call((x,)), torch.randn(len(x)))]
    assert label_pull(net(), values, lambda o, y: o.square().mean()) is None
    one = nn.Linear(10, 1)
    assert label_pull(one, [Batch(Call((x,)), labels)], lambda o, y: o.mean()) is None


@pytest.mark.parametrize("loss", [triplets, supervised, exchanged_triplets, exchanged_supervised])
def test_a_loss_that_draws_different_labels_together_is_named(loss):
    model, generator = net(), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with Doctor(model, optimizer, loss_fn=loss) as doctor:
        for _ in range(60):
            x, labels = batch(32, generator)
            optimizer.zero_grad()
            value = loss(model(x), labels)
            value.backward()
            optimizer.step()
            doctor.step(value, x, labels)
        report = doctor.report()
    if loss.__name__.startswith("exchanged"):
        assert report.main_cause == "wrong_loss", report.details()
        assert report.main.confidence == "certain"
    else:
        assert report.healthy is not False, report.details()


def ranks(scores, labels):
    """A score for each step of a scale: whether a label lies above it."""
    above = (labels[:, None] > torch.arange(scores.shape[1])).float()
    return F.binary_cross_entropy_with_logits(scores, above)


@pytest.mark.parametrize("loss", [ranks, F.cross_entropy])
def test_scores_of_classes_and_ranks_are_no_embeddings(loss):
    """Their loss depends on which score it is, and not on distances among samples."""
    x, labels = batch(20, torch.Generator().manual_seed(1))
    assert label_pull(net(), [Batch(Call((x,)), labels)], loss) is None
