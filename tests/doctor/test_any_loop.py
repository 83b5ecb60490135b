"""Training loops as people write them: models of several inputs, compiled, accumulated."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from debugnn import Doctor
from doctor.watched_programs import (
    BATCH,
    CLASSES,
    FEATURES,
    Layer,
    Nobody,
    accused,
    batches,
    cross_entropy,
    mlp,
    outcome,
    sgd,
    train,
    undisturbed,
)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(FEATURES, 8), nn.Linear(2, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, wide, narrow, scale=1.0):
        return self.last(torch.relu(self.one(wide) + self.two(narrow)) * scale)


@pytest.mark.parametrize("way", ["tuple", "list", "dict", "mixed"])
def test_models_of_several_inputs_are_watched(way):
    def program(doctor):
        model = Pair()
        optimizer = sgd(model)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(22):
            given = {
                "tuple": (x, x[:, :2]),
                "list": [x, x[:, :2]],
                "dict": {"wide": x, "narrow": x[:, :2]},
                "mixed": (x, x[:, :2]),
            }[way]
            optimizer.zero_grad()
            if way == "dict":
                outputs = model(**given)
            elif way == "mixed":
                outputs = model(x, narrow=x[:, :2], scale=0.5)
            else:
                outputs = model(*given)
            loss = cross_entropy(outputs, t)
            loss.backward()
            optimizer.step()
            watcher.step(loss, given, t)
            if way != "mixed":
                watcher.validate(given, t)
        return model

    assert undisturbed(program).troubles == []


class ModelOutput(dict):
    """A dict whose items are attributes too, as Hugging Face's outputs are."""

    def __getattr__(self, name):
        return self[name]


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


READ = {
    "tuple": (lambda logits: (logits, logits.exp()), lambda outputs: outputs[0]),
    "dict": (lambda logits: {"logits": logits}, lambda outputs: outputs["logits"]),
    "attributes": (lambda logits: ModelOutput(logits=logits), lambda outputs: outputs.logits),
    "dataclass": (lambda logits: Output(logits), lambda outputs: outputs.logits),
}


@pytest.mark.parametrize("kind", READ)
def test_outputs_of_any_kind_are_watched(kind):
    pack, read = READ[kind]

    def program(doctor):
        body = mlp()
        model = nn.Sequential(body, Layer(pack))
        optimizer = sgd(model)

        def loss_fn(outputs, targets):
            return F.cross_entropy(read(outputs), targets)

        train(doctor(model, optimizer, loss_fn), model, optimizer, loss_fn)
        return model

    assert undisturbed(program).troubles == []


def test_a_broken_loss_function_costs_no_probe_of_the_layers():
    torch.manual_seed(0)
    model = mlp()
    optimizer = sgd(model)

    def broken(outputs, targets):
        raise ZeroDivisionError

    with Doctor(model, optimizer, broken, every=5) as doctor:
        train(doctor, model, optimizer, steps=12)
        report = doctor.report()
    assert "ZeroDivisionError" in " ".join(report.troubles)
    assert [probe.step for probe in doctor.evidence.probes] == [0, 3, 5, 8, 10]


@pytest.mark.parametrize(
    "given",
    [
        "original",
        *(pytest.param(g, marks=pytest.mark.slow) for g in ("compiled", "original first")),
    ],
)
def test_a_compiled_model_is_watched(given):
    def program(doctor):
        torch.compiler.reset()  # what was compiled without hooks is not compiled again for them
        model = mlp(nn.BatchNorm1d(12))
        optimizer = sgd(model)
        if given == "original first":
            watcher = doctor(model, optimizer, cross_entropy)
            compiled = torch.compile(model, backend="eager")
        else:
            compiled = torch.compile(model, backend="eager")
            watched = compiled if given == "compiled" else model
            watcher = doctor(watched, optimizer, cross_entropy)
        train(watcher, compiled, optimizer, steps=14)
        return model

    plain, *_ = outcome(program, watch=False)
    watched, _, (doctor,), (report,) = outcome(program, watch=True)
    assert watched == plain
    assert doctor.evidence.loop.training_forwards == 14
    assert report.troubles == []


@pytest.mark.parametrize("given", ["compiled", "original"])
def test_a_model_compiled_in_one_graph_still_compiles(given):
    torch.compiler.reset()
    model = mlp()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = sgd(model)
    with Doctor(compiled if given == "compiled" else model, optimizer, cross_entropy) as doctor:
        train(doctor, compiled, optimizer, steps=3)
        assert doctor.report().steps == 3


