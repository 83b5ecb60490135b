"""From evidence made by hand to findings: gates, thresholds at their edges, order."""

import math
from dataclasses import replace

import pytest

from debugnn.doctor import causes
from debugnn.doctor.causes import CAUSES, ORDER
from debugnn.doctor.causes.cause import Kind
from debugnn.doctor.causes.dead_relu import DEAD
from debugnn.doctor.causes.label_leak import LEAKED
from debugnn.doctor.causes.saturated_activation import SATURATED
from debugnn.doctor.causes.signals import (
    data,
    learning_rate,
    loss_function,
    network,
    outcome,
    trials,
)
from debugnn.doctor.evidence import (
    ActivationFacts,
    Evidence,
    LayerFacts,
    NonFinite,
    Probe,
    Score,
    TrialOutcome,
    Validation,
    WeightFacts,
)
from debugnn.doctor.report import SEVERITIES, Finding
from debugnn.doctor.trials import (
    AVERAGED_LOSS,
    CLIPPED,
    HIGHER_RATES,
    LOWER_RATES,
    REINITIALISED,
    STANDARDISED_INPUTS,
    TRIALS,
    UNCHANGED,
    UNFROZEN,
    UNREGULARISED,
)

STEPS = 200


def weight(name, **others):
    facts = {"size": 100, "gain": 1.0, "identical_rows": False, "identical_columns": False,
             "constant": False, "hidden": name != "out.weight", "norm": 5.0}  # fmt: skip
    return WeightFacts(name, **(facts | others))


def evidence(skill=0.95, **simple) -> Evidence:
    """A sound classifier of ten classes after 200 steps, at this skill on its training samples."""
    found = Evidence(task="classes", classes=10)
    loss = found.loss
    loss.rewards, loss.best, loss.constant, loss.doubling = [[0.1, 9.0]], 0.0, 2.3, 1.0
    loss.shift_change, loss.other_entries, loss.cross_gradient = 0.0, 0.5, 0.0
    loss.shapes = [[32, 10], [32]]
    data = found.data
    data.samples = data.distinct = 800
    data.rms, data.mean, data.std, data.feature_spread = 1.0, 0.0, 1.0, 2.0
    data.class_counts = dict.fromkeys(range(10), 80)
    data.features, data.feature_share_median = 20, 0.2
    data.feature_shares, data.feature_order = [0.5, 0.45, 0.4], [3, 1, 2]
    data.simple_skill = simple.get("simple", 0.9)
    network = found.network
    network.parameters, network.depth, network.nonlinear = 1000, 3, True
    network.last_op, network.mixing = "addmm", 0.0
    found.weights = [weight(n) for n in ("first.weight", "second.weight", "out.weight")]
    optimizer = found.optimizer
    optimizer.name, optimizer.held, optimizer.trainable, optimizer.lr = "Adam", 6, 6, 1e-3
    loop = found.loop
    loop.steps = loop.optimizer_steps = loop.backwards = loop.training_forwards = STEPS
    loop.loss_ratio = loop.loss_ratio_low = loop.loss_ratio_high = 1.0
    loop.residues = [[step, 0.5, 1e-6] for step in range(STEPS)]
    found.probes = [probe(step) for step in (0, 3, 8, 20, 40)]
    outcome = found.outcome
    outcome.first_loss, outcome.last_loss = 2.3, 2.3 * (1 - skill)
    outcome.highest_loss = 2.4
    outcome.initial = Score(1.0, 0.0, 0.1, samples=32)
    outcome.train = outcome.train_mode = score(skill)
    outcome.movement, outcome.shrinkage = 0.5, 1.0
    return found


def score(skill, samples=800) -> Score:
    return Score(1 - skill, skill, 0.1 + 0.9 * skill, samples=samples)


def probe(step, gradients=(1.0, 1.0, 1.0), update=0.005) -> Probe:
    names = ("first.weight", "second.weight", "out.weight")
    layers = {n: LayerFacts(g, 5.0, 5.0 * update) for n, g in zip(names, gradients, strict=True)}
    activations = [ActivationFacts("relu", "first", 0.5, 0.1, None)]
    return Probe(step, layers, {"first": 1.0, "second": 0.6, "out": 0.5}, activations)


def found_by(cause, given):
    findings = list(CAUSES[cause].findings(given))
    assert all(isinstance(f, Finding) for f in findings)
    assert all(f.summary and f.fix for f in findings)
    return findings


def diagnosis(given):
    return causes.diagnose(given, budget=200, overrides=True)


# --- nothing to say -----------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [0.75, 0.9, 1.0])
def test_a_training_that_learns_has_no_finding(skill):
    report = diagnosis(evidence(skill, simple=0.8))
    assert report.findings == []
    assert report.healthy
    assert report.outcome["skill"] == skill
    assert report.main_cause == "healthy"


def test_without_any_evidence_nothing_is_found():
    given = Evidence()
    given.network.parameters = 10
    assert diagnosis(given).findings == []


def test_every_cause_is_described_and_stands_in_the_order():
    assert list(CAUSES) == list(ORDER)
    for name, cause in CAUSES.items():
        assert cause.name == name
        assert cause.rules
        assert all((cause.meaning, cause.fix, cause.source))


# --- how well it went ---------------------------------------------------------------------------


def test_skill_is_the_better_of_both_modes_and_minus_infinity_after_a_nan():
    given = evidence(0.3)
    assert outcome.skill(given) == 0.3
    given.outcome.train_mode = score(0.6)
    assert outcome.skill(given) == 0.6
    given.outcome.nonfinite_step = 17
    assert outcome.skill(given) == -math.inf


def test_a_loss_that_falls_says_nothing_about_an_unknown_task():
    given = evidence()
    given.task = "unknown"
    given.outcome.train = given.outcome.train_mode = Score()
    given.outcome.first_loss, given.outcome.last_loss = 4.0, 1.0
    assert outcome.skill(given) is None
    assert not outcome.judged(given)
    assert diagnosis(given).healthy is None
    assert "not known what the loss compares" in diagnosis(given).reason


def test_skill_counts_recall_where_it_is_higher_than_accuracy():
    given = evidence()
    mean_recall = Score(0.5, 0.2, balanced=0.82)
    assert outcome.fitted(mean_recall, given) == pytest.approx((0.82 - 0.1) / 0.9)
    given.classes = None
    assert outcome.fitted(mean_recall, given) == 0.2


