"""Which trials the causes ask for, and which wait to be confirmed."""

from handmade_evidence import (
    HUNDREDFOLD,
    STEPS,
    TENFOLD,
    evidence,
    found_by,
    outcomes,
    score,
    with_trials,
)

from debugnn.doctor import causes
from debugnn.doctor.evidence import PairFacts, TailFacts, TrialOutcome
from debugnn.doctor.trials import (
    AVERAGED_LOSS,
    CLIPPED,
    HIGHER_RATES,
    LOWER_RATES,
    PADDED_ON,
    REINITIALISED,
    RESUMED_FASTER,
    STANDARDISED_INPUTS,
    TRIALS,
    UNCHANGED,
    UNFROZEN,
    UNPADDED_ON,
    UNREGULARISED,
    UNREGULARISED_ON,
)


def test_cures_wait_to_be_confirmed_beside_the_unchanged_training():
    given = with_trials({UNCHANGED: 1.0, REINITIALISED: 0.5, AVERAGED_LOSS: 0.99})
    assert list(causes.trials_to_confirm(given)) == []
    for outcome in given.trials.values():
        outcome.end_again = None
    assert list(causes.trials_to_confirm(given)) == [UNCHANGED, REINITIALISED]
    given.trials[UNCHANGED.name].end_again = 1.0
    assert list(causes.trials_to_confirm(given)) == [REINITIALISED]


def test_no_trial_is_wanted_for_a_healthy_training_or_a_certain_cause():
    assert list(causes.trials_wanted(evidence())) == []
    given = evidence(0.0)
    assert next(causes.trials_wanted(given)) == UNCHANGED
    given.loop.residues = [[step, 1e-6, 0.5] for step in range(STEPS)]
    assert list(causes.trials_wanted(given)) == []


def test_trials_are_asked_for_by_what_is_odd():
    given = evidence(0.0)
    assert list(causes.trials_wanted(given)) == [UNCHANGED, *HIGHER_RATES]
    given.data.rms = 100.0
    given.optimizer.weight_decay = 0.1
    given.optimizer.frozen_held = ["first.weight"]
    given.loss.doubling = 2.0
    given.weights[0].gain = 9.0
    given.outcome.highest_loss = 1e4
    assert list(causes.trials_wanted(given)) == [
        UNCHANGED, STANDARDISED_INPUTS, AVERAGED_LOSS, REINITIALISED, UNREGULARISED, UNFROZEN,
        CLIPPED, *LOWER_RATES,
    ]  # fmt: skip


def test_higher_rates_are_tried_until_one_learns():
    given = with_trials({UNCHANGED: 1.0, TENFOLD: 0.99})
    assert list(causes.trials_wanted(given)) == [UNCHANGED, *HIGHER_RATES]
    given.trials |= outcomes({HUNDREDFOLD: 0.5})
    assert list(causes.trials_wanted(given)) == [UNCHANGED]


def slow_warm_up(skill):
    """A training at the beginning of a warm-up that is stepped once an epoch."""
    given = evidence(skill)
    given.optimizer.rates = [[float(at), (1 + at) * 1e-6] for at in range(0, STEPS, 40)]
    given.optimizer.scheduled = 1.0
    return given


def test_a_slow_warm_up_is_gone_on_from_only_where_something_was_learnt():
    assert RESUMED_FASTER in causes.trials_wanted(slow_warm_up(0.7))
    failing = list(causes.trials_wanted(slow_warm_up(0.0)))
    assert RESUMED_FASTER not in failing
    assert set(HIGHER_RATES) <= set(failing)


def half_padding(skill):
    """A training on sequences that are padding by half, at this skill on the other symbols."""
    given = evidence()
    given.data.tail = TailFacts(0, 0.5, 1.0, 1.0, 5, can_be_left_out=True, others=score(skill))
    return given


def test_padding_is_left_out_only_where_other_symbols_are_not_learnt_and_the_loss_can():
    assert {PADDED_ON, UNPADDED_ON} <= set(causes.trials_wanted(half_padding(0.5)))
    assert list(causes.trials_wanted(half_padding(0.9))) == []
    for change in ({"share": 0.4}, {"can_be_left_out": False}, {"only_there": 0.5}):
        given = half_padding(0.5)
        vars(given.data.tail).update(change)
        assert list(causes.trials_wanted(given)) == []


