"""Statistics of data without the network, on the data sets that come with scikit-learn."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets, feature_selection

from debugnn.doctor.observe import samples, simple_models
from debugnn.doctor.observe.task import Task


@cache
def bundled(name):
    """Inputs, targets and task of one of scikit-learn's sets, shuffled."""
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs = torch.as_tensor(inputs[order]).float()
    if name == "diabetes":
        return inputs, torch.as_tensor(targets[order]).float().unsqueeze(1), Task("values")
    return inputs, torch.as_tensor(targets[order]), Task("classes", int(targets.max()) + 1)


def generated(make, *arguments, **settings):
    inputs, targets = make(*arguments, random_state=0, **settings)[:2]
    return torch.as_tensor(inputs).float(), torch.as_tensor(targets)


LEAKED = 0.99  # no natural feature's share


CLASSES = ["iris", "digits", "wine", "breast_cancer"]


# --- describe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, "diabetes"])
def test_scale_is_numpys(name):
    inputs, targets, task = bundled(name)
    facts = samples.data_facts(inputs, targets, task)
    values = inputs.numpy().astype(float)
    assert facts.samples == len(values)
    assert facts.floating
    assert facts.rms == pytest.approx(np.sqrt((values**2).mean()))
    assert facts.mean == pytest.approx(values.mean(), abs=1e-6)
    assert facts.std == pytest.approx(values.std())
    deviations = values.std(axis=0)
    deviations = deviations[deviations > 1e-9 * facts.rms]
    spread = deviations.max() / np.quantile(deviations, 0.1)
    assert facts.feature_spread == pytest.approx(spread, rel=1e-6)
    assert facts.largest_std == pytest.approx(deviations.max())
    assert facts.nonfinite_samples == 0


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_counted(name):
    inputs, targets, task = bundled(name)
    counts = samples.data_facts(inputs, targets, task).class_counts
    assert list(counts.values()) == np.bincount(targets).tolist()
    hot = torch.nn.functional.one_hot(targets).float()
    assert samples.data_facts(inputs, hot, task).class_counts == counts
    # A class without a sample has a count of 0.
    more = samples.data_facts(inputs, targets, Task("classes", task.classes + 1))
    assert more.class_counts == counts | {task.classes: 0}


def test_regression_targets_are_described():
    inputs, targets, task = bundled("diabetes")
    facts = samples.data_facts(inputs, targets, task)
    values = targets.numpy()
    assert facts.target_rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-6)
    assert facts.target_std == pytest.approx(values.std(), rel=1e-6)
    assert (facts.target_low, facts.target_high) == (values.min(), values.max())
    assert facts.target_kinds == len(np.unique(values))
    assert not facts.target_consecutive


def test_class_numbers_as_values_are_known():
    inputs, targets, _ = bundled("digits")
    facts = samples.data_facts(inputs, targets.float().unsqueeze(1), Task("values"))
    assert facts.target_consecutive
    assert facts.target_kinds == 10
    assert facts.target_rarest == pytest.approx(targets.bincount().min().item() / len(targets))
    # Not 0, 1, …: a scale of its own.
    shifted = targets.float().unsqueeze(1) * 2
    assert not samples.data_facts(inputs, shifted, Task("values")).target_consecutive


def test_labels_out_of_range_are_counted_and_ignored_ones_are_not():
    inputs, targets, _ = bundled("iris")
    targets = targets.clone()
    targets[:7], targets[7:9] = -100, 3
    targets[9] = -1
    facts = samples.data_facts(inputs, targets, Task("classes", 3))
    assert facts.out_of_range == 3
    assert sum(facts.class_counts.values()) == 150 - 10


def test_non_finite_samples_are_counted_and_left_out_of_the_scale():
    inputs, targets, task = bundled("iris")
    spoilt = inputs.clone()
    spoilt[3, 1], spoilt[5, 0], spoilt[5, 2] = math.nan, math.inf, -math.inf
    facts = samples.data_facts(spoilt, targets, task)
    assert facts.nonfinite_samples == 2
    kept = np.delete(inputs.numpy(), [3, 5], axis=0)
    assert facts.mean == pytest.approx(kept.mean(), rel=1e-5)
    assert max(facts.feature_shares) < LEAKED


@pytest.mark.parametrize("value", [0.0, 3.7, 1e6])
def test_samples_that_do_not_differ_have_no_deviation(value):
    def largest(inputs):
        return samples.data_facts(inputs, torch.arange(40) % 2, Task("classes", 2)).largest_std

    inputs = torch.full((40, 5), value)
    assert largest(inputs) == 0
    inputs = inputs + torch.arange(5.0)  # every sample (v, v + 1, …)
    assert largest(inputs) == 0
    inputs[7, 2] += 1 + value / 10
    assert largest(inputs) == pytest.approx((1 + value / 10) * math.sqrt(39) / 40, rel=1e-3)


