"""Training of copies: the training's own objects stay, and each trial changes what it names."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from debugnn.doctor.copy_training import CopyTraining, reset, run
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.task import Task
from debugnn.doctor.trials import (
    AVERAGED_LOSS,
    DIVIDED,
    REINITIALISED,
    STANDARDISED_INPUTS,
    STANDARDISED_TARGETS,
    TRIALS,
    UNCHANGED,
    UNFROZEN,
    UNREGULARISED,
    Trial,
)

TASK = Task("classes", 10)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def net(dropout=0.0, batch_norm=False):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(24) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Linear(64, 24), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(24, 10)
    )  # fmt: skip


@pytest.fixture(scope="module")
def batches():
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.as_tensor(pixels).float() / 8 - 0.6, torch.as_tensor(labels)
    return [Batch(Call((inputs[i : i + 32],)), targets[i : i + 32]) for i in range(0, 160, 32)]


def groups_of(model, optimizer):
    """The optimiser's settings, its parameters by name."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [
        {k: v for k, v in group.items() if k != "params"}
        | {"names": [names[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]


def copied(model, optimizer, batches, trial=UNCHANGED, loss=F.cross_entropy):
    groups = groups_of(model, optimizer)
    return CopyTraining(copy.deepcopy(model), optimizer, groups, loss, batches, trial)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def train(model, optimizer, batches, steps, loss=F.cross_entropy):
    """A plain training loop."""
    model.train()
    losses = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        value = loss(model(*batch.call.args), batch.targets)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def loss_of_numbers(outputs, targets):
    """A loss for class indices that also takes them where they are standardised."""
    return F.mse_loss(outputs.mean(dim=1), targets.float())


def stepped(training, steps):
    return [training.step()[-1].item() for _ in range(steps)]


# --- gradients of several passes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "trial", "factor"),
    [(2, UNCHANGED, 2.0), (8, UNCHANGED, 8.0), (2, DIVIDED, 1.0), (8, DIVIDED, 1.0)],
)
def test_several_passes_are_added_up_or_averaged_as_in_the_training(batches, passes, trial, factor):
    model, used = net(), batches[:2]
    plain = copy.deepcopy(model)
    mean = sum(F.cross_entropy(plain(*b.call.args), b.targets) for b in used) / len(used)
    mean.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    training = CopyTraining(
        model,
        optimizer,
        groups_of(model, optimizer),
        F.cross_entropy,
        used,
        trial,
        passes=passes,
        undivided=True,
    )
    training.step()
    assert training.taken == 2
    for name, before in plain.named_parameters():
        moved = dict(training.model.named_parameters())[name] - before
        assert torch.allclose(moved, -0.01 * factor * before.grad, atol=1e-6), name


# --- what it leaves, and what it is -------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_is_trained_as_by_the_plain_loop_bit_for_bit(name, batches):
    model = net(dropout=0.3, batch_norm=True)
    training = copied(model, OPTIMIZERS[name](model.parameters()), batches)
    torch.manual_seed(5)
    losses = stepped(training, 12)
    plain = copy.deepcopy(model)
    torch.manual_seed(5)
    assert train(plain, OPTIMIZERS[name](plain.parameters()), batches, 12) == losses
    assert_equal(weights(plain), weights(training.model))


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_model_optimiser_and_batches_stay_as_they_were(name, trial, batches):
    model = net(dropout=0.3, batch_norm=True)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, batches, 3)
    model.eval()
    kept, state = weights(model), copy.deepcopy(optimizer.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    given = [(b.call.args[0].clone(), b.targets.clone()) for b in batches]
    training = copied(model, optimizer, batches, trial, loss=loss_of_numbers)
    stepped(training, 6)
    assert_equal(weights(model), kept)
    assert all(map(torch.equal, gradients, [p.grad for p in model.parameters()]))
    assert not model.training
    assert model[3].p == 0.3
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for index, entry in state["state"].items():
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(after["state"][index][key]), torch.as_tensor(value))
    for batch, (inputs, targets) in zip(batches, given, strict=True):
        assert torch.equal(batch.call.args[0], inputs)
        assert torch.equal(batch.targets, targets)


def test_batches_come_in_turn(batches):
    model = net()
    training = copied(model, OPTIMIZERS["sgd"](model.parameters()), batches[:3])
    seen = [training.step()[1] for _ in range(7)]
    for step, targets in enumerate(seen):
        assert targets is batches[step % 3].targets


# --- changes ------------------------------------------------------------------------------------


