"""Each layer against an obvious computation of the same, and against PyTorch's layer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from debugnn.nn.dropout import Dropout, dropout
from debugnn.nn.layers import Flatten, Maxout

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def images(layout=torch.contiguous_format, dtype=torch.float32, shape=(5, 3, 7, 9)):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return values.to(dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [0.5, 0.3, 1e-9, 0.999999])
def test_dropout_is_what_one_unit_after_the_other_gives(p, layout, dtype):
    inputs = images(layout, dtype)
    torch.manual_seed(3)
    outputs = dropout(inputs, p)
    torch.manual_seed(3)
    words = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64)
    words.random_(-(2**63), None)
    dropped = min(round(p * 65536), 65535)
    expected = torch.empty_like(inputs)
    in_memory = [i for i in range(4) if layout == torch.contiguous_format or i != 1]
    order = in_memory if layout == torch.contiguous_format else [*in_memory, 1]
    flat_inputs = inputs.permute(order).reshape(-1)
    flat = expected.permute(order).reshape(-1).clone()
    for unit in range(inputs.numel()):
        bits = (words[unit // 4].item() >> (16 * (unit % 4))) & 0xFFFF
        signed = bits - 65536 if bits >= 32768 else bits
        kept = signed + 32768 >= dropped
        scale = torch.tensor(65536 / (65536 - dropped)).to(dtype) if kept else 0.0
        flat[unit] = flat_inputs[unit] * scale
    expected = flat.view([inputs.shape[i] for i in order]).permute(
        [order.index(i) for i in range(4)]
    )
    assert torch.equal(outputs, expected)
    assert outputs.is_contiguous(memory_format=layout)
    assert outputs.dtype == dtype


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_units_are_dropped_at_the_rate_and_independently(p):
    count = 400_000
    torch.manual_seed(0)
    kept = dropout(torch.ones(count), p) > 0
    for part in kept.view(-1, 4).T:  # each of the four units that share a random word
        deviation = (part.float().mean() - (1 - p)).abs().item()
        assert deviation < 5 * math.sqrt(p * (1 - p) / len(part))
    for distance in (1, 2, 3, 4, 5):
        both = (kept[:-distance] & kept[distance:]).float().mean().item()
        spread = math.sqrt((1 - p) ** 2 * (1 - (1 - p) ** 2) / count)
        assert abs(both - (1 - p) ** 2) < 5 * 2 * spread


def test_dropout_keeps_the_mean_and_passes_the_gradients_of_kept_units():
    torch.manual_seed(0)
    inputs = torch.full((1000, 200), 3.0, requires_grad=True)
    outputs = dropout(inputs, 0.3)
    assert outputs.mean().item() == pytest.approx(3, rel=0.01)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, outputs.detach() / 3)


def test_dropout_masks_follow_torchs_generator_and_differ_from_each_other():
    inputs = images()
    torch.manual_seed(5)
    first, second = dropout(inputs, 0.5), dropout(inputs, 0.5)
    torch.manual_seed(5)
    assert torch.equal(dropout(inputs, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0, 0.0, 1, 1.0])
def test_dropout_with_probability_0_or_1_draws_no_random_number(p):
    before = torch.get_rng_state()
    outputs = dropout(images(), p)
    assert torch.equal(outputs, images() if p == 0 else torch.zeros_like(images()))
    if p == 0:
        assert torch.equal(torch.get_rng_state(), before)


def test_the_dropout_layer_is_pytorchs_except_for_its_random_numbers():
    layer, inputs = Dropout(0.4), images()
    assert isinstance(layer, nn.Dropout)  # code that looks for dropout finds it
    assert layer.eval()(inputs) is inputs
    layer.train()
    torch.manual_seed(2)
    outputs = layer(inputs)
    torch.manual_seed(2)
    assert torch.equal(outputs, dropout(inputs, 0.4))
    values = outputs[outputs != 0] / inputs[outputs != 0]
    torch.testing.assert_close(values, torch.full_like(values, 1 / 0.6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 5), (2, 0, 4, 4), (2, 3, 4, 5, 6)])
def test_dropout_takes_any_shape_and_any_strides(shape):
    outputs = dropout(torch.ones(shape), 0.5)
    assert outputs.shape == torch.Size(shape)
    turned = torch.ones(*shape, 2).transpose(0, -1)
    assert set(dropout(turned, 0.5).flatten().tolist()) <= {0.0, 2.0}


@given(
    batch=st.integers(1, 3),
    width=st.integers(1, 4),
    pieces=st.integers(1, 4),
    positions=st.sampled_from([(), (2,), (2, 3)]),
    seed=st.integers(0, 1000),
)
def test_maxout_is_the_largest_of_its_pieces(batch, width, pieces, positions, seed):
    inputs = torch.randn(
        batch, width * pieces, *positions, generator=torch.Generator().manual_seed(seed)
    )
    outputs = Maxout(pieces)(inputs)
    assert outputs.shape == (batch, width, *positions)
    for sample in range(batch):
        for unit in range(width):
            largest = inputs[sample, unit * pieces]
            for piece in range(1, pieces):
                candidate = inputs[sample, unit * pieces + piece]
                largest = torch.where(candidate > largest, candidate, largest)
            assert torch.equal(outputs[sample, unit], largest)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flatten_keeps_the_layout_and_the_numbers_of_the_gradient(layout):
    torch.manual_seed(0)
    inputs = torch.randn(3, 4, 6, 6).to(memory_format=layout)
    weight = torch.randn(5, 4 * 3 * 3)
    gradients, arrived = [], []
    for flatten in (Flatten(), nn.Flatten()):
        leaf = inputs.clone().requires_grad_()
        pooled = nn.functional.max_pool2d(leaf, 2)
        pooled.register_hook(arrived.append)
        (flatten(pooled) @ weight.T).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert torch.equal(*arrived)
    assert arrived[0].is_contiguous(memory_format=layout)