def test_too_few_steps_are_not_judged_but_for_a_nan():
    given = evidence(0.0)
    given.loop.steps = outcome.JUDGED_AFTER
    assert outcome.judged(given)
    assert outcome.failing(given)
    given.loop.steps = outcome.JUDGED_AFTER - 1
    assert not any(
        f(given) for f in (outcome.judged, outcome.failing, outcome.short, outcome.at_chance)
    )
    given.outcome.nonfinite_step = 3
    assert outcome.judged(given)
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


# --- trials ------------------------------------------------------------------------------------


def with_trials(ends, skill=0.0) -> Evidence:
    given = evidence(skill)
    given.trials = outcomes(ends)
    return given


def outcomes(ends):
    """Trial → relative loss at its end, on both sets of batches, as what the evidence holds."""
    return {trial.name: TrialOutcome(24, 1.0, end, end) for trial, end in ends.items()}


TENTH, HUNDREDTH = LOWER_RATES
TENFOLD, HUNDREDFOLD, *_ = HIGHER_RATES


# relative losses at the end of the unchanged trial and of the changed one → cured
CURES = [
    (1.0, 0.97, True),  # from nothing to something
    (1.0, 0.99, False),
    (0.9, 0.77, True),  # 0.10 → 0.23: twice as much and a little
    (0.9, 0.81, False),
    (0.4, 0.29, True),  # 0.60 → 0.71: a tenth more
    (0.4, 0.31, False),
    (1.4, 1.0, False),  # no better than guessing, from no worse than 1.5
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


def test_cures_wait_to_be_confirmed_beside_the_unchanged_training():
    given = with_trials({UNCHANGED: 1.0, REINITIALISED: 0.5, AVERAGED_LOSS: 0.99})
    assert list(causes.trials_to_confirm(given)) == []
    for each in given.trials.values():
        each.end_again = None
    assert list(causes.trials_to_confirm(given)) == [UNCHANGED, REINITIALISED]
    given.trials[UNCHANGED.name].end_again = 1.0
    assert list(causes.trials_to_confirm(given)) == [REINITIALISED]


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


def test_each_trial_changes_one_thing_and_is_wanted_by_some_cause():
    plain = {"name": "", "lr": 1.0, "regularised": True, "clipped": None}
    for trial in TRIALS:
        fields = {k: v for k, v in vars(trial).items() if k != "name"}
        changed = [k for k, v in fields.items() if v != plain.get(k, False)]
        assert len(changed) == (trial is not UNCHANGED), trial
    given = evidence(0.0)
    given.task = "values"
    given.data.rms = given.data.target_rms = 100.0
    given.optimizer.weight_decay, given.optimizer.frozen_held = 0.1, ["first.weight"]
    given.loss.doubling = 2.0
    given.loop.passes_per_update, given.loop.gradient_scale = [4, 4], 1.0
    given.weights[0].gain = 9.0
    given.loop.passes_per_update, given.loop.gradient_scale = [4, 4, 4], 1.0
    given.network.nonlinear = False
    for each in given.weights:  # of low rank, which can be meant
        each.inputs, each.outputs = 9, 4
    given.weights[-1].outputs = 9
    wanted = set(causes.trials_wanted(given))
    given.outcome.highest_loss = 1e4
    assert wanted | set(causes.trials_wanted(given)) == set(TRIALS)


# --- certain findings, at any outcome -----------------------------------------------------------


def certain():
    """Rule → a change of evidence that it must answer to, however well the training goes."""

    def constant(e):
        e.data.distinct = 1

    def leak(e):
        e.data.feature_shares[0] = 0.995

    def sign(e):
        e.loss.rewards = [[9.0, 0.1]]

    def mismatch(e):
        e.optimizer.missing, e.optimizer.held = ["out.weight", "out.bias"], 4

    def mixing(e):
        e.network.mixing, e.network.mixing_layers = 0.02, {"first": 0.02}

    def mode(e):
        e.network.mode_sensitive, e.loop.eval_mode_forwards = True, STEPS

    def gradients(e):
        e.loop.residues = [[step, 1e-6, 0.5] for step in range(1, STEPS)]

    def softmax(e):
        e.network.softmax_inputs = ["second"]

    return {
        "constant_input": constant, "label_leak": leak, "wrong_loss": sign,
        "optimizer_mismatch": mismatch, "batch_mixing": mixing, "train_eval_mode": mode,
        "missing_zero_grad": gradients, "wrong_hidden_activation": softmax,
    }  # fmt: skip


@pytest.mark.parametrize("cause", certain())
def test_what_is_certain_is_said_whatever_the_outcome(cause):
    for skill, severities in ((0.95, {"warning", "error"}), (0.0, {"error"})):
        given = evidence(skill)
        certain()[cause](given)
        report = diagnosis(given)
        assert report.findings[0].cause == cause
        assert report.findings[0].severity in severities
        assert not report.healthy
        assert max(map(len, str(report).splitlines())) <= 80
    kinds = {name for name, each in CAUSES.items() if each.kind is Kind.CERTAIN}
    assert kinds == set(certain())


@pytest.mark.parametrize(
    "cause",
    ["wrong_loss", "batch_mixing", "train_eval_mode", "missing_zero_grad",
     "wrong_hidden_activation"],
)  # fmt: skip
def test_its_severity_is_that_of_the_outcome(cause):
    for skill, expected in ((0.95, "warning"), (0.0, "error")):
        given = evidence(skill)
        certain()[cause](given)
        assert [f.severity for f in found_by(cause, given)] == [expected]


# Just on either side of each threshold: a change, and whether it is found.
def edges():
    def data(**values):
        return lambda e: [setattr(e.data, k, v) for k, v in values.items()]

    def loop(**values):
        return lambda e: [setattr(e.loop, k, v) for k, v in values.items()]

    def network(**values):
        return lambda e: [setattr(e.network, k, v) for k, v in values.items()]

    def loss(**values):
        return lambda e: [setattr(e.loss, k, v) for k, v in values.items()]

    return [
        ("label_leak", data(feature_shares=[LEAKED + 1e-3]), data(feature_shares=[LEAKED])),
        ("label_leak", data(feature_shares=[1.0], samples=50),
         data(feature_shares=[1.0], samples=49)),
        ("label_leak", data(feature_shares=[1.0]),
         data(feature_shares=[1.0], feature_share_median=0.81)),
        ("label_leak", data(overlap=0.51), data(overlap=0.5)),
        ("label_leak", data(overlap=0.9, covered=0.9), data(overlap=0.9, covered=0.96)),
        ("label_leak", data(overlap=0.96, trained_on=100, validation_size=89),
         data(overlap=0.96, trained_on=100, validation_size=90)),
        ("label_leak", data(overlap=0.9), data(overlap=0.9, natural_repeats=0.06)),
        ("label_leak", data(overlap=0.9), data(overlap=0.9, floating=False)),
        ("constant_input", data(distinct=1, samples=8), data(distinct=1, samples=7)),
        ("constant_input", data(largest_std=1e-6), data(largest_std=2e-6)),
        ("constant_input", data(constant_batches=0.91), data(constant_batches=0.9)),
        ("batch_mixing", network(mixing=0.011), network(mixing=0.01)),
        ("batch_mixing", network(mixing=1.0), network(mixing=None)),
        ("batch_mixing", network(mixing=1.0), network(mixing=1.0, evaluation_change=0.02)),
        ("no_nonlinearity", network(nonlinear=False, depth=2),
         network(nonlinear=False, depth=1)),
        ("no_nonlinearity", network(nonlinear=False), network(nonlinear=None)),
        ("no_nonlinearity", network(bend=0.9e-5), network(bend=1e-5)),
        ("missing_zero_grad", loop(residues=residues(added=60, of=200)),
         loop(residues=residues(added=59, of=200))),
        ("missing_zero_grad", loop(residues=residues(added=2, of=2)),
         loop(residues=residues(added=1, of=1))),
        ("missing_zero_grad", loop(residues=[[0, 0.9e-3, 0.1], [1, 0.9e-3, 0.1]]),
         loop(residues=[[0, 1.1e-3, 0.1], [1, 1.1e-3, 0.1]])),
        ("missing_zero_grad", loop(residues=[[0, 0.9e-3, 0.1], [1, 0.9e-3, 0.1]]),
         loop(residues=[[0, 0.9e-3, 0.8e-2], [1, 0.9e-3, 0.8e-2]])),
        ("train_eval_mode", network(drops_in_evaluation=True, evaluation_change=0.011),
         network(drops_in_evaluation=True, evaluation_change=0.01)),
        ("train_eval_mode", network(drops_in_evaluation=True, evaluation_change=0.5),
         network(evaluation_change=0.5)),
        ("wrong_loss", loss(best=0.21, constant=1.0), loss(best=0.2, constant=1.0)),
        ("wrong_loss", loss(best=0.21, constant=1.0, confident=0.3),
         loss(best=0.21, constant=1.0, confident=0.4)),
        ("wrong_loss", loss(best=0.21, constant=1.0), loss(best=0.21, constant=0.0)),
        ("wrong_loss", loop(loss_ratio_low=-1.09, loss_ratio_high=-0.91),
         loop(loss_ratio_low=-1.11, loss_ratio_high=-0.91)),
        ("wrong_loss", loop(loss_ratio_low=-1.0, loss_ratio_high=-0.91),
         loop(loss_ratio_low=-1.0, loss_ratio_high=-0.89)),
        ("wrong_loss", loss(gradient=False), loss(gradient=True)),
        ("wrong_loss", loss(cross_gradient=2e-3), loss(cross_gradient=1e-3)),
        ("wrong_loss", loss(shift_change=0.011), loss(shift_change=0.01)),
        ("wrong_loss", loss(shift_change=0.5),
         loss(shift_change=0.5, output_space="simplex", other_entries=0.0)),
        ("wrong_loss", loss(output_space="simplex", shift_change=None, other_entries=1e-5),
         loss(output_space="simplex", shift_change=None, other_entries=1e-6)),
        ("bad_labels", data(out_of_range=1), data(out_of_range=0)),
        ("bad_labels", data(out_of_range=1), data(out_of_range=1, void_labels=True)),
        ("bad_labels", data(conflicting=0.31, repeated=20), data(conflicting=0.3, repeated=20)),
        ("bad_labels", data(conflicting=0.9, repeated=20), data(conflicting=0.9, repeated=19)),
        ("bad_labels", data(conflicting=0.9, repeated=20, repeats_within=0.2),
         data(conflicting=0.9, repeated=20, repeats_within=0.21)),
        ("non_finite", data(nonfinite_samples=1), data(nonfinite_samples=0)),
    ]  # fmt: skip


def residues(added, of):
    """Comparisons of `of` steps, in the first `added` of which earlier gradients were added."""
    return [[step, *((1e-6, 0.5) if step < added else (0.5, 1e-6))] for step in range(of)]


@pytest.mark.parametrize(("cause", "beyond", "within"), edges())
def test_thresholds_at_their_edges(cause, beyond, within):
    given = evidence()
    beyond(given)
    assert [f.cause for f in found_by(cause, given)] == [cause]
    given = evidence()
    within(given)
    assert found_by(cause, given) == []


@pytest.mark.parametrize(
    ("shares", "features", "expected"),
    [
        ([0.93, 0.92, 0.4], [2, 3, 0], ["note"]),  # informative features, as tables have them
        ([0.93, 0.92, 0.8], [2, 3, 0], []),
        ([0.79, 0.4], [2, 3], []),
        ([0.995, 0.2], [4, 5], ["error"]),
    ],
)
def test_a_feature_that_stands_out_is_no_accusation(shares, features, expected):
    given = evidence()
    given.data.feature_shares, given.data.feature_order = shares, features
    found = found_by("label_leak", given)
    assert [f.severity for f in found] == expected
    assert all(f"{100 * shares[0]:.1f} %" in f.summary for f in found)
    assert diagnosis(given).healthy is ("error" not in expected)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [((10, 20, 20), "warning"), ((20, 20, 10), "warning"), ((20, 9, 10), "note"),
     ((10, 9, 20), "note")],
)  # fmt: skip
def test_linear_layers_are_a_fault_where_one_layer_would_do(widths, expected):
    given = evidence()
    given.network.nonlinear = False
    shapes = zip((15, *widths), (*widths, 10), strict=True)
    for each, (inputs, outputs) in zip(given.weights, shapes, strict=False):
        each.inputs, each.outputs = inputs, outputs
    given.weights[-1].outputs = 10
    (found,) = found_by("no_nonlinearity", given)
    assert found.severity == expected
    assert diagnosis(given).healthy is (expected == "note")