def test_two_trials_beside_each_other_are_confirmed_together():
    given = half_padding(0.5)
    for trial, end in ((PADDED_ON, 0.6), (UNPADDED_ON, 0.55)):
        given.trials[trial.name] = TrialOutcome(48, 0.7, end)
    assert list(causes.trials_to_confirm(given)) == []
    given.trials[UNPADDED_ON.name].end = 0.4
    assert list(causes.trials_to_confirm(given)) == [PADDED_ON, UNPADDED_ON]
    for outcome, again in zip(given.trials.values(), (0.6, 0.55), strict=True):
        outcome.start_again, outcome.end_again = 0.7, again
    assert found_by("wrong_loss", given)[0].severity == "note"
    given.trials[UNPADDED_ON.name].end_again = 0.4
    assert found_by("wrong_loss", given)[0].confidence == "shown"
    # The other one may have lost what it had learnt, which leaves less to be proud of.
    given.trials[PADDED_ON.name].end, given.trials[UNPADDED_ON.name].end = 0.9, 0.65
    assert found_by("wrong_loss", given)[0].severity == "note"


def test_a_stuck_warm_up_comes_before_small_weights_once_no_higher_rate_told():
    given = slow_warm_up(0.0)
    given.weights[0].gain = given.weights[1].gain = 0.01
    given.trials = outcomes(
        {UNCHANGED: 1.0, REINITIALISED: 0.5, **dict.fromkeys(HIGHER_RATES, 1.0)}
    )
    main = causes.diagnose(given, 200).main
    assert (main.cause, main.confidence) == ("lr_too_low", "certain")
    given.data.simple_skill = 0.05  # labels of chance
    assert causes.diagnose(given, 200).main.cause == "init_scale_too_small"


def test_each_trial_changes_one_thing_and_is_wanted_by_some_cause():
    plain = {"name": "", "lr": 1.0, "regularised": True, "clipped": None, "padding": None}
    for trial in TRIALS:
        fields = {k: v for k, v in vars(trial).items() if k != "name"}
        changed = [k for k, v in fields.items() if v != plain.get(k, False)]
        # One that goes on from the trained weights is compared with these weights themselves.
        goes_on = trial in (UNREGULARISED_ON, RESUMED_FASTER, PADDED_ON, UNPADDED_ON)
        assert len(changed) == (trial is not UNCHANGED) + goes_on, trial
    given = evidence(0.0)
    given.task = "values"
    given.data.rms = given.data.target_rms = 100.0
    given.optimizer.weight_decay, given.optimizer.frozen_held = 0.1, ["first.weight"]
    given.loss.doubling, given.loss.other_outputs = 2.0, True
    given.loop.passes_per_update, given.loop.gradient_scale = [4, 4], 1.0
    given.weights[0].gain = 9.0
    given.loop.passes_per_update, given.loop.gradient_scale = [4, 4, 4], 1.0
    given.network.nonlinear = False
    given.network.output_signal = 1e-3
    given.data.pairs = PairFacts(together=0.0, nearer=0.1, error=0.05, pairs=100)
    given.network.table_rms, given.outcome.initial.relative_loss = 1.0, 4.0
    given.network.data_inputs = {"second": 50.0}
    given.optimizer.decay_rescaled, given.outcome.tenths = True, [2.0] + [1.0] * 9
    given.optimizer.rates = [[0.0, 1e-3], [60.0, 1e-6], [STEPS - 1.0, 1e-6]]
    for each in given.weights:  # of low rank, which can be meant
        each.inputs, each.outputs, each.signal = 9, 4, 1.0
    given.weights[-1].outputs = 9
    wanted = set(causes.trials_wanted(given))
    given.data.rms = 1.0  # of the inputs; what one layer takes is large
    wanted |= set(causes.trials_wanted(given))
    wanted |= set(causes.trials_wanted(slow_warm_up(0.7)))
    given.outcome.highest_loss = 1e4
    wanted |= set(causes.trials_wanted(given))
    assert wanted | set(causes.trials_wanted(half_padding(0.5))) == set(TRIALS)
