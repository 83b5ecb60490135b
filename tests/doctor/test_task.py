"""How outputs and targets are read, and how well they fit, against slow reference versions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from debugnn.doctor.observe.calls import first_tensor
from debugnn.doctor.observe.task import (
    Task,
    constant_loss,
    read,
    reference_loss,
    relative_loss,
    score,
    space,
)

seeds = st.integers(0, 2**31 - 1)


def classification(seed, batch=12, classes=4):
    """Logits (B, C) and labels (B,), some classes perhaps absent."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (batch, classes))
    return logits, random.integers(0, classes, batch)


# --- reading ------------------------------------------------------------------------------------

ZERO_ONE = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
READINGS = {
    "classes": (torch.zeros(6, 3), torch.arange(6) % 3, Task("classes", 3, 1)),
    "column of classes": (torch.zeros(6, 3), torch.arange(6)[:, None] % 3, Task("classes", 3, 1)),
    "classes second": (torch.zeros(6, 3, 5), torch.ones(6, 5).long(), Task("classes", 3, 1)),
    "classes last": (torch.zeros(6, 5, 3), torch.ones(6, 5).long(), Task("classes", 3, 2)),
    "pixels": (torch.zeros(6, 3, 4, 5), torch.ones(6, 4, 5).long(), Task("classes", 3, 1)),
    "one hot": (torch.zeros(3, 3), torch.eye(3), Task("classes", 3, 1)),
    "soft": (torch.zeros(2, 2), torch.tensor([[0.3, 0.7], [0.5, 0.5]]), Task("classes", 2, 1)),
    "a logit": (torch.zeros(6, 1), ZERO_ONE[:, None], Task("binary")),
    "a logit, a row": (torch.zeros(6, 1), ZERO_ONE, Task("binary")),
    "a logit, whole": (torch.zeros(6), ZERO_ONE.long(), Task("binary")),
    "a logit, bool": (torch.zeros(6, 1), ZERO_ONE.bool(), Task("binary")),
    "several labels": (torch.zeros(2, 3), torch.ones(2, 3), Task("binary")),
    "values": (torch.zeros(6, 1), torch.linspace(0, 1, 6)[:, None], Task("values")),
    "counts": (torch.zeros(6, 1), torch.arange(6), Task("values")),
    "vectors": (torch.zeros(3, 2), torch.linspace(-1, 1, 6).reshape(3, 2), Task("values")),
    "other shapes": (torch.zeros(6, 2), torch.linspace(0, 1, 6), Task("unknown")),
    "whole outputs": (torch.zeros(6, 3).long(), torch.arange(6) % 3, Task("unknown")),
    "no tensor": (torch.zeros(6, 3), [0, 1, 2, 0, 1, 2], Task("unknown")),
}


@pytest.mark.parametrize("name", READINGS)
def test_shapes_types_and_values_tell_the_task(name):
    outputs, targets, expected = READINGS[name]
    assert read(outputs, targets) == expected
    assert read({"loss": None, "logits": outputs}, targets) == expected


def test_the_first_tensor_is_found_wherever_it_stands():
    wanted = torch.ones(2)
    for outputs in (wanted, (wanted, 3), [None, [wanted]], {"a": (), "b": wanted}):
        assert first_tensor(outputs) is wanted
    for outputs in (None, 3.0, (), {"a": "b"}):
        assert first_tensor(outputs) is None

    class Output:
        logits = wanted

    assert first_tensor(Output()) is wanted


def test_pairs_lie_beside_each_other_whatever_the_layout():
    last = torch.randn(4, 5, 3)
    labels = torch.arange(20).reshape(4, 5) % 3
    rows, wanted = Task("classes", 3, 2).pair(last, labels)
    same, again = Task("classes", 3, 1).pair(last.transpose(1, 2), labels)
    assert torch.equal(rows, same)
    assert torch.equal(wanted, again)
    for sample in range(4):
        for time in range(5):
            at = sample * 5 + time
            assert torch.equal(rows[at], last[sample, time])
            assert wanted[at] == labels[sample, time]