def test_an_unsound_loss_that_cannot_be_called_is_not_accused():
    given = evidence(0.0)
    given.loss.rewards, given.loss.error = [[9.0, 0.1]], "TypeError: two tensors needed"
    assert found_by("wrong_loss", given) == []


def test_the_fix_of_a_wrong_loss_is_the_tasks():
    for task, override in (("classes", "loss=cross_entropy"), ("values", "loss=mse")):
        given = evidence()
        given.task, given.loss.rewards = task, [[0.5, -0.5]]
        assert found_by("wrong_loss", given)[0].override == override


def test_outputs_that_cannot_reach_the_targets():
    given = evidence(0.2)
    given.task, given.loss.shift_change = "values", None
    given.network.last_op = "sigmoid"
    given.data.target_low, given.data.target_high = 0.0, 1.0
    assert found_by("wrong_loss", given) == []
    given.data.target_low = -0.04
    assert found_by("wrong_loss", given) == []
    given.data.target_high = 2.0
    assert "sigmoid" in found_by("wrong_loss", given)[0].summary


def test_evaluation_in_training_mode_is_a_warning_where_modes_differ():
    given = evidence()
    given.loop.train_mode_evaluations = 3
    assert found_by("train_eval_mode", given) == []
    given.network.mode_sensitive = True
    (finding,) = found_by("train_eval_mode", given)
    assert finding.severity == "warning"
    # A look or two in evaluation mode is no training in it.
    given = evidence()
    given.network.mode_sensitive, given.loop.eval_mode_forwards = True, int(0.05 * STEPS)
    assert found_by("train_eval_mode", given) == []


