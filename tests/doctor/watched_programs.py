"""Trainings as somebody else would write them, with a doctor or with nobody in its place.

A program is run twice, with a doctor and with `Nobody`, and what it returns must be the same, bit
for bit.
"""

import json
import math
import random
import subprocess
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor, records
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import CONFIDENCES, SEVERITIES

NAN = math.nan
SAMPLES, FEATURES, CLASSES, BATCH = 128, 6, 3, 16


class Nobody:
    """Stands in for the doctor and does nothing."""

    evidence = Evidence()

    def step(self, loss, inputs, targets): ...
    def validate(self, inputs, targets): ...
    def report(self): ...
    def close(self): ...


def data(samples=SAMPLES, features=FEATURES):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, features, generator=generator)
    return inputs, (inputs @ torch.randn(features, CLASSES, generator=generator)).argmax(dim=1)


def batches(steps, inputs=None, targets=None, size=BATCH):
    if inputs is None:
        inputs, targets = data()
    for step in range(steps):
        chosen = torch.arange(step * size, (step + 1) * size) % len(inputs)
        yield inputs[chosen], targets[chosen]


def mlp(*middle, outputs=CLASSES):
    return nn.Sequential(
        nn.Linear(FEATURES, 12), *middle, nn.ReLU(), nn.Linear(12, outputs)
    )  # fmt: skip


def sgd(model, lr=0.1, **settings):
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets)


class Layer(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def train(doctor, model, optimizer, loss_fn=cross_entropy, steps=22, rows=None):
    """The plain loop, with reports and evaluations in between."""
    inputs, targets = data()
    for step, (x, t) in enumerate(rows or batches(steps)):
        optimizer.zero_grad()
        loss = loss_fn(model(x), t)
        loss.backward()
        optimizer.step()
        doctor.step(loss, x, t)
        if step % 10 == 5:
            model.eval()
            with torch.no_grad():
                model(inputs)
            doctor.validate(inputs, targets)
            model.train()
        if step == 12:
            doctor.report()


def bits(value):
    """Return the bytes of everything that was trained."""
    if isinstance(value, nn.Module):
        gradients = [p.grad for p in value.parameters()]
        return [bits(value.state_dict()), bits(gradients), [m.training for m in value.modules()]]
    if isinstance(value, torch.optim.Optimizer):
        return bits(value.state_dict())
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            value = value.to_dense()
        flat = value.detach().contiguous().reshape(-1)
        return (value.dtype, value.shape, flat.view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return repr(value)


def outcome(program, watch, **settings):
    """Run a program; return its result, the random states, its doctors and their reports."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    doctors = []

    def doctor(model, optimizer, loss_fn=None, **own):
        if not watch:
            return Nobody()
        doctors.append(Doctor(model, optimizer, loss_fn, **{"every": 5, **settings, **own}))
        return doctors[-1]

    returned = program(doctor)
    reports = [d.report() for d in doctors]
    state = [torch.get_rng_state(), random.getstate(), np.random.get_state()]
    return bits(returned), state, doctors, reports


def undisturbed(program, troubled=False, **settings):
    """Run a program with and without the doctor; return the doctor's last report of it.

    Of an ordinary program the doctor can look at everything, and reports no troubles.
    """
    plain, state, *_ = outcome(program, watch=False)
    watched, after, doctors, reports = outcome(program, watch=True, **settings)
    assert watched == plain, "the doctor changed the training"
    assert torch.equal(after[0], state[0])
    assert after[1] == state[1]
    assert all(np.array_equal(a, b) for a, b in zip(after[2], state[2], strict=True))
    for doctor, report in zip(doctors, reports, strict=True):
        sound(report)
        assert bool(report.troubles) == troubled, report.troubles
        doctor.close()
    return reports[-1]


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def sound(report):
    """Assert what is true of every report."""
    assert all(len(line) <= 80 for line in str(report).splitlines()), str(report)
    assert report.trial_steps <= report.trial_budget
    json.loads(report.to_json(), parse_constant=refuse)
    assert records.dump(records.load(report.to_json())) == records.dump(report.to_dict())
    for finding in report.findings:
        for each in (finding, *finding.consequences):
            assert each.cause in CAUSES
            assert each.severity in SEVERITIES
            assert each.summary
            assert each.fix
            assert each.confidence in CONFIDENCES
            assert each.severity == "note" or each.confidence != "suspected"
    worrying = [finding.severity != "note" for finding in report.findings]
    assert worrying[1:] == sorted(worrying[1:], reverse=True)
    assert report.main is (report.findings[0] if report.main else None)
    assert (report.healthy is False) == (report.main_cause in (*CAUSES, "does not learn"))
    assert report.healthy is False or not any(worrying)


def accused(report):
    return [f.cause for f in report.findings if f.severity != "note"]


def train_with_a_nan_at(doctor, model, optimizer, steps, at, looked_at=None):
    for step, (x, t) in enumerate(batches(steps)):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), t)
        if step == at:
            loss = loss * NAN
        loss.backward()
        optimizer.step()
        doctor.step(loss, x, t)
        if step == looked_at:
            doctor.report()


def in_a_process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