def test_pairs_leave_out_labels_that_no_output_stands_for():
    rows, wanted = Task("classes", 3).pair(torch.eye(4, 3), torch.tensor([0, -100, 3, 2]))
    assert wanted.tolist() == [0, 2]
    assert torch.equal(rows, torch.eye(4, 3)[[0, 3]])


@given(seeds)
def test_spaces(seed):
    logits = torch.as_tensor(classification(seed)[0])
    assert space(logits) == "real"
    assert space(logits.softmax(dim=1)) == "simplex"
    assert space(logits.log_softmax(dim=1)) == "log_simplex"
    assert space(logits.sigmoid()) == "real"
    assert space(logits.softmax(dim=0)) == "real"


# --- losses -------------------------------------------------------------------------------------


@given(seeds)
def test_cross_entropy_is_that_of_scikit_learn(seed):
    logits, labels = classification(seed)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = metrics.log_loss(labels, chances, labels=range(4))
    task, targets = Task("classes", 4), torch.as_tensor(labels)
    for outputs in (logits, np.log(chances), chances):
        found = reference_loss(task, torch.as_tensor(outputs), targets)
        assert found == pytest.approx(expected, rel=1e-4)


@given(seeds)
def test_binary_cross_entropy_is_that_of_scikit_learn(seed):
    logits, labels = classification(seed, classes=2)
    chances = 1 / (1 + np.exp(-logits[:, :1]))
    expected = metrics.log_loss(labels, chances, labels=[0, 1])
    targets = torch.as_tensor(labels).float()
    found = reference_loss(Task("binary"), torch.as_tensor(logits[:, :1]), targets)
    assert found == pytest.approx(expected, rel=1e-4)
    squashed = Task("binary", squashed=True)
    assert reference_loss(squashed, torch.as_tensor(chances), targets) == pytest.approx(
        expected, rel=1e-3
    )


@given(seeds, st.floats(-50, 50))
def test_relative_loss_of_values_is_what_r2_leaves(seed, offset):
    random = np.random.default_rng(seed)
    wanted = random.normal(offset, 3, (20, 1)).astype(np.float32)
    guessed = (wanted + random.normal(0, 2, wanted.shape)).astype(np.float32)
    outputs, targets = torch.as_tensor(guessed), torch.as_tensor(wanted)
    task = Task("values")
    expected = metrics.mean_squared_error(wanted, guessed)
    assert reference_loss(task, outputs, targets) == pytest.approx(expected, rel=1e-4)
    # A column of values and a row of them are not broadcast to 20 × 20.
    assert reference_loss(task, outputs, targets.squeeze(1)) == pytest.approx(expected, rel=1e-4)
    assert constant_loss(task, targets) == pytest.approx(wanted.var(), rel=1e-4)
    r2 = metrics.r2_score(wanted, guessed)
    assert 1 - relative_loss(task, outputs, targets) == pytest.approx(r2, abs=1e-4)
    assert score(task, outputs, targets).skill == pytest.approx(r2, abs=1e-4)


@given(seeds)
def test_no_constant_predictor_is_better_than_the_best_one(seed):
    _, labels = classification(seed, batch=30)
    task, targets = Task("classes", 4), torch.as_tensor(labels)
    shares = np.bincount(labels, minlength=4) / 30
    best = torch.as_tensor(np.log(np.maximum(shares, 1e-12))).expand(30, 4)
    least = constant_loss(task, targets)
    assert reference_loss(task, best, targets) == pytest.approx(least, rel=1e-4)
    for other in np.random.default_rng(seed).normal(size=(5, 4)):
        assert reference_loss(task, torch.as_tensor(other).expand(30, 4), targets) >= least - 1e-6


def test_the_constant_loss_of_equal_classes_is_the_logarithm_of_their_number():
    for classes in (2, 10, 100):
        labels = torch.arange(400) % classes
        assert constant_loss(Task("classes", classes), labels) == pytest.approx(math.log(classes))
    assert constant_loss(Task("binary"), torch.arange(9) % 2.0) == pytest.approx(
        -(5 * math.log(5 / 9) + 4 * math.log(4 / 9)) / 9
    )


