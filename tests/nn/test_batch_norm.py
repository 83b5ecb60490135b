"""Batch norm in channels-last, against PyTorch's in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from debugnn.nn.batch_norm import BatchNorm2d

CHANNELS_LAST = {"memory_format": torch.channels_last}


def one_pass(layer: nn.Module, inputs, gradient, weight, bias) -> dict[str, torch.Tensor]:
    """Return everything that a forward and backward pass of a batch norm computes."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    inputs = inputs.detach().requires_grad_()
    outputs = layer(inputs)
    outputs.backward(gradient)
    # Running statistics start at 0 and 1; a tenth of the batch's is added to nine tenths of them.
    return {
        "outputs": outputs.detach(), "mean": layer.running_mean,
        "variance": layer.running_var - 0.9, "input gradient": inputs.grad,
        "weight gradient": layer.weight.grad, "bias gradient": layer.bias.grad,
    }  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("seed", range(3))
def test_batch_norm_is_as_accurate_in_channels_last(layout, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (32, 8, 28, 28)
    # With a mean other than 0, and gradients of both signs.
    inputs = torch.randn(shape, generator=generator) + 1
    gradient = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator)
    weight = torch.rand(8, generator=generator) + 0.5
    bias = torch.randn(8, generator=generator)
    exact = one_pass(nn.BatchNorm2d(8).double(), inputs.double(), gradient.double(), weight, bias)
    inputs, gradient = (t.contiguous(memory_format=layout) for t in (inputs, gradient))
    found = one_pass(BatchNorm2d(8), inputs, gradient, weight, bias)
    for name, tensor in exact.items():
        # PyTorch's contiguous kernel reaches 4e-7, its channels-last one 2e-6 to 1e-5.
        assert (found[name] - tensor).norm() < 1e-6 * tensor.norm(), name


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_batch_norm_is_pytorchs(shape, channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    ours, theirs = BatchNorm2d(shape[1]).double(), nn.BatchNorm2d(shape[1]).double()
    if shape[0] * shape[2] * shape[3] == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            ours(torch.randn(shape, dtype=torch.float64))
        return
    numbers = [
        torch.randn(shape, generator=generator, dtype=torch.float64).contiguous(
            memory_format=layout
        )
        for _ in range(2)
    ]
    scales = [torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(2)]
    for _ in range(2):
        found, expected = one_pass(ours, *numbers, *scales), one_pass(theirs, *numbers, *scales)
        assert found["outputs"].stride() == expected["outputs"].stride()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(numbers[0]), theirs.eval()(numbers[0]))


def test_batch_norm_has_a_second_derivative_in_channels_last():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 2, 4, 3, generator=generator, dtype=torch.float64)
    inputs = inputs.contiguous(**CHANNELS_LAST).requires_grad_()
    layer = BatchNorm2d(2).double()
    assert torch.autograd.gradgradcheck(lambda inputs: layer(inputs).tanh(), inputs)