def test_an_optimiser_that_never_steps_holds_nothing_or_is_of_no_model():
    given = evidence()
    given.loop.optimizer_steps = 0
    assert "never called" in found_by("optimizer_mismatch", given)[0].summary
    given = evidence()
    given.optimizer.held = 0
    assert "none" in found_by("optimizer_mismatch", given)[0].summary
    given = evidence()
    given.optimizer.missing = given.network.unused = ["spare.weight"]
    assert found_by("optimizer_mismatch", given) == []


# --- findings that the outcome must bear out ----------------------------------------------------


def gated():
    """Cause → a change of a failing training that makes it the main cause."""

    def tried(e, ends):
        e.trials = outcomes(ends)

    def inputs(e):
        e.data.rms = 100.0
        tried(e, {UNCHANGED: 1.0, STANDARDISED_INPUTS: 0.3})

    def reduction(e):
        e.loss.doubling = 2.0
        tried(e, {UNCHANGED: math.inf, AVERAGED_LOSS: 0.3})

    def symmetric(e):
        e.weights[0] = weight("first.weight", identical_rows=True, constant=True)

    def large(e):
        e.weights[1].gain = network.LARGE_GAIN + 0.1
        tried(e, {UNCHANGED: 5.0, REINITIALISED: 0.5})

    def small(e):
        e.weights[1].gain = network.SMALL_GAIN - 0.01
        tried(e, {UNCHANGED: 1.0, REINITIALISED: 0.5})

    def dead(e):
        e.probes[0].activations = [ActivationFacts("relu", "second", 0.0, DEAD, None)]

    def saturated(e):
        e.probes[0].activations = [ActivationFacts("tanh", "first", 1.0, 0.0, SATURATED)]

    def regularised(e):
        e.optimizer.weight_decay, e.outcome.shrinkage = 1.0, 0.59

    def penalised(e):
        e.loop.loss_ratio_high = 1 / (1 - 0.51)

    def dropped(e):
        e.network.dropout = 0.9
        tried(e, {UNCHANGED: 1.0, UNREGULARISED: 0.5})

    def high(e):
        e.probes = [probe(step, update=0.06) for step in (0, 3, 8)]
        tried(e, {UNCHANGED: 1.0, TENTH: 0.4})

    def low(e):
        e.outcome.movement = learning_rate.STILL
        tried(e, {UNCHANGED: 1.0, HUNDREDFOLD: 0.4})

    def exploding(e):
        e.probes[0] = probe(0, gradients=(31.0, 5.0, 1.0))

    def vanishing(e):
        e.probes[0] = probe(0, gradients=(0.019, 0.1, 1.0))

    def fading(e):
        e.network.time_gradient = 0.9e-3

    def labels(e):
        e.data.simple_skill = 0.05

    def frozen(e):
        e.optimizer.frozen_held = ["first.weight"]

    return {
        "input_scale": inputs, "loss_reduction": reduction, "symmetric_init": symmetric,
        "init_scale_too_large": large, "init_scale_too_small": small, "dead_relu": dead,
        "saturated_activation": saturated, "over_regularised": regularised,
        "over_regularised by a penalty": penalised, "over_regularised by dropout": dropped,
        "lr_too_high": high, "lr_too_low": low, "exploding_gradient": exploding,
        "vanishing_gradient": vanishing, "vanishing_gradient in time": fading,
        "bad_labels": labels, "frozen_parameters": frozen,
    }  # fmt: skip


# What rests on a sign alone, without a trial; and what is certain.
SUSPECTED = {
    "dead_relu", "saturated_activation", "over_regularised", "over_regularised by a penalty",
    "exploding_gradient", "vanishing_gradient", "vanishing_gradient in time", "bad_labels",
    "frozen_parameters",
}  # fmt: skip
SURE = {"symmetric_init": "certain"}


@pytest.mark.parametrize("name", gated())
def test_a_failing_training_is_explained(name):
    given = evidence(0.02)
    gated()[name](given)
    report = diagnosis(given)
    assert report.healthy is False
    assert report.main_cause == name.split()[0]
    assert report.main.severity == ("note" if name in SUSPECTED else "error")
    assert report.main.confidence == ("suspected" if name in SUSPECTED else SURE.get(name, "shown"))
    assert [f.cause for f in report.findings if f.severity != "note"][1:] == []


