"""A scaler that was fitted to the validation samples."""

import pytest
import torch
from handmade_evidence import evidence, found_by, score
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("alone", "kept", "severity"),
    [(True, 0.5, "warning"), (True, 0.9, "note"), (False, 0.5, None)],
)
def test_it_is_a_warning_where_the_skill_falls(alone, kept, severity):
    given = evidence(0.95)
    given.data.standardised_alone = alone
    given.outcome.validations = [Validation(20, 1.0, score(kept, samples=300))]
    assert [f.severity for f in found_by("train_test_mismatch", given)] == [severity] * alone
