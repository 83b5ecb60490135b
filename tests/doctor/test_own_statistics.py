"""A scaler that was fitted to the validation samples."""

import pytest
import torch
from handmade_evidence import evidence, found_by, score
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from debugnn import Doctor
from debugnn.doctor.evidence import Validation
from debugnn.doctor.observe.own_statistics import standardised_alone

SHAPES = [(6,), (3, 8, 8), (20, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [(0,), "all"])
@pytest.mark.parametrize("correction", [0, 1])
@given(seed=st.integers(0, 10_000))
def test_samples_that_are_scaled_by_their_own_numbers(shape, axes, correction, seed):
    raw = 5 + 3 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(seed))
    over = tuple(range(raw.dim())) if axes == "all" else axes
    mean = raw.mean(dim=over, keepdim=True)
    scaled = (raw - mean) / raw.std(dim=over, keepdim=True, correction=correction)
    assert standardised_alone(scaled)


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 600))
def test_samples_that_are_scaled_by_other_samples_numbers(shape, seed, count):
    generator = torch.Generator().manual_seed(seed)
    train, new = (torch.randn(n, *shape, generator=generator) for n in (2_000, count))
    assert not standardised_alone((new - train.mean(dim=0)) / train.std(dim=0))


def test_channels_scaled_each_by_its_own_numbers_and_flags_left_as_they_are():
    images = torch.rand(100, 3, 8, 8)
    axes = (0, 2, 3)
    channels = (images - images.mean(dim=axes, keepdim=True)) / images.std(dim=axes, keepdim=True)
    assert standardised_alone(channels)
    table = torch.randn(100, 4)
    table = (table - table.mean(dim=0)) / table.std(dim=0)
    flags = (torch.rand(100, 3) < 0.5).float()
    assert standardised_alone(torch.cat([table, flags], dim=1))
    assert not standardised_alone(torch.cat([table[:, :1], flags], dim=1))


def test_values_that_the_training_has_too_were_scaled_as_there():
    """An hour of the day has one mean on any whole number of days."""
    angle = torch.arange(24 * 90) % 24 * (2 * torch.pi / 24)
    table = torch.stack([angle.sin(), angle.cos(), (2 * angle).sin(), torch.randn(24 * 90)], dim=1)
    table = (table - table.mean(dim=0)) / table.std(dim=0, correction=0)
    train, new = table[: 24 * 59], table[24 * 59 :]
    assert standardised_alone(new)
    assert not standardised_alone(new, train)
    again = (new - new.mean(dim=0)) / new.std(dim=0)
    assert standardised_alone(again, train)


@pytest.mark.parametrize("shape", [(64,), (5, 40)])
def test_samples_that_are_scaled_each_by_itself_are_no_set_that_was(shape):
    series = torch.randn(200, *shape)
    axes = tuple(range(1, series.dim()))
    alone = series - series.mean(dim=axes, keepdim=True)
    alone = alone / alone.std(dim=axes, keepdim=True, correction=0)
    assert not standardised_alone(alone)


def test_minutes_of_two_days_are_a_cycle_whatever_is_known_of_the_training():
    angle = torch.arange(2 * 1440) % 1440 * (2 * torch.pi / 1440)
    cycle = 2**0.5 * torch.stack([angle.sin(), angle.cos()], dim=1).double()
    assert not standardised_alone(cycle)
    assert not standardised_alone(cycle, cycle[:700])


def samples(count, seed):
    """Temperatures of a season, flags, and what depends on both."""
    generator = torch.Generator().manual_seed(seed)
    warmth = 20 * seed + 5 * torch.randn(count, 1, generator=generator)
    others = torch.randn(count, 3, generator=generator)
    return torch.cat([warmth, others], dim=1), (warmth / 10 + others[:, :1] ** 2)


@pytest.mark.parametrize("refitted", [False, True])
def test_a_scaler_that_is_refitted_is_seen_in_sets_of_any_size_and_by_any_loss(refitted):
    torch.manual_seed(0)
    (x, y), (new, wanted) = samples(1024, 0), samples(2000, 1)
    mean, deviation = x.mean(dim=0), x.std(dim=0)
    own = (new.mean(dim=0), new.std(dim=0)) if refitted else (mean, deviation)
    new = (new - own[0]) / own[1]
    x = (x - mean) / deviation
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def quantiles(outputs, targets):
        error = targets - outputs
        return torch.maximum(0.1 * error, -0.9 * error)[:, 0].mean() + error[:, 1].abs().mean()

    with Doctor(model, optimizer, quantiles, budget=0) as doctor:
        for _ in range(20):
            for inputs, targets in zip(x.split(64), y.split(64), strict=True):
                optimizer.zero_grad()
                loss = quantiles(model(inputs), targets)
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs, targets)
            doctor.validate(new, wanted)
        report = doctor.report()
    found = [f for f in report.findings if "standardised apart" in f.summary]
    assert [f.severity for f in found] == ["warning"] * refitted


@pytest.mark.parametrize(
    ("alone", "kept", "severity"),
    [(True, 0.5, "warning"), (True, 0.9, "note"), (False, 0.5, None)],
)
def test_it_is_a_warning_where_the_skill_falls(alone, kept, severity):
    given = evidence(0.95)
    given.data.standardised_alone = alone
    given.outcome.validations = [Validation(20, 1.0, score(kept, samples=300))]
    assert [f.severity for f in found_by("train_test_mismatch", given)] == [severity] * alone
