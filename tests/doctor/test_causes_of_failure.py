"""Causes that the outcome must bear out: they explain a training that fails."""

import copy
import math

import pytest
from handmade_evidence import (
    HUNDREDFOLD,
    HUNDREDTH,
    STEPS,
    TENFOLD,
    TENTH,
    diagnosis,
    evidence,
    found_by,
    outcomes,
    probe,
    residues,
    score,
    weight,
)

from debugnn.doctor import causes
from debugnn.doctor.causes.dead_relu import DEAD
from debugnn.doctor.causes.input_scale import CALMED, RAW
from debugnn.doctor.causes.saturated_activation import SATURATED
from debugnn.doctor.causes.signals.data import FAR_SCALE
from debugnn.doctor.causes.signals.learning_rate import STILL
from debugnn.doctor.causes.signals.network import LARGE_GAIN, SMALL_GAIN
from debugnn.doctor.causes.signals.outcome import AT_CHANCE
from debugnn.doctor.causes.signals.own_samples import GROUPS
from debugnn.doctor.evidence import ActivationFacts, Pairing, Score, TrialOutcome
from debugnn.doctor.trials import (
    AVERAGED_LOSS,
    REINITIALISED,
    SCALED_LAYERS,
    STANDARDISED_INPUTS,
    UNCHANGED,
    UNIT_SIGNALS,
    UNREGULARISED,
)


def tried(e, ends):
    e.trials = outcomes(ends)


def gated():
    """Cause → a change of a failing training that makes it the main cause."""

    def inputs(e):
        e.data.rms = 100.0
        tried(e, {UNCHANGED: 1.0, STANDARDISED_INPUTS: 0.3})

    def reduction(e):
        e.loss.doubling = 2.0
        tried(e, {UNCHANGED: math.inf, AVERAGED_LOSS: 0.3})

    def symmetric(e):
        e.weights[0] = weight("first.weight", identical_rows=True, constant=True)

    def large(e):
        e.weights[1].gain = LARGE_GAIN + 0.1
        tried(e, {UNCHANGED: 5.0, REINITIALISED: 0.5})

    def small(e):
        e.weights[1].gain = SMALL_GAIN - 0.01
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
        e.outcome.movement = STILL
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


def moves_and_learns(e, relative_loss):
    e.outcome.movement, e.outcome.train.relative_loss = STILL + 1e-3, relative_loss


def test_a_rate_is_too_low_where_a_higher_one_learns_more_in_a_few_steps():
    given = evidence(0.02)
    gated()["lr_too_low"](given)
    moves_and_learns(given, 0.43)  # the copy gets to 0.4
    given.optimizer.rates = [[0.0, 1e-3], [100.0, 1e-5]]
    (finding,) = found_by("lr_too_low", given)
    assert (finding.severity, finding.confidence) == ("error", "shown")
    assert "the relative loss is 0.43, while the rate fell from 0.001 to 1e-05" in finding.summary
    assert "at a rate of 0.1 a copy gets to 0.40" in finding.summary
    given.data.simple_skill = 0.05  # labels of chance, which a copy learns by heart
    assert found_by("lr_too_low", given) == []