def test_one_hot_targets_cost_what_their_classes_cost():
    logits, labels = (torch.as_tensor(part) for part in classification(3))
    task = Task("classes", 4)
    hot = torch.nn.functional.one_hot(labels, 4).float()
    for measure in (relative_loss, reference_loss, score):
        assert measure(task, logits, hot) == measure(task, logits, labels)
    assert constant_loss(task, hot) == constant_loss(task, labels)


def test_of_one_class_alone_the_constant_loss_stays_above_zero():
    targets = torch.ones(8).long()
    assert constant_loss(Task("classes", 3), targets) == 0.1
    assert relative_loss(Task("classes", 3), torch.zeros(8, 3), targets) == pytest.approx(
        10 * math.log(3)
    )
    # Values that do not vary have no relative loss.
    assert constant_loss(Task("values"), torch.full((8, 1), 2.5)) is None
    assert relative_loss(Task("values"), torch.zeros(8, 1), torch.full((8, 1), 2.5)) is None


def test_losses_of_nothing_and_of_the_unknown_are_none():
    assert reference_loss(Task("unknown"), torch.zeros(3), torch.zeros(3)) is None
    assert constant_loss(Task("unknown"), torch.zeros(3)) is None
    ignored = torch.full((3,), -100)
    assert reference_loss(Task("classes", 2), torch.zeros(3, 2), ignored) is None
    assert score(Task("classes", 2), torch.zeros(3, 2), ignored).skill is None
    assert score(Task("unknown"), torch.zeros(3), torch.zeros(3)).skill is None


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_non_finite_output_costs_without_end(number):
    outputs = torch.zeros(4, 3)
    outputs[2, 1] = number
    assert relative_loss(Task("classes", 3), outputs, torch.arange(4) % 3) == math.inf
    assert score(Task("values"), outputs[:, 1:2], torch.arange(4.0)).skill == -math.inf


def test_the_best_constant_vector_is_no_skill():
    random = np.random.default_rng(0)
    targets = torch.as_tensor(random.normal([0, 100], 1, (200, 2))).float()
    best = targets.mean(dim=0).expand(200, 2)
    assert read(best, targets) == Task("values")
    assert relative_loss(Task("values"), best, targets) == pytest.approx(1, rel=1e-3)
    assert score(Task("values"), best, targets).skill == pytest.approx(0, abs=1e-3)


# --- scores -------------------------------------------------------------------------------------


@given(seeds)
def test_scores_of_classes_are_those_of_scikit_learn(seed):
    logits, labels = classification(seed, batch=25)
    guessed = logits.argmax(axis=1)
    found = score(Task("classes", 4), torch.as_tensor(logits), torch.as_tensor(labels))
    common = np.bincount(labels).max() / 25
    accuracy = metrics.accuracy_score(labels, guessed)
    assert found.skill == pytest.approx((accuracy - common) / (1 - common), abs=1e-5)
    recalls = metrics.recall_score(labels, guessed, labels=np.unique(labels), average=None)
    assert found.balanced == pytest.approx(recalls.mean(), abs=1e-5)
    assert found.samples == 25
    assert found.recalls == {}


@given(seeds, st.lists(st.integers(0, 4), unique=True, min_size=1))
def test_recalls_are_those_of_the_classes_asked_for(seed, rarest):
    logits, labels = classification(seed, batch=25)
    guessed = logits.argmax(axis=1)
    recalls = {
        c: np.mean(guessed[labels == c] == c) for c in rarest if np.sum(labels == c) >= 3
    }  # a recall of one or two samples says nothing
    found = score(Task("classes", 4), torch.as_tensor(logits), torch.as_tensor(labels), rarest)
    assert found.recalls == pytest.approx(recalls, abs=1e-5)


@given(seeds)
def test_scores_of_two_classes_are_alike_from_one_output_and_from_two(seed):
    logits, labels = classification(seed, batch=25, classes=2)
    two, targets = torch.as_tensor(logits), torch.as_tensor(labels)
    one = two[:, 1:] - two[:, :1]
    by_two, by_one = score(Task("classes", 2), two, targets), score(Task("binary"), one, targets)
    by_chance = score(Task("binary", squashed=True), one.sigmoid(), targets.float())
    for field in ("relative_loss", "skill", "balanced"):
        for other in (by_one, by_chance):
            assert getattr(other, field) == pytest.approx(getattr(by_two, field), rel=1e-3)


