"""The course of the losses, against slow reference versions."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe.outcome import first_below, note_losses

LOSSES = st.lists(st.floats(-3, 3) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=60)


def steps_to(losses, limit):
    """Steps until a mean of ten losses is below the limit."""
    for end in range(10, len(losses) + 1):
        if statistics.fmean(losses[end - 10 : end]) < limit:
            return end - 10
    return len(losses)


@given(LOSSES, st.floats(0.1, 10))
def test_steps_to_each_level_are_those_of_a_search_from_the_start(losses, initial):
    found = first_below(losses, initial)
    if len(losses) < 20:
        assert found == {}
        return
    assert list(found) == [pytest.approx(0.99 - index / 100) for index in range(50)]
    for level, steps in found.items():
        assert steps == steps_to(losses, level * losses[0] / initial)


@pytest.mark.parametrize("initial", [None, 0.0, math.inf, math.nan])
def test_without_a_loss_of_guessing_there_are_no_levels(initial):
    assert first_below([1.0] * 30, initial) == {}


def test_losses_are_summed_up():
    evidence = Evidence()
    evidence.outcome.initial.relative_loss = 1.0
    losses = [2.0, 5.0, *[1.5] * 20, 1.0, 0.5, 0.25]
    note_losses(evidence, losses, [1.25, 0.5, 4.0])
    outcome, loop = evidence.outcome, evidence.loop
    assert (outcome.first_loss, outcome.last_loss, outcome.highest_loss) == (2.0, 0.375, 5.0)
    assert outcome.nonfinite_step is None
    assert outcome.first_below[0.9] == 2  # windows that hold the 5 have a mean of 1.85 and more
    assert (loop.loss_ratio, loop.loss_ratio_low, loop.loss_ratio_high) == (1.25, 0.5, 4.0)


def test_a_loss_that_is_not_finite_is_dated():
    evidence = Evidence()
    note_losses(evidence, [1.0, 3.0, math.nan, 2.0, math.inf], [])
    assert evidence.outcome.nonfinite_step == 2
    assert evidence.outcome.highest_loss == 3.0
    assert evidence.loop.loss_ratio is None