# Cause → layer, step, override, what the summary says, and a number of the finding's evidence.
TOLD = {
    "input_scale": (None, None, "data.scale=normalised", "root mean square is 100", ("rms", 100.0)),
    "symmetric_init": ("first", 0, "init=kaiming", "all weights of the layer start equal",
                       ("gain", 1.0)),
    "init_scale_too_large": ("second", 0, "init=kaiming", "2.91 times as large",
                             ("trial: reinitialised", 0.5)),
    "init_scale_too_small": ("second", 0, "init=kaiming", "at 0.064 of the size",
                             ("trial: unchanged", 1.0)),
    "dead_relu": ("second", 0, "model=leaky_relu", "75 % of the units are zero",
                  ("dead_units", 0.75)),
    "saturated_activation": ("first", 0, "init=xavier", "60 % of the activations",
                             ("saturated", 0.6)),
    "over_regularised": (None, None, "reg=none", "shrinks the weights to 59 %",
                         ("weight_decay", 1.0)),
    "over_regularised by a penalty": (None, None, "reg=none", "51 % of the loss is a penalty",
                                      ("penalty_share", pytest.approx(0.51))),
    "over_regularised by dropout": (None, None, "reg=none", "dropout leaves 10 % of the units",
                                    ("dropout", 0.9)),
    "lr_too_high": ("first", 0, "optim.lr=0.0001", "by up to 6 %; at a rate of 0.0001",
                    ("largest_update", pytest.approx(0.06))),
    "lr_too_low": (None, None, "optim.lr=0.1", "moved by 3 % of their size; at a rate of 0.1",
                   ("movement", 0.03)),
    "exploding_gradient": ("first", 0, "clip=4.0", "first.weight is 31 times that at out.weight",
                           ("ratio", 31.0)),
    "vanishing_gradient": ("first", 0, "model.activation._target_=torch.nn.ReLU",
                           "first.weight is 0.019 of that at out.weight", ("ratio", 0.019)),
    "vanishing_gradient in time": (None, 0, "model.activation._target_=torch.nn.ReLU",
                                   "0.0009 reaches the first", ("ratio", 0.9e-3)),
    "bad_labels": (None, None, "data.labels=paired", "neither the network nor nearest neighbours",
                   ("simple_model_skill", 0.05)),
    "frozen_parameters": ("first", None, None, "have requires_grad=False: first.weight",
                          ("parameters", ["first.weight"])),
    "loss_reduction": (None, None, None, "averaged, a copy learns", ("trial: averaged loss", 0.3)),
}  # fmt: skip


@pytest.mark.parametrize("name", gated())
def test_a_finding_says_where_it_was_and_with_which_numbers(name):
    given = evidence(0.02)
    gated()[name](given)
    given.data.axes = 2
    found = diagnosis(given).findings[0]
    layer, step, override, summary, (key, number) = TOLD[name]
    assert (found.layer, found.step, found.override) == (layer, step, override)
    assert summary in found.summary
    assert found.evidence[key] == number


def test_images_are_offered_the_articles_relu_net():
    given = evidence(0.02)
    given.probes[0] = probe(0, gradients=(0.019, 0.1, 1.0))
    given.data.axes = 4
    assert diagnosis(given).findings[0].override == "model=relu_net"


@pytest.mark.parametrize("cause", ["dead_relu", "saturated_activation"])
def test_units_that_were_stuck_from_the_start_are_told_from_those_that_came_to_it(cause):
    at_start, later = evidence(0.02), evidence(0.02)
    gated()[cause](at_start)
    later.probes[3].activations, later.probes[0].activations = at_start.probes[0].activations, []
    (first,), (second,) = found_by(cause, at_start), found_by(cause, later)
    assert "from the start" in first.summary
    assert "from the start" not in second.summary
    assert (first.step, second.step) == (0, 20)
    assert (first.fix == second.fix) is (cause == "saturated_activation")


def test_rows_that_are_equal_are_told_from_a_layer_that_is_constant():
    given = evidence(0.02)
    given.weights[0] = weight("first.weight", identical_rows=True)
    assert "start with equal weights, get equal gradients" in diagnosis(given).findings[0].summary


@pytest.mark.parametrize("name", gated())
def test_the_same_anomaly_in_a_training_that_learns_is_a_note_at_most(name):
    given = evidence(0.95)
    gated()[name](given)
    assert diagnosis(given).healthy


@pytest.mark.parametrize("name", [n for n in gated() if n != "bad_labels"])
def test_a_training_that_stays_behind_gets_a_warning(name):
    given = evidence(0.7, simple=0.9)
    gated()[name](given)
    report = diagnosis(given)
    if name == "symmetric_init":  # one layer of three may be told apart by the others
        assert report.healthy
        return
    assert [f.severity for f in report.findings] == ["note" if name in SUSPECTED else "warning"]
    assert report.findings[0].cause == name.split()[0]
    assert report.healthy is (name in SUSPECTED)


@pytest.mark.parametrize(
    ("name", "quieten"),
    [
        ("input_scale", lambda e: e.trials.pop(STANDARDISED_INPUTS.name)),
        ("input_scale", lambda e: setattr(e.data, "rms", data.FAR_SCALE)),
        ("init_scale_too_large", lambda e: e.trials.pop(REINITIALISED.name)),
        ("init_scale_too_large", lambda e: setattr(e.weights[1], "gain", network.LARGE_GAIN)),
        ("init_scale_too_small", lambda e: setattr(e.weights[1], "gain", network.SMALL_GAIN)),
        ("over_regularised", lambda e: setattr(e.outcome, "shrinkage", 0.6)),
        ("over_regularised", lambda e: setattr(e.optimizer, "weight_decay", 0.0)),
        ("over_regularised by a penalty", lambda e: setattr(e.loop, "loss_ratio_high", 2.0)),
        ("over_regularised by a penalty", lambda e: setattr(e.loop, "loss_ratio_low", 0.95)),
        ("over_regularised by dropout", lambda e: setattr(e.network, "dropout", 0.69)),
        ("lr_too_low", lambda e: setattr(e.outcome, "movement", learning_rate.STILL + 1e-3)),
        ("lr_too_low", lambda e: e.trials.pop(HUNDREDFOLD.name)),
        ("vanishing_gradient in time", lambda e: setattr(e.network, "time_gradient", 1e-3)),
        ("bad_labels", lambda e: setattr(e.data, "simple_skill", outcome.AT_CHANCE)),
        ("bad_labels", lambda e: setattr(e.data, "distinct", 149)),
        ("bad_labels", lambda e: setattr(e.outcome, "movement", learning_rate.STILL)),
    ],
)
def test_suspicions_at_their_edges(name, quieten):
    given = evidence(0.02)
    gated()[name](given)
    quieten(given)
    assert found_by(name.split()[0], given) == []