@pytest.mark.parametrize("inside", [False, True], ids=["step outside", "step inside"])
def test_a_model_under_autocast_is_watched(inside):
    def program(doctor):
        model = mlp(nn.Dropout(0.2))
        optimizer = sgd(model)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(22):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model(x), t)
                if inside:
                    loss.backward()
                    optimizer.step()
                    watcher.step(loss, x, t)
            if not inside:
                loss.backward()
                optimizer.step()
                watcher.step(loss, x, t)
        return model

    assert undisturbed(program).troubles == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_is_sound(dtype):
    def program(doctor):
        model = mlp().to(dtype)
        optimizer = sgd(model, lr=0.3)
        rows = [(x.to(dtype), t) for x, t in batches(50)]
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in rows:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            watcher.step(loss, x, t)
        return model

    report = undisturbed(program)
    assert (accused(report), report.troubles) == ([], [])


def test_two_models_with_an_optimiser_each_are_watched():
    def program(doctor):
        generator, critic = (
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, FEATURES)),
            mlp(outputs=1),
        )
        moves = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (generator, critic)]
        loss_fn = nn.BCEWithLogitsLoss()
        # The generator's doctor gets no loss function: none takes its outputs as they are.
        watchers = [doctor(generator, moves[0]), doctor(critic, moves[1], loss_fn)]
        ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)
        for x, _ in batches(22):
            noise = torch.randn(BATCH, 4)
            fake = generator(noise)
            moves[1].zero_grad()
            loss = loss_fn(critic(x), ones) + loss_fn(critic(fake.detach()), zeros)
            loss.backward()
            moves[1].step()
            watchers[1].step(loss, x, ones)
            moves[0].zero_grad()
            loss = loss_fn(critic(fake), ones)
            loss.backward()
            moves[0].step()
            watchers[0].step(loss, noise, ones)
        return generator, critic, *moves

    undisturbed(program)


class Counted(TorchDispatchMode):
    """Counts operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations_of_watching(lr, dead=False):
    """Return the number of operations that the doctor adds to the 18 steps between two probes."""

    def counted(doctor_of):
        torch.manual_seed(0)
        model = mlp()
        if dead:  # only the last bias has a gradient, and it is not trained
            nn.init.constant_(model[0].bias, -1e6)
            model[2].bias.requires_grad_(False)
        optimizer = sgd(model, lr)
        doctor = doctor_of(model, optimizer, loss_fn=cross_entropy)
        counts = []
        with Counted() as counter:
            for inputs, targets in batches(79):
                optimizer.zero_grad()
                loss = cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs, targets)
                counts.append(counter.count)
        return counts[78] - counts[60]

    return counted(Doctor) - counted(lambda *_, **__: Nobody())


@pytest.mark.slow
def test_a_broken_training_costs_no_more_to_watch_than_a_healthy_one():
    healthy = operations_of_watching(lr=0.1)
    assert 0 < operations_of_watching(lr=1e30) <= healthy
    assert 0 < operations_of_watching(lr=0.1, dead=True) <= healthy


@pytest.mark.parametrize("once", [True, False], ids=["a step an update", "a step a batch"])
def test_accumulated_gradients_are_no_missing_zero_grad(once):
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=0.3)
        watcher = doctor(model, optimizer, cross_entropy)
        for step, (x, t) in enumerate(batches(180)):
            loss = cross_entropy(model(x), t)
            (loss / 4).backward()
            if step % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
            if step % 4 == 3 or not once:
                watcher.step(loss, x, t)
        return model

    assert accused(undisturbed(program)) == []


def test_gradients_that_are_only_looked_at_are_no_missing_zero_grad():
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=0.3)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(60):
            loss = cross_entropy(model(x), t)
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watcher.step(loss, x, t)
        return model

    assert accused(undisturbed(program)) == []


def test_a_missing_zero_grad_is_found_and_counted_in_steps():
    torch.manual_seed(0)
    model = mlp()
    optimizer = sgd(model, lr=0.05)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        for x, t in batches(45):
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    assert report.findings[0].cause == "missing_zero_grad"
    assert report.findings[0].step == 1
    # All of steps 1 to 20 are compared; after them probes only, here step 40.
    assert report.findings[0].evidence == {"steps": 21, "compared": 21}


@pytest.mark.parametrize("zero", ["set_to_none", "set to zero", "by the model"])
def test_a_zero_grad_after_the_step_is_seen(zero):
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=0.3, momentum=0.5)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(50):
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            if zero == "by the model":
                model.zero_grad()
            else:
                optimizer.zero_grad(set_to_none=zero == "set_to_none")
            watcher.step(loss, x, t)
        return model, optimizer

    assert accused(undisturbed(program)) == []


def test_a_scheduler_is_left_alone():
    def program(doctor):
        model = mlp()
        optimizer = sgd(model, lr=0.5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=50)
        watcher = doctor(model, optimizer, cross_entropy)
        for x, t in batches(50):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            schedule.step()
            watcher.step(loss, x, t)
        return model, optimizer, schedule.state_dict()

    assert accused(undisturbed(program)) == []
