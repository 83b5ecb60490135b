"""Causes that are certain, whatever the outcome of the training."""

import pytest
from handmade_evidence import STEPS, diagnosis, evidence, found_by, residues, with_nan

from debugnn.doctor.causes import CAUSES
from debugnn.doctor.causes.cause import Kind
from debugnn.doctor.causes.non_finite import told
from debugnn.doctor.causes.signals.telling_features import LEAKED
from debugnn.doctor.evidence import LayerFacts, OptimizerFacts, PolicyFacts, Score


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

    def again(epochs=2.0, **values):
        return lambda e: [setattr(e.outcome, "epochs", epochs), data(**values)(e)]

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
        ("label_leak", data(feature_shares=[1.0], distinct=50),
         data(feature_shares=[1.0], distinct=49)),
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
        ("batch_mixing",
         lambda e: [setattr(e, "task", "unknown"), network(mixing=1.0, batch_softmax=True)(e)],
         network(mixing=1.0, batch_softmax=True)),
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
        # Both directions are the same but for rounding: a dead network's one gradient that is left.
        ("missing_zero_grad", loop(residues=[[0, 0.0, 1.1e-3], [1, 0.0, 1.1e-3]]),
         loop(residues=[[0, 0.0, 2e-8], [1, 0.0, 2e-8]])),
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
        ("wrong_loss", loss(beside_discriminator=[0.91] * 3),
         loss(beside_discriminator=[0.91] * 2)),
        ("wrong_loss", loss(beside_discriminator=[0.91] * 3),
         loss(beside_discriminator=[1.0, 1.0, 0.89])),
        ("wrong_loss", loss(policy=PolicyFacts(True, 0.51)), loss(policy=PolicyFacts(False, 0.49))),
        ("wrong_loss", loss(overlap=True), loss(overlap=False)),
        ("wrong_loss", loss(competing=0.21, shapes=[[32, 50], [32, 50]]),
         loss(competing=0.19, shapes=[[32, 50], [32, 50]])),
        ("wrong_loss", loss(competing=0.21, shapes=[[32, 50], [32, 50]]),
         loss(competing=0.21, shapes=[[32, 51], [32, 51]])),
        ("bad_labels", data(out_of_range=1), data(out_of_range=0)),
        ("bad_labels", data(out_of_range=1), data(out_of_range=1, void_labels=True)),
        ("bad_labels", again(conflicting=0.31, repeated=20), again(conflicting=0.3, repeated=20)),
        ("bad_labels", again(conflicting=0.9, repeated=20), again(conflicting=0.9, repeated=19)),
        ("bad_labels", again(conflicting=0.9, repeated=20, repeats_within=0.2),
         again(conflicting=0.9, repeated=20, repeats_within=0.21)),
        # Texts that have lost most of their words are the same by chance.
        ("bad_labels", again(1.1, conflicting=0.9, repeated=20),
         again(1.09, conflicting=0.9, repeated=20)),
        ("non_finite", data(nonfinite_samples=1), data(nonfinite_samples=0)),
    ]  # fmt: skip


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
    given.data.target_tenth, given.data.target_nine_tenths = 0.1, 1.0  # a few of them alone
    assert found_by("wrong_loss", given) == []


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
    ("optimizer", "step", "named"),
    [
        ({"name": "Adam", "lost_eps": 1e-8, "dtype": "float16"}, 5, "Adam's eps of 1e-08"),
        ({"name": "Adam", "lost_eps": 1e-8, "dtype": "float16"}, 0, "Adam's eps of 1e-08"),
        ({"name": "SGD"}, 5, None),  # it has no eps
        ({}, 5, "Adam's eps of 1e-8"),  # not looked at yet
    ],
)
def test_an_update_is_blamed_on_an_eps_in_the_report_and_at_its_step_alike(optimizer, step, named):
    given = with_nan("update", step=step)
    given.nonfinite.outputs = ["float16 (4, 8)"]
    given.optimizer = OptimizerFacts(**optimizer)
    (found,) = found_by("non_finite", given)
    for said in (f"{found.summary}. {found.fix}", told(given, given.nonfinite)):
        assert (f"{named} is 0 in float16" in said) is (named is not None)
        assert ("set eps=1e-4" in said) is (named is not None)