def test_a_rates_factor_is_a_rates_factor(batches):
    model = net()
    groups = [
        {"params": model[0].parameters(), "lr": 0.2},
        {"params": model[4].parameters(), "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups)
    training = copied(model, optimizer, batches, Trial("a tenth", lr=0.1))
    assert [g["lr"] for g in training.optimizer.param_groups] == [pytest.approx(0.02), 0.001]
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.01]
    stepped(training, 5)
    plain = copy.deepcopy(model)
    slow = torch.optim.SGD(
        [
            {"params": plain[0].parameters(), "lr": 0.2 * 0.1},
            {"params": plain[4].parameters(), "lr": 0.01 * 0.1},
        ]
    )
    train(plain, slow, batches, 5)
    assert_equal(weights(plain), weights(training.model))
    training.set_lr(0.5)
    assert [g["lr"] for g in training.optimizer.param_groups] == [0.5, 0.5]


def test_unregularised_is_without_decay_and_dropout(batches):
    model = net(dropout=0.6)
    make = OPTIMIZERS["sgd"]
    training = copied(model, make(model.parameters()), batches, UNREGULARISED)
    losses = stepped(training, 5)
    plain = net(dropout=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
    assert train(plain, optimizer, batches, 5) == losses
    assert_equal(weights(plain), weights(training.model))


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(8, 8, num_layers=2, dropout=0.7), nn.MultiheadAttention(8, 2, dropout=0.7)],
    ids=["lstm", "attention"],
)
def test_unregularised_is_without_dropout_inside_a_layer(layer, batches):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = copy.deepcopy(layer), nn.Linear(8, 10)

        def forward(self, x):
            rows = x.reshape(len(x), 8, 8).transpose(0, 1)
            attention = isinstance(self.layer, nn.MultiheadAttention)
            found = self.layer(rows, rows, rows) if attention else self.layer(rows)
            return self.out(found[0][-1])

    model = Rows()
    training = copied(model, OPTIMIZERS["adam"](model.parameters()), batches, UNREGULARISED)
    torch.manual_seed(1)
    first = training.model(*batches[0].call.args)
    assert torch.equal(first, training.model(*batches[0].call.args))


def test_reinitialised_weights_are_drawn_anew(batches):
    model = net()
    nn.init.constant_(model[0].weight, 3.0)
    training = copied(model, OPTIMIZERS["sgd"](model.parameters()), batches, REINITIALISED)
    assert training.model[0].weight.abs().max() < 0.2
    assert (model[0].weight == 3).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(batch_norm=True),
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.GRU(4, 5)),
        lambda: nn.MultiheadAttention(8, 2),
    ],
    ids=["dense", "conv and recurrent", "attention"],
)
def test_reset_is_pytorchs_own_initialisation(make):
    torch.manual_seed(3)
    fresh = make()
    spoilt = copy.deepcopy(fresh)
    with torch.no_grad():
        for parameter in spoilt.parameters():
            parameter.fill_(50.0)
    reset(spoilt)
    for one, other in zip(spoilt.parameters(), fresh.parameters(), strict=True):
        if one.dim() >= 2:
            assert one.std().item() == pytest.approx(other.std().item(), rel=0.4)
            assert len(one.unique()) > 1
        assert one.abs().max() < 2


def test_standardised_inputs_have_mean_0_and_deviation_1(batches):
    model = net()
    far = [Batch(Call((b.call.args[0] * 30 + 7,)), b.targets) for b in batches]
    training = copied(model, OPTIMIZERS["adam"](model.parameters()), far, STANDARDISED_INPUTS)
    given = torch.cat([b.call.args[0] for b in training.batches])
    varying = torch.cat([b.call.args[0] for b in batches]).std(dim=0) > 0
    assert given.mean(dim=0).abs().max() < 1e-4
    assert given.std(dim=0)[varying].numpy() == pytest.approx(1, abs=1e-4)
    losses = stepped(training, 7)
    plain = net()
    assert train(plain, OPTIMIZERS["adam"](plain.parameters()), training.batches, 7) == losses
    assert_equal(weights(plain), weights(training.model))