def test_perfect_outputs_have_a_skill_of_one_and_constant_ones_of_zero():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    perfect = 20 * torch.nn.functional.one_hot(labels, 3).float()
    right, blind = (score(Task("classes", 3), o, labels) for o in (perfect, torch.eye(3)[[0] * 6]))
    assert (right.skill, right.balanced) == (1, 1)
    assert blind.skill == 0
    assert blind.balanced == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [3, 12, 40])
def test_where_classes_are_places_in_the_batch_another_batch_has_others(size):
    similarity = 3 * torch.eye(size) + torch.randn(size, size, generator=torch.manual_seed(0))
    trained_on = Task("classes", 12, 1)
    found = score(trained_on, similarity, torch.arange(size))
    assert found == score(Task("classes", size, 1), similarity, torch.arange(size))
    assert found.samples == size


def test_a_place_that_says_all_is_no_skill_of_guessing():
    """One right answer in front of seven wrong ones, as negative sampling has it."""
    targets = torch.zeros(200, 8)
    targets[:, 0] = 1
    outputs = torch.randn(200, 8, generator=torch.manual_seed(0)) + 3 * targets - 2
    found = score(Task("binary"), outputs, targets)
    accuracy = ((outputs > 0) == (targets > 0)).float().mean().item()
    assert found.skill == pytest.approx((accuracy - 7 / 8) / (1 / 8), abs=1e-5)
    assert 0 < found.relative_loss < 1
    targets[:5, 1] = 1  # labels of maps, whose places have frequencies
    assert score(Task("binary"), outputs, targets).relative_loss > found.relative_loss


def test_nan_outputs_score_without_raising():
    outputs = torch.full((6, 3), math.nan)
    found = score(Task("classes", 3), outputs, torch.arange(6) % 3)
    assert found.relative_loss == math.inf
    assert found.skill <= 0


# --- several labels a sample ----------------------------------------------------------------------


def maps_by_place(samples=200, seed=0):
    """Labels (samples, 6, 6) of three classes that hang on the place alone, but for a tenth."""
    drawn = torch.Generator().manual_seed(seed)
    usual = torch.arange(36).reshape(6, 6) % 3
    other = torch.randint(3, (samples, 6, 6), generator=drawn)
    changed = torch.rand(samples, 6, 6, generator=drawn) < 0.1
    return usual, torch.where(changed, other, usual)


def test_the_best_constant_of_maps_is_another_one_at_each_place():
    usual, labels = maps_by_place()
    task = Task("classes", 3, 1)
    right = 1 - 0.1 * 2 / 3
    entropy = -right * math.log(right) - (1 - right) * math.log((1 - right) / 2)
    assert constant_loss(task, labels) == pytest.approx(entropy, rel=0.1)
    scores = 10 * F.one_hot(usual, 3).movedim(-1, 0).expand(200, 3, 6, 6).float()
    assert score(task, scores, labels).skill == pytest.approx(0, abs=1e-6)
    assert score(Task("binary"), scores[:, 1], (labels == 1).float()).skill == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("samples", [32, 40, 400])
def test_frequencies_at_single_places_do_not_fit_chance(samples):
    """On the samples that they were counted on they would, by far: the entropy is ln 3."""
    labels = torch.randint(3, (samples, 500), generator=torch.Generator().manual_seed(1))
    found = constant_loss(Task("classes", 3, 1), labels)
    assert found == pytest.approx(math.log(3), rel=1e-3)


def test_labels_that_are_left_out_have_no_constant():
    _, labels = maps_by_place()
    task, left_out = Task("classes", 3, 1), labels.clone()
    left_out[:, 0] = -100
    assert constant_loss(task, left_out) == pytest.approx(constant_loss(task, labels[:, 1:]))
    assert constant_loss(task, torch.full((40, 5), -100)) is not None
