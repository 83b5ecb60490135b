"""Masks that were scaled like images are no labels; soft ones and smoothed ones are."""

import pytest
import torch
import torch.nn.functional as F
from handmade_evidence import evidence, found_by
from torch import nn

from debugnn import Doctor
from debugnn.doctor.evidence import Score, Validation

SAMPLES = 240


def scans():
    """Images with bright blobs (N, 1, 12, 12), and where these are (N, 1, 12, 12), 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, SAMPLES, 1, 12, 12, generator=generator)
    mask = (F.avg_pool2d(noise[0], 5, 1, 2) > 0.15).float()
    return mask + 0.3 * noise[1], mask


def trained(x, y, loss_fn, outputs=1, last=None):
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1)]
    model = nn.Sequential(*parts, *([last] if last is not None else []))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train, held_out = slice(0, 192), slice(192, None)
    generator = torch.Generator().manual_seed(1)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(8):
            for batch in torch.randperm(192, generator=generator).split(16):
                optimizer.zero_grad()
                loss = loss_fn(model(x[train][batch]), y[train][batch])
                loss.backward()
                optimizer.step()
                doctor.step(loss, x[train][batch], y[train][batch])
            doctor.validate(x[held_out], y[held_out])
        return doctor.report()


def accused(report):
    return [f.cause for f in report.findings if f.severity != "note"]


LOSSES = {
    "logits": (nn.BCEWithLogitsLoss(), None),
    "weighted": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), None),
    "probabilities": (nn.BCELoss(), nn.Sigmoid()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES)
def test_masks_divided_twice_by_255(kind):
    (x, mask), (loss_fn, last) = scans(), LOSSES[kind]
    report = trained(x, mask / 255, loss_fn, last=last)
    assert report.main_cause == "bad_labels", str(report)
    found = report.findings[0]
    assert (found.severity, found.confidence) == ("error", "certain")
    assert "0 and 0.00392" in found.summary
    assert "by 255" in found.fix
    assert "wrong_loss" not in accused(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scale", "low"),
    [
        *((kind, 1.0, 0.0) for kind in LOSSES),
        ("logits", 0.9, 0.05),
        ("weighted", 0.9, 0.1),
        ("probabilities", 0.95, 0.0),
    ],
)
def test_masks_and_smoothed_masks_are_labels(kind, scale, low):
    (x, mask), (loss_fn, last) = scans(), LOSSES[kind]
    report = trained(x, low + scale * mask, loss_fn, last=last)
    assert accused(report) == [], str(report)
    assert report.healthy


@pytest.mark.slow
def test_small_probabilities_of_many_values_are_targets():
    x, mask = scans()
    share = 0.02 * F.avg_pool2d(mask, 5, 1, 2)  # a rate of some events in each place
    report = trained(x, share, nn.BCEWithLogitsLoss())
    assert report.evidence.loss.bernoulli
    assert not {"bad_labels", "wrong_loss"} & set(accused(report)), str(report)


@pytest.mark.slow
def test_another_loss_takes_small_values_for_values():
    x, mask = scans()
    report = trained(x, mask / 255, nn.PoissonNLLLoss())
    assert not report.evidence.loss.bernoulli
    assert not {"bad_labels", "wrong_loss"} & set(accused(report)), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [True, False])
def test_masks_of_classes_that_are_scaled_and_cast_name_one_class(scaled):
    x, mask = scans()
    kinds = mask + mask * (torch.arange(SAMPLES) % 2).reshape(-1, 1, 1, 1)  # 0, 1 and 2
    x = x + kinds
    labels = (kinds / 255 if scaled else kinds).long().squeeze(1)
    report = trained(x, labels, nn.CrossEntropyLoss(), outputs=3)
    if not scaled:
        assert accused(report) == [], str(report)
        return
    assert report.main_cause == "bad_labels", str(report)
    assert "every label is class 0" in report.findings[0].summary
    assert report.findings[0].confidence == "certain"


def of_one_class(**changes):
    """Evidence of maps whose labels are all class 0, in training and in validation."""
    given = evidence()
    given.positions, given.data.same_batch = True, False
    given.data.class_counts = {0: 5000, 1: 0, 2: 0}
    given.network.last_op = "convolution"
    none = Score(0.1, None, 1.0, samples=500)
    given.outcome.train, given.outcome.validations = none, [Validation(100, 0.1, none)]
    for path, value in changes.items():
        part, name = path.split("__")
        setattr(given if part == "evidence" else getattr(given, part), name, value)
    return given


def test_labels_of_one_class_prove_nothing_of_similarities_or_of_few_samples():
    assert "every label is class 0" in found_by("bad_labels", of_one_class())[0].summary
    for change in (
        {"network__last_op": "div"},  # contrastive: the first similarity is the right one
        {"evidence__positions": False},
        {"data__same_batch": True},  # one batch that is learnt by heart
        {"data__distinct": 19},
        {"outcome__validations": []},
        {"outcome__validations": [Validation(100, 0.1, Score(0.5, 0.2, 0.6, samples=500))]},
    ):
        assert found_by("bad_labels", of_one_class(**change)) == [], change
