"""What several causes ask of the evidence, at the edges of its thresholds."""

import math

import pytest
from handmade_evidence import TENTH, diagnosis, evidence, score, with_nan, with_trials

from debugnn.doctor.causes.over_regularised import strong_decay
from debugnn.doctor.causes.signals import data, loss_course, loss_function, outcome, trials
from debugnn.doctor.causes.signals.skill import JUDGED_AFTER, fitted, judged, skill
from debugnn.doctor.evidence import Score, TrialOutcome
from debugnn.doctor.trials import (
    AVERAGED_LOSS,
    REINITIALISED,
    STANDARDISED_INPUTS,
    UNCHANGED,
    UNFROZEN,
)


def test_skill_is_the_better_of_both_modes_and_minus_infinity_after_a_nan():
    given = evidence(0.3)
    assert skill(given) == 0.3
    given.outcome.train_mode = score(0.6)
    assert skill(given) == 0.6
    given.outcome.nonfinite_step = 17
    assert skill(given) == -math.inf


def test_a_loss_that_falls_says_nothing_about_an_unknown_task():
    given = evidence()
    given.task = "unknown"
    given.outcome.train = given.outcome.train_mode = Score()
    given.outcome.first_loss, given.outcome.last_loss = 4.0, 1.0
    assert skill(given) is None
    assert not judged(given)
    assert diagnosis(given).healthy is None
    assert "not known what the loss compares" in diagnosis(given).reason


def test_skill_counts_recall_where_it_is_higher_than_accuracy():
    given = evidence()
    mean_recall = Score(0.5, 0.2, balanced=0.82)
    assert fitted(mean_recall, given) == pytest.approx((0.82 - 0.1) / 0.9)
    given.classes = None
    assert fitted(mean_recall, given) == 0.2


def test_too_few_steps_are_not_judged_but_for_a_nan():
    given = evidence(0.0)
    given.loop.steps = JUDGED_AFTER
    assert judged(given)
    assert outcome.failing(given)
    given.loop.steps = JUDGED_AFTER - 1
    assert not any(f(given) for f in (judged, outcome.failing, outcome.short, outcome.at_chance))
    given.outcome.nonfinite_step = 3
    assert judged(given)
    assert outcome.failing(given)


# skill, a simple model's skill → failing, short
OUTCOMES = [
    (0.05, None, True, True),
    (0.30, None, False, False),  # nothing says that more can be reached
    (0.30, 0.1, False, False),
    (0.49, 0.58, False, False),  # little behind a simple model that finds little
    (0.45, 0.56, True, True),
    (0.64, 0.90, True, True),  # far behind
    (0.66, 0.90, False, True),  # visibly behind
    (0.79, 0.90, False, True),
    (0.81, 0.90, False, False),
    (0.20, 0.16, False, False),  # noise: nobody does better
]


@pytest.mark.parametrize(("reached", "simple", "failing", "short"), OUTCOMES)
def test_failing_and_short(reached, simple, failing, short):
    given = evidence(reached, simple=simple)
    assert outcome.failing(given) is failing
    assert outcome.short(given) is short


@pytest.mark.parametrize(("reached", "learns"), [(0.05, None), (0.45, None), (0.55, True)])
def test_a_critic_that_runs_after_its_targets_is_not_accused(reached, learns):
    given = evidence(reached, simple=0.7)
    given.task, given.classes, given.data.targets_moved = "values", None, True
    assert outcome.learns(given) is learns
    assert outcome.short(given) is bool(learns)  # so far behind a simple model it is looked into
    assert diagnosis(given).healthy is learns
    given.outcome.nonfinite_step = 17
    assert outcome.failing(given)


@pytest.mark.parametrize(("moved", "last", "failing"), [
    (True, 0.1, False),  # its actor's returns grew on the way
    (True, 90.0, True),
    (False, 0.1, True),
])  # fmt: skip
def test_a_critic_whose_loss_was_high_on_the_way_has_not_diverged(moved, last, failing):
    given = evidence(0.3, simple=0.1)
    given.task, given.classes, given.data.targets_moved = "values", None, moved
    losses = given.outcome
    losses.first_loss, losses.highest_loss, losses.last_loss = 20.0, 100.0, last
    losses.own_loss.relative = 0.7
    assert outcome.failing(given) is failing


def test_a_bottleneck_is_not_short_of_a_model_that_copies_its_inputs():
    given = evidence(0.79, simple=0.96)
    assert outcome.short(given)
    given.reconstruction = True
    assert not outcome.short(given)
    assert outcome.short(evidence(0.3, simple=0.96))


