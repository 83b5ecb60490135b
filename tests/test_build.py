"""From a configuration to a training."""

from functools import partial

import pytest
import torch

from debugnn.build import build, fused

OPTIMIZERS = [
    partial(torch.optim.SGD, lr=0.05),
    partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=1e-6),
    partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(torch.optim.Adam, lr=0.05),
    partial(torch.optim.Adam, lr=0.05, amsgrad=True, weight_decay=0.1),
    partial(torch.optim.AdamW, lr=0.05),
]


def weights_after(make, steps=12):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((9, 7), 5)]
    optimizer = make(parameters)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameters


@pytest.mark.parametrize("plain", OPTIMIZERS, ids=str)
def test_a_fused_update_is_the_plain_one(plain):
    assert fused(plain).keywords["fused"]
    for got, wanted in zip(weights_after(fused(plain)), weights_after(plain), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "chosen",
    [
        partial(torch.optim.Adam, foreach=True),
        partial(torch.optim.Adam, fused=False),
        partial(torch.optim.Adam, differentiable=True),
        partial(torch.optim.RMSprop),
    ],
    ids=str,
)
def test_another_implementation_is_left_as_it_is(chosen):
    assert fused(chosen) is chosen


def test_a_training_is_built_with_the_fused_update(compose):
    assert build(compose()).optimizer.defaults["fused"]
