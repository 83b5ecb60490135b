import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from debugnn.training.clipping import clip_norm, rescale_norm
from debugnn.training.gradients import gradient_rule, keep

# Rounding of float32 sums over the few hundred numbers below.
ROUNDING = 2e-6


def parameters_with(gradients: list[torch.Tensor | None]) -> list[nn.Parameter]:
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros((2, 3) if gradient is None else gradient.shape))
        parameter.grad = None if gradient is None else gradient.clone()
        parameters.append(parameter)
    return parameters


def gradients_of(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad.clone() for p in parameters if p.grad is not None]


def norm_of(gradients: list[torch.Tensor]) -> float:
    return math.sqrt(sum(x * x for gradient in gradients for x in gradient.flatten().tolist()))


@st.composite
def gradients(draw) -> list[torch.Tensor | None]:
    """Gradients of one to four parameters, of any size from 1e-3 to 1e6; some have none."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = draw(
        st.lists(st.sampled_from([(3,), (4, 5), (2, 3, 3, 3), (1,)]), min_size=1, max_size=4)
    )
    scale = 10 ** draw(st.floats(-3, 6))
    made = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    return [*made, None] if draw(st.booleans()) else made


thresholds = st.floats(0.1, 100)


def assert_parallel(after: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    factor = norm_of(after) / norm_of(before)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b * factor, rtol=1e-5, atol=0)


@given(gradients(), thresholds)
def test_clipping_keeps_the_norm_below_the_threshold_and_the_direction(given_gradients, threshold):
    parameters = parameters_with(given_gradients)
    before = gradients_of(parameters)
    clip_norm(parameters, threshold)
    after = gradients_of(parameters)
    assert norm_of(after) <= threshold * (1 + ROUNDING)
    assert_parallel(after, before)
    if norm_of(before) > threshold:
        assert norm_of(after) == pytest.approx(threshold, rel=2e-5)


@given(gradients(), thresholds)
def test_clipping_twice_changes_nothing(given_gradients, threshold):
    parameters = parameters_with(given_gradients)
    clip_norm(parameters, threshold)
    once = gradients_of(parameters)
    clip_norm(parameters, threshold)
    for a, b in zip(gradients_of(parameters), once, strict=True):
        # torch adds 1e-6 to the norm that it divides by.
        torch.testing.assert_close(a, b, rtol=1e-6 / threshold + ROUNDING, atol=0)


@given(gradients(), thresholds)
def test_gradients_below_the_threshold_stay_bit_identical(given_gradients, threshold):
    parameters = parameters_with(given_gradients)
    before = gradients_of(parameters)
    assume(norm_of(before) < 0.999 * threshold)
    clip_norm(parameters, threshold)
    for a, b in zip(gradients_of(parameters), before, strict=True):
        assert torch.equal(a, b)


@given(gradients(), thresholds)
def test_clipping_is_torchs_own(given_gradients, threshold):
    ours, theirs = parameters_with(given_gradients), parameters_with(given_gradients)
    norm = clip_norm(ours, threshold)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs, threshold))
    for a, b in zip(gradients_of(ours), gradients_of(theirs), strict=True):
        assert torch.equal(a, b)


@given(gradients(), thresholds)
def test_rescaling_hits_the_norm_from_above_and_from_below(given_gradients, norm):
    parameters = parameters_with(given_gradients)
    before = gradients_of(parameters)
    assume(norm_of(before) > 0)
    rescale_norm(parameters, norm)
    after = gradients_of(parameters)
    assert norm_of(after) == pytest.approx(norm, rel=ROUNDING)
    assert_parallel(after, before)


@given(gradients())
def test_keeping_changes_nothing(given_gradients):
    parameters = parameters_with(given_gradients)
    before = gradients_of(parameters)
    keep(parameters)
    for a, b in zip(gradients_of(parameters), before, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def named_rule(compose, each_clip):
    """The rule that conf/clip/<each_clip>.yaml describes."""
    clip = compose(f"clip={each_clip}").clip
    return gradient_rule(clip.max_norm, clip.rescale)


@given(given_gradients=gradients())
def check_returned_norm(rule, given_gradients):
    parameters = parameters_with(given_gradients)
    before = norm_of(gradients_of(parameters))
    returned = rule(parameters)
    assert returned.shape == ()
    assert returned.item() == pytest.approx(before, rel=ROUNDING)


def test_every_rule_returns_the_norm_from_before(named_rule):
    check_returned_norm(named_rule)


def test_every_rule_takes_the_parameters_as_a_generator(named_rule):
    parameters = parameters_with([torch.full((4,), 3.0)])
    assert named_rule(p for p in parameters).item() == 6


def test_every_rule_leaves_zero_gradients_zero(named_rule):
    parameters = parameters_with([torch.zeros(3), torch.zeros(2, 2)])
    assert named_rule(parameters).item() == 0
    for gradient in gradients_of(parameters):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("norm", [0.1, 1.0, 4.0, 100.0])
def test_rescaling_leaves_zero_gradients_zero_whatever_the_norm(norm):
    parameters = parameters_with([torch.zeros(3)])
    rescale_norm(parameters, norm)
    assert torch.equal(parameters[0].grad, torch.zeros(3))


def test_every_rule_bears_parameters_without_gradients(named_rule):
    parameters = parameters_with([None, None])
    assert named_rule(parameters).item() == 0
    assert gradients_of(parameters) == []


def test_every_rule_lets_a_nan_pass(named_rule):
    parameters = parameters_with([torch.tensor([math.nan, 1.0])])
    assert math.isnan(named_rule(parameters).item())
    assert parameters[0].grad.isnan().any()


def test_each_option_of_conf_is_its_rule(compose):
    outcomes = {}
    for option in ("off", "4.0", "scaling"):
        clip = compose(f"clip={option}").clip
        rule, norms = gradient_rule(clip.max_norm, clip.rescale), []
        for start in (8.0, 2.0):
            parameters = parameters_with([torch.tensor([start])])
            rule(parameters)
            norms.append(round(parameters[0].grad.item(), 5))
        outcomes[option] = norms
    assert outcomes == {"off": [8, 2], "4.0": [4, 2], "scaling": [4, 4]}
