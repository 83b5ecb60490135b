"""Comparisons of training and validation that hold whatever the shares of the classes are."""

import pytest
import torch
from handmade_evidence import evidence, found_by, score
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes.class_imbalance import (
    CLEARLY,
    GIVEN_UP,
    INFORMED,
    MORE_FREQUENT,
    NEVER,
    OF_CLASS,
    TOLD,
)
from debugnn.doctor.evidence import AdjustedFacts, SameShares, Score, Validation
from debugnn.doctor.observe.class_shares import (
    adjusted_facts,
    adjustment,
    in_order_of,
    of_same_shares,
)
from debugnn.doctor.observe.task import Task, log_probabilities
from debugnn.faults import FAULTY, train
from debugnn.faults.datasets import mixture
from debugnn.faults.nets import mlp
from debugnn.faults.sound import sound

THREE = Task("classes", 3)
SHARES = torch.tensor([0.9, 0.07, 0.03])


def likelihoods(shares, samples=900, apart=3.0):
    """Samples (N, 3) of classes with these shares around points, their classes, and the logarithms
    of their likelihoods under each class."""
    torch.manual_seed(0)
    labels = torch.multinomial(shares, samples, replacement=True)
    points = apart * torch.eye(3)
    x = points[labels] + torch.randn(samples, 3)
    return x, labels, -0.5 * torch.cdist(x, points).square()


# ------------------------------------------------------------------------------------ what is seen


@pytest.mark.parametrize("prior", [[0.98, 0.01, 0.01], [1 / 3] * 3, [0.001, 0.499, 0.5]])
def test_an_adjustment_undoes_the_shares_that_outputs_were_trained_on(prior):
    x, labels, likelihood = likelihoods(SHARES)
    outputs = likelihood + torch.tensor(prior).log()
    facts = adjusted_facts(THREE, outputs, labels, x)
    assert facts.skill > 0.9
    right = (likelihood + SHARES.log()).argmax(dim=1) == labels  # the best that there is
    for c in range(3):
        recall = right[labels == c].double().mean().item()
        assert facts.recalls_after[c] == pytest.approx([recall] * 2, abs=0.2)
        assert min(facts.precisions_after[c]) > 0.8
        assert min(facts.told[c]) > 0.7
    assert facts.counts == dict(enumerate(labels.bincount().tolist()))
    assert max(facts.lost) < 0.05
    assert facts.expected[0] == pytest.approx(outputs.softmax(dim=1)[:, 0].mean().item(), abs=1e-4)


def test_nothing_is_added_to_outputs_that_are_right_about_the_shares():
    _, labels, likelihood = likelihoods(SHARES, samples=4000, apart=1.0)
    outputs = (likelihood + SHARES.log()).log_softmax(dim=1).double()
    bias = adjustment(outputs, labels, even=False)
    assert (bias - bias[0]).abs().max() < 0.3
    even = adjustment(outputs, labels, even=True)
    assert even - even[0] == pytest.approx(SHARES[0].log() - SHARES.log(), abs=0.3)


def test_labels_in_another_order_are_not_mended_by_an_adjustment():
    x, labels, likelihood = likelihoods(SHARES)
    for other in ((labels + 1) % 3, labels[torch.randperm(len(labels))]):
        facts = adjusted_facts(THREE, likelihood, other, x)
        assert facts.skill < 0.15


def test_two_classes_of_one_output_are_adjusted_too():
    x, labels, likelihood = likelihoods(torch.tensor([0.8, 0.2, 0.0]))
    logits = (likelihood[:, 1] - likelihood[:, 0] - 20)[:, None]
    for squashed in (False, True):
        outputs = (logits + 5).sigmoid() if squashed else logits
        task = Task("binary", squashed=squashed)
        facts = adjusted_facts(task, outputs, labels.float()[:, None], x)
        assert facts.skill > 0.9
        assert max(facts.recalls[1]) < 0.1
        assert min(facts.recalls_after[1]) > 0.8
        scores, _ = log_probabilities(task, outputs, labels.float()[:, None])
        assert scores.exp().sum(dim=1) == pytest.approx(torch.ones(len(labels)), abs=1e-4)


