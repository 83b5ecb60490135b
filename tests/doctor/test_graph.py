"""Layers that a model does not register: found by its outputs' graph, and told from others."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from debugnn import Doctor, check

STEPS = 6


def batch(step=0, features=8):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, features, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()


class Net(nn.Module):
    """Two hidden layers, in whatever `keep` makes of their list, and a head."""

    def __init__(self, keep=list):
        super().__init__()
        self.hidden = keep([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.hidden.values() if isinstance(self.hidden, dict) else self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


def sgd(model, *others):
    return torch.optim.SGD([*model.parameters(), *others], lr=0.1)


def watched(model, optimizer, *others, steps=STEPS, inputs=lambda x: x):
    """Train for a few steps under a doctor, and return its report."""
    with Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss()) as doctor:
        for step in range(steps):
            x, y = batch(step)
            x = inputs(x)
            for each in (optimizer, *others):
                each.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            for each in (optimizer, *others):
                each.step()
            doctor.step(loss, x, y)
        return doctor.report()


def outside(report):
    """Return the finding of layers that are not registered, None where there is none."""
    findings = [f for f in report.findings if f.cause == "optimizer_mismatch"]
    return findings[0] if findings else None


def as_dict(layers):
    return {f"part{i}": layer for i, layer in enumerate(layers)}


class Holder:
    """A plain object that holds layers."""

    def __init__(self, layers):
        self.layers = layers

    def __iter__(self):
        return iter(self.layers)


@pytest.mark.parametrize(
    ("keep", "name", "mend"),
    [
        (list, "hidden.0.weight", "nn.ModuleList"),
        (tuple, "hidden.0.weight", "nn.ModuleList"),
        (as_dict, "hidden.part0.weight", "nn.ModuleDict"),
        (Holder, "hidden.layers.0.weight", "a module of its own"),
    ],
)
def test_layers_in_a_plain_attribute_are_named(keep, name, mend):
    model = Net(keep)
    report = watched(model, sgd(model))
    found = outside(report)
    assert report.healthy is False
    assert found.confidence == "certain"
    assert found.evidence["unregistered"][0] == name
    assert len(found.evidence["unregistered"]) == 4
    assert found.evidence["values"] == 2 * (64 + 8)
    assert "self.hidden" in found.summary
    assert mend in found.fix


def test_the_checklist_does_not_call_an_optimiser_complete_that_lacks_them():
    model = Net(list)
    shown = check(model, nn.CrossEntropyLoss(), [batch(s) for s in range(4)], sgd(model))
    (line,) = [c for c in shown.checks if c.name == "optimiser"]
    assert line.passed is False
    assert "self.hidden" in line.reason
    assert "ModuleList" in line.reason
    assert all(p.grad is None for layer in model.hidden for p in layer.parameters())


@pytest.mark.parametrize("keep", [nn.ModuleList, list])
def test_the_checklist_passes_registered_layers_and_those_that_the_optimiser_holds(keep):
    model = Net(keep)
    others = [p for layer in model.hidden for p in layer.parameters()] if keep is list else []
    shown = check(model, nn.CrossEntropyLoss(), [batch(s) for s in range(4)], sgd(model, *others))
    (line,) = [c for c in shown.checks if c.name == "optimiser"]
    assert line.passed


def test_the_finding_stands_after_the_doctor_is_closed():
    model = Net(list)
    optimizer = sgd(model)
    doctor = Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss())
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        doctor.step(loss, x, y)
    doctor.close()
    assert outside(doctor.report()) is not None


class Plain(nn.Module):
    """A weight that is a plain tensor."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(8, 8, requires_grad=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(x @ self.weight))


def test_a_plain_tensor_is_to_become_a_parameter():
    model = Plain()
    found = outside(watched(model, sgd(model)))
    assert found.evidence["unregistered"] == ["weight"]
    assert "self.weight = nn.Parameter" in found.fix


class MadeInForward(nn.Module):
    """A layer, or a normalisation without anything to learn in it, is made in each pass."""

    def __init__(self, make):
        super().__init__()
        self.make, self.head = make, nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.make()(x)))