@pytest.mark.parametrize(
    ("tenths", "tried"),
    [
        ([1.8, 1.0, 1.0, 1.3, 1.4, 1.45, 1.45, 1.4, 1.36, 1.33], True),  # lost, and falls again
        ([1.8, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], True),  # at a standstill
        ([1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9], False),
    ],
)
def test_a_strong_decay_is_tried_where_a_training_stands_still_or_loses_what_it_learnt(
    tenths, tried
):
    given = evidence(0.5)
    given.outcome.first_loss, given.outcome.tenths = tenths[0], tenths
    given.outcome.highest_loss, given.outcome.last_loss = tenths[0], tenths[-1]
    given.optimizer.weight_decay, given.optimizer.decay_rescaled = 0.1, True
    assert strong_decay(given) == tried


@pytest.mark.parametrize(
    ("highest", "steps", "named"), [(0, 300, True), (0.1, 300, False), (0, 9, False)]
)
def test_a_loss_of_zero_from_the_first_step_on_asks_for_nothing(highest, steps, named):
    given = evidence()
    given.task, given.loop.steps = "unknown", steps
    given.outcome.first_loss = given.outcome.lowest_loss = given.outcome.last_loss = 0.0
    given.outcome.highest_loss = highest
    assert (loss_course.always_zero(given) is not None) == named


@pytest.mark.parametrize(
    ("reached", "losses", "expected"),
    [
        (0.85, (1.2, 1.2), True),
        (0.85, (1.2, 1.0), False),  # one of the modes is better than guessing
        (0.85, (1.2, None), False),
        (0.90, (1.2, 1.2), False),  # a few that it is sure of, and wrong
    ],
)
def test_a_loss_worse_than_guessings_fails_at_a_fair_accuracy(reached, losses, expected):
    given = evidence(reached)
    given.outcome.train, given.outcome.train_mode = (Score(x, reached, reached) for x in losses)
    assert outcome.failing(given) is expected
    given.loss.shift_change = 1.0  # of another loss nothing is known
    assert not outcome.failing(given)
    given.task, given.classes, given.loss.best = "binary", 2, 1e-5
    assert outcome.failing(given) is expected


def test_a_floor_of_zero_is_low():
    given = evidence(0.85)
    given.outcome.train = given.outcome.train_mode = Score(1.2, 0.85, 0.85)
    given.task, given.classes, given.loss.shift_change = "binary", 2, None
    assert loss_function.loss_floor(given) == 0.0
    assert outcome.failing(given)


def test_at_chance():
    def chance(skill, loss):
        given = evidence()
        given.outcome.train = given.outcome.train_mode = Score(loss, skill, 0.1)
        return outcome.at_chance(given)

    assert chance(outcome.AT_CHANCE - 0.01, outcome.LOSS_AT_CHANCE + 0.01)
    assert not chance(outcome.AT_CHANCE, outcome.LOSS_AT_CHANCE + 0.01)
    # A model of a language gets few symbols right, and its loss is far below that of guessing.
    assert not chance(0.05, outcome.LOSS_AT_CHANCE)


# relative losses at the end of the unchanged trial and of the changed one → cured
CURES = [
    (1.0, 0.97, True),  # from nothing to something
    (1.0, 0.99, False),
    (0.9, 0.77, True),  # 0.10 → 0.23: twice as much and a little
    (0.9, 0.81, False),
    (0.4, 0.29, True),  # 0.60 → 0.71: a tenth more
    (0.4, 0.31, False),
    (1.4, 1.0, False),  # no better than guessing, from no worse than 1.5
    (1.4, 0.99, True),  # from worse than guessing to better
    (1.2, 0.99, False),
    (math.inf, 0.9, True),
    (math.inf, math.inf, False),
    (2.0, 1.04, True),  # far worse than guessing: to be where guessing is, is enough
    (2.0, 1.06, False),
]


@pytest.mark.parametrize(("unchanged", "changed", "expected"), CURES)
def test_cured_at_its_edges(unchanged, changed, expected):
    given = with_trials({UNCHANGED: unchanged, REINITIALISED: changed})
    assert trials.cured(given, REINITIALISED) == (REINITIALISED if expected else None)