def test_only_tensors_of_the_first_ones_shape_are_standardised():
    rows, other = 5 + torch.randn(8, 4), 5 + torch.randn(8, 3)
    model = nn.Bilinear(4, 3, 2)
    batch = Batch(Call((rows, other)), torch.arange(8) % 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = copied(model, optimizer, [batch], STANDARDISED_INPUTS)
    assert training.batches[0].call.args[0].mean().abs() < 1e-5
    assert torch.equal(training.batches[0].call.args[1], other)


def test_standardised_targets_have_mean_0_and_deviation_1(batches):
    model = nn.Linear(64, 1)
    far = [Batch(b.call, 1e3 * b.targets.float()[:, None] + 50) for b in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = copied(model, optimizer, far, STANDARDISED_TARGETS, loss=F.mse_loss)
    given = torch.cat([b.targets for b in training.batches])
    assert given.mean().item() == pytest.approx(0, abs=1e-5)
    assert given.std().item() == pytest.approx(1, rel=1e-5)
    plain = copy.deepcopy(model)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
    assert train(plain, sgd, training.batches, 5, loss=F.mse_loss) == stepped(training, 5)


def test_an_averaged_loss_is_divided_by_the_batchs_size(batches):
    def summed(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="sum")

    model = net()
    make = OPTIMIZERS["sgd"]
    training = copied(model, make(model.parameters()), batches, AVERAGED_LOSS, loss=summed)
    losses = stepped(training, 6)
    plain = net()
    assert train(plain, make(plain.parameters()), batches, 6) == pytest.approx(losses, rel=1e-5)


def test_frozen_parameters_learn_where_they_are_asked_to(batches):
    model = net()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["adam"](model[4].parameters())
    kept = copied(model, optimizer, batches)
    free = copied(model, optimizer, batches, UNFROZEN)
    before = weights(model)
    for training in (kept, free):
        stepped(training, 4)
    assert torch.equal(kept.model[0].weight, before["0.weight"])
    assert not torch.equal(kept.model[4].weight, before["4.weight"])
    for name, tensor in free.model.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    # The weights are those of a training in which nothing is frozen.
    plain = net()
    train(plain, OPTIMIZERS["adam"](plain.parameters()), batches, 4)
    assert_equal(weights(plain), weights(free.model))


def test_an_optimiser_of_another_model_trains_this_one(batches):
    model = net()
    optimizer = OPTIMIZERS["adam"](net().parameters())
    groups = [{"lr": 3e-3, "names": []}]
    training = CopyTraining(
        copy.deepcopy(model), optimizer, groups, F.cross_entropy, batches, UNCHANGED
    )
    losses = stepped(training, 4)
    plain = net()
    assert train(plain, torch.optim.Adam(plain.parameters(), lr=3e-3), batches, 4) == losses


# --- what a run of it says ----------------------------------------------------------------------


def test_a_run_tells_first_and_last_losses_over_guessing(batches):
    model = net()
    outcome = run(copied(model, OPTIMIZERS["adam"](model.parameters()), batches), TASK, 24)
    plain = net()
    losses = train(plain, OPTIMIZERS["adam"](plain.parameters()), batches, 24)
    shares = torch.cat([b.targets for b in batches]).bincount() / 160
    guessing = -(shares * shares.log()).sum().item()
    assert outcome.steps == 24
    assert outcome.start == pytest.approx(sum(losses[:2]) / 2 / guessing, rel=1e-4)
    assert outcome.end == pytest.approx(sum(losses[-6:]) / 6 / guessing, rel=1e-4)
    assert outcome.end < 0.8 < outcome.start


def test_a_run_ends_where_the_loss_does(batches):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    outcome = run(copied(model, optimizer, batches), TASK, 24)
    assert outcome.steps < 5
    assert outcome.end == math.inf


def test_a_runs_loss_is_the_tasks_whatever_it_is_trained_with(batches):
    outcomes = []
    for factor in (1.0, 10.0):

        def scaled(outputs, targets, factor=factor):
            return factor * F.cross_entropy(outputs, targets)

        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / factor)
        outcomes.append(run(copied(model, optimizer, batches, loss=scaled), TASK, 12))
    assert outcomes[0].end == pytest.approx(outcomes[1].end, rel=1e-4)


def test_a_copy_learns_as_the_loop_does_where_gradients_lie_in_memory_as_no_weight_does():
    """Channels-last images and contiguous weights: the fused optimiser reads memory in order."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    images = torch.randn(2, 16, 3, 8, 8).unbind()
    images = [part.contiguous(memory_format=torch.channels_last) for part in images]
    batches = [Batch(Call((part,)), torch.arange(16) % 10) for part in images]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    losses = stepped(copied(model, optimizer, batches), 6)
    assert losses == pytest.approx(train(model, optimizer, batches, 6), rel=1e-4)
