"""Each layer against an obvious computation of the same, and against PyTorch's layer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from debugnn.nn import linear
from debugnn.nn.dropout import Dropout, dropout
from debugnn.nn.flatten import Flatten
from debugnn.nn.layers import Maxout

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


def both_products(inputs, weight, bias):
    """Outputs and gradients of our product and of PyTorch's, and of a gradient's derivative."""
    found = []
    for product in (linear.linear, nn.functional.linear):
        leaves = [t.clone().requires_grad_() for t in (inputs, weight, bias)]
        outputs = product(*leaves)
        gradients = torch.autograd.grad(outputs.square().sum(), leaves, create_graph=True)
        gradients[0].square().sum().backward()
        found.append([outputs, *gradients, leaves[1].grad])
    return zip(*found, strict=True)


def operation_of_product(inputs, weight, bias):
    """Name of the operation that a product leaves in the graph."""
    return linear.linear(inputs, weight, bias).grad_fn.name()


@pytest.mark.parametrize("turned", [False, True])
def test_large_products_of_onednn_are_pytorchs_up_to_rounding(turned):
    """Both can be computed on any processor; `Linear` chooses."""
    torch.manual_seed(0)
    inputs, bias = torch.randn(40, 500), torch.randn(400)
    weight = torch.randn(500, 400).t() if turned else torch.randn(400, 500)
    assert inputs.numel() * 400 >= linear.LARGE
    for ours, theirs in both_products(inputs, weight, bias):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6 * scale)
    weight.requires_grad_()
    assert "OneDnn" in operation_of_product(inputs, weight, bias)


def test_products_that_onednn_is_not_made_for_are_pytorchs():
    inputs, weight, bias = torch.randn(40, 500), torch.randn(400, 500), torch.randn(400)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert "OneDnn" not in operation_of_product(inputs, weight, bias)
    with FlopCounterMode(display=False) as counted:  # sees each operation
        assert "OneDnn" not in operation_of_product(inputs, weight, bias)
    assert counted.get_total_flops() == 2 * 40 * 500 * 400
    for other in (
        (inputs[:2], weight, bias),  # small
        (inputs[:1].expand(40, 500), weight, bias),  # rows that lie upon each other
        (inputs.double(), weight.double(), bias.double()),
    ):
        assert "OneDnn" not in operation_of_product(*other)
    stacked = torch.func.vmap(linear.linear, (None, 0, None))(inputs, weight[None], bias)
    torch.testing.assert_close(stacked[0], nn.functional.linear(inputs, weight, bias))


def test_mkl_is_slow_on_processors_with_avx512_that_are_not_intels():
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert linear.is_slow_in_mkl("vendor_id : AuthenticAMD\n") == (
        avx512 and torch.backends.mkl.is_available()
    )
    assert not linear.is_slow_in_mkl("vendor_id : GenuineIntel\n")
    assert not linear.is_slow_in_mkl("")