@pytest.mark.parametrize(
    ("cause", "gradients", "expected"),
    [
        ("vanishing_gradient", (0.0199, 1.0, 1.0), True),
        ("vanishing_gradient", (0.02, 1.0, 1.0), False),
        ("vanishing_gradient", (1.0, 1e-9, 1.0), False),
        ("exploding_gradient", (30.1, 1.0, 1.0), True),
        ("exploding_gradient", (30.0, 1.0, 1.0), False),
        ("exploding_gradient", (math.inf, 1.0, 1.0), False),
        ("vanishing_gradient", (0.0, 0.0, 0.0), False),
    ],
)
def test_gradients_are_compared_from_the_first_layer_to_the_last(cause, gradients, expected):
    given = evidence(0.02)
    given.probes = [probe(step, gradients) for step in (0, 3, 8)]
    assert bool(found_by(cause, given)) is expected
    # Sizes do not matter, ratios do.
    given.probes = [probe(step, [1e-6 * g for g in gradients]) for step in (0, 3, 8)]
    assert bool(found_by(cause, given)) is expected


def test_a_rate_is_too_high_by_a_fork_or_by_far_at_chance():
    given = evidence(0.02)
    given.probes = [probe(step, update=0.06) for step in (0, 3)]
    assert found_by("lr_too_high", given) == []
    given.probes = [probe(step, update=0.21) for step in (0, 3)]
    (finding,) = found_by("lr_too_high", given)
    assert finding.override == "optim.lr=0.0001"
    given.trials = outcomes({UNCHANGED: 1.0, HUNDREDTH: 0.4})
    (finding,) = found_by("lr_too_high", given)
    assert finding.override == "optim.lr=1e-05"
    assert finding.layer in ("first", "second", "out")


def test_no_training_has_a_rate_too_high_and_too_low():
    for update in (0.0001, 0.005, 0.06, 0.5):
        for movement in (0.0001, 0.02, 0.5):
            given = evidence(0.02)
            given.probes = [probe(step, update=update) for step in (0, 3)]
            given.outcome.movement = movement
            given.trials = outcomes({UNCHANGED: 1.0, TENTH: 0.4, TENFOLD: 0.4})
            found = {f.cause for f in diagnosis(given).findings}
            assert not {"lr_too_high", "lr_too_low"} <= found or movement < update


def test_a_dead_layer_is_dated_by_the_first_probe_that_has_it():
    given = evidence(0.02)
    for index, share in ((2, 0.8), (3, 1.0)):
        given.probes[index].activations = [
            ActivationFacts("relu", "first", 0.1, 0.76, None),
            ActivationFacts("relu", "second", 0.0, share, None),
        ]
    (finding,) = found_by("dead_relu", given)
    assert (finding.step, finding.layer) == (8, "second")
    assert finding.evidence["dead_units"] == 0.8


def test_a_frozen_parameter_of_the_optimiser_is_a_note_where_all_goes_well():
    given = evidence()
    given.optimizer.frozen_held = ["first.weight"]
    (finding,) = found_by("frozen_parameters", given)
    assert finding.severity == "note"
    given.network.unreached = ["first.weight"]
    (finding,) = found_by("frozen_parameters", given)
    assert (finding.severity, finding.layer) == ("error", "first")


def test_a_sum_is_a_note_where_it_does_no_harm():
    given = evidence()
    given.loss.doubling = 2.0
    report = diagnosis(given)
    assert [(f.cause, f.severity) for f in report.findings] == [("loss_reduction", "note")]
    assert report.healthy


# --- numbers ------------------------------------------------------------------------------------


def with_nan(where, step=5, overflow=False, **others) -> Evidence:
    given = evidence()
    given.outcome.nonfinite_step = step
    given.nonfinite = NonFinite(step, where, "log", "first", "nan", [3], 1, 2.0, overflow)
    for key, value in others.items():
        setattr(given.outcome, key, value)
    return given


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
    assert outcome.overflowed(given) is expected
    report = diagnosis(given)
    assert report.findings[0].cause == "non_finite"
    assert report.findings[0].samples == [3]
    assert (report.findings[0].override == "clip=4.0") is expected


def test_parameters_that_are_broken_at_the_start_are_no_overflow():
    assert not outcome.overflowed(with_nan("parameter", step=0, overflow=True))


# --- generalisation -----------------------------------------------------------------------------


def validated(train, *held_out, losses=None) -> Evidence:
    given = evidence(train)
    losses = losses or [1.0] * len(held_out)
    given.outcome.validations = [
        Validation(20 * i, loss, score(s, samples=300))
        for i, (s, loss) in enumerate(zip(held_out, losses, strict=True))
    ]
    return given


@pytest.mark.parametrize(
    ("held_out", "losses", "expected"),
    [
        ([0.5, 0.5, 0.54], [1.0, 1.0, 1.0], True),  # the gap alone is large enough
        ([0.5, 0.5, 0.56], [1.0, 1.0, 1.0], False),
        ([0.7, 0.7, 0.74], [1.0, 1.0, 1.11], True),  # a gap, and the loss has turned
        ([0.7, 0.7, 0.74], [1.0, 1.0, 1.09], False),
        ([0.8, 0.8, 0.84], [1.0, 1.0, 1.41], True),
        ([0.8, 0.8, 0.84], [1.0, 1.0, 1.39], False),
        ([0.9, 0.9, 0.9], [1.0, 1.0, 2.0], False),  # no gap
    ],
)
def test_overfitting_at_its_edges(held_out, losses, expected):
    found = found_by("overfitting", validated(0.95, *held_out, losses=losses))
    assert bool(found) is expected
    assert all(f.severity == "warning" for f in found)


