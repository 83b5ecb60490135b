"""When a GPU would be waited for, tested without one.

A tensor on the `meta` device has no values, and reading one raises an error: it stands for a device
whose values have to be waited for. A fake tensor claims to be on a GPU, so that operations take the
paths of a GPU.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from debugnn import Doctor
from debugnn.data import Data, Split
from debugnn.nn.networks import network
from debugnn.stacking.stack import Member, Stack
from debugnn.tensor_stats import describe
from debugnn.training.clipping import clip_norm, rescale_norm
from debugnn.training.gradients import keep
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import Training, train_one_epoch

STEPS = 6
RULES = {
    "keep": keep,
    "clip": partial(clip_norm, max_norm=4.0),
    "rescale": partial(rescale_norm, norm=4.0),
}


def far_training(rule=keep, classes=True, **decisions) -> Training:
    """Return a training of a convolutional net with batch norm and dropout on the meta device."""
    model = network(
        (1, 12, 12), 10 if classes else 1, activation=nn.ReLU, blocks=[[4, 6]], hidden=[12],
        batch_norm=True, dropout=0.3,
    )  # fmt: skip
    model = model.to(memory_format=torch.channels_last).to("meta")
    size = 16 * STEPS - 5  # the last batch is smaller
    with torch.device("meta"):
        targets = torch.zeros(size, dtype=torch.int64) if classes else torch.zeros(size, 1)
        split = Split(torch.zeros(size, 1, 12, 12, dtype=torch.uint8), targets)
        moments = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    data = Data("far", split, split, 10 if classes else None, *moments, **decisions)
    loss = cross_entropy if classes else nn.functional.mse_loss
    optimizer = torch.optim.Adam(model.parameters())
    return Training(
        model, loss, optimizer, data, batch_size=16, seed=0, gradient_rule=rule, channels_last=True,
        read_every=1000, step=1,
    )  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [True, False])
def test_no_step_waits_for_the_device_between_two_readings(rule, classes):
    training = far_training(RULES[rule], classes, augment_shift=2, permute_labels=classes)
    with pytest.raises(NotImplementedError, match="meta"):
        list(train_one_epoch(training))
    assert training.step == 1 + STEPS  # the read after the last step failed


def test_a_reading_waits_once():
    training = far_training()
    training.read_every = 4
    with pytest.raises(NotImplementedError, match="meta"):
        list(train_one_epoch(training))
    assert training.step == 5  # after step 4


@pytest.mark.parametrize("rule", RULES)
def test_no_step_of_a_stack_waits_for_the_device(rule):
    trainings = [far_training(RULES[rule]), far_training()]
    stack = Stack([Member(training) for training in trainings])
    with pytest.raises(NotImplementedError, match="meta"):
        list(stack.fit(1))
    assert [training.step for training in trainings] == [1 + STEPS, 1 + STEPS]


def test_the_doctor_waits_for_the_device_only_where_it_is_due():
    training = far_training()
    with Doctor(training.model, training.optimizer, training.loss) as doctor:
        for step, (inputs, targets) in enumerate(training.batches(0)):
            _, loss = training.backward(inputs, targets)
            training.gradient_rule(training.parameters)
            training.optimizer.step()
            doctor.step(loss, inputs, targets)
            waited = any("meta" in trouble for trouble in doctor.evidence.troubles)
            # The first steps are always inspected; the next inspection is at step 3.
            assert waited == (step == 3) or step < 2
            doctor.evidence.troubles.clear()


def test_a_watched_pass_waits_after_it_not_at_each_layer():
    training = far_training()
    inputs, targets = next(training.batches(0))
    done = []

    def watched_pass():
        with LayerProbe(every=1).watch(training.model, 0):
            done.append(training.backward(inputs, targets))

    with pytest.raises(NotImplementedError, match="meta"):
        watched_pass()
    assert done


def test_tensors_described_together_are_described_alike():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "image": torch.randn(4, 3, 5, 5, generator=generator).relu(),
        "large": torch.randn(300, 100, generator=generator),
        "bfloat16": torch.randn(8, 8, generator=generator).bfloat16(),
        "tiny": torch.full((7,), 1e-30),
        "broken": torch.tensor([1.0, float("nan"), float("inf")]),
        "number": torch.tensor(3.0),
        "nothing": torch.empty(0, 3),
    }
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(f"{name}_", nn.Parameter(tensor))
    with LayerProbe(every=1, bins=8).watch(model, 0) as seen:
        pass
    alone = {f"{name}_": describe(tensor, 8) for name, tensor in tensors.items()}
    assert repr(seen["parameters"]) == repr(alone)  # NaN equals itself there


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_stacks_on_a_gpu(training):
    """In the contiguous layout alone: PyTorch cannot ask for another one inside of vmap."""

    def one(parameters, buffers, inputs):
        return functional_call(net, (parameters, buffers), (inputs,))

    with FakeTensorMode(), torch.device("cuda"):
        net = network(
            (3, 12, 12), 10, activation=nn.ReLU, blocks=[[4, 6]], hidden=[12], batch_norm=True,
            dropout=0.0,
        ).train(training)  # fmt: skip
        parameters, buffers = stack_module_state([net, net])
        outputs = vmap(one)(parameters, buffers, torch.empty(2, 5, 3, 12, 12))
        assert (outputs.shape, outputs.device.type) == ((2, 5, 10), "cuda")