def test_too_few_classes_or_samples_are_not_adjusted():
    x, labels, likelihood = likelihoods(SHARES)
    assert adjusted_facts(Task("values"), likelihood, likelihood, x) is None
    assert adjusted_facts(THREE, likelihood, torch.zeros_like(labels), x) is None
    assert adjusted_facts(THREE, likelihood[:3], labels[:3], x[:3]) is None
    assert adjusted_facts(THREE, likelihood / 0, labels, x) is None
    assert adjusted_facts(THREE, likelihood, labels, x[:-1]).told == {}
    absent = torch.where(labels == 2, 0, labels)
    assert set(adjusted_facts(THREE, likelihood, absent, None).counts) == {0, 1}


def test_samples_of_the_same_shares():
    first, second = torch.tensor([0, 0, 0, 1, 2, 2, -100]), torch.tensor([1, 1, 0, 2, 0, 3])
    one, other = of_same_shares(first, second)
    assert sorted(first[one].tolist()) == sorted(second[other].tolist()) == [0, 0, 1, 2]
    assert len(set(one.tolist())) == len(one)
    assert of_same_shares(torch.tensor([0]), torch.tensor([1]))[0].tolist() == []


def test_samples_in_the_order_of_other_labels():
    labels = torch.tensor([0, 1, 0, 2])
    assert in_order_of(torch.tensor([0, 2, 0, 0, 5, 1]), labels).tolist() == [0, 3, 2, 0, 1]


# ------------------------------------------------------------------------------------ what is said


def shifted(skill):
    """A training whose accuracy on the validation is that of guessing, and worse."""
    given = evidence(0.95)
    given.outcome.validations = [Validation(0, 1.0, score(-2.0, samples=300))]
    given.outcome.adjusted = AdjustedFacts(skill=skill, samples=300)
    given.data.transfer_skill, given.data.shift = -1.0, 0.1
    return given


def test_labels_are_contradicted_only_where_outputs_do_not_separate_the_classes():
    assert found_by("bad_labels", shifted(0.8)) == []
    (found,) = found_by("bad_labels", shifted(0.0))
    assert found.confidence == "shown"
    assert found.evidence["validation_skill"] == 0.0
    assert found_by("overfitting", shifted(0.8)) == []
    assert found_by("overfitting", shifted(0.0))


def test_a_simple_model_is_compared_at_the_same_shares():
    given = shifted(0.0)
    given.data.same_shares = SameShares(shift=0.0, scale_shift=0.0, transfer_skill=0.8)
    assert found_by("bad_labels", given) == []


def test_inputs_that_differ_by_their_classes_shares_are_alike():
    given = shifted(0.3)
    given.data.shift, given.data.scale_shift = 0.95, 1.0
    assert found_by("train_test_mismatch", given)
    given.data.same_shares = SameShares(shift=0.1, scale_shift=0.1)
    assert found_by("train_test_mismatch", given) == []


def test_a_validation_without_the_hard_classes_is_not_met_better():
    given = evidence(0.5)
    given.outcome.train.recalls = {0: 0.9, 1: 0.9, 2: 0.1, 3: 0.1}
    given.outcome.validations = [Validation(0, 1.0, score(0.9, samples=300))]
    given.outcome.validations[0].score.recalls = {0: 0.9, 1: 0.9}
    assert found_by("bad_labels", given) == []
    given.outcome.validations[0].score.recalls = {0: 0.9, 1: 0.9, 2: 0.9}
    assert found_by("bad_labels", given)


def rare(**changes):
    """A class with 1 % of the training samples, none of which is recognised in the validation."""
    given = evidence()
    given.data.class_counts = {0: 980, 4: 10}
    given.outcome.validations = [Validation(0, 1.0, Score(0.9, 0.0, 0.5, {4: 0.0}, 300, 1.0))]
    facts = {
        "samples": 300, "counts": {4: OF_CLASS}, "expected": {4: 0.03}, "recalls": {4: [0.0, 0.0]},
        "recalls_after": {4: [0.0, 0.0]}, "precisions_after": {4: [0.0, 0.0]}, "lost": [0.0, 0.0],
    }  # fmt: skip
    given.outcome.adjusted = AdjustedFacts(**(facts | changes))
    (found,) = found_by("class_imbalance", given)
    return found.confidence