def test_cured_takes_the_best_of_those_that_are_asked_for():
    given = with_trials(
        {UNCHANGED: 1.0, REINITIALISED: 0.5, STANDARDISED_INPUTS: 0.3, AVERAGED_LOSS: 0.9}
    )
    assert trials.cured(given, REINITIALISED, AVERAGED_LOSS) == REINITIALISED
    every = (REINITIALISED, STANDARDISED_INPUTS, AVERAGED_LOSS)
    assert trials.cured(given, *every) == STANDARDISED_INPUTS
    assert trials.cured(given, UNFROZEN) is None
    del given.trials[UNCHANGED.name]
    assert trials.cured(given, REINITIALISED) is None


@pytest.mark.parametrize(
    ("unchanged", "changed", "expected"),
    [(1.0, 0.5, "shown"), (1.0, 0.99, "suspected"), (0.4, 0.5, "suspected"),
     (None, 0.5, "suspected"), (1.0, None, "suspected"), (1.0, math.nan, "suspected")],
)  # fmt: skip
def test_a_cure_is_shown_where_other_batches_confirm_it(unchanged, changed, expected):
    given = with_trials({UNCHANGED: 1.0, REINITIALISED: 0.5})
    given.trials[UNCHANGED.name].end_again = unchanged
    given.trials[REINITIALISED.name].end_again = changed
    assert trials.shown_by(given, trials.cured(given, REINITIALISED)) == expected


def test_a_lower_rate_must_learn_and_not_only_calm_down():
    assert trials.cured(with_trials({UNCHANGED: math.inf, TENTH: 1.01}), TENTH) is None
    assert trials.cured(with_trials({UNCHANGED: math.inf, TENTH: 0.9}), TENTH) == TENTH


def test_a_trial_that_failed_cures_nothing():
    given = with_trials({UNCHANGED: 1.0})
    given.trials[REINITIALISED.name] = TrialOutcome(0, math.nan, math.nan)
    assert trials.cured(given, REINITIALISED) is None


def test_a_comparison_that_failed_accuses_nobody():
    given = with_trials({REINITIALISED: 1.0})
    given.trials[UNCHANGED.name] = TrialOutcome(0, math.nan, math.nan)
    assert trials.cured(given, REINITIALISED) is None


@pytest.mark.parametrize(
    ("where", "overflow", "highest", "expected"),
    [
        ("input", True, 1e9, False),
        ("target", True, 1e9, False),
        ("forward", False, 2.4, False),
        ("forward", True, 2.4, True),
        ("forward", False, 1e9, True),
        ("unknown", False, 2.4, True),
        ("parameter", False, 2.4, False),
        ("parameter", True, 2.4, True),
        ("backward", False, 2.4, False),
    ],
)
def test_an_overflow_is_told_from_an_invalid_operation(where, overflow, highest, expected):
    given = with_nan(where, overflow=overflow, highest_loss=highest)
    assert loss_course.overflowed(given) is expected
    report = diagnosis(given)
    assert report.findings[0].cause == "non_finite"
    assert report.findings[0].samples == [3]
    assert (report.findings[0].override == "clip=4.0") is expected


def test_parameters_that_are_broken_at_the_start_are_no_overflow():
    assert not loss_course.overflowed(with_nan("parameter", step=0, overflow=True))


@pytest.mark.parametrize(
    ("facts", "odd"),
    [
        ({}, False),
        ({"rms": 8.1}, True),
        ({"rms": 8.0}, False),
        ({"rms": 0.049}, True),
        ({"rms": 0.05}, False),
        ({"mean": 5.1}, True),
        ({"mean": -5.1}, True),
        ({"mean": 5.0}, False),
        ({"feature_spread": 101.0}, True),
        ({"feature_spread": 100.0}, False),
        ({"rms": 100.0, "floating": False}, False),
        ({"rms": None}, False),
    ],
)
def test_odd_inputs_at_their_edges(facts, odd):
    given = evidence()
    for name, value in facts.items():
        setattr(given.data, name, value)
    assert (data.odd_inputs(given) is not None) is odd


@pytest.mark.parametrize(
    ("halves", "skill", "named"),
    [
        ([True, False], 0.02, True),
        ([True, True], 0.02, False),
        ([False, True], 0.02, False),
        ([True, False], 0.95, False),
        ([], 0.02, False),
    ],
)
def test_only_a_training_that_falls_short_misses_the_second_half_of_its_sequences(
    halves, skill, named
):
    given = evidence(skill)
    given.network.halves_used = halves
    found = [f for f in diagnosis(given).findings if "halves_used" in f.evidence]
    assert bool(found) == named
    assert all((f.cause, f.confidence) == ("vanishing_gradient", "certain") for f in found)
