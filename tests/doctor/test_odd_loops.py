"""Unusual arguments, models and loops: nothing raises, and what is sound is not accused."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from debugnn import Doctor
from doctor.watched_programs import (
    CLASSES,
    FEATURES,
    accused,
    batches,
    cross_entropy,
    data,
    mlp,
    sgd,
    sound,
    train,
    undisturbed,
)


def vector(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


# `update: False` leaves out the backward pass.
ODD = {
    "no loss function": {"own": None},
    "a loss as a float": {"told": float},
    "a loss as an array": {"told": lambda loss: loss.detach().numpy()},
    "no loss": {"told": lambda loss: None, "troubled": True},
    "a loss of a vector": {
        "own": vector,
        "told": lambda loss: loss.detach().expand(4),
        "troubled": True,
    },
    "a loss function that raises": {"own": lambda outputs, targets: 1 / 0, "troubled": True},
    "a loss function that returns a number": {
        "own": lambda o, t: F.cross_entropy(o, t).item(),
        "troubled": True,
    },
    "targets in a dict": {"targets": lambda t: {"class": t}, "own": lambda o, t: o[t["class"]]},
    "no targets": {"targets": lambda t: None, "troubled": True},
    "inputs of an unknown type": {"inputs": lambda x: object(), "troubled": True},
    "inputs as an array": {"inputs": lambda x: x.numpy(), "troubled": True},
    "strings": {"inputs": lambda x: "inputs", "targets": lambda t: "targets", "troubled": True},
    "a huge cadence": {"every": 10**9},
    "every step": {"every": 1},
    "no backward": {"update": False},
}


@pytest.mark.parametrize("odd", ODD)
def test_nothing_that_a_loop_does_makes_the_doctor_raise(odd):
    case = {"own": cross_entropy, "told": lambda loss: loss, "inputs": lambda x: x, "every": 5,
            "targets": lambda t: t, "update": True, "troubled": False, **ODD[odd]}  # fmt: skip

    def program(doctor):
        model = mlp()
        optimizer = sgd(model)
        watcher = doctor(model, optimizer, case["own"], every=case["every"])
        for step, (x, t) in enumerate(batches(45)):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            if case["update"]:
                loss.backward()
            optimizer.step()
            told = case["inputs"](x), case["targets"](t)
            watcher.step(case["told"](loss), *told)
            if step % 20 == 9:
                watcher.validate(*told)
                watcher.report()
        return model

    report = undisturbed(program, troubled=case["troubled"])
    assert report.steps == 45
    if odd == "no backward":
        assert not report.healthy


def test_a_batch_of_one_is_watched():
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=0.05)
        rows = list(batches(120, size=1))
        watcher = doctor(model, optimizer, cross_entropy)
        train(watcher, model, optimizer, rows=rows)
        return model

    report = undisturbed(program)
    assert report.troubles == []
    assert accused(report) == []


def test_an_empty_batch_among_others_does_no_harm():
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=0.3)

        def loss_fn(outputs, targets):
            return F.cross_entropy(outputs, targets, reduction="sum") / max(len(targets), 1)

        rows = list(batches(50))
        inputs, targets = data()
        rows[0] = rows[7] = rows[20] = (inputs[:0], targets[:0])
        watcher = doctor(model, optimizer, loss_fn)
        train(watcher, model, optimizer, loss_fn, rows=rows)
        return model

    report = undisturbed(program)
    assert accused(report) == []
    assert report.outcome["skill"] > 0.3


def test_a_step_before_any_forward_is_taken():
    inputs, targets = data()
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        doctor.step(torch.tensor(1.0), inputs, targets)
        doctor.validate(inputs, targets)
        sound(doctor.report())
        train(doctor, model, optimizer, steps=3)
        assert doctor.report().steps == 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_before_the_training_does_not_blind_the_doctor(mode):
    inputs, targets = data()

    def program(doctor):
        model = mlp()
        optimizer = sgd(model)
        watcher = doctor(model, optimizer, cross_entropy)
        with mode():
            model(inputs)
            watcher.validate(inputs, targets)
        train(watcher, model, optimizer, steps=45)
        with mode():
            watcher.report()
        return model

    assert undisturbed(program).troubles == []


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.locks = mlp(), {"one": threading.Lock(), "two": [threading.RLock()]}
        self.functional = F

    def forward(self, inputs):
        with self.locks["one"], self.locks["two"][0]:
            return self.functional.relu(self.body(inputs))


class Remembering(nn.Module):
    """Keeps its last hidden values, with their graph."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.hidden = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES), None

    def forward(self, inputs):
        self.hidden = torch.relu(self.first(inputs))
        return self.last(self.hidden)


