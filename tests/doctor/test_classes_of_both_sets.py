"""Classes that the training or the validation was left without."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor

STEPS = 120


def watched(train_rows, validation_rows, validations=2):
    """Train on some rows of a table of four classes, sorted by class; return the report."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(4, 6)
    labels = torch.arange(4).repeat_interleave(300)
    inputs = centres[labels] + torch.randn(1200, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Doctor(model, optimizer, F.cross_entropy) as doctor:
        for step in range(STEPS):
            rows = train_rows[torch.randint(len(train_rows), (32,))]
            loss = F.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[rows], labels[rows])
            if (step + 1) % (STEPS // validations) == 0:
                chosen = validation_rows(step) if callable(validation_rows) else validation_rows
                doctor.validate(inputs[chosen], labels[chosen])
        return doctor.report()


def test_a_random_split_is_sound():
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(1))
    assert watched(order[:900], order[900:]).healthy is True


def test_the_end_of_a_sorted_file_holds_one_class():
    report = watched(torch.arange(1100), torch.arange(1100, 1200))
    assert (report.main.cause, report.main.confidence) == ("train_test_mismatch", "certain")
    assert report.main.evidence["class"] == 3


def test_validations_class_by_class_are_no_split():
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(1))
    kept, held = order[:800], order[800:]

    def of_class(step):
        return held[held // 300 == step % 4]

    report = watched(kept, of_class, validations=8)
    assert "train_test_mismatch" not in {f.cause for f in report.findings if f.severity != "note"}


@pytest.mark.parametrize("left", [0, 100])
def test_a_class_that_was_never_drawn_is_named(left):
    held = torch.arange(1200) % 3 == 0
    kept = torch.arange(1200)[~held & (torch.arange(1200) < 900 + left)]
    report = watched(kept, torch.arange(1200)[held])
    found = [f for f in report.findings if f.cause == "class_imbalance" and f.severity != "note"]
    if left:
        assert not found
    else:
        assert found[0].confidence == "certain"
        assert found[0].evidence["classes"] == [3]
