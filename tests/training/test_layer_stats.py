import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from debugnn.records import Layers, Step
from debugnn.tensor_stats import describe
from debugnn.training.clipping import clip_norm
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import fit

NAN, INF = math.nan, math.inf
moderate = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
anything = moderate | st.sampled_from([0.0, -0.0, NAN, INF, -INF])
tensors = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=anything)


@given(tensors, st.integers(2, 64))
@example(np.array([NAN, 1, 2, INF], np.float32), 4)
@example(np.array([NAN, NAN], np.float32), 4)
@example(np.array([0, 0, NAN], np.float32), 4)
@example(np.array([], np.float32), 4)
@example(np.full(7, 2.5, np.float32), 5)
@example(np.array([-INF], np.float32), 2)
def test_a_description_is_numpys(values, bins):
    stats = describe(torch.from_numpy(values), bins)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert stats.size == values.size
    assert stats.nonfinite == values.size - finite.size
    assert len(stats.histogram) == bins
    assert sum(stats.histogram) == finite.size
    assert stats.dead_units is None
    zeros = np.count_nonzero(values == 0) / values.size if values.size else 0
    assert stats.zeros == pytest.approx(zeros, abs=1e-12)
    if finite.size == values.size:
        assert stats.norm == pytest.approx(np.linalg.norm(finite), rel=1e-5)
    else:
        assert not math.isfinite(stats.norm)
    if not finite.size:
        assert all(map(math.isnan, (stats.mean, stats.std, stats.low, stats.high)))
        return
    scale = np.abs(finite).max()
    assert stats.mean == pytest.approx(finite.mean(), rel=1e-5, abs=1e-6 * scale)
    assert stats.std == pytest.approx(finite.std(), rel=1e-5, abs=1e-6 * scale)
    assert (stats.low, stats.high) == (finite.min(), finite.max())


@given(st.lists(st.integers(0, 16), min_size=1, max_size=60))
def test_a_histogram_counts_between_the_smallest_and_the_largest_value(middle):
    # Bins of width 2 from 0 to 16: every edge is exact in float32.
    values = np.array([0, 16, *middle], np.float32)
    counts, _ = np.histogram(values, bins=8, range=(0, 16))
    assert describe(torch.from_numpy(values), bins=8).histogram == counts.tolist()


@pytest.mark.parametrize(
    "values",
    [[1e20, -1e20], [1e25, 3e25, 0.0], [3e38, -3e38, 1.0], [3e38, 3e38, 3e38]],
    ids=lambda values: f"{values[0]:g}",
)
def test_large_finite_values_are_finite_statistics(values):
    # An exploding gradient has such values before it becomes infinite.
    stats = describe(torch.tensor(values), bins=4)
    exact = np.array(values, np.float32).astype(np.float64)
    assert stats.nonfinite == 0
    assert sum(stats.histogram) == len(values)
    assert stats.norm == pytest.approx(np.linalg.norm(exact), rel=1e-5)
    assert stats.mean == pytest.approx(exact.mean(), rel=1e-5, abs=1e-5 * abs(exact).max())
    assert stats.std == pytest.approx(exact.std(), rel=1e-5)


def test_the_norm_of_a_vanished_gradient_is_not_zero():
    stats = describe(torch.full((4,), 1e-25))
    assert stats.norm == pytest.approx(2e-25, rel=1e-5, abs=0)
    assert stats.zeros == 0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.arange(6).reshape(2, 3),
        torch.randn(4, 3).to(torch.bfloat16),
        torch.randn(4, 3, dtype=torch.float64),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(3, 4).T,
        torch.randn(3, requires_grad=True),
    ],
    ids=["scalar", "int", "bfloat16", "double", "channels_last", "transposed", "parameter"],
)
def test_tensors_of_any_kind_are_described(tensor):
    values = tensor.detach().double().numpy()
    stats = describe(tensor, bins=5)
    assert (stats.size, stats.nonfinite) == (values.size, 0)
    assert stats.mean == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
    assert stats.std == pytest.approx(values.std(), rel=1e-5, abs=1e-6)
    assert stats.norm == pytest.approx(np.linalg.norm(values), rel=1e-5)
    assert sum(stats.histogram) == values.size


def test_describing_changes_neither_the_tensor_nor_the_random_numbers():
    tensor = torch.tensor([[NAN, 1.0], [INF, 0.0]])
    before, state = tensor.clone(), torch.get_rng_state()
    describe(tensor, units=True)
    assert torch.equal(tensor.nan_to_num(7), before.nan_to_num(7))
    assert torch.equal(torch.get_rng_state(), state)


# --- dead units ---------------------------------------------------------------------------------


def test_units_that_are_zero_for_the_whole_batch_are_dead():
    # Unit 0 always, unit 1 never, unit 2 in one sample only, unit 3 always (as −0).
    outputs = torch.tensor([[0.0, 1.0, 0.0, -0.0], [0.0, 2.0, 5.0, 0.0]])
    assert describe(outputs, units=True).dead_units == 0.5
    assert describe(outputs).dead_units is None
    assert describe(outputs.flatten(), units=True).dead_units is None


def test_a_channel_is_dead_where_it_is_zero_at_every_position():
    outputs = torch.zeros(2, 4, 3, 3)
    outputs[1, 0, 2, 2] = 1e-30
    outputs[0, 2, 0, 1] = NAN  # neither zero nor alive: it is counted as nonfinite
    assert describe(outputs, units=True).dead_units == 0.5