def test_tokens_have_no_scale():
    facts = samples.data_facts(
        torch.arange(60).reshape(20, 3), torch.arange(20) % 2, Task("binary")
    )
    assert not facts.floating
    assert facts.rms is None
    assert facts.feature_shares == []


# --- leaks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, "diabetes"])
@pytest.mark.parametrize("standardise", [False, True])
def test_no_bundled_set_has_a_leak(name, standardise):
    inputs, targets, task = bundled(name)
    if standardise:
        inputs = simple_models.standardised(inputs.double()).float()
    facts = samples.data_facts(inputs, targets, task)
    assert facts.features == inputs.shape[1]
    assert max(facts.feature_shares) < LEAKED


@pytest.mark.parametrize("name", CLASSES)
def test_the_shares_are_those_of_scikit_learns_analysis_of_variance(name):
    """η² = F / (F + (n − k) / (k − 1)), for n samples of k classes."""
    inputs, targets, task = bundled(name)
    facts = samples.data_facts(inputs, targets, task)
    with np.errstate(all="ignore"):
        ratio = feature_selection.f_classif(inputs.double().numpy(), targets.numpy())[0]
    share = np.nan_to_num(ratio / (ratio + (len(inputs) - task.classes) / (task.classes - 1)))
    varying = [(c != np.unique(c)[np.unique(c, return_counts=True)[1].argmax()]).mean() > 0.01
               for c in inputs.numpy().T]  # fmt: skip
    share = np.where(varying, share, 0)
    count = max(inputs.shape[1] // 4, 1) + 1
    assert facts.feature_shares == pytest.approx(np.sort(share)[::-1][:count], abs=1e-5)
    assert share[facts.feature_order] == pytest.approx(facts.feature_shares, abs=1e-5)
    assert facts.feature_share_median == pytest.approx(
        np.sort(share)[(len(share) - 1) // 2], abs=1e-5
    )


def test_the_shares_of_a_regression_are_squared_correlations():
    inputs, targets, task = bundled("diabetes")
    facts = samples.data_facts(inputs, targets, task)
    table = np.column_stack([inputs.numpy(), targets.numpy()])
    share = np.corrcoef(table.T)[-1, :-1] ** 2
    assert facts.feature_shares == pytest.approx(np.sort(share)[::-1][:3], abs=1e-5)
    assert facts.feature_order == np.argsort(-share)[:3].tolist()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("features", [2, 8, 20])
def test_blobs_have_no_leak(classes, features):
    inputs, targets = generated(datasets.make_blobs, 400, n_features=features, centers=classes)
    facts = samples.data_facts(inputs, targets, Task("classes", classes))
    assert max(facts.feature_shares) < LEAKED


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("features", [8, 20])
def test_of_tight_blobs_most_features_tell_the_class(classes, features):
    inputs, targets = generated(
        datasets.make_blobs, 400, n_features=features, centers=classes, cluster_std=0.3
    )
    facts = samples.data_facts(inputs, targets, Task("classes", classes))
    assert facts.feature_share_median > 0.8


@pytest.mark.parametrize("make", [datasets.make_moons, datasets.make_circles])
def test_toy_sets_have_no_leak(make):
    inputs, targets = generated(make, 400)
    facts = samples.data_facts(inputs, targets, Task("classes", 2))
    assert max(facts.feature_shares) < LEAKED


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("iris"),
        "digits",
        "wine",
        "breast_cancer",
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_column_made_from_the_label_is_found(name, noise):
    inputs, targets, task = bundled(name)
    random = np.random.default_rng(0)
    made = 3.0 * targets.float() + torch.as_tensor(random.normal(0, noise, len(targets))).float()
    leaky = torch.cat([inputs, made.unsqueeze(1)], dim=1)
    facts = samples.data_facts(leaky, targets, task)
    assert facts.feature_shares[0] > LEAKED
    assert facts.feature_order[0] == inputs.shape[1]


def test_a_one_hot_label_among_the_inputs_is_found_column_by_column():
    inputs, targets, task = bundled("digits")
    leaky = torch.cat([inputs, torch.nn.functional.one_hot(targets).float()], dim=1)
    facts = samples.data_facts(leaky, targets, task)
    shares = facts.feature_shares
    # Each of the ten columns is decided by the class, and no pixel is to that extent.
    assert sorted(facts.feature_order[:10]) == list(range(64, 74))
    assert shares[:10] == pytest.approx([1] * 10, abs=1e-6)
    assert shares[10] < 0.8


def test_a_label_drawn_into_images_is_found():
    inputs, targets, task = bundled("digits")
    images = inputs.reshape(-1, 1, 8, 8).clone()
    assert max(samples.data_facts(images, targets, task).feature_shares) < LEAKED
    images[:, 0, 0, 0] = targets.float()
    facts = samples.data_facts(images, targets, task)
    assert facts.feature_shares[0] > LEAKED
    assert facts.feature_order[0] == 0


def test_a_feature_of_a_wide_input_is_told_by_its_index_there():
    """Every third of 3,072 features is looked at."""
    inputs, targets, task = bundled("digits")
    wide = torch.rand(len(inputs), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wide[:, 1, 2, 4] = targets.float()
    facts = samples.data_facts(wide, targets, task)
    assert facts.features == 1024
    assert len(facts.feature_shares) == len(facts.feature_order) == 64
    assert facts.feature_order[0] == 1024 + 2 * 32 + 4


def test_a_column_made_from_a_regressions_target_is_found():
    inputs, targets, task = bundled("diabetes")
    leaky = inputs.clone()
    leaky[:, 4] = -0.01 * targets.squeeze(1) + 3
    facts = samples.data_facts(leaky, targets, task)
    assert facts.feature_shares[0] == pytest.approx(1, abs=1e-6)
    assert facts.feature_order[0] == 4


# --- simple models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least"),
    [("iris", 0.9), ("digits", 0.9), ("wine", 0.9), ("breast_cancer", 0.85), ("diabetes", 0.35)],
)
def test_a_simple_model_learns_the_bundled_sets_and_not_their_shuffled_labels(name, least):
    inputs, targets, task = bundled(name)
    assert least < simple_models.simple_skill(inputs, targets, task) <= 1
    order = torch.as_tensor(np.random.default_rng(1).permutation(len(targets)))
    assert simple_models.simple_skill(inputs, targets[order], task) < 0.12
    assert simple_models.simple_skill(inputs * 100 - 7, targets, task) == pytest.approx(
        simple_models.simple_skill(inputs, targets, task), abs=0.02
    )


def test_neighbours_and_ridge_are_scikit_learns():
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    inputs, targets, _ = bundled("diabetes")
    rows, wanted = simple_models.standardised(inputs.double()), targets.double()
    asked = rows[300:]
    rows, wanted = rows[:300] - rows[:300].mean(dim=0), wanted[:300]
    near = KNeighborsRegressor(5).fit(rows.numpy(), wanted.numpy()).predict(asked.numpy())
    assert simple_models._neighbours(rows, wanted, asked).numpy() == pytest.approx(near)
    alpha = 0.1 * (rows @ rows.T).diagonal().mean().item() + 1e-9
    ridge = Ridge(alpha=alpha, fit_intercept=False).fit(rows.numpy(), wanted - wanted.mean())
    guess = ridge.predict(asked.numpy()).reshape(-1, 1) + wanted.mean().item()
    assert simple_models._ridge(rows, wanted, asked).numpy() == pytest.approx(guess, rel=1e-6)


def test_too_few_samples_say_nothing():
    inputs, targets, task = bundled("iris")
    assert simple_models.simple_skill(inputs[:50], targets[:50], task) is None
    assert simple_models.transfer_skill(inputs[:20], targets[:20], inputs, targets, task) is None
    assert simple_models.told_apart(inputs[:15], inputs) is None
    assert simple_models.scale_shift(inputs, inputs[:5]) is None


def test_transfer_needs_labels_that_are_coded_alike():
    inputs, targets, task = bundled("digits")
    half = len(inputs) // 2
    parts = inputs[:half], targets[:half], inputs[half:], targets[half:]
    assert simple_models.transfer_skill(*parts, task) > 0.9
    recoded = (*parts[:3], (parts[3] + 3) % 10)
    assert simple_models.transfer_skill(*recoded, task) < 0.1


# --- training against validation ----------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, "diabetes"])
def test_halves_of_one_set_are_not_told_apart(name):
    inputs, *_ = bundled(name)
    half = len(inputs) // 2
    assert abs(simple_models.told_apart(inputs[:half], inputs[half:])) < 0.35
    assert simple_models.scale_shift(inputs[:half], inputs[half:]) < 0.3


@pytest.mark.parametrize(
    "change",
    [lambda x: x / 16, lambda x: x + 8, lambda x: 16 - x, lambda x: x.flip(1)],
    ids=["scaled", "shifted", "inverted", "mirrored"],
)
def test_another_preparation_is_told_apart(change):
    inputs, *_ = bundled("digits")
    half = len(inputs) // 2
    assert simple_models.told_apart(inputs[:half], change(inputs[half:])) > 0.7


def test_the_scales_shift_is_in_deviations_and_doublings():
    inputs, *_ = bundled("breast_cancer")
    standard = simple_models.standardised(inputs.double())
    assert simple_models.scale_shift(standard, standard) == pytest.approx(0, abs=1e-9)
    assert simple_models.scale_shift(standard, standard + 2) == pytest.approx(2, abs=1e-6)
    assert simple_models.scale_shift(standard, standard / 4) == pytest.approx(2, abs=1e-6)
    # Two thirds of the features are unchanged: the median stays.
    some = standard.clone()
    some[:, :10] *= 4
    assert simple_models.scale_shift(standard, some) < 1.5
    # Features without variance, such as the corner pixels of digits, do not count.
    digits, *_ = bundled("digits")
    assert simple_models.scale_shift(digits, digits) == pytest.approx(0, abs=1e-9)


def test_matched_inputs_have_the_training_scale():
    inputs, *_ = bundled("breast_cancer")
    other = inputs * 3 - 5
    brought = simple_models.matched(inputs, other)
    # These are the same samples: at the training scale they are equal again.
    assert brought.numpy() == pytest.approx(inputs.numpy(), rel=1e-2, abs=1e-2)
    images = torch.rand(20, 3, 4, 4) * torch.tensor([1.0, 5.0, 9.0]).reshape(3, 1, 1)
    mean, std = simple_models.mean_and_deviation(images)
    assert mean.shape == std.shape == (1, 3, 1, 1)
    scaled = (images - mean) / std
    assert scaled.mean(dim=(0, 2, 3)).numpy() == pytest.approx(np.zeros(3), abs=1e-5)
    assert scaled.std(dim=(0, 2, 3)).numpy() == pytest.approx(np.ones(3), abs=1e-5)


def test_renamed_classes_are_recognised():
    confusion = torch.tensor([[1, 9, 0], [0, 2, 8], [10, 0, 0]])
    # Recalls of 0.9, 0.8 and 1.
    skill = pytest.approx((0.9 - 1 / 3) / (2 / 3))
    assert simple_models.renamed_skill(confusion) == (skill, True)
    assert simple_models.renamed_skill(confusion[[2, 0, 1]]) == (skill, False)
    # However frequent a class is.
    assert simple_models.renamed_skill(confusion * torch.tensor([[1], [50], [1]])) == (skill, True)
    # Two classes that nothing tells apart are renamed by chance.
    assert simple_models.renamed_skill(torch.tensor([[24, 26], [26, 24]])) == (
        pytest.approx(2 * 0.52 - 1),
        True,
    )
    # Two classes are predicted as one: that is no renaming.
    assert not simple_models.renamed_skill(torch.tensor([[9, 1, 0], [9, 0, 1], [0, 0, 10]]))[1]


# --- fingerprints -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_fingerprints_are_equal_where_samples_are(name):
    inputs, *_ = bundled(name)
    prints = samples.fingerprints(inputs)
    distinct = len(np.unique(inputs.numpy(), axis=0))
    assert len(prints.unique()) == distinct
    assert torch.equal(samples.fingerprints(inputs[8:16]), prints[8:16])


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("size", [1, 33])
def test_fingerprints_do_not_depend_on_the_batch(name, size):
    inputs, *_ = bundled(name)
    parts = [samples.fingerprints(batch) for batch in inputs.split(size)]
    assert torch.equal(torch.cat(parts), samples.fingerprints(inputs))


@given(st.integers(0, 2**31 - 1), st.integers(0, 9), st.integers(0, 11))
def test_fingerprints_see_one_changed_number_and_two_exchanged_ones(seed, sample, feature):
    rows = torch.as_tensor(np.random.default_rng(seed).integers(0, 17, (10, 12))).float()
    before = samples.fingerprints(rows)
    changed = rows.clone()
    changed[sample, feature] += 1
    differs = samples.fingerprints(changed) != before
    assert differs.tolist() == [i == sample for i in range(10)]
    exchanged = rows.flip(1)
    same = (exchanged == rows).all(dim=1)
    assert torch.equal(samples.fingerprints(exchanged) == before, same)


def test_repeats_are_counted():
    batch = torch.tensor([1.0, 2.0, 3.0])
    assert samples.repeats([batch, batch.flip(0)]) == (3, 2.0)
    assert samples.repeats([]) == (0, 0.0)


def test_labels_of_repeated_samples_are_compared():
    prints = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])]
    labels = [torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2])]
    # 1 and 2 are repeated, 2 with another label; no batch holds a sample twice.
    assert samples.conflicts(prints, labels) == (0.5, 2, 0.0)
    again = torch.tensor([5.0, 5.0, 6.0])
    assert samples.conflicts([*prints, again], [*labels, labels[0]]) == (
        pytest.approx(2 / 3), 3, pytest.approx(1 / 3),
    )  # fmt: skip
    assert samples.conflicts(prints[:1], labels[:1]) == (0.0, 0, 0.0)
    assert samples.conflicts([], []) == (0.0, 0, 0.0)


