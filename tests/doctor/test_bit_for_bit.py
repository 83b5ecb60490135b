"""Watching changes nothing: weights, optimisers and random states are as without a doctor."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from doctor.watched_programs import (
    BATCH,
    CLASSES,
    FEATURES,
    accused,
    batches,
    cross_entropy,
    data,
    mlp,
    sgd,
    train,
    undisturbed,
)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)

    def forward(self, inputs):
        hidden = F.dropout(torch.relu(self.first(inputs)), 0.3, self.training)
        noise = torch.randn(CLASSES) if self.training else 0
        return self.last(hidden) + 0.01 * noise


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 6, num_layers=2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, inputs):
        return self.last(self.lstm(inputs.reshape(len(inputs), -1, 2))[0][:, -1])


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


NETS = {
    "mlp": mlp,
    "dropout": lambda: mlp(nn.Dropout(0.3)),
    "batch_norm": lambda: mlp(nn.BatchNorm1d(12)),
    "functional": Functional,
    "lstm": Recurrent,
    "cnn": convolutional,
    "spectral_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, 12)),
        nn.ReLU(), nn.Linear(12, CLASSES),
    ),
}  # fmt: skip


OPTIMIZERS = {
    "momentum": lambda model: sgd(model, momentum=0.9, weight_decay=1e-3),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_watched_training_is_the_same_bit_for_bit(net, optimizer):
    def program(doctor):
        model = NETS[net]()
        moves = OPTIMIZERS[optimizer](model)
        train(doctor(model, moves, cross_entropy), model, moves)
        return model, moves

    assert undisturbed(program).troubles == []


@pytest.mark.parametrize("net", ["mlp", "dropout", "lstm"])
def test_a_closure_is_watched(net):
    def program(doctor):
        model = NETS[net]()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=3)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(12):

            def closure(x=x, t=t):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), t)
                loss.backward()
                return loss

            watcher.step(optimizer.step(closure), x, t)
        return model, optimizer

    assert "missing_zero_grad" not in accused(undisturbed(program))


@pytest.mark.parametrize(
    "net",
    ["dropout", *(pytest.param(n, marks=pytest.mark.slow) for n in ("batch_norm", "functional"))],
)
def test_trials_change_nothing(net):
    def program(doctor):
        model = NETS[net]()
        optimizer = sgd(model, lr=300.0, momentum=0.9)
        watcher = doctor(model, optimizer, cross_entropy)
        rows = iter(batches(50))
        for _ in range(2):
            train(watcher, model, optimizer, rows=[next(rows) for _ in range(25)])
            watcher.report()
        return model, optimizer

    report = undisturbed(program)
    assert report.trial_steps > 0
    assert not report.healthy


def test_a_training_that_ends_in_nan_is_not_changed():
    def program(doctor):
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2),
                              nn.Linear(8, 1))  # fmt: skip
        optimizer = sgd(model, lr=1e4)
        squared = nn.MSELoss()
        rows = [(x, t[:, None].float()) for x, t in batches(44)]
        train(doctor(model, optimizer, squared), model, optimizer, squared, rows=rows)
        return model, optimizer

    def bare(doctor):  # validation targets of another shape do no harm
        return program(doctor)

    report = undisturbed(bare)
    assert not report.healthy


def test_watching_emits_no_warning():
    inputs, targets = data()
    model = mlp(nn.Dropout(0.2))
    optimizer = sgd(model, lr=1e4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Doctor(model, optimizer, cross_entropy, every=5) as doctor:
            train(doctor, model, optimizer, steps=45)
            doctor.validate(inputs, targets)
            report = doctor.report()
    assert report.troubles == []


# A loss that also reads the model, or has a state or random numbers of its own.


@pytest.mark.parametrize(
    ("zero", "lr"), [("before", 0.1), pytest.param("after", 1e3, marks=pytest.mark.slow)]
)
def test_a_loss_with_a_penalty_on_the_weights_gives_the_model_no_gradient(zero, lr):
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=lr)

        def loss_fn(outputs, targets):
            penalty = sum(p.square().sum() for p in model.parameters())
            return F.cross_entropy(outputs, targets) + 1e-3 * penalty

        watcher = doctor(model, optimizer, loss_fn)
        for step, (x, t) in enumerate(batches(45)):
            if zero == "before":
                optimizer.zero_grad()
            loss = loss_fn(model(x), t)
            loss.backward()
            optimizer.step()
            if zero == "after":
                optimizer.zero_grad()
            watcher.step(loss, x, t)
            if step in (20, 42):
                watcher.report()
        optimizer.zero_grad()
        return model

    undisturbed(program)


class Centred(nn.Module):
    """A loss that learns a temperature and keeps a running mean."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("centre", torch.zeros(CLASSES))

    def forward(self, outputs, targets):
        with torch.no_grad():
            self.centre.lerp_(outputs.mean(dim=0), 0.1)
        return F.cross_entropy((outputs - self.centre) * self.temperature, targets)


def test_a_loss_with_weights_and_a_state_is_left_alone():
    def program(doctor):
        model, loss_fn = mlp(), Centred()
        optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.1)
        watcher = doctor(model, optimizer, loss_fn)
        for x, t in batches(22):
            loss = loss_fn(model(x), t)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step(loss, x, t)
        return model, loss_fn, optimizer

    undisturbed(program)


class Noisy:
    """A loss with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, outputs, targets):
        noise = torch.randn(outputs.shape, generator=self.generator)
        return F.cross_entropy(outputs + 0.1 * noise, targets)


def test_a_loss_with_a_generator_of_its_own_is_left_alone():
    def program(doctor):
        model, loss_fn = mlp(), Noisy()
        optimizer = sgd(model)
        train(doctor(model, optimizer, loss_fn), model, optimizer, loss_fn)
        return model

    undisturbed(program)


class Skipping(nn.Module):
    """Layer drop, by the random numbers of Python and NumPy."""

    def __init__(self):
        super().__init__()
        self.middle, self.last = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        if random.random() < 0.8:
            inputs = torch.relu(self.middle(inputs))
        return self.last(inputs * (1 + 0.1 * np.random.rand()))


def test_the_random_numbers_of_python_and_numpy_are_left_alone():
    def program(doctor):
        model = Skipping()
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer)
        return model

    undisturbed(program)


def test_a_forward_that_was_wrapped_in_a_closure_does_not_reach_the_model():
    def program(doctor):
        model = mlp(nn.BatchNorm1d(12))
        inner = model.forward
        model.forward = lambda inputs: inner(2 * inputs)
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer)
        return model

    report = undisturbed(program, troubled=True)
    assert "forward" in " ".join(report.troubles)


def test_a_forward_that_writes_into_its_inputs_writes_into_the_users_once():
    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, inputs):
            return self.body(inputs.mul_(0.9))

    def program(doctor):
        model = Scaling()
        optimizer = sgd(model)
        watcher = doctor(model, optimizer, cross_entropy)
        inputs, targets = data(BATCH)
        held = inputs.clone()
        for _ in range(12):
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            watcher.step(loss, inputs, targets)
            watcher.validate(held, targets)
        return model, inputs, held

    undisturbed(program)


def test_a_users_own_hooks_fire_as_often_as_without_a_doctor():
    def program(doctor):
        model, seen = mlp(), []
        model[0].register_forward_pre_hook(lambda module, args: seen.append("pre"))
        model[0].register_forward_hook(lambda module, args, output: seen.append("post"))
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer)
        return model, seen

    undisturbed(program)
