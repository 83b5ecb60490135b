"""Targets of mirrored samples whose left and right are not exchanged."""

import pytest
import torch
from torch import nn

from debugnn.doctor import Doctor
from debugnn.doctor.observe.column_order import column_order_facts

SWAPPED = [2, 3, 0, 1, 4, 5]  # left eye, right eye, mouth
GRID = torch.linspace(-2, 2, 24)


def faces(count, seed):
    """Places (count, 6) of a left eye, a right eye and a mouth below, as (x, y) each."""
    random = torch.Generator().manual_seed(seed)
    places = torch.tensor([-0.8, 0.7, 0.8, 0.7, 0.0, -0.8])
    return places + 0.15 * torch.randn(count, 6, generator=random)


def mirrored(places, swapped, seed=0):
    """Mirror half of the faces, and exchange the eyes or not."""
    chosen = torch.rand(len(places), generator=torch.Generator().manual_seed(seed)) < 0.5
    other = places * torch.tensor([-1.0, 1.0] * 3)
    other = other[:, SWAPPED] if swapped else other
    return torch.where(chosen[:, None], other, places)


def turned(places, seed=0):
    """Turn each face by any angle."""
    angle = torch.rand(len(places), generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = places[:, ::2], places[:, 1::2]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=2).flatten(1)


def test_eyes_that_are_not_exchanged_are_found():
    facts = column_order_facts(mirrored(faces(300, 0), swapped=False), faces(100, 1))
    assert facts.pair == (0, 2)
    assert 0.4 < facts.reversed < 0.6
    assert facts.kept > 0


@pytest.mark.parametrize(
    "trained",
    [
        faces(300, 0),
        mirrored(faces(300, 0), swapped=True),
        turned(faces(300, 0)),
        torch.randn(300, 6, generator=torch.Generator().manual_seed(0)),
        faces(20, 0),
        faces(300, 0)[:, :3],
    ],
)
def test_other_targets_have_no_mixed_pairs(trained):
    assert column_order_facts(trained, faces(100, 1)) is None


def seen(places):
    """What is seen of faces, (count, 96): both eyes alike, and the mouth, along both axes."""
    bumps = (-(places[:, :, None] - GRID).square() / 0.05).exp()
    eyes = bumps[:, :2] + bumps[:, 2:4]
    image = torch.cat([eyes, bumps[:, 4:]], dim=1).flatten(1)
    return image + 0.1 * torch.randn(image.shape)


@pytest.mark.parametrize("swapped", [True, False])
def test_a_program_that_mirrors_without_exchanging_is_named(swapped):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    train, val = faces(800, 0), faces(200, 1)
    with Doctor(model, optimizer, nn.MSELoss()) as doctor:
        for epoch in range(12):
            for rows in torch.randperm(800).split(32):
                targets = mirrored(train[rows], swapped, seed=epoch)
                loss = nn.functional.mse_loss(model(seen(targets)), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                doctor.step(loss, seen(targets), targets)
            doctor.validate(seen(val), val)
        report = doctor.report()
    named = [f.cause for f in report.findings if f.severity != "note"][:1]
    assert named == [] if swapped else named == ["bad_labels"], str(report)


def test_targets_without_columns_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with Doctor(model, optimizer, nn.MSELoss()) as doctor:
        for _ in range(120):
            x = torch.randn(32, 6)
            loss = nn.functional.mse_loss(model(x), x[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, x[:, 0])
        new = torch.randn(100, 6)
        doctor.validate(new, new[:, 0])
        assert not doctor.report().troubles
