"""Looks that are as far apart as the training is long."""

import math

import pytest

from debugnn.cadence import is_due, next_due


@pytest.mark.parametrize("every", [1, 7, 20])
@pytest.mark.parametrize("dense", [2, 4, 20])
def test_the_number_of_looks_grows_with_the_logarithm_of_the_steps(every, dense):
    looks = [step for step in range(100_000) if is_due(step, every, dense)]
    assert looks[:dense] == [every * number for number in range(dense)]
    doublings = math.log2(100_000 / (dense * every))
    assert len(looks) <= dense + (doublings + 1) * math.ceil(dense / 2) + 1
    later = looks[dense + 1 :]
    gaps = zip(looks[dense:], later, strict=False)
    assert all(after - before <= 2 * before / dense for before, after in gaps)


@pytest.mark.parametrize("every", [1, 7, 20])
@pytest.mark.parametrize("dense", [2, 4, 20, None])
def test_nothing_is_due_before_the_step_that_is_named(every, dense):
    for step in range(3000):
        following = next_due(step, every, dense)
        assert following > step
        assert not any(is_due(s, every, dense) for s in range(step + 1, following))


def test_the_distance_stays_where_that_is_asked_for():
    assert [step for step in range(1000) if is_due(step, 30, None)] == [*range(0, 1000, 30)]