def test_the_dead_units_of_a_relu_layer_are_seen():
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(5, 2))
        net[0].bias.copy_(torch.tensor([0.0, -100.0, -1.0, -1.0, 1.0]))
    probe = LayerProbe(every=1)
    with probe.watch(net, 0) as seen:
        net(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert seen["activations"]["1"].dead_units == pytest.approx(3 / 5)
    assert seen["activations"]["1"].zeros == pytest.approx(3 / 5)
    assert seen["activations"]["0"].dead_units == 0


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.Sigmoid(), 2 / 4), (nn.Tanh(), 3 / 4), (nn.Softsign(), 1 / 4), (nn.ReLU(), None)],
)
def test_values_next_to_a_bound_are_saturated(activation, expected):
    net = nn.Sequential(nn.Identity(), activation)
    probe = LayerProbe(every=1)
    with probe.watch(net, 0) as seen:
        net(torch.tensor([[-50.0, 0.5, 3.0, 5.0]]))
    assert seen["activations"]["1"].saturated == expected


# --- watching a training ------------------------------------------------------------------------


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


@pytest.mark.parametrize(
    ("every", "dense", "due"),
    [
        (1, None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (3, None, [0, 3, 6, 9]),
        (1, 2, [0, 1, 2, 4, 8]),
        (1, 4, [0, 1, 2, 3, 4, 6, 8]),
        (2, 20, [0, 2, 4, 6, 8]),
    ],
)
def test_a_probe_is_due_at_every_nth_step_or_further_apart_later(small_training, every, dense, due):
    training = small_training(steps_per_epoch=5, batch_size=8)
    records = fit(training, 2, LayerProbe(every=every, dense=dense))
    assert [record.step for record in records if isinstance(record, Layers)] == due


def test_watching_leaves_weights_buffers_and_random_numbers_bit_identical(small_training):
    outcomes = []
    for probe in (None, LayerProbe(every=1)):
        training = small_training()
        steps = [r for r in fit(training, 2, probe) if isinstance(r, Step)]
        outcomes.append((training, torch.get_rng_state(), [(s.loss, s.grad_norm) for s in steps]))
    (alone, rng_alone, numbers_alone), (watched, rng_watched, numbers_watched) = outcomes
    assert numbers_alone == numbers_watched
    assert torch.equal(rng_alone, rng_watched)
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name
    for p, q in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        for key, value in alone.optimizer.state[p].items():
            assert torch.equal(value, watched.optimizer.state[q][key]), key


def test_statistics_are_of_the_gradients_before_clipping_and_the_weights_before_the_update(
    small_training,
):
    training = small_training(gradient_rule=lambda p: clip_norm(p, 1e-3), lr=1.0)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    records = list(fit(training, 1, LayerProbe(every=1, bins=8)))
    layers = next(record for record in records if isinstance(record, Layers))
    step = next(record for record in records if isinstance(record, Step))
    assert (layers.epoch, layers.step) == (step.epoch, step.step) == (0, 0)
    assert set(layers.gradients) == set(layers.parameters) == set(before)
    for name, tensor in before.items():
        assert layers.parameters[name] == describe(tensor, bins=8)
    total = math.sqrt(sum(stats.norm**2 for stats in layers.gradients.values()))
    assert total == pytest.approx(step.grad_norm, rel=1e-5)
    assert total > 1e-3


def test_activations_are_the_layers_outputs_in_this_very_pass(small_training):
    training = small_training(dropout=0.0)
    inputs, targets = next(training.batches(0))
    expected, outputs = {}, inputs
    for name, layer in training.model.named_children():
        outputs = layer(outputs)
        if not isinstance(layer, nn.MaxPool2d | nn.Flatten):
            expected[name] = describe(outputs, units=True)
    training = small_training(dropout=0.0)
    layers = next(fit(training, 1, LayerProbe(every=1)))
    assert layers.activations == expected
    assert len(targets) == 16


def test_a_layer_before_an_activation_in_place_is_described_with_its_own_output():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 1))
    inputs = torch.randn(8, 4)
    with LayerProbe(every=1).watch(net, 0) as seen:
        net(inputs).sum().backward()
    assert seen["activations"]["0"] == describe(net[0](inputs), units=True)


def test_frozen_parameters_have_no_gradient_to_describe(small_training):
    training = small_training()
    training.model.conv1.requires_grad_(False)
    layers = next(fit(training, 1, LayerProbe(every=1)))
    assert set(layers.parameters) - set(layers.gradients) == {"conv1.weight", "conv1.bias"}


def test_hooks_are_gone_after_watching_and_after_an_exception(small_training):
    model = small_training().model
    probe = LayerProbe(every=1)
    inputs = torch.randn(2, 1, 12, 12)
    with probe.watch(model, 0):
        assert hooks_of(model) > 0
        model(inputs).sum().backward()
    assert hooks_of(model) == 0

    def fail() -> None:
        with probe.watch(model, 0):
            model(inputs)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert hooks_of(model) == 0


def test_a_training_that_is_left_early_keeps_no_hook(small_training):
    training = small_training()
    records = fit(training, 1, LayerProbe(every=1))
    next(records)
    records.close()
    assert hooks_of(training.model) == 0


def test_a_step_that_is_not_watched_has_no_hooks(small_training):
    model = small_training().model
    with LayerProbe(every=2).watch(model, 1) as seen:
        assert seen is None
        assert hooks_of(model) == 0


def test_describing_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in ([], [1.0], [NAN], [INF, 1.0], [2.0, 2.0]):
            describe(torch.tensor(values), units=True)
