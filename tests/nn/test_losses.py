import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from debugnn.build import leaf
from debugnn.nn import losses, wrong_losses


@st.composite
def logits_and_classes(draw):
    """Logits (B, C) in double precision, and B classes."""
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    number = st.floats(-30, 30)
    rows = draw(
        st.lists(
            st.lists(number, min_size=classes, max_size=classes), min_size=batch, max_size=batch
        )
    )
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(targets)


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(row)) for x in row]
    return [e / sum(exponentials) for e in exponentials]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def negative_log_softmax(row: list[float], target: int) -> float:
    return math.log(sum(math.exp(x - row[target]) for x in row))


def binary(x: float, target: float) -> float:
    """−t·log σ(x) − (1−t)·log(1 − σ(x)), where log σ(x) = −log(1 + e⁻ˣ)."""
    return target * math.log1p(math.exp(-x)) + (1 - target) * math.log1p(math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def one_hot(row: list[float], target: int) -> list[float]:
    return [float(k == target) for k in range(len(row))]


# Name → the loss of one sample, from its logits as a list and the index of its class.
LOSSES = vars(losses) | vars(wrong_losses)
BY_HAND = {
    "cross_entropy": negative_log_softmax,
    "mse": lambda row, t: mean([(x - y) ** 2 for x, y in zip(row, one_hot(row, t), strict=True)]),
    "bce": lambda row, t: mean([binary(x, y) for x, y in zip(row, one_hot(row, t), strict=True)]),
    "bce_index": lambda row, t: mean([binary(x, t) for x in row]),
    "softmax_twice": lambda row, t: negative_log_softmax(softmax(row), t),
    "sigmoid_output": lambda row, t: negative_log_softmax([sigmoid(x) for x in row], t),
}


@pytest.mark.parametrize("name", BY_HAND)
@given(logits_and_classes())
def test_a_loss_is_its_formula(name, case):
    outputs, targets = case
    rows = zip(outputs.tolist(), targets.tolist(), strict=True)
    expected = mean([BY_HAND[name](row, target) for row, target in rows])
    loss = LOSSES[name](outputs, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_mse_of_a_regression_is_the_mean_square():
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert losses.mse(outputs, targets).item() == pytest.approx((0 + 4 + 9) / 3)


@pytest.fixture
def named_loss(compose, each_loss):
    """The loss that conf/loss/<each_loss>.yaml names."""
    return leaf("loss", compose(f"loss={each_loss}").loss)


@given(case=logits_and_classes())
def check_batch_mean(loss, case):
    outputs, targets = case
    alone = [loss(outputs[i : i + 1], targets[i : i + 1]).item() for i in range(len(outputs))]
    assert loss(outputs, targets).item() == pytest.approx(mean(alone), rel=1e-9, abs=1e-12)


def test_every_loss_is_the_mean_of_its_samples_losses(named_loss):
    # The evaluation relies on it: it weights the losses of its batches by their sizes.
    check_batch_mean(named_loss)


def test_every_loss_moves_the_outputs(named_loss):
    outputs = torch.linspace(-1, 1, 30).reshape(3, 10).requires_grad_()
    named_loss(outputs, torch.tensor([0, 3, 9])).backward()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad.any()


def test_every_loss_stays_finite_for_large_outputs(named_loss):
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = named_loss(outputs, torch.tensor([1, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("name", ["softmax_twice", "sigmoid_output"])
@given(logits_and_classes())
def test_a_second_squashing_keeps_the_loss_above_a_floor(name, case):
    loss = LOSSES[name]
    outputs, targets = case
    classes = outputs.shape[1]
    floor = -math.log(math.e / (math.e + classes - 1))
    assert loss(outputs, targets).item() >= floor * (1 - 1e-12)
    # It is reached where the right class is far above the others, and cross-entropy is zero.
    best = torch.full_like(outputs, -1e3)
    best[torch.arange(len(targets)), targets] = 1e3
    assert loss(best, targets).item() == pytest.approx(floor, rel=1e-12)
    assert losses.cross_entropy(best, targets).item() == 0


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_equal_logits_cost_the_logarithm_of_the_number_of_classes(classes):
    outputs, targets = torch.full((4, classes), 0.3), torch.arange(4) % classes
    for loss in (losses.cross_entropy, wrong_losses.softmax_twice, wrong_losses.sigmoid_output):
        assert loss(outputs, targets).item() == pytest.approx(math.log(classes), rel=1e-6)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "bce", "bce_index", "softmax_twice", "sigmoid_output"]
)
@pytest.mark.parametrize("targets", [torch.zeros(4, 1), torch.zeros(4), torch.rand(4, 3)])
def test_a_loss_of_classes_refuses_real_targets(name, targets):
    with pytest.raises(TypeError, match="classes"):
        LOSSES[name](torch.zeros(4, 3), targets)
