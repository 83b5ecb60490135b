"""Informative features are what tables have: only a copy of the target is a leak."""

import pytest
import torch
from sklearn.datasets import load_iris
from torch import nn

from debugnn import Doctor


def diagnosed(seed, change=None):
    """A small net on iris with six columns of noise, whose features may be changed."""
    generator = torch.Generator().manual_seed(seed)
    flowers, labels = (torch.tensor(part) for part in load_iris(return_X_y=True))
    inputs = torch.cat([flowers.float(), torch.randn(150, 6, generator=generator)], dim=1)
    if change is not None:
        inputs = change(inputs, labels, generator)
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0)
    order = torch.randperm(150, generator=generator)
    train, held_out = order[:110], order[110:]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss_fn = nn.CrossEntropyLoss()
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(12):
            for batch in train[torch.randperm(110, generator=generator)].split(16):
                optimizer.zero_grad()
                loss = loss_fn(model(inputs[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs[batch], labels[batch])
            doctor.validate(inputs[held_out], labels[held_out])
        return doctor.report()


def share_within(inputs, labels):
    """η²: the share of a feature's variance that lies between the classes, the slow way."""
    total = ((inputs - inputs.mean()) ** 2).sum()
    within = sum(((inputs[labels == c] - inputs[labels == c].mean()) ** 2).sum() for c in range(3))
    return (1 - within / total).item()


@pytest.mark.parametrize("seed", range(3))
def test_petals_are_informative_and_no_leak(seed):
    report = diagnosed(seed)
    assert report.healthy, str(report)
    flowers, labels = (torch.tensor(part) for part in load_iris(return_X_y=True))
    true = max(share_within(flowers[:, feature], labels) for feature in range(4))
    assert report.evidence.data.feature_shares[0] == pytest.approx(true, abs=0.03)
    assert report.evidence.data.feature_order[0] in (2, 3)  # petal length and width


def copied(inputs, labels, generator):
    """One of the noise columns becomes the label, with a little noise."""
    inputs[:, 7] = labels + 0.02 * torch.randn(150, generator=generator)
    return inputs


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_of_the_label_is_named_with_its_true_share(seed):
    report = diagnosed(seed, copied)
    assert report.main_cause == "label_leak"
    leak = report.findings[0]
    assert leak.severity == "error"
    assert leak.evidence["features"][0] == 7
    assert leak.evidence["share"] == report.evidence.data.feature_shares[0]
    assert 0.99 < leak.evidence["share"] < 1.0
