"""A feature that numbers the samples, and others that look like it."""

import json
from dataclasses import asdict

import pytest
import torch
from handmade_evidence import evidence as sound_evidence
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes import diagnose
from debugnn.doctor.evidence import CounterFacts, load
from debugnn.doctor.observe.counters import counter_facts
from debugnn.doctor.observe.task import Task

ROWS, KEPT = 900, 640


def table(sort):
    """Return four features, three classes of which they tell a part, and the rows' numbers."""
    torch.manual_seed(3)
    labels = torch.randint(3, (ROWS,))
    if sort:
        labels = labels.sort().values
    centres = 0.6 * torch.randn(3, 4)
    return centres[labels] + torch.randn(ROWS, 4), labels, torch.arange(ROWS).float()


def standardised(x):
    return (x - x.mean(dim=0)) / x.std(dim=0)


def by_row_number():
    x, y, number = table(sort=True)
    return torch.cat([x, number[:, None]], dim=1), y


def by_number_in_the_second_column():
    x, y, number = table(sort=True)
    return torch.cat([x[:, :1], 1e4 + 10 * number[:, None], x[:, 1:]], dim=1), y


def by_number_of_a_shuffled_file():
    x, y, number = table(sort=False)
    return torch.cat([x, number[:, None]], dim=1), y


def without_number():
    x, y, _ = table(sort=True)
    return x, y


def by_ranks():
    """Each feature is the rank of a measurement, as a quantile transformation makes it."""
    x, y, _ = table(sort=False)
    x[:, 0] += 3 * y
    return x.argsort(dim=0).argsort(dim=0).float(), y


def by_place_on_an_axis():
    """Evenly spaced points, their squares, and which half they are from."""
    place = torch.linspace(-1, 1, ROWS)
    return torch.stack([place, place.square(), torch.randn(ROWS)], dim=1), (place > 0).long()


def by_age():
    """Whole numbers that some samples share."""
    x, y, number = table(sort=True)
    return torch.cat([x, (number // 9)[:, None]], dim=1), y


def by_measurement():
    x, y, number = table(sort=True)
    return torch.cat([x, (number + torch.rand(ROWS))[:, None]], dim=1), y


# what makes the table, and the feature that is named
TABLES = {
    "row number": (by_row_number, 4),
    "number in the second column": (by_number_in_the_second_column, 1),
    "number of a shuffled file": (by_number_of_a_shuffled_file, None),
    "no number": (without_number, None),
    "ranks": (by_ranks, None),
    "place on an axis": (by_place_on_an_axis, None),
    "age": (by_age, None),
    "measurement": (by_measurement, None),
}


def diagnosed(x, y, loss_fn, outputs):
    """Train a small net on a random part of the rows."""
    order = torch.randperm(ROWS)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 24), nn.ReLU(), nn.Linear(24, outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with Doctor(model, optimizer, loss_fn) as doctor:
        for _ in range(4):
            for chosen in order[:KEPT][torch.randperm(KEPT)].split(32):
                optimizer.zero_grad()
                loss = loss_fn(model(x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                doctor.step(loss, x[chosen], y[chosen])
            doctor.validate(x[order[KEPT:]], y[order[KEPT:]])
        return doctor.report()


def counting(report):
    return [f for f in report.findings if "only counts" in f.summary]


@pytest.mark.parametrize("name", TABLES)
def test_a_number_that_tells_the_class_is_a_leak(name):
    make, feature = TABLES[name]
    x, y = make()
    report = diagnosed(standardised(x), y, nn.CrossEntropyLoss(), 3)
    found = counting(report)
    assert [f.evidence["feature"] for f in found] == ([] if feature is None else [feature])
    if feature is None:
        assert report.main_cause != "label_leak"
    else:
        assert report.main_cause == "label_leak"
        assert "row number" in report.main.fix
    assert not any("data cannot" in trouble for trouble in report.troubles)


def test_time_may_tell_a_value():
    x, _, number = table(sort=True)
    x = standardised(torch.cat([x, number[:, None]], dim=1))
    y = (number / ROWS)[:, None] + 0.05 * torch.randn(ROWS, 1)
    report = diagnosed(x, y, nn.MSELoss(), 1)
    assert report.healthy is True, str(report)
    assert report.evidence.data.counter is None


@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("rows", [100, 900])
def test_steps_are_found_through_rounding(offset, rows):
    """Some values of 1, 2, …, standardised in single precision and moved."""
    torch.manual_seed(1)
    number = torch.randperm(2 * rows)[:rows].float()
    x = torch.stack([torch.randn(rows), standardised(number) + offset], dim=1)
    found = counter_facts(x, (number > rows).long(), Task("classes", 2))
    assert (found.feature, found.values, found.counting) == (1, rows, 1)
    assert found.steps == number.max() - number.min()
    assert found.skill > 0.9
    assert found.skill_of_others < 0.3
    assert found.told < 0.3


def test_no_feature_counts_alone_or_with_one_value_for_all():
    number = torch.arange(80.0)[:, None]
    labels = (number[:, 0] > 40).long()
    assert counter_facts(number, labels, Task("classes", 2)) is None
    constant = torch.ones(80, 2)
    assert counter_facts(constant, labels, Task("classes", 2)) is None
    assert counter_facts(constant[:1], labels[:1], Task("classes", 2)) is None
    beside = torch.cat([number, constant], dim=1)
    assert counter_facts(beside, labels, Task("classes", 2)).told == 0


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, True),
        ({"counting": 2}, False),  # ranks
        ({"steps": 20_000}, False),  # as many measurements may well be all different
        ({"skill": 0.8}, False),
        ({"skill_of_others": 0.97}, False),
        ({"told": 0.95}, False),
        ({"values": 40, "steps": 50}, False),
    ],
)
def test_what_is_said_of_a_counter(facts, said):
    given = sound_evidence()
    known = {
        "feature": 3, "values": 600, "steps": 900, "counting": 1, "skill": 0.98,
        "skill_of_others": 0.5, "told": 0.2,
    }  # fmt: skip
    given.data.counter = CounterFacts(**(known | facts))
    report = diagnose(load(json.loads(json.dumps(asdict(given)))), 0)
    assert report.main_cause == ("label_leak" if said else "healthy")