class Twice(nn.Module):
    """Calls a model twice in a step, as a siamese net does."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + self.model(-x)


def test_a_layer_made_in_forward_is_found():
    model = MadeInForward(lambda: nn.Linear(8, 8))
    found = outside(watched(model, sgd(model)))
    assert found.confidence == "certain"
    assert "anew" in found.summary
    assert [8, 8] in found.evidence["shapes"]


def test_a_layer_made_in_forward_is_found_in_a_model_that_is_called_twice_a_step():
    model = MadeInForward(lambda: nn.Linear(8, 8))
    optimizer, both = sgd(model), Twice(model)
    with Doctor(model, optimizer) as doctor:
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(both(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        assert [8, 8] in outside(doctor.report()).evidence["shapes"]


def test_a_normalisation_made_in_forward_has_nothing_that_could_be_learnt():
    model = MadeInForward(lambda: nn.LayerNorm(8))
    assert outside(watched(model, sgd(model))) is None


# --- sound twins ----------------------------------------------------------------------------------


def test_layers_that_the_optimiser_was_given_by_hand_are_held():
    model = Net(list)
    others = [p for layer in model.hidden for p in layer.parameters()]
    assert outside(watched(model, sgd(model, *others))) is None


def test_layers_that_another_optimiser_moves_are_trained():
    model = Net(list)
    others = [p for layer in model.hidden for p in layer.parameters()]
    own = torch.optim.Adam(others, lr=1e-2)
    assert outside(watched(model, sgd(model), own)) is None


def test_inputs_that_require_a_gradient_are_no_layers():
    model = Net(nn.ModuleList)
    assert outside(watched(model, sgd(model), inputs=lambda x: x.requires_grad_())) is None


def test_what_made_the_inputs_belongs_to_another_network():
    generator, model = nn.Linear(8, 8), Net(nn.ModuleList)
    assert outside(watched(model, sgd(model), inputs=lambda x: torch.tanh(generator(x)))) is None


class WithState(nn.Module):
    """A recurrent net whose first state requires a gradient by an old habit."""

    def __init__(self, kept):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)
        self.kept = torch.zeros(1, 16, 8, requires_grad=True) if kept else None

    def forward(self, x):
        state = torch.zeros(1, 16, 8, requires_grad=True) if self.kept is None else self.kept
        return self.head(self.rnn(x.unsqueeze(1), state)[0][:, -1])


@pytest.mark.parametrize("kept", [True, False])
def test_a_first_state_of_zeros_is_no_layer(kept):
    model = WithState(kept)
    assert outside(watched(model, sgd(model))) is None


class WithTeacher(nn.Module):
    """A second output by a network that is hidden from `parameters()` on purpose."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.teacher = [nn.Linear(8, 2)]

    def forward(self, x):
        return self.head(x), self.teacher[0](x)


def test_an_output_that_the_loss_detaches_is_not_learnt_through():
    model = WithTeacher()
    optimizer = sgd(model)

    def distil(outputs, _):
        return F.mse_loss(outputs[0], outputs[1].detach())

    with Doctor(model, optimizer, loss_fn=distil) as doctor:
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = distil(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        assert outside(doctor.report()) is None


class Checkpointed(Net):
    """Recomputes its hidden layers in the backward pass."""

    def forward(self, x):
        for layer in self.hidden:
            x = checkpoint(lambda x, layer=layer: torch.tanh(layer(x)), x, use_reentrant=False)
        return self.head(x)


@pytest.mark.parametrize("keep", [list, nn.ModuleList])
def test_checkpoints_hide_and_invent_nothing(keep):
    model = Checkpointed(keep)
    found = outside(watched(model, sgd(model)))
    assert (found is not None) == (keep is list)


def test_swapped_parameters_are_no_leaves_of_their_own():
    model = Net(nn.ModuleList)
    given = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(given.values(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(torch.func.functional_call(model, given, x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        assert doctor.evidence.network.unregistered == []


def test_a_copy_in_the_loop_is_not_looked_at():
    """As meta-learning trains a copy of its model for a few steps in each step."""
    model = Net(nn.ModuleList)
    optimizer = sgd(model)
    with Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss()) as doctor:
        for step in range(STEPS):
            x, y = batch(step)
            learner = copy.deepcopy(model)
            F.cross_entropy(learner(x), y).backward()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        report = doctor.report()
    assert outside(report) is None
    assert report.troubles == []