RECOGNISED = {"recalls_after": {4: [CLEARLY, 0.9]}, "precisions_after": {4: [TOLD, 0.9]}}
TOLD_APART = {"counts": {4: 15}, "told": {4: [INFORMED, 0.9]}, "expected": {4: 0.01}}


@pytest.mark.parametrize(
    ("changes", "confidence"),
    [
        (RECOGNISED, "shown"),
        (RECOGNISED | {"counts": {4: OF_CLASS - 1}}, "suspected"),
        (RECOGNISED | {"lost": [0.0, GIVEN_UP + 0.01]}, "suspected"),  # at the others' expense
        (RECOGNISED | {"precisions_after": {4: [TOLD - 0.01, 1.0]}}, "suspected"),
        (RECOGNISED | {"recalls_after": {4: [0.9, CLEARLY - 0.01]}}, "suspected"),
        (TOLD_APART, "shown"),
        (TOLD_APART | {"told": {4: [INFORMED - 0.01, 0.9]}}, "suspected"),
        (TOLD_APART | {"recalls": {4: [0.0, NEVER + 0.01]}}, "suspected"),
        (TOLD_APART | {"told": {}}, "suspected"),
    ],
)
def test_a_rare_class_that_could_be_recognised(changes, confidence):
    assert rare(**changes) == confidence


def test_a_class_that_is_as_rare_in_the_training_and_the_outputs_is_no_fault_of_shares():
    given = TOLD_APART | {"samples": 15 * 100 / MORE_FREQUENT, "expected": {4: 0.03}}
    assert rare(**given) == "suspected"  # 1 % of the training, 3 % of the validation
    assert rare(**given | {"expected": {4: 0.009}}) == "shown"


# --------------------------------------------------------------------------------- whole trainings


def report_of(setup, seed=5):
    with train(setup, seed, Doctor) as doctor:
        return doctor.report()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["drawn_evenly", "classes_weighed", "one_in_thirty", "hardly_told_apart"]
)
def test_sound_trainings_on_rare_classes_are_not_accused(name):
    report = report_of(sound(name, 5))
    assert report.healthy is not False, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "confidence"),
    [
        ("bad_labels/drawn_evenly+folder_missing(label=0)", "shown"),
        ("bad_labels/classes_weighed+folder_missing(label=0)", "shown"),
        ("class_imbalance/drawn_evenly+drawn_by_counts", "certain"),
        ("class_imbalance/classes_weighed+weighed_by_counts", "certain"),  # read off the loss
    ],
)
def test_their_faults_are_named(name, confidence):
    (program,) = (p for p in FAULTY if p.name == name)
    report = report_of(program.build(5))
    assert report.main_cause == program.cause, str(report)
    assert report.main.confidence == confidence


@pytest.mark.slow
def test_validation_that_is_scaled_otherwise_is_seen_beside_other_shares():
    setup = sound("drawn_evenly", 5)
    setup.val = 6 * setup.val[0] + 9, setup.val[1]
    report = report_of(setup)
    assert report.main_cause == "train_test_mismatch", str(report)


@pytest.mark.slow
def test_a_loop_with_a_weighted_sampler_is_not_accused():
    torch.manual_seed(2)
    (x, y), (x_val, y_val) = mixture(2, (0.9, 0.06, 0.04), features=10)
    weights = 1 / torch.bincount(y)[y].double()
    sampler = torch.utils.data.WeightedRandomSampler(weights, len(y))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 50, sampler=sampler)
    model, loss_fn = mlp(10, 32, 3), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(3):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs, targets)
            doctor.validate(x_val, y_val)
        report = doctor.report()
    assert report.healthy is True, str(report)
    assert report.evidence.outcome.adjusted.skill > 0.7
