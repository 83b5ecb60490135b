"""From a configuration to a training."""

from functools import partial

import pytest
import torch

from debugnn import processor
from debugnn.build import build, fused
from debugnn.training import bf16

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


@pytest.mark.parametrize(
    ("precision", "features", "lines"),
    [("bf16", "fpu avx512_bf16", 0), ("bf16", "fpu avx2", 1), ("fp32", "fpu avx2", 0)],
)
def test_slow_bf16_is_said_once(compose, monkeypatch, caplog, tmp_path, precision, features, lines):
    """However many runs a process trains."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor.CPUINFO.write_text(f"processor\t: 0\nflags\t\t: {features}\n")
    bf16.warn_if_slow.cache_clear()
    for seed in (0, 1):
        build(compose(f"trainer.precision={precision}", f"seed={seed}"))
    assert [r.levelname for r in caplog.records if "bf16" in r.message] == ["WARNING"] * lines


def test_a_source_data_set_takes_the_targets_shape_and_not_its_other_decisions(compose, caplog):
    shared = ("init=pretrained", "data@init.pretrain.data=digits", "data.as_shape=[3,30,30]",
              "data.train_size=64", "init.pretrain.epochs=1", "model=cnn")  # fmt: skip
    short, whole = (
        build(compose(*shared, f"init.pretrain.steps_per_epoch={steps}")) for steps in ("1", "2")
    )
    assert short.data.input_shape == (3, 30, 30)
    # Of the target's 64 samples there is one batch; of the source's, more.
    assert not torch.equal(short.model.conv1.weight, whole.model.conv1.weight)