def test_nothing_draws_a_random_number():
    inputs, targets, task = bundled("wine")
    state = torch.get_rng_state()
    samples.data_facts(inputs, targets, task)
    simple_models.simple_skill(inputs, targets, task)
    simple_models.told_apart(inputs[:90], inputs[90:])
    simple_models.transfer_skill(inputs[:90], targets[:90], inputs[90:], targets[90:], task)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_that_the_loss_leaves_out_are_no_class_of_their_own():
    """Of a graph's nodes most have no label, which PyTorch's losses write as −100."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(600, 6, generator=draw)
    labels = inputs[:, :3].argmax(dim=1)
    some = torch.where(torch.arange(600) % 3 == 0, labels, -100)
    task = Task("classes", 3)
    alone = simple_models.simple_skill(inputs[::3], labels[::3], task)
    assert simple_models.simple_skill(inputs, some, task) == pytest.approx(alone)
    assert simple_models.simple_skill(inputs, torch.full((600,), -100), task) is None
    rest = torch.where(some < 0, labels, -100)
    transferred = simple_models.transfer_skill(inputs, some, inputs, rest, task)
    assert transferred > 0.6
    assert simple_models.transfer_skill(inputs, some, inputs, some - 200, task) is None


# --- rare classes -------------------------------------------------------------------------------


def islands(rare, apart, seed=0):
    """Two classes around points that are `apart` deviations off each other, and `rare` of one."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(600) < rare).long()
    inputs = torch.randn(600, 4, generator=generator)
    inputs[:, 0] += apart * labels
    order = torch.randperm(600, generator=generator)
    return inputs[order], labels[order]