def test_overfitting_is_dated_by_the_lowest_loss():
    given = validated(0.95, 0.6, 0.7, 0.6, 0.5, losses=[1.0, 0.8, 1.0, 1.2])
    (finding,) = found_by("overfitting", given)
    assert finding.step == 20
    assert finding.evidence["validation_loss_over_lowest"] == pytest.approx(1.5)
    few = validated(0.95, 0.2)
    few.outcome.validations[-1].score.samples = 19
    assert found_by("overfitting", few) == []


def test_a_mismatch_needs_inputs_that_differ_and_a_skill_that_falls():
    given = validated(0.95, 0.5)
    given.data.shift, given.data.scale_shift = 0.9, 0.1
    assert [f.cause for f in found_by("train_test_mismatch", given)] == ["train_test_mismatch"]
    given.data.shift = data.TOLD_APART
    assert found_by("train_test_mismatch", given) == []
    given.data.scale_shift = data.SHIFTED + 0.01
    assert found_by("train_test_mismatch", given)
    given = validated(0.95, 0.85)  # nothing is lost
    given.data.shift, given.data.scale_shift = 0.9, 1.4
    assert found_by("train_test_mismatch", given) == []
    given.data.scale_shift = 1.6
    assert found_by("train_test_mismatch", given)


def test_labels_that_are_coded_otherwise_in_validation():
    given = validated(0.95, 0.0)
    given.data.relabelled_skill = 0.9
    assert [f.cause for f in found_by("bad_labels", given)] == ["bad_labels"]
    given.data.relabelled_skill = 0.5
    assert found_by("bad_labels", given) == []


def test_a_rare_class_that_a_simple_model_recognises_is_shown_to_be_lost():
    given = evidence()
    given.data.class_counts[4] = 8
    given.outcome.train.recalls = {4: 0.1, 5: 0.1}  # class 5 is not rare
    (suspected,) = found_by("class_imbalance", given)
    assert suspected.confidence == "suspected"
    for recognised, confidence in (({4: 0.5}, "shown"), ({4: 0.49}, "suspected"),
                                   ({5: 0.9}, "suspected")):  # fmt: skip
        given.data.simple_recognition = recognised
        (found,) = found_by("class_imbalance", given)
        assert found.confidence == confidence
    given.data.simple_recognition = {4: 0.6}
    given.outcome.train.recalls = {4: 0.3}  # not clearly worse
    assert found_by("class_imbalance", given)[0].confidence == "suspected"


def test_tokens_are_not_called_imbalanced():
    given = evidence()
    given.data.class_counts[4], given.outcome.train.recalls = 1, {4: 0.0}
    assert found_by("class_imbalance", given)
    given.positions = True
    assert found_by("class_imbalance", given) == []


def flipped(**values):
    given = evidence()
    for name, value in values.items():
        setattr(given.loss if hasattr(given.loss, name) else given.loop, name, value)
    return [f.summary for f in found_by("wrong_loss", given)]


def test_a_sign_that_is_flipped_twice_is_right():
    turned = {"loss_ratio_low": -1.0, "loss_ratio_high": -1.0}
    assert "sign is flipped" in flipped(rewards=[[-0.1, -9.0]])[0]
    assert "sign is flipped" in flipped(**turned)[0]
    assert flipped(rewards=[[-0.1, -9.0]], **turned) == []  # a likelihood that the loop maximises


def test_a_penalty_beside_a_loss_near_zero_is_no_flipped_sign():
    assert flipped(loss_ratio=-3.0, loss_ratio_low=-40.0, loss_ratio_high=2.0) == []


def test_an_autoencoders_loss_that_falls_without_end_has_a_flipped_sign():
    given = evidence()
    given.task, given.reconstruction = "unknown", True
    given.loss.confirmed, given.loss.far_others = True, -11.0
    assert "flipped" in found_by("wrong_loss", given)[0].summary
    given.loss.far_others = -9.0
    assert found_by("wrong_loss", given) == []
    given.loss.far_others, given.loss.confirmed = -1e6, False  # a flow's volume
    assert found_by("wrong_loss", given) == []
    given.loss.confirmed, given.reconstruction = True, False
    assert found_by("wrong_loss", given) == []


UNPAIRED = {"permuted": 1e-7, "cross_gradient": 0.0, "shapes": [[32, 1], [32]]}


@pytest.mark.parametrize(
    ("changes", "accused"),
    [
        ({}, True),
        ({"shapes": [[32], [32, 1]]}, True),
        ({"shapes": [[32, 1], [32, 1]]}, True),  # where the loss squeezes one of them
        ({"shapes": [[32, 3], [32]]}, False),
        ({"permuted": 0.1}, False),
        ({"cross_gradient": 0.1}, False),  # a distance of two sets, say
        ({"ignores_targets": True}, False),
    ],
)
def test_outputs_that_meet_all_targets_are_broadcast_whatever_the_task(changes, accused):
    given = evidence()
    given.task, given.outcome.train, given.outcome.train_mode = "unknown", Score(), Score()
    for name, value in (UNPAIRED | changes).items():
        setattr(given.loss, name, value)
    found = found_by("wrong_loss", given)
    assert [f.confidence for f in found] == ["certain"] * accused


@pytest.mark.parametrize(
    ("changes", "accused"),
    [
        ({}, True),
        ({"linear": 0.01}, False),  # it takes the logarithm
        ({"rewards": [[0.1, 0.9]]}, False),  # a mean absolute error
        ({"other_entries": 0.5}, False),
        ({"confirmed": False}, False),
    ],
)
def test_probabilities_in_the_place_of_their_logarithms(changes, accused):
    given = evidence()
    wrong = {"linear": 1e-7, "rewards": [[-0.99, -0.01]], "confirmed": True, "constant": -0.1,
             "best": -0.99, "other_entries": 0.0, "output_space": "simplex"}  # fmt: skip
    for name, value in (wrong | changes).items():
        setattr(given.loss, name, value)
    found = [f.summary for f in found_by("wrong_loss", given)]
    assert any("logarithms" in summary for summary in found) is accused


@pytest.mark.parametrize(
    ("rarest", "recall", "expected"),
    [(8, 0.6, True), (9, 0.6, False), (8, 0.61, False), (8, None, False), (0, 0.1, False)],
)
def test_rare_classes_that_are_not_recognised(rarest, recall, expected):
    given = evidence()
    given.data.class_counts[4] = rarest
    given.outcome.train.recalls = {} if recall is None else {4: recall}
    found = found_by("class_imbalance", given)
    assert bool(found) is expected
    if expected:
        assert found[0].severity == "warning"
        assert found[0].summary.startswith("class 4")