def zeros(given, gradient=0.0):
    for each in given.probes:
        for name in ("down.weight", "up.weight"):
            each.layers[name] = LayerFacts(gradient, 0.0, 0.0)
    return found_by("symmetric_init", given)


def test_factors_that_all_start_at_zero_stay_there():
    (finding,) = zeros(evidence(0.02))
    assert (finding.severity, finding.confidence) == ("error", "certain")
    assert "down.weight, up.weight" in finding.summary
    assert zeros(evidence(0.95)) == []  # what does not hinder the training
    assert zeros(evidence(0.02), gradient=1e-9) == []
    assert zeros(evidence(0.02), gradient=None) == []


def test_a_detached_output_needs_parameters_that_are_never_reached():
    given = evidence()
    given.loss.detached = ["size"]
    assert found_by("frozen_parameters", given) == []
    given.network.unused = ["size.weight"]
    (finding,) = found_by("frozen_parameters", given)
    assert (finding.severity, finding.confidence, finding.layer) == ("error", "certain", "size")
    given.loss.detached = []
    assert found_by("frozen_parameters", given) == []


def test_samples_of_a_net_that_compares_them_compete_by_right():
    given = evidence()
    given.loss.cross_gradient = 0.03
    assert "batch axis" in found_by("wrong_loss", given)[0].summary
    given.network.sample_axis = None
    assert found_by("wrong_loss", given) == []


def test_probabilities_that_are_given_as_logits_are_named_whatever_the_task():
    given = evidence()
    given.task = "unknown"
    given.loss.sources = {"logsumexp": "linear"}
    assert found_by("wrong_loss", given) == []
    given.loss.sources = {"logsumexp": "softmax"}
    (finding,) = found_by("wrong_loss", given)
    assert "as Categorical(logits=…) does" in finding.summary


def test_samples_whose_classes_are_their_places_compete_by_right():
    given = evidence()
    given.loss.cross_gradient = 0.03
    given.loss.shapes = [[16, 16], [16]]
    given.data.class_counts = dict.fromkeys(range(16), 40)
    assert found_by("wrong_loss", given) == []
    given.data.class_counts[3] += 1  # as many classes as samples, drawn at random
    assert "batch axis" in found_by("wrong_loss", given)[0].summary


def test_what_the_loss_turns_into_values_is_not_done_by_the_network_too():
    for link in ("exp", "sigmoid"):
        given = evidence(0.9)
        given.task, given.loss.shift_change, given.loss.link = "values", None, link
        assert found_by("wrong_loss", given) == []
        given.network.last_op = link
        (finding,) = found_by("wrong_loss", given)
        assert finding.confidence == "certain"
        assert "once more" in finding.summary


def test_a_loss_that_takes_the_classes_one_by_one_is_wrong_where_it_hinders():
    for skill, severity in ((0.95, "note"), (0.3, "error")):
        given = evidence(skill)
        given.loss.shift_change = 0.7
        (finding,) = found_by("wrong_loss", given)
        assert finding.severity == severity


@pytest.mark.parametrize(
    ("skill", "operation", "severity"),
    [
        (0.0, "convolution", "error"),
        (0.9, "convolution", "warning"),
        (0.0, "addmm", "error"),
        (0.9, "addmm", "note"),
    ],
)
def test_scores_of_several_positions_are_right_where_a_net_may_put_them_there(
    skill, operation, severity
):
    """Weights of its own for each place give a score wherever the loss looks for it."""
    given = evidence(skill)
    given.loss.across_positions, given.network.last_op = 1.0, operation
    given.loss.shapes = [[8, 10, 6, 6], [8, 6, 6]]
    assert [f.severity for f in found_by("wrong_loss", given)] == [severity]
    given.loss.across_positions = 0.9
    assert not found_by("wrong_loss", given)


@pytest.mark.parametrize(("units", "severity"), [(10, "warning"), (60, "note")])
def test_a_linear_layer_on_each_position_cannot_put_scores_elsewhere(units, severity):
    given = evidence(0.9)
    given.loss.across_positions, given.network.last_op = 1.0, "add"
    given.loss.shapes, given.loss.sources = [[8, 6, 10], [8, 6]], {"cross_entropy": "linear"}
    given.weights[-1].outputs = units
    assert [f.severity for f in found_by("wrong_loss", given)] == [severity]