@pytest.mark.parametrize(
    ("name", "quieten"),
    [
        (
            "input_scale",
            lambda e: (e.trials.pop(STANDARDISED_INPUTS.name), setattr(e.data, "rms", RAW - 1)),
        ),
        ("input_scale", lambda e: setattr(e.data, "rms", FAR_SCALE)),
        ("init_scale_too_large", lambda e: e.trials.pop(REINITIALISED.name)),
        ("init_scale_too_large", lambda e: setattr(e.weights[1], "gain", LARGE_GAIN)),
        ("init_scale_too_small", lambda e: setattr(e.weights[1], "gain", SMALL_GAIN)),
        ("over_regularised", lambda e: setattr(e.outcome, "shrinkage", 0.6)),
        ("over_regularised", lambda e: setattr(e.optimizer, "weight_decay", 0.0)),
        ("over_regularised by a penalty", lambda e: setattr(e.loop, "loss_ratio_high", 2.0)),
        ("over_regularised by a penalty", lambda e: setattr(e.loop, "loss_ratio_low", 0.95)),
        ("over_regularised by dropout", lambda e: setattr(e.network, "dropout", 0.69)),
        ("lr_too_low", lambda e: moves_and_learns(e, 0.41)),
        ("lr_too_low", lambda e: e.trials.pop(HUNDREDFOLD.name)),
        ("vanishing_gradient in time", lambda e: setattr(e.network, "time_gradient", 1e-3)),
        ("bad_labels", lambda e: setattr(e.data, "simple_skill", AT_CHANCE)),
        ("bad_labels", lambda e: setattr(e.data, "distinct", 149)),
        ("bad_labels", lambda e: setattr(e.outcome, "movement", STILL)),
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


def test_a_weight_that_starts_at_zero_lets_no_gradient_through_and_nothing_vanishes():
    given = evidence(0.02)
    given.probes = [probe(0, (0.0, 0.0, 1.0)), probe(3, (1e-3, 1e-3, 1.0))]
    assert found_by("vanishing_gradient", given)
    given.weights[-1].norm = 0.0
    assert found_by("vanishing_gradient", given) == []


def test_a_rate_is_too_high_by_a_fork_or_by_far_at_chance():
    given = evidence(0.02)
    given.probes = [probe(step, update=0.06) for step in (0, 3)]
    assert found_by("lr_too_high", given) == []
    given.probes = [probe(step, update=0.21) for step in (0, 3)]
    (finding,) = found_by("lr_too_high", given)
    assert finding.override == "optim.lr=0.0001"
    given.trials = outcomes({UNCHANGED: 1.0, TENTH: 1.01, HUNDREDTH: 1.0})
    assert found_by("lr_too_high", given) == []
    given.trials = outcomes({UNCHANGED: 1.0, HUNDREDTH: 0.4})
    (finding,) = found_by("lr_too_high", given)
    assert finding.override == "optim.lr=1e-05"
    assert finding.layer in ("first", "second", "out")


def jumping(skill, ends, **others):
    """A training whose first steps replace a weight, and trials of it."""
    given = evidence(skill, simple=0.3)
    given.probes = [probe(step, update=1.5) for step in (0, 3)]
    tried(given, ends)
    for trial in (TENTH, HUNDREDTH):
        for name, value in others.items():
            setattr(given.trials[trial.name], name, value)
    return given


def test_a_rate_at_which_something_is_learnt_is_too_high_where_a_copy_overtakes_the_training():
    slower = {UNCHANGED: 1.0, TENTH: 0.1, HUNDREDTH: 0.6}
    (finding,) = found_by("lr_too_high", jumping(0.7, slower))
    assert (finding.severity, finding.confidence) == ("warning", "shown")
    assert "at a rate of 0.0001 a copy gets to 0.10 in 24 steps" in finding.summary
    # By heart, or on one set of batches alone, or no farther than the training.
    assert found_by("lr_too_high", jumping(0.7, slower, others=0.5)) == []
    assert found_by("lr_too_high", jumping(0.7, slower, end_again=0.5)) == []
    assert found_by("lr_too_high", jumping(0.7, slower, end_again=None)) == []
    assert found_by("lr_too_high", jumping(0.89, slower)) == []
    # A schedule lowers it; a usual step.
    lowered = jumping(0.7, slower)
    lowered.optimizer.rates = [[0.0, 1e-3], [100.0, 5e-4], [199.0, 1e-4]]
    assert found_by("lr_too_high", lowered) == []
    usual = jumping(0.7, slower)
    usual.probes = [probe(0)]
    assert found_by("lr_too_high", usual) == []


def test_trials_of_lower_rates_are_wanted_where_steps_replace_weights():
    given = jumping(0.7, {UNCHANGED: 1.0, TENTH: 0.1, HUNDREDTH: 0.6})
    assert list(causes.trials_wanted(given)) == [UNCHANGED, TENTH, HUNDREDTH]
    given.probes = [probe(0)]
    assert list(causes.trials_wanted(given)) == []


def test_a_higher_rate_that_learns_its_batches_by_heart_shows_nothing():
    given = evidence(0.02, simple=0.5)
    tried(given, {UNCHANGED: 1.0, HUNDREDFOLD: 0.1})
    assert found_by("lr_too_low", given)
    given.trials[HUNDREDFOLD.name].others_again = 1.02
    assert found_by("lr_too_low", given) == []


def test_a_copy_without_regularisers_that_learns_its_batches_by_heart_shows_nothing():
    given = evidence(0.02, simple=0.5)
    given.optimizer.weight_decay, given.outcome.shrinkage = 1e-3, 1.1
    tried(given, {UNCHANGED: 1.0, UNREGULARISED: 0.8})
    (finding,) = found_by("over_regularised", given)
    assert "shrinks" not in finding.summary
    given.trials[UNREGULARISED.name].others = 1.02
    assert found_by("over_regularised", given) == []


@pytest.mark.parametrize(
    ("learnt", "left", "decay", "certain"),
    [
        (0.3, 0.0, 0.05, True),  # biases may learn that much
        (0.6, 0.0, 0.05, False),
        (0.3, 0.02, 0.05, False),
        (0.3, 0.0, 0.0, False),  # a loss may take them down too
    ],
)
def test_weights_of_which_a_decay_leaves_nothing(learnt, left, decay, certain):
    given = evidence(learnt, simple=None)
    given.optimizer.weight_decay, given.outcome.shrinkage = decay, left
    assert [f.confidence for f in found_by("over_regularised", given)] == ["certain"] * certain


def test_a_sum_does_harm_where_a_copy_of_the_average_overtakes_the_training():
    given = evidence(0.52, simple=0.5)
    given.loss.doubling = 2.0
    tried(given, {UNCHANGED: 600.0, AVERAGED_LOSS: 0.01})
    (finding,) = found_by("loss_reduction", given)
    assert (finding.severity, finding.confidence) == ("warning", "shown")
    given.trials[AVERAGED_LOSS.name].end = 0.5
    (finding,) = found_by("loss_reduction", given)
    assert finding.severity == "note"


def test_signals_that_fade_are_named_where_weights_alone_stop_them():
    given = evidence(0.02)
    for each in given.weights:
        each.signal = 1.0
    given.network.output_signal = 0.001
    tried(given, {UNCHANGED: 1.0, UNIT_SIGNALS: 0.5})
    (finding,) = found_by("init_scale_too_small", given)
    assert finding.confidence == "shown"
    assert "the outputs differ among samples by 0.001 of what those of first do" in finding.summary
    for change in (
        lambda e: setattr(e.network, "output_signal", 0.5),
        lambda e: setattr(e.weights[-1], "norm", 0.0),
        lambda e: setattr(e.weights[0], "signal", None) or setattr(e.weights[1], "signal", None),
        lambda e: e.probes[0].activations.append(ActivationFacts("tanh", "first", 0.5, 0.0, 0.0)),
        lambda e: e.probes[0].activations.append(ActivationFacts("relu", "second", 0.0, 1.0, None)),
        lambda e: tried(e, {UNCHANGED: 1.0, UNIT_SIGNALS: 1.0}),
    ):
        other = copy.deepcopy(given)
        change(other)
        assert found_by("init_scale_too_small", other) == []


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


def with_huge_inputs(start, end):
    """A failing training on inputs of 1e5, and what a copy on standardised ones starts and ends
    with, over the loss of guessing."""
    given = evidence(0.02)
    given.data.rms = 1e5
    given.trials = {
        UNCHANGED.name: TrialOutcome(24, 1e6, 1e4),
        STANDARDISED_INPUTS.name: TrialOutcome(24, start, end),
    }
    return given


def test_inputs_that_make_the_loss_are_named_though_a_trial_is_too_short_to_learn():
    (finding,) = found_by("input_scale", with_huge_inputs(70.0, 20.0))
    assert (finding.severity, finding.confidence) == ("error", "shown")
    assert finding.evidence["start: unchanged"] == 1e6
    assert diagnosis(with_huge_inputs(70.0, 20.0)).main_cause == "input_scale"


def test_the_same_of_data_that_a_layer_takes_beside_what_was_learnt():
    given = with_huge_inputs(70.0, 20.0)
    given.data.floating, given.data.rms = False, None  # ids
    given.trials[SCALED_LAYERS.name] = given.trials.pop(STANDARDISED_INPUTS.name)
    assert found_by("input_scale", given) == []
    given.network.data_inputs = {"deep.0": 1e6, "wide": 10.0}
    (finding,) = found_by("input_scale", given)
    assert (finding.severity, finding.confidence, finding.layer) == ("error", "shown", "deep.0")
    given.trials[SCALED_LAYERS.name].start = 1e6
    assert found_by("input_scale", given) == []


@pytest.mark.parametrize(
    ("start", "end"),
    [(1e6, 20.0), (70.0, 1e4 * CALMED), (70.0, math.nan)],
)
def test_a_loss_that_the_inputs_did_not_make_says_nothing_of_them(start, end):
    assert found_by("input_scale", with_huge_inputs(start, end)) == []


def test_raw_pixels_are_suspected_before_the_rate_at_which_they_fail():
    given = evidence(0.02)
    gated()["lr_too_high"](given)
    given.trials = {
        trial.name: TrialOutcome(24, 1.5, end)  # on one set of batches alone
        for trial, end in ((UNCHANGED, 1.0), (TENTH, 0.9), (STANDARDISED_INPUTS, 1.0))
    }
    assert [f.confidence for f in found_by("lr_too_high", given)] == ["suspected"]
    for rms, named in ((RAW - 1, "lr_too_high"), (RAW, "input_scale"), (1 / RAW, "input_scale")):
        given.data.rms, given.network.data_inputs = rms, {"first": rms}
        assert diagnosis(given).main_cause == named
    given.network.data_inputs = {"first": 0.5}  # the model divides them
    assert diagnosis(given).main_cause == "lr_too_high"
    given.network.data_inputs = {"first": 1 / RAW}
    given.outcome.train = given.outcome.train_mode = score(0.9)  # it learns all the same
    assert found_by("input_scale", given) == []


def test_usual_inputs_did_not_make_a_high_loss():
    given = with_huge_inputs(70.0, 20.0)
    given.data.rms = FAR_SCALE
    assert found_by("input_scale", given) == []


def test_a_rate_that_a_copy_diverges_at_is_suspected_where_a_lower_one_is_calm():
    def given(unchanged, lower):
        e = evidence(0.02)
        e.outcome.highest_loss = 40.0
        tried(e, {UNCHANGED: unchanged, TENTH: lower})
        e.probes[0].layers["first.weight"].update = 2.0
        return found_by("lr_too_high", e)

    (finding,) = given(2.4, 1.01)
    assert finding.confidence == "suspected"
    assert "does not get worse than guessing" in finding.summary
    assert given(2.4, 1.2) == []  # the rate does not tell
    assert given(1.2, 1.01) == []


def test_a_warm_up_is_suspected_where_nothing_can_be_tried():
    given = evidence(0.02)
    given.optimizer.scheduled = 1e-3
    given.optimizer.rates = [[0.0, 0.0], *([50.0 * n, 1e-5 * n] for n in range(1, 4))]
    (finding,) = found_by("lr_too_low", given)
    assert finding.confidence == "suspected"
    assert "of a schedule's 0.001" in finding.summary
    tried(given, {UNCHANGED: 1.0, HUNDREDFOLD: 1.0})  # a higher rate does not help
    assert found_by("lr_too_low", given) == []


def test_a_relation_that_holds_for_validation_samples_is_one():
    given = evidence(0.02)
    gated()["bad_labels"](given)
    assert len(found_by("bad_labels", given)) == 1
    given.outcome.own_loss.validation = Pairing(GROUPS, 0.9, 1.3, 0.7, 0.1)
    assert found_by("bad_labels", given) == []
    given.outcome.own_loss.validation = Pairing(GROUPS, 0.6, 1.3, 0.2, 0.1)
    assert len(found_by("bad_labels", given)) == 1


# --- where no cause is seen -----------------------------------------------------------------------


def inputs_without_use():
    """An unknown task whose outputs may change places among the samples."""
    given = evidence(0.0, simple=None)
    given.task, given.classes = "unknown", None
    given.outcome.train = given.outcome.train_mode = Score()
    for name in ("train", "train_mode", "late", "validation"):
        setattr(given.outcome.own_loss, name, Pairing(32, 0.5, 1.0, 0.0, 0.001))
    return given


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: None, "bad_labels"),
        (lambda e: setattr(e.data, "rms", 500.0), "input_scale"),
        (lambda e: setattr(e.data, "simple_skill", 0.4), "does not learn"),
        (lambda e: setattr(e.data, "distinct", 40), "does not learn"),
        (lambda e: setattr(e.outcome, "movement", 0.01), "does not learn"),
    ],
)
def test_the_likeliest_cause_is_said_where_none_is_seen(change, named):
    given = inputs_without_use()
    change(given)
    report = causes.diagnose(given, 200)
    assert (report.healthy, report.main_cause) == (False, named)
    if report.main is not None:
        assert (report.main.severity, report.main.confidence) == ("note", "suspected")
        assert report.main.override is None
    given.outcome.own_loss.train.gap = given.outcome.own_loss.validation.gap = 0.5  # it may learn
    assert causes.diagnose(given, 200).main is None