def weight_normed():
    return nn.Sequential(
        nn.utils.weight_norm(nn.Linear(FEATURES, 12)), nn.ReLU(), nn.Linear(12, CLASSES)
    )


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("make", [Locked, Remembering, weight_normed])
@pytest.mark.parametrize("called_before", [False, True])
def test_what_holds_a_lock_or_a_graph_is_copied_all_the_same(make, called_before):
    def program(doctor):
        model = make()
        if called_before:
            model(data()[0])  # of the second pass on, deepcopy refuses the first one's results
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer, steps=45)
        return model.state_dict()

    report = undisturbed(program)
    assert report.evidence.task == "classes"
    assert report.evidence.network.parameters > 0


class Streaming(nn.Module):
    """Holds a running generator, which has no copy."""

    def __init__(self):
        super().__init__()
        self.body, self.numbers = mlp(), (n for n in range(10**6))

    def forward(self, inputs):
        next(self.numbers)
        return self.body(inputs)


def test_a_model_that_cannot_be_copied_is_trained_and_the_report_says_so():
    def program(doctor):
        model = Streaming()
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer, steps=45)
        return model.state_dict()

    report = undisturbed(program, troubled=True)
    assert len(report.troubles) == 1
    assert "cannot be copied" in report.troubles[0]


def test_a_hook_of_the_users_that_cannot_be_copied_does_not_blind_the_doctor():
    class Observer:
        def __init__(self):
            self.lock = threading.Lock()

        def see(self, module, args, output): ...

    def program(doctor):
        model = mlp()
        model[0].register_forward_hook(Observer().see)
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer)
        return model

    assert undisturbed(program).troubles == []


def test_a_model_with_an_extra_state_is_looked_into():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, inputs):
            return self.body(inputs)

        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state): ...

    def program(doctor):
        model = Extra()
        optimizer = sgd(model)
        train(doctor(model, optimizer, cross_entropy), model, optimizer)
        return model

    assert undisturbed(program).troubles == []


@pytest.mark.parametrize("own", [True, False], ids=["no parameters", "another's optimiser"])
def test_an_optimiser_of_another_model_is_found(own):
    def program(doctor):
        other = mlp()
        model = nn.Sequential(nn.Flatten()) if own else mlp()
        optimizer = sgd(other)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(45):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t % FEATURES)
            if not own:
                loss.backward()
            optimizer.step()
            watcher.step(loss, x, t)
        return model, other

    assert accused(undisturbed(program)) == ["optimizer_mismatch"]


def test_sparse_gradients_are_no_hindrance():
    def program(doctor):
        model = nn.Sequential(nn.EmbeddingBag(20, 8, sparse=True), nn.Linear(8, CLASSES))
        optimizer = sgd(model)
        rows = [(x.abs().mul(4).long().clamp_max(19), t) for x, t in batches(12)]
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in rows:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            watcher.step(loss, x, t)
        optimizer.zero_grad()
        return model

    assert undisturbed(program).troubles == []


def test_what_the_data_show_is_told_of_a_model_that_was_changed_on_the_way():
    """The doctor's copy cannot load the weights of the pruned model."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        for step, (x, t) in enumerate(batches(40)):
            x[:, 1] = 7 * t
            if step == 20:
                prune.l1_unstructured(model[0], "weight", amount=0.3)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    assert "label_leak" in [f.cause for f in report.findings], str(report)


class LayerDrop(nn.Module):
    """Residual layers that are left out at random while training."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, inputs):
        hidden = torch.relu(self.first(inputs))
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.5:
                hidden = hidden + torch.relu(layer(hidden))
        return self.last(hidden)


@pytest.mark.parametrize("seed", range(3))
def test_layers_left_out_at_random_are_not_frozen(seed):
    torch.manual_seed(seed)
    model = LayerDrop()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        train(doctor, model, optimizer, steps=60)
        assert accused(doctor.report()) == []


def test_an_embedding_that_is_learnt_from_classes_is_no_wrong_loss():
    def contrast(outputs, targets):  # the outputs are embeddings: near within a class, far between
        distances = torch.cdist(outputs, outputs)
        alike = (targets[:, None] == targets).float()
        return (alike * distances + (1 - alike) * F.relu(2 - distances)).mean()

    torch.manual_seed(0)
    model = mlp(outputs=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, contrast) as doctor:
        for x, t in batches(60):
            optimizer.zero_grad()
            loss = contrast(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    assert "wrong_loss" not in accused(report)


def test_targets_of_one_pass_beside_another_of_other_samples_are_no_trouble():
    """As measurements of an oscillator, and times at which its equation is to hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    times = torch.linspace(0, 3, 40)[:, None]
    with Doctor(model, optimizer) as doctor:
        for _ in range(60):
            measured = F.mse_loss(model(times), times.sin())
            elsewhere = 3 * torch.rand(64, 1)
            loss = measured + 0.1 * (model(elsewhere) - elsewhere.sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, times, times.sin())
        report = doctor.report()
    assert report.evidence.troubles == []
    assert not accused(report)
