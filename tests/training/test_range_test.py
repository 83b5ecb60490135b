import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from debugnn.lr_curve import RULES, suggest
from debugnn.nn.losses import cross_entropy
from debugnn.records import LrPoint, Step
from debugnn.training.clipping import clip_norm
from debugnn.training.loop import Training, fit
from debugnn.training.range_test import range_test

ARTICLE = {
    "start_lr": 1e-9, "end_lr": 10.0, "iterations": 100, "smoothing": 0.05, "diverge_at": 8.0
}  # fmt: skip


def settings(**changes: float) -> dict:
    return {**ARTICLE, "start_lr": 1e-5, "end_lr": 1.0, "iterations": 12, **changes}


# --- the range test -----------------------------------------------------------------------------


class InDouble(nn.Module):
    """A net that computes in float64, so that rounding errors do not grow with the steps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, inputs):
        return self.net(inputs.double())


@pytest.fixture(scope="module")
def whole_batches(image_data):
    """Return a training whose batches are the whole training set, in whatever order."""

    def make() -> Training:
        data = image_data()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 10))
        model = InDouble(net)
        return Training(
            model=model,
            loss=cross_entropy,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.5),
            data=data,
            batch_size=len(data.train),
            seed=0,
        )

    return make


def range_test_by_hand(training: Training, start: float, end: float, count: int, diverge: float):
    """Compute the article's loop: rate, Adam (Kingma & Ba 2015, Algorithm 1), smoothing, stop."""
    model = copy.deepcopy(training.model)
    inputs = training.data.prepare(training.data.train.inputs)
    targets = training.data.train.targets
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    lr, smoothed, best, rows = start, None, None, []
    for t in range(1, count + 1):
        outputs = model(inputs).float()
        loss = -torch.log_softmax(outputs, 1)[range(len(targets)), targets].mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g * g)
                p -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        smoothed = loss.item() if smoothed is None else 0.05 * loss.item() + 0.95 * smoothed
        best = smoothed if best is None else min(best, smoothed)
        rows.append((lr, loss.item(), smoothed))
        if smoothed > diverge * best:
            break
        lr *= (end / start) ** (1 / (count - 1))
    return rows


@pytest.mark.parametrize(
    ("end", "count", "diverge", "diverges"),
    [(1e-3, 5, 8.0, False), (1.0, 20, 8.0, False), (1e4, 30, 2.0, True)],
)
def test_a_range_test_is_the_obvious_loop(whole_batches, end, count, diverge, diverges):
    rows = range_test_by_hand(whole_batches(), 1e-5, end, count, diverge)
    points = list(
        range_test(
            whole_batches(), start_lr=1e-5, end_lr=end, iterations=count, smoothing=0.05,
            diverge_at=diverge,
        )
    )  # fmt: skip
    assert len(points) == len(rows)
    assert (len(rows) < count) == diverges
    for iteration, (point, (lr, loss, smoothed)) in enumerate(zip(points, rows, strict=True)):
        assert (point.test, point.iteration) == (0, iteration)
        assert point.lr == pytest.approx(lr, rel=1e-9, abs=0)
        assert point.loss == pytest.approx(loss, rel=1e-5)
        assert point.smoothed_loss == pytest.approx(smoothed, rel=1e-5)


def test_the_rates_rise_geometrically_and_the_logged_one_is_the_next(small_training):
    points = list(range_test(small_training(), **settings(iterations=9, diverge_at=1e9)))
    assert len(points) == 9
    assert points[0].lr == pytest.approx(1e-5, rel=1e-9, abs=0)
    assert points[-1].lr == pytest.approx(1.0, rel=1e-9, abs=0)
    growth = 1e5 ** (1 / 8)
    for point, following in itertools.pairwise(points):
        assert following.lr == pytest.approx(point.lr * growth, rel=1e-9, abs=0)
        assert point.lr_as_logged == pytest.approx(following.lr, rel=1e-9, abs=0)
    assert points[-1].lr_as_logged == pytest.approx(growth, rel=1e-9)


