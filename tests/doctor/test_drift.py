"""Inputs that change in the course of a training: samples that come back transformed again."""

import math

import pytest
import torch
from handmade_evidence import diagnosis, evidence, found_by
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.input_scale import DRIFTED, RETURNED, TRANSFORMED
from debugnn.doctor.evidence import DriftFacts
from debugnn.doctor.observe.drift import drift_facts


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halves(rows, change=lambda x: x):
    """The first rows as early batches, and some of them, changed, as late ones."""
    return rows.split(16), change(rows[20:52].flip(0)).split(8)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (37.0, 0.0), (1e-6, 0.0), (1.0, -50.0)])
def test_samples_that_come_back_changed_are_found_again(scale, offset):
    rows = drawn(96, 3, 5, 5)
    facts = drift_facts(*halves(rows, lambda x: x * scale + offset))
    assert facts.returned == 32
    assert facts.scale == pytest.approx(scale, rel=1e-3)
    assert facts.offset == pytest.approx(offset, rel=0.2, abs=0.2 * max(scale, 1.0))
    assert facts.early == pytest.approx(1.0, rel=0.1)


def test_other_samples_are_not_taken_for_these():
    early, late = drawn(96, 40).split(16), (100 * drawn(64, 40, seed=1)).split(16)
    facts = drift_facts(early, late)
    assert facts.returned == 0
    assert facts.late == pytest.approx(100 * facts.early, rel=0.1)


def test_samples_of_few_features_are_alike_by_chance_and_not_compared():
    assert drift_facts(*halves(drawn(96, 4), lambda x: 100 * x)).returned == 0


def test_tokens_and_batches_of_other_shapes_have_no_scale():
    tokens = torch.randint(9, (96, 20))
    assert drift_facts(*halves(tokens)) is None
    assert drift_facts([drawn(8, 20)], [drawn(8, 30)]) is None
    assert drift_facts([drawn(8, 20)], []) is None


def test_constant_and_infinite_samples_are_left_out():
    rows = drawn(96, 20)
    rows[20:30], rows[30:40, 3] = 2.0, torch.inf
    assert drift_facts(*halves(rows)).returned == 12


def drifted(skill=0.02, **facts):
    given = evidence(skill)
    given.data.drift = DriftFacts(1.0, 1.0)
    for name, value in facts.items():
        setattr(given.data.drift, name, value)
    return given


@pytest.mark.parametrize(
    ("scale", "offset", "seen"),
    [
        (TRANSFORMED + 1, 0.0, "times as large"),
        (0.9 / TRANSFORMED, 0.0, "times as large"),
        (1.0, -TRANSFORMED - 1, "shifted by"),
        (TRANSFORMED - 1, TRANSFORMED, None),
        (1.0, TRANSFORMED - 1, None),
    ],
)
@pytest.mark.parametrize("skill", [0.02, 0.95])
def test_only_a_change_beyond_an_augmentation_is_named(scale, offset, seen, skill):
    given = drifted(skill, returned=RETURNED, scale=scale, offset=offset)
    found = found_by("input_scale", given)
    assert [(f.severity, f.confidence) for f in found] == [("error", "certain")] * bool(seen)
    assert all(seen in f.summary for f in found)
    given.data.drift.returned -= 1
    assert found_by("input_scale", given) == []


def test_a_drift_is_suspected_of_a_training_that_fails_alone():
    report = diagnosis(drifted(late=1.1 * DRIFTED))
    assert (report.main_cause, report.main.confidence) == ("input_scale", "suspected")
    assert diagnosis(drifted(0.95, late=1.1 * DRIFTED)).healthy
    assert found_by("input_scale", drifted(late=0.9 * DRIFTED)) == []
    assert found_by("input_scale", drifted(late=math.inf)) == []
    assert found_by("input_scale", drifted(early=math.nan)) == []


def trained(change, epochs=6):
    """Train on images that a function changes before they are used, and return the report."""
    torch.manual_seed(0)
    images, labels = drawn(256, 1, 6, 6), torch.randint(3, (256,))
    images += drawn(3, 1, 6, 6, seed=1)[labels]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer, loss_fn=F.cross_entropy, every=10) as doctor:
        for _ in range(epochs):
            for chosen in torch.randperm(256).split(8):
                x = change(images, chosen)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), labels[chosen])
                loss.backward()
                optimizer.step()
                doctor.step(loss, x, labels[chosen])
        return doctor.report()


def again(images, chosen):
    """Each image is kept as it was used."""
    images[chosen] = images[chosen] / 0.3
    return images[chosen]


def augmented(images, chosen):
    contrast = 0.5 + torch.rand(len(chosen), 1, 1, 1)
    return images[chosen] * contrast + 0.3 * torch.randn(len(chosen), 1, 1, 1)


@pytest.mark.slow
def test_a_data_set_that_keeps_what_it_transformed_is_named():
    report = trained(again, epochs=20)
    assert (report.main_cause, report.main.confidence) == ("input_scale", "certain")
    assert "transformed again" in report.main.summary


@pytest.mark.slow
def test_contrast_and_brightness_that_are_drawn_anew_are_no_drift():
    report = trained(augmented)
    assert report.healthy
    assert report.evidence.data.drift.returned > RETURNED
    assert found_by("input_scale", report.evidence) == []
