"""From findings to a report: their order, the main one, and the verdict."""

from dataclasses import replace

import pytest
from handmade_evidence import diagnosis, evidence, finding, with_nan

from debugnn.doctor import causes
from debugnn.doctor.causes import CAUSES, ORDER
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import SEVERITIES


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


def test_a_resumed_training_is_called_neither_healthy_nor_sick():
    given = evidence(0.95)
    given.loop.steps_before = 100
    report = diagnosis(given)
    assert report.healthy is None
    assert report.main_cause == "cannot tell"
    assert "the first 100 steps were taken before" in str(report)
    assert report.to_dict()["healthy"] is None