# --- inputs' scale ------------------------------------------------------------------------------


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


# --- order --------------------------------------------------------------------------------------


def finding(cause, severity="error", confidence="certain", **others) -> Finding:
    return Finding(cause, severity, confidence, "seen", "mend it", **others)


def test_findings_stand_from_data_to_weights_and_symptoms_under_the_first():
    found = [
        finding("dead_relu"), finding("batch_mixing"), finding("overfitting"),
        finding("wrong_loss"), finding("vanishing_gradient"),
    ]  # fmt: skip
    arranged = causes.arranged(found, [], evidence(0.0))
    assert [f.cause for f in arranged] == ["wrong_loss", "batch_mixing"]
    assert [f.cause for f in arranged[0].consequences] == [
        "dead_relu", "vanishing_gradient", "overfitting"
    ]  # fmt: skip
    assert all(not f.consequences for f in arranged[1:])


def test_of_rival_explanations_the_first_is_shown():
    rivals = [finding(c) for c in ("lr_too_high", "input_scale", "init_scale_too_large")]
    (only,) = causes.arranged(rivals, [], evidence(0.0))
    assert only.cause == "input_scale"
    assert only.consequences == []


def test_every_order_of_findings_gives_the_same_report():
    names = ["dead_relu", "init_scale_too_large", "symmetric_init", "missing_zero_grad"]
    expected = None
    for shift in range(len(names)):
        found = [finding(c) for c in names[shift:] + names[:shift]]
        (first, *others) = causes.arranged(found, [], evidence(0.0))
        seen = first.cause, [f.cause for f in first.consequences], others
        expected = expected or seen
        assert seen == expected
    assert expected[0] == "missing_zero_grad"


def test_what_is_proven_stands_before_what_is_suspected():
    suspects = [finding("init_scale_too_large", "note", "suspected"),
                finding("dead_relu", "note", "suspected")]  # fmt: skip
    first, *others = causes.arranged([finding("lr_too_high")], suspects, evidence(0.0))
    assert first.cause == "lr_too_high"
    assert [f.cause for f in first.consequences] == ["dead_relu"]
    assert others == []
    assert causes.arranged([], suspects, evidence(0.0))[0].cause == "init_scale_too_large"


def test_guessing_is_not_known_of_more_classes_than_labels():
    """As of a text of words after its first hundred steps: the doctor cannot tell."""

    def judged(classes, skill=0.0, simple=None):
        given = evidence(skill)
        given.classes, given.data.simple_skill = classes, simple
        for each in (given.outcome.train, given.outcome.train_mode):
            each.samples, each.relative_loss = 700, 1.25 - skill
        return diagnosis(given)

    report = judged(8000)
    assert report.healthy is None
    assert "too few labels to tell" in report.reason
    assert judged(700).healthy is False
    assert judged(8000, simple=0.6).healthy is False  # what a simple model finds can be learnt
    assert judged(8000, skill=0.3).healthy is True


def test_a_training_that_does_not_learn_is_unhealthy_without_a_cause():
    report = diagnosis(evidence(0.05))
    assert (report.healthy, report.main, report.main_cause) == (False, None, "does not learn")
    assert "its skill on training samples is 0.05" in report.reason
    far_behind = diagnosis(evidence(0.5))
    assert "far less than a simple model, whose skill is 0.90" in far_behind.reason


def test_a_suspicion_about_a_training_that_learns_is_a_note_and_no_verdict():
    given = evidence(0.7, simple=0.75)
    given.optimizer.frozen_held = ["first.weight"]
    report = diagnosis(given)
    assert report.healthy is True
    assert report.main is None
    assert [f.severity for f in report.findings] == ["note"]


def test_units_that_died_on_the_way_come_after_what_killed_them():
    at_start = [finding("lr_too_high"), finding("dead_relu", step=0)]
    assert causes.arranged(at_start, [], evidence(0.0))[0].cause == "dead_relu"
    later = [finding("lr_too_high"), finding("dead_relu", step=40)]
    assert causes.arranged(later, [], evidence(0.0))[0].cause == "lr_too_high"


def test_a_nan_comes_first_unless_it_ends_a_divergence():
    found = [finding("lr_too_high"), finding("non_finite")]
    assert causes.arranged(list(found), [], with_nan("forward"))[0].cause == "non_finite"
    overflowed = with_nan("forward", overflow=True)
    assert causes.arranged(list(found), [], overflowed)[0].cause == "lr_too_high"
    nan, suspect = finding("non_finite"), finding("exploding_gradient", "note", "suspected")
    assert causes.arranged([nan], [suspect], overflowed)[0] is suspect


def test_place_follows_the_order_of_causes():
    given = evidence()
    places = [causes.place(finding(cause), given) for cause in CAUSES]
    assert places == sorted(places)


def test_a_finding_has_a_known_severity():
    assert [finding("overfitting", s).severity for s in SEVERITIES] == ["note", "warning", "error"]
    with pytest.raises(ValueError, match="severity=fatal: allowed are note, warning, error"):
        replace(finding("overfitting"), severity="fatal")
    with pytest.raises(ValueError, match="confidence=sure: allowed are certain, shown, suspected"):
        replace(finding("overfitting"), confidence="sure")


# --- a training whose start was not seen --------------------------------------------------------


def test_a_resumed_training_is_called_neither_healthy_nor_sick():
    given = evidence(0.95)
    given.loop.steps_before = 100
    report = diagnosis(given)
    assert report.healthy is None
    assert report.main_cause == "cannot tell"
    assert "the first 100 steps were taken before" in str(report)
    assert report.to_dict()["healthy"] is None


def test_only_certain_causes_are_accused_in_a_resumed_training():
    given = evidence(0.02)
    gated()["vanishing_gradient"](given)
    given.loop.steps_before = 100
    report = diagnosis(given)
    assert report.healthy is None
    assert [f.severity for f in report.findings if f.cause == "vanishing_gradient"] == ["note"]
    given.loop.residues = residues(added=STEPS, of=STEPS)
    assert diagnosis(given).healthy is False
    assert diagnosis(given).main_cause == "missing_zero_grad"
