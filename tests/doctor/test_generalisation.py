"""Causes that validation samples and rare classes show."""

import pytest
from handmade_evidence import evidence, found_by, score

from debugnn.doctor.causes.signals.data import SHIFTED, TOLD_APART
from debugnn.doctor.evidence import Evidence, Validation


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
    given.data.shift = TOLD_APART
    assert found_by("train_test_mismatch", given) == []
    given.data.scale_shift = SHIFTED + 0.01
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