def test_the_smoothed_loss_follows_from_the_losses(small_training):
    points = list(range_test(small_training(), **settings(smoothing=0.3)))
    smoothed = points[0].loss
    for point in points:
        smoothed = 0.3 * point.loss + 0.7 * smoothed
        assert point.smoothed_loss == pytest.approx(smoothed, rel=1e-12)


def test_the_test_stops_at_the_first_loss_above_the_bound(small_training):
    training = small_training(batch_norm=False, dropout=0.0, optimizer=torch.optim.SGD)
    points = list(range_test(training, **settings(end_lr=1e8, iterations=60, smoothing=0.5)))
    assert 3 < len(points) < 60
    losses = [point.smoothed_loss for point in points]
    best = list(itertools.accumulate(losses, min))
    diverged = [not math.isfinite(x) or x > 8 * low for x, low in zip(losses, best, strict=True)]
    assert diverged == [False] * (len(points) - 1) + [True]


def test_the_test_stops_at_a_nan(small_training):
    def fragile(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(outputs, targets)
        return loss * math.nan if next(count) == 4 else loss

    count = itertools.count()
    points = list(range_test(small_training(loss=fragile), **settings()))
    assert [math.isnan(point.loss) for point in points] == [False] * 4 + [True]
    assert math.isnan(points[-1].smoothed_loss)


def test_a_training_longer_than_its_epochs_goes_round(small_training):
    training = small_training(steps_per_epoch=2)
    points = list(range_test(training, **settings(iterations=7, end_lr=1e-4)))
    assert len(points) == 7


def test_the_test_runs_in_training_mode_whatever_the_models_mode(small_training):
    losses = []
    for mode in (True, False):
        training = small_training()
        training.model.train(mode)
        torch.manual_seed(1)
        losses.append([point.loss for point in range_test(training, **settings())])
    assert losses[0] == losses[1]


def test_repetitions_draw_other_batches_and_can_be_repeated(small_training):
    def losses(test: int) -> list[float]:
        training = small_training(dropout=0.0)
        return [point.loss for point in range_test(training, **settings(iterations=5), test=test)]

    assert losses(0) == losses(0)
    assert losses(0)[0] != losses(1)[0]
    assert {point.test for point in range_test(small_training(), **settings(), test=4)} == {4}


def test_the_gradient_rule_is_the_trainings(small_training):
    def points(**others):
        training = small_training(dropout=0.0, optimizer=torch.optim.SGD, **others)
        return [p.loss for p in range_test(training, **settings(end_lr=100, diverge_at=1e9))]

    plain = points()
    clipped = points(gradient_rule=lambda parameters: clip_norm(parameters, 1e-12))
    assert plain[0] == clipped[0]
    # Steps scaled to 1e-12 do not change the weights; unscaled ones do.
    assert max(clipped) - min(clipped) < 1
    assert max(plain) - min(plain) > 1


def snapshot(training: Training) -> dict:
    return copy.deepcopy(
        {
            "model": training.model.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "gradients": [p.grad for p in training.model.parameters()],
            "modes": [module.training for module in training.model.modules()],
            "counts": (training.epoch, training.step),
            "rng": torch.get_rng_state(),
        }
    )


def assert_identical(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_the_training_is_left_bit_for_bit_as_it_was(small_training, optimizer):
    training = small_training(optimizer=optimizer)
    list(fit(training, 1))  # the optimiser has a state to lose
    before = snapshot(training)
    with torch.random.fork_rng():
        assert len(list(range_test(training, **settings()))) > 3
    assert_identical(snapshot(training), before)


def test_a_training_after_a_range_test_is_the_one_without(small_training):
    numbers = []
    for tested in (False, True):
        training = small_training()
        if tested:
            with torch.random.fork_rng():
                list(range_test(training, **settings()))
        records = fit(training, 2)
        numbers.append([r.loss for r in records if isinstance(r, Step)])
    assert numbers[0] == numbers[1]


# --- suggestions --------------------------------------------------------------------------------


def curve(losses: list[float], start: float = 1e-6) -> list[LrPoint]:
    """Return the curve of a range test with these smoothed losses and ten rates per decade."""
    growth = 10**0.1
    return [
        LrPoint(3, i, start * growth**i, start * growth ** (i + 1), math.nan, loss)
        for i, loss in enumerate(losses)
    ]


def suggested(points: list[LrPoint]) -> dict[str, int]:
    """Return the iteration that each rule suggests."""
    rates = [point.lr for point in points]
    assert all(s.test == 3 for s in suggest(points))
    return {s.rule: rates.index(s.lr) for s in suggest(points)}


def test_a_v_has_its_minimum_at_the_vertex():
    points = curve([abs(i - 20) for i in range(31)])
    found = suggested(points)
    assert found["minimum"] == 20
    assert found["valley"] == 21 // 2  # of the 21 points on the way down
    assert found["steepest"] < 20


def test_a_drop_is_steepest_in_its_middle():
    drop = [2.3 - 2 / (1 + math.exp(-(i - 17))) for i in range(35)]
    found = suggested(curve(drop))
    assert found["steepest"] == 17
    assert found["minimum"] == 34


def test_the_article_curve_is_flat_then_drops_then_explodes():
    flat, drop, explosion = [2.3] * 40, [2.3 - 0.18 * i for i in range(1, 11)], [1, 5, 25, 125]
    found = suggested(curve([*flat, *drop, *explosion]))
    assert found["minimum"] == 49  # at the edge of divergence
    assert 40 <= found["steepest"] < 49
    assert 40 <= found["valley"] < 49


def test_a_loss_that_falls_again_after_its_minimum_is_no_descent():
    first = [2.3 - 0.1 * i for i in range(15)]
    again = [100.0 - 7 * i for i in range(14)]
    assert suggested(curve([*first, *again])) == suggested(curve(first))


@pytest.mark.parametrize("rise", [0.0, 0.1])
def test_a_curve_that_is_flat_or_rises_suggests_nothing(rise):
    assert suggest(curve([2.3 + rise * i for i in range(20)])) == []


@pytest.mark.parametrize("losses", [[], [2.3], [2.3, 2.2], [2.3, 2.2, math.nan], [math.inf] * 5])
def test_fewer_than_three_finite_losses_suggest_nothing(losses):
    assert suggest(curve(losses)) == []


def test_losses_that_are_not_finite_are_left_out():
    losses = [2.3, 2.0, 1.5, 1.2, 1.4]
    assert suggested(curve([*losses, math.inf, math.nan])) == suggested(curve(losses))


@given(st.lists(st.integers(0, 9), min_size=3, max_size=9))
def test_the_valley_is_half_way_down_a_longest_decreasing_subsequence(losses):
    descents = [
        chosen
        for size in range(1, len(losses) + 1)
        for chosen in itertools.combinations(range(len(losses)), size)
        if all(losses[i] > losses[j] for i, j in itertools.pairwise(chosen))
    ]
    longest = max(map(len, descents))
    index = RULES["valley"](np.logspace(-3, 0, len(losses)), np.array(losses, dtype=float))
    if longest < 3:
        assert index is None
    else:
        assert index in {d[longest // 2] for d in descents if len(d) == longest}


@given(st.lists(st.floats(0, 100), min_size=3, max_size=30))
def test_every_rule_suggests_a_rate_of_the_curve(losses):
    found = suggested(curve(losses))  # each of them is the rate of a point
    lowest = losses.index(min(losses))
    assert found.get("minimum") == (lowest if lowest >= 2 else None)
    assert all(index <= lowest for index in found.values())
    assert found.keys() <= RULES.keys()


@pytest.mark.parametrize("rule", ["minimum", "steepest", "valley"])
def test_every_rule_can_be_asked_for(compose, rule):
    assert set(RULES) == {"minimum", "steepest", "valley"}
    assert compose("task=lr_train", f"task.lr_from={rule}").task.lr_from == rule