TWO_CLASSES = Task("classes", 2)


@pytest.mark.parametrize("others", [True, False])
def test_a_rare_class_that_stands_apart_is_recognised(others):
    inputs, targets = islands(20, apart=6)
    other = islands(20, apart=6, seed=1) if others else (None, None)
    found = simple_models.recognition(inputs, targets, *other, TWO_CLASSES, [0, 1])
    assert min(found.values()) > 0.8
    found = simple_models.recognition(inputs, targets, *other, TWO_CLASSES, [1])
    assert list(found) == [1]


def test_a_rare_class_within_another_is_not_recognised():
    inputs, targets = islands(20, apart=0.5)
    found = simple_models.recognition(inputs, targets, None, None, TWO_CLASSES, [1])
    assert found[1] < 0.3  # it may be guessed often, and is then rarely right


def test_too_few_samples_of_a_class_or_of_all_say_nothing():
    inputs, targets = islands(3, apart=6)
    assert simple_models.recognition(inputs, targets, None, None, TWO_CLASSES, [1]) == {}
    few = inputs[:50], targets[:50]
    assert simple_models.recognition(*few, None, None, TWO_CLASSES, [0]) == {}
    tokens = torch.zeros(600, 5, dtype=torch.long)
    assert simple_models.recognition(inputs, tokens, None, None, TWO_CLASSES, [0]) == {}
    values = Task("values")
    assert simple_models.recognition(inputs, inputs[:, :1], None, None, values, [0]) == {}


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    count=st.integers(1, 5),
    permuted=st.booleans(),
)
def test_thinned_features_are_the_same_in_any_order_of_memory(shape, count, permuted):
    inputs = torch.arange(count * math.prod(shape)).reshape(count, *shape)
    if permuted:  # the same values, in memory with the first axis of a sample last
        inputs = inputs.movedim(1, -1).contiguous().movedim(-1, 1)
    spacing = max(1, -(-math.prod(shape) // 256))
    wanted = inputs.reshape(count, -1)[:, ::spacing]
    assert samples.thinned(inputs).tolist() == wanted.tolist()
