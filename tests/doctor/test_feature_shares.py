"""What a feature tells of training targets and of validation targets."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn import datasets
from torch import Tensor, nn

from debugnn.data.readers import regression
from debugnn.doctor import Doctor
from debugnn.doctor.observe.feature_shares import (
    lost_shares,
    shares_of_classes,
    shares_of_ranks,
    shares_of_values,
)

ROWS = 3_000


def fisher(r: float) -> float:
    return 0.5 * np.log((1 + r) / (1 - r))


def test_shares_of_values_are_squared_correlations():
    inputs, values = datasets.load_diabetes(return_X_y=True)
    shares = shares_of_values(torch.tensor(inputs), torch.tensor(values)[:, None])
    expected = [scipy.stats.pearsonr(column, values).statistic ** 2 for column in inputs.T]
    assert shares.numpy() == pytest.approx(np.array(expected))


def test_the_difference_is_in_standard_errors():
    inputs, values = datasets.load_diabetes(return_X_y=True)
    inputs[250:, 2] = np.random.default_rng(0).permutation(inputs[250:, 2])
    x, y = torch.tensor(inputs), torch.tensor(values)[:, None]
    first, *others = lost_shares(x[:250], y[:250], x[250:], y[250:], classes=False)
    assert first.feature == 2
    before, after = (
        abs(scipy.stats.pearsonr(inputs[rows, 2], values[rows]).statistic)
        for rows in (slice(250), slice(250, None))
    )
    error = np.sqrt(1 / 247 + 1 / (len(inputs) - 250 - 3))
    assert first.training == pytest.approx(before**2)
    assert first.validation == pytest.approx(after**2)
    assert first.errors == pytest.approx((fisher(before) - fisher(after)) / error)
    assert len(others) == inputs.shape[1] - 1
    assert all(a.errors >= b.errors for a, b in zip([first, *others], others, strict=False))


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "digits", "diabetes"])
def test_features_of_a_random_split_tell_alike(name):
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, y = torch.tensor(inputs), torch.tensor(targets)
    classes = name != "diabetes"
    y = y if classes else y[:, None]
    for seed in range(5):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        one, other = order[: len(x) // 2], order[len(x) // 2 :]
        lost = lost_shares(x[one], y[one], x[other], y[other], classes)
        assert lost
        assert lost[0].errors < 5
    assert lost_shares(x[:20], y[:20], x[20:], y[20:], classes) == []


def shops(out_of_fold: bool) -> tuple[Tensor, Tensor]:
    """Return sales of many small shops, one column of them the mean sales of the row's shop."""
    rng = np.random.default_rng(0)
    shop, season = rng.integers(0, 1_000, ROWS), rng.uniform(-3, 3, ROWS)
    size = rng.normal(size=ROWS)
    sales = np.sin(season) + 0.7 * size + rng.normal(0, 0.6, ROWS)
    fold = rng.integers(0, 5, ROWS)
    known = np.arange(ROWS) < 2_000
    encoded = np.zeros(ROWS)
    for part in range(5) if out_of_fold else [-1]:
        given = known & (fold != part)
        count = np.bincount(shop[given], minlength=1_000)
        means = np.bincount(shop[given], sales[given], 1_000) / np.maximum(count, 1)
        told = (~known | (fold == part)) if out_of_fold else np.full(ROWS, True)
        encoded[told] = means[shop[told]]
    columns = np.stack([season, size, encoded, rng.normal(size=ROWS)], axis=1)
    return torch.tensor(columns).float(), torch.tensor(sales)[:, None].float()


@pytest.mark.parametrize("out_of_fold", [True, False])
def test_an_encoding_that_holds_the_own_target_is_named(out_of_fold):
    torch.manual_seed(0)
    inputs, sales = shops(out_of_fold)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loss_fn = nn.MSELoss()
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for step in range(250):
            rows = torch.randint(0, 2_000, (64,))
            optimizer.zero_grad()
            loss = loss_fn(model(inputs[rows]), sales[rows])
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[rows], sales[rows])
            if step % 50 == 49:
                doctor.validate(inputs[2_000:], sales[2_000:])
        report = doctor.report()
    if out_of_fold:
        assert report.healthy
        assert not report.findings
    else:
        assert report.main_cause == "label_leak"
        assert report.main.confidence == "shown"
        assert report.main.evidence["features"] == [2]


def test_a_feature_that_hardly_varies_tells_nothing_of_classes():
    rows = torch.zeros(400, 2, dtype=torch.float64)
    labels = torch.arange(400) % 2
    rows[3, 0] = 1.0
    rows[:, 1] = labels
    assert shares_of_classes(rows, labels).tolist() == [0.0, 1.0]


def test_shares_of_ranks_are_squared_rank_correlations():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 5)).round(1)  # with equal values
    targets = (rows[:, 0] + rng.normal(size=200)).round(1)
    found = shares_of_ranks(torch.tensor(rows), torch.tensor(targets)[:, None])
    wanted = [spearmanr(column, targets).statistic ** 2 for column in rows.T]
    assert np.allclose(found.numpy(), wanted)
    assert shares_of_ranks(torch.tensor(rows[:20]), torch.tensor(targets[:20])[:, None]) is None


@pytest.mark.parametrize("leaks", [False, True])
def test_a_function_of_the_target_among_the_features_is_named(leaks):
    torch.manual_seed(0)
    inputs = torch.randn(1_000, 9)
    hours = (inputs[:, :1] + inputs[:, 1:2] * inputs[:, 2:3] + torch.randn(1_000, 1)).exp()
    if leaks:
        inputs[:, 7:8] = (hours - hours.mean()) / hours.std()
    targets = hours.log()
    model = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Doctor(model, optimizer, F.mse_loss) as doctor:
        for batch in torch.arange(1_000).repeat(6).split(50):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[batch], targets[batch])
        report = doctor.report()
    if leaks:
        assert (report.main.cause, report.main.confidence) == ("label_leak", "certain")
        assert report.main.evidence["features"] == [7]
    else:
        assert report.healthy is True
        assert report.evidence.data.rank_share < 0.5


def line_of_the_article(lr, norm):
    """Train the net of the article's NaN experiment on its data, with its test targets.

    y_test = y_train.reshape(...): the test inputs are compared with the training targets.
    """
    inputs, targets, new_inputs, _ = map(torch.tensor, regression("", False))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 25), nn.ReLU(), nn.Linear(25, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with Doctor(model, optimizer, F.mse_loss) as doctor:
        for _ in range(40):
            for rows in torch.randperm(500).split(32):
                optimizer.zero_grad()
                loss = F.mse_loss(model(inputs[rows]), targets[rows])
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), norm)
                optimizer.step()
                doctor.step(loss, inputs[rows], targets[rows])
            doctor.validate(new_inputs, targets)
        return doctor.report()


def test_validation_targets_of_other_samples_are_no_leak():
    report = line_of_the_article(0.01, norm=4.0)
    assert report.main_cause == "bad_labels"
    assert "label_leak" not in report.details()


def test_what_is_not_finite_has_no_skill_that_leaked():
    report = line_of_the_article(0.1, norm=1e30)
    assert report.main_cause == "exploding_gradient"
    assert "label_leak" not in report.details()
