"""A training is hopeless where no weight can come to know its inputs, and not where it is slow."""

import copy

import pytest
import torch
from torch import nn

from debugnn import Doctor


def train(model, steps=60, lr=1e-2, optimizer=torch.optim.Adam, ask=(), every=5, **options):
    """Train on three classes of points; return the doctor's answers, by step, and its report."""
    torch.manual_seed(0)
    labels = torch.randint(3, (512,))
    inputs = 2 * torch.randn(3, 8)[labels] + torch.randn(512, 8)
    optimizer = optimizer(model.parameters(), lr=lr, **options)
    loss_fn = nn.CrossEntropyLoss()
    answers = {}
    with Doctor(model, optimizer, loss_fn=loss_fn, every=every, budget=0) as doctor:
        for step in range(steps):
            batch = torch.randint(512, (32,))
            optimizer.zero_grad()
            loss = loss_fn(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[batch], labels[batch])
            if step + 1 in ask:
                answers[step + 1] = doctor.hopeless()
        return answers, doctor.report()


def net(activation=nn.ReLU, bias=0.0, scale=1.0):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(8, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        model[0].bias += bias
        model[0].weight *= scale
    return model


class Skips(nn.Module):
    """A network with a way around its layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers, self.last = layers, nn.Linear(8, 3)

    def forward(self, inputs):
        return self.layers(inputs) + self.last(inputs)


def test_dead_units_are_hopeless_once_their_gradient_has_been_gone_for_a_while():
    """Their output layer has a bias, and so goes on learning how common each class is."""
    answers, _ = train(net(bias=-100.0), ask=(10, 19, 20, 60))
    assert (answers[10], answers[19]) == (None, None)
    assert answers[20] == answers[60]
    assert "since step 0 no gradient reaches 0.weight, 0.bias" in answers[60]
    assert "4.weight, 4.bias can tell no sample from another" in answers[60]
    assert "all units after 0 are zero" in answers[60]


def test_saturated_units_are_hopeless_where_they_are_alike_in_all_samples():
    answers, _ = train(net(nn.Sigmoid, bias=1000.0), ask=(60,))
    assert "no gradient reaches 0.weight, 0.bias" in answers[60]


def test_weights_that_are_not_finite_are_hopeless_at_once():
    answers, _ = train(net(), optimizer=torch.optim.SGD, lr=1e30, steps=8, ask=(8,))
    assert "are not finite, and no update makes them so again" in answers[8]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (net(), {}),
        (net(), {"lr": 1e-9}),
        (net(nn.Sigmoid, bias=-6.0), {}),  # a plateau: its gradients are small
        (net(nn.Sigmoid, scale=1e6), {}),  # saturated at different ends for different samples
        (net(scale=1e-6), {}),  # the signal is small
        (Skips(net(bias=-100.0)), {}),
        (net(nn.Sigmoid, bias=100.0), {"weight_decay": 0.1}),  # decay takes it back
    ],
    ids=["sound", "slow", "plateau", "saturated", "small", "skips", "decays"],
)
def test_what_can_still_learn_is_not_hopeless(model, settings):
    answers, _ = train(model, ask=(30, 60), **settings)
    assert answers == {30: None, 60: None}


def test_nothing_is_known_before_the_first_step_or_without_a_loss_function():
    model = net(bias=-100.0)
    optimizer = torch.optim.Adam(model.parameters())
    with Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss()) as doctor:
        assert doctor.hopeless() is None
    with Doctor(model, optimizer) as doctor:
        for _ in range(30):
            loss = model(torch.randn(4, 8)).square().mean()
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        assert doctor.hopeless() is None


@pytest.mark.parametrize("bias", [0.0, -100.0], ids=["alive", "dead"])
def test_asking_changes_neither_the_training_nor_the_report(bias):
    """With batch norm and dropout, which keep statistics and draw random numbers."""
    first = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        first[0].bias += bias
    second = copy.deepcopy(first)
    _, asked = train(first, ask=range(1, 61))
    state = torch.get_rng_state()
    _, alone = train(second)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert asked.to_dict() == alone.to_dict()
