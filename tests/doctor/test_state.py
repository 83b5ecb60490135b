"""A doctor that goes on from a checkpoint reports what one reports that was never interrupted."""

import io
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from debugnn.doctor import Doctor
from debugnn.faults import FAULTY, SOUND, train

PROGRAMS = {program.name: program for program in (*SOUND, *FAULTY)}
# Batch norm; a state between batches; a loss alone; gradients that are added up; NaN; accumulation.
LOOPS = ("mlp_batch_norm", "stepwise_truncated", "loss_alone", "mlp_accumulated",
         "missing_zero_grad/mlp+no_zero_grad",
         "non_finite/mlp+insert(function=log_of_relu,position=2)")  # fmt: skip


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Interrupted:
    """Another doctor goes on from a file at some steps."""

    def __init__(self, steps, *arguments):
        self.steps, self.arguments, self.taken = steps, arguments, 0
        self.doctor = Doctor(*arguments)

    def step(self, *batch):
        self.doctor.step(*batch)
        self.taken += 1
        if self.taken in self.steps:
            state = through_a_file(self.doctor.state_dict())
            self.doctor.close()
            self.doctor = Doctor(*self.arguments)
            self.doctor.load_state_dict(state)

    def validate(self, *batch):
        self.doctor.validate(*batch)


def seen(doctor):
    return json.dumps(asdict(doctor.report().evidence), sort_keys=True)


@pytest.mark.parametrize("name", LOOPS)
def test_the_evidence_is_the_same(name):
    reports = []
    for steps in ((), (1, 2, 5)):
        setup = PROGRAMS[name].build(0)
        setup.epochs = 1
        observer = train(setup, 0, lambda *parts, steps=steps: Interrupted(steps, *parts))
        assert observer.taken > 5
        reports.append(seen(observer.doctor))
        observer.doctor.close()
    assert reports[0] == reports[1]


def test_the_evidence_of_a_long_training_is_the_same():
    """Interrupted where the doctor looks at few steps and few validations."""

    def trained(interruptions):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        observer = Interrupted(interruptions, model, optimizer, nn.MSELoss())
        for _ in range(130):
            inputs = torch.randn(32, 4)
            targets = inputs.sum(dim=1, keepdim=True)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            observer.step(loss, inputs, targets)
            observer.validate(inputs, targets)
        return seen(observer.doctor)

    assert trained((29, 41, 77, 101, 128)) == trained(())


def watched(width=8, every=20):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, Doctor(model, optimizer, nn.MSELoss(), every=every)


def steps(model, optimizer, doctor, count, size=32):
    for _ in range(count):
        inputs = torch.randn(size, 4)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), inputs.sum(dim=1, keepdim=True))
        loss.backward()
        optimizer.step()
        doctor.step(loss, inputs, inputs.sum(dim=1, keepdim=True))


@pytest.mark.slow
def test_the_state_is_bounded_by_the_kept_batches():
    """Of twenty batches, 10 MiB each with their targets, 12 are kept, and the latest one."""
    model, optimizer, doctor = watched(every=1)
    steps(model, optimizer, doctor, 20, size=2**19)
    file = io.BytesIO()
    torch.save(doctor.state_dict(), file)
    assert 2**26 < file.tell() < 160 * 2**20


def test_objects_of_the_users_own_are_not_kept_and_the_report_says_it():
    class Graph:
        def __init__(self, x):
            self.x = x

    class OfGraphs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, graph):
            return self.layer(graph.x)

    model = OfGraphs()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    doctor = Doctor(model, optimizer, nn.MSELoss())
    for _ in range(5):
        graph = Graph(torch.randn(32, 4))
        targets = graph.x.sum(dim=1, keepdim=True)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(graph), targets)
        loss.backward()
        optimizer.step()
        doctor.step(loss, graph, targets)
    state = through_a_file(doctor.state_dict())
    doctor.close()
    follower = Doctor(model, optimizer, nn.MSELoss())
    follower.load_state_dict(state)
    report = follower.report()
    assert report.healthy is None
    told = " ".join(report.details().split())
    assert "first 5 steps was not kept" in told
    assert "Graph has no plain form" in told


def test_a_state_of_another_model_and_one_that_comes_late_are_refused():
    model, optimizer, doctor = watched()
    steps(model, optimizer, doctor, 3)
    state = through_a_file(doctor.state_dict())
    with pytest.raises(ValueError, match="another model"):
        watched(width=9)[2].load_state_dict(state)
    with pytest.raises(ValueError, match="3 steps have been watched"):
        doctor.load_state_dict(state)
    follower = watched()[2]
    with pytest.raises(ValueError, match="another version"):
        follower.load_state_dict(state | {"seen": ["object", "observe.observer:Sight", {}]})
    with pytest.raises(ValueError, match="another version"):  # no class of this package's
        follower.load_state_dict(state | {"seen": ["object", "watch:nn.Module", {}]})
