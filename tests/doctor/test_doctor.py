"""The doctor in training loops of all kinds: it changes nothing, raises nothing, finds NaN.

A program is a training as somebody else would write it. It is run twice, with a doctor and with
`Nobody` in its place, and what it returns must be the same, bit for bit.
"""

import copy
import gc
import io
import json
import math
import pickle
import random
import subprocess
import sys
import threading
import warnings
import weakref
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from debugnn import Doctor, records
from debugnn.doctor import causes
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.copies import nothing
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe import devices
from debugnn.doctor.report import CONFIDENCES, SEVERITIES, Finding, Report
from debugnn.random_state import set_random_state

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


# --- watching changes nothing -------------------------------------------------------------------


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


@pytest.mark.parametrize("net", ["dropout", "batch_norm", "functional"])
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


@pytest.mark.parametrize("lr", [0.1, 1e3])
@pytest.mark.parametrize("zero", ["before", "after"])
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


# --- the model stays the user's own -------------------------------------------------------------


def watched_for_a_while(steps=6, **settings):
    torch.manual_seed(0)
    model = mlp()
    optimizer = sgd(model)
    doctor = Doctor(model, optimizer, lambda outputs, targets: F.cross_entropy(outputs, targets),
                    every=5, **settings)  # fmt: skip
    train(doctor, model, optimizer, steps=steps)
    return model, optimizer, doctor


def test_a_watched_model_can_be_pickled_and_saved_whole():
    model, *_ = watched_for_a_while()
    again = pickle.loads(pickle.dumps(model))
    assert bits(again.state_dict()) == bits(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert bits(torch.load(file, weights_only=False).state_dict()) == bits(model.state_dict())


def test_a_watched_models_copy_is_not_watched():
    model, _, doctor = watched_for_a_while()
    before = asdict(doctor.evidence.loop)
    average = copy.deepcopy(model).eval()
    with torch.no_grad():
        average(data()[0])
    average(data()[0])
    assert asdict(doctor.evidence.loop) == before
    assert set(average._forward_pre_hooks.values()) == {nothing}


def test_an_averaged_models_evaluations_are_no_fault_of_the_models():
    model = mlp(nn.BatchNorm1d(12), nn.Dropout(0.1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, cross_entropy, every=5) as doctor:
        average = torch.optim.swa_utils.AveragedModel(model).eval()
        for x, t in batches(60):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            with torch.no_grad():
                average(x.clone())
            doctor.step(loss, x, t)
        assert accused(doctor.report()) == []


def test_a_model_whose_inputs_have_gradients_can_be_copied():
    encoder = nn.Linear(FEATURES, FEATURES)
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy, every=1) as doctor:
        for x, t in batches(3):
            hidden = encoder(x)
            loss = cross_entropy(model(hidden), t)
            copy.deepcopy(model)
            loss.backward()
            optimizer.step()
            doctor.step(loss, hidden, t)
            copy.deepcopy(model)
        assert doctor.report().steps == 3
        assert doctor.report().troubles == []


# --- interface ----------------------------------------------------------------------------------


def hooks(model, optimizer):
    of_modules = [
        getattr(module, name)
        for module in model.modules()
        for name in vars(module)
        if "hooks" in name
    ]
    of_optimizer = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    of_parameters = [p._backward_hooks or () for p in model.parameters()]
    return [len(each) for each in (*of_modules, *of_optimizer, *of_parameters)]


def test_leaving_takes_off_every_hook_and_no_other():
    model = mlp()
    optimizer = sgd(model)
    model[0].register_forward_hook(lambda *args: None)
    model.register_forward_pre_hook(lambda *args: None)
    optimizer.register_step_post_hook(lambda *args: None)
    before = hooks(model, optimizer)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        train(doctor, model, optimizer, steps=4)
        assert hooks(model, optimizer) != before
    assert hooks(model, optimizer) == before
    doctor.close()
    assert hooks(model, optimizer) == before


def test_an_exception_of_the_training_passes_and_the_hooks_are_gone():
    model = mlp()
    optimizer = sgd(model)
    before = hooks(model, optimizer)
    rows = [*batches(2), (torch.ones(2, FEATURES + 1), torch.ones(2))]
    with pytest.raises(RuntimeError, match="shapes"), Doctor(model, optimizer) as doctor:
        train(doctor, model, optimizer, rows=rows)
    assert hooks(model, optimizer) == before


def test_a_closed_doctor_is_silent_and_still_reports():
    model, optimizer, doctor = watched_for_a_while()
    doctor.close()
    inputs, targets = data()
    doctor.step(1.0, inputs, targets)
    doctor.validate(inputs, targets)
    sound(doctor.report())
    train(Nobody(), model, optimizer, steps=2)


@pytest.mark.parametrize("budget", [0, 30, 200])
def test_trials_stay_within_their_budget_over_all_reports(budget):
    torch.manual_seed(0)
    model = mlp()
    optimizer = sgd(model, lr=1e4)
    with Doctor(model, optimizer, cross_entropy, budget=budget) as doctor:
        train(doctor, model, optimizer, steps=45)
        for _ in range(3):
            report = doctor.report()
            sound(report)
            assert report.trial_budget == budget
        assert (report.trial_steps > 0) == (budget > 0)


def test_a_report_can_be_asked_for_at_any_time_and_again():
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy, every=5) as doctor:
        first = doctor.report()
        sound(first)
        assert (first.healthy, first.steps, first.findings) == (None, 0, [])
        for steps in (1, 2, 40):
            train(doctor, model, optimizer, steps=steps)
            assert doctor.report().to_json() == doctor.report().to_json()
        assert doctor.report().steps == 43


def test_a_report_holds_its_lines_to_80_columns_whatever_the_names():
    finding = Finding("dead_relu", "error", "shown", "word " * 40, "fix " * 60, layer="x" * 120,
                      step=3, override="model.act=relu", consequences=[
                          Finding("lr_too_low", "note", "suspected", "y" * 200, "do")])  # fmt: skip
    report = Report(False, "because " * 30, finding, [finding], {"skill": NAN}, 10, 4, 200,
                    troubles=["trouble " * 30, "z" * 100])  # fmt: skip
    sound(report)
    assert "dead_relu" in str(report).splitlines()[0]


@pytest.mark.parametrize("middle", [(), (nn.BatchNorm1d(12),), (nn.Dropout(0.5),)])
def test_the_training_score_is_the_models_in_either_mode(middle):
    torch.manual_seed(0)
    model = mlp(*copy.deepcopy(middle))
    optimizer = sgd(model)
    with Doctor(model, optimizer, loss_fn=cross_entropy) as doctor:
        train(doctor, model, optimizer)
        doctor.report()
        kept = doctor._observer.buffer.batches
        outcome = doctor.evidence.outcome
    for mode, score in (("eval", outcome.train), ("train", outcome.train_mode)):
        alike = copy.deepcopy(model).train(mode == "train")
        for module in alike.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        with torch.no_grad():
            outputs = torch.cat([batch.call(alike) for batch in kept])
        expected = cross_entropy(outputs, torch.cat([batch.targets for batch in kept]))
        assert score.loss == pytest.approx(expected.item(), rel=1e-5)
    assert (outcome.train == outcome.train_mode) == (not isinstance(model[1], nn.BatchNorm1d))


@pytest.mark.parametrize(("factor", "offset"), [(1.0, 0.0), (5.0, 2.0)])
def test_the_skill_at_the_training_scale_is_that_of_inputs_brought_back(factor, offset):
    torch.manual_seed(0)
    model, (inputs, targets) = mlp(), data()
    optimizer = sgd(model)
    with Doctor(model, optimizer, loss_fn=cross_entropy) as doctor:
        train(doctor, model, optimizer, steps=60)
        doctor.validate(factor * inputs + offset, targets)
        doctor.report()
        facts = doctor.evidence.data
    # The same samples are recognised as they are in training.
    assert facts.matched_skill > 0.8


@pytest.mark.parametrize(("share", "covered"), [(0.5, 0.5), (1.0, 1.0)])
def test_validation_samples_are_looked_up_among_the_training_samples(share, covered):
    torch.manual_seed(0)
    model, (inputs, targets) = mlp(), data()
    optimizer = sgd(model)
    with Doctor(model, optimizer, loss_fn=cross_entropy) as doctor:
        for x, t in batches(8):
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        count = int(share * SAMPLES)
        doctor.validate(inputs[:count], targets[:count])
        doctor.report()
        facts = doctor.evidence.data
    assert (facts.overlap, facts.covered) == (1.0, covered)
    assert (facts.trained_on, facts.validation_size) == (SAMPLES, count)
    assert facts.natural_repeats == 0


def test_the_steps_before_the_doctor_came_are_told():
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy, steps_before=30) as doctor:
        train(doctor, model, optimizer, steps=45)
        report = doctor.report()
    assert doctor.evidence.loop.steps_before == 30
    assert report.healthy is None
    assert "30 steps" in str(report).replace("\n", " ")
    assert report.troubles == []


def test_every_rule_is_silent_on_no_evidence():
    evidence = Evidence()
    evidence.optimizer.trainable = evidence.optimizer.held = 4
    report = causes.diagnose(evidence, budget=0)
    sound(report)
    assert report.findings == []


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"model": "net"}, TypeError),
        ({"optimizer": 0.1}, TypeError),
        ({"loss_fn": "mse"}, TypeError),
        ({"every": 0}, ValueError),
        ({"budget": -1}, ValueError),
    ],
    ids=["model", "optimizer", "loss_fn", "every", "budget"],
)
def test_wrong_arguments_are_refused_and_named(wrong, error):
    model = mlp()
    optimizer = sgd(model)
    before = hooks(model, optimizer)
    given = {"model": model, "optimizer": optimizer, **wrong}
    with pytest.raises(error, match=next(iter(wrong))):
        Doctor(**given)
    assert hooks(model, optimizer) == before


class Wrapper(torch.optim.Optimizer):
    """An optimiser around another, as lookahead is often written: without `super().__init__`."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["scripted", "wrapper"])
def test_what_takes_no_hooks_is_watched_without_or_refused_by_name(kind):
    model = torch.jit.script(mlp()) if kind == "scripted" else mlp()
    optimizer = sgd(model) if kind == "scripted" else Wrapper(sgd(model))
    try:
        doctor = Doctor(model, optimizer, cross_entropy)
    except TypeError as error:
        refusal = str(error)
    else:
        refusal = None
        train(doctor, model, optimizer, steps=3)
        assert doctor.report().steps == 3
    assert refusal is None or "no hooks" in refusal


def in_a_process(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_importing_the_doctor_imports_neither_hydra_nor_wandb():
    code = """if True:
        import sys
        import debugnn
        early = "torch" in sys.modules
        debugnn.Doctor
        unwanted = {"hydra", "omegaconf", "wandb", "pandas", "matplotlib"} & set(sys.modules)
        print(early, "torch" in sys.modules, sorted(unwanted))
    """
    assert in_a_process(code) == "False True []"


# --- anybody's loop -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("given", ["compiled", "original", "original first"])
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


# Unusual arguments of `step`, and unusual loops. `update: False` leaves out the backward pass.


def vector(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


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


# --- sound programs that look odd ---------------------------------------------------------------


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


# --- non-finite numbers -------------------------------------------------------------------------


def origin_of(model, loss_fn=cross_entropy, spoil=None, steps=6, at=4, rows=None, save_to=None):
    """Train, with `spoil(model, inputs)` before step `at`; return the finding with the origin."""
    optimizer = sgd(model, lr=0.01)
    with Doctor(model, optimizer, loss_fn, every=5, save_to=save_to) as doctor:
        for step, (x, t) in enumerate(rows or batches(steps)):
            if spoil is not None and step == at:
                spoil(model, x)
            optimizer.zero_grad()
            loss = loss_fn(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    sound(report)
    assert report.findings[0].cause == "non_finite", str(report)
    return report.findings[0], doctor


@pytest.fixture
def seeded():
    torch.manual_seed(0)


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_the_inputs_names_its_samples():
    def spoil(model, inputs):
        inputs[3, 2] = inputs[11, 0] = NAN

    finding, _ = origin_of(mlp(nn.Dropout(0.2)), spoil=spoil)
    assert (finding.evidence["where"], finding.layer) == ("input", None)
    assert (finding.step, finding.samples) == (4, [3, 11])
    assert finding.severity == "error"


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_the_targets_names_its_samples():
    rows = [(x, x[:, :1].clone()) for x, _ in batches(6)]
    rows[2][1][5] = NAN
    finding, _ = origin_of(mlp(outputs=1), F.mse_loss, rows=rows)
    assert (finding.evidence["where"], finding.step, finding.samples) == ("target", 2, [5])


@pytest.mark.usefixtures("seeded")
def test_the_logarithm_of_zero_is_found_in_its_layer():
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), Layer(torch.log), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(1.0)

    def spoil(model, inputs):
        inputs.copy_(inputs.abs())
        inputs[6] = -100.0

    rows = [(x.abs(), t) for x, t in batches(6)]
    finding, _ = origin_of(model, spoil=spoil, rows=rows)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("forward", "log")
    assert (finding.layer, finding.step, finding.samples) == ("2", 4, [6])


@pytest.mark.usefixtures("seeded")
def test_a_square_root_at_zero_is_found_by_its_gradient():
    model = nn.Sequential(
        nn.Linear(FEATURES, 8, bias=False),
        Layer(torch.square),
        Layer(torch.sqrt),
        nn.Linear(8, CLASSES),
    )

    def spoil(model, inputs):
        inputs[9] = 0

    finding, _ = origin_of(model, spoil=spoil)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("backward", "sqrt")
    assert (finding.layer, finding.step, finding.samples) == ("2", 4, [9])


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_a_parameter_is_named():
    def spoil(model, inputs):
        with torch.no_grad():
            model[3].weight[0, 0] = NAN

    finding, _ = origin_of(mlp(nn.BatchNorm1d(12)), spoil=spoil)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("parameter", "3.weight")
    assert (finding.step, finding.samples) == (4, [])


@pytest.mark.usefixtures("seeded")
def test_an_operation_of_the_loss_function_is_named():
    def loss_fn(outputs, targets):
        return -torch.log(outputs.softmax(dim=1)[range(len(targets)), targets]).mean()

    def spoil(model, inputs):
        inputs[1] *= 1e6

    finding, _ = origin_of(mlp(), loss_fn, spoil)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("loss", "log")
    assert (finding.layer, finding.step) == (None, 4)


@pytest.mark.usefixtures("seeded")
def test_a_divergence_is_not_called_an_invalid_operation():
    model = mlp(outputs=1)
    optimizer = sgd(model, lr=50.0)
    with Doctor(model, optimizer, F.mse_loss) as doctor:
        for x, _ in batches(45):
            targets = x[:, :2].sum(dim=1, keepdim=True)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, targets)
        report = doctor.report()
    assert report.findings[0].cause == "lr_too_high", str(report)
    assert "non_finite" in [f.cause for f in report.findings[0].consequences]


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


@pytest.mark.parametrize("looked_at", [None, 6, 9])
def test_a_loss_that_was_read_too_late_is_not_blamed_on_the_weights(monkeypatch, looked_at):
    """On a GPU losses are read at a probe: by then the weights hold the NaN."""
    monkeypatch.setattr(devices, "waits", lambda tensor: True)
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        train_with_a_nan_at(doctor, model, optimizer, steps=30, at=5, looked_at=looked_at)
        report = doctor.report()
    (finding,) = (f for f in report.findings if f.cause == "non_finite")
    assert (finding.step, finding.layer, finding.override) == (5, None, None)
    assert doctor.replay is None


def test_the_loss_of_an_empty_batch_is_no_broken_training():
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        for step, (x, t) in enumerate(batches(20)):
            if step == 6:
                x, t = x[:0], t[:0]
            if step == 12:
                x[3, 2] = NAN
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    (finding,) = (f for f in report.findings if f.cause == "non_finite")
    assert (finding.step, finding.samples) == (12, [3])


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


def test_a_doctor_that_is_let_go_of_is_gone():
    """Even if it was not closed: neither a hook nor a reference cycle holds it."""
    model = mlp()
    optimizer = sgd(model)
    doctor = Doctor(model, optimizer, cross_entropy)
    train_with_a_nan_at(doctor, model, optimizer, steps=3, at=None)
    alive = weakref.ref(doctor)
    gc.disable()
    try:
        del doctor
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("seeded")
def test_the_saved_batch_and_weights_repeat_the_nan(tmp_path):
    class Risky(nn.Module):
        """A logarithm whose argument is zero only under some dropout masks."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(FEATURES, 1), nn.Linear(1, CLASSES)

        def forward(self, inputs):
            kept = F.dropout(torch.ones(len(inputs), 4), 0.3, self.training).sum(dim=1)
            return self.last(self.first(inputs) * kept.log()[:, None])

    model = Risky()
    finding, doctor = origin_of(model, steps=40, save_to=tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert str(path) in finding.summary
    replay = torch.load(path)  # tensors and plain containers only
    assert replay["step"] == finding.step
    fresh = Risky()
    fresh.load_state_dict(replay["model"])
    set_random_state(torch.device("cpu"), replay["random_state"])
    call = replay["call"]
    outputs = fresh(*call["args"], **call["kwargs"])
    loss = cross_entropy(outputs, replay["targets"])
    assert not math.isfinite(loss.item())
    bad = (~torch.isfinite(outputs)).any(dim=1).nonzero().flatten().tolist()
    assert finding.samples == bad
    assert finding.evidence["operation"] == "log"
    assert doctor.replay["step"] == finding.step


@pytest.mark.usefixtures("seeded")
def test_an_origin_is_told_where_its_batch_cannot_be_saved(tmp_path):
    (tmp_path / "file").write_text("no folder")

    def spoil(model, inputs):
        inputs[3, 2] = NAN

    finding, doctor = origin_of(mlp(), spoil=spoil, save_to=tmp_path / "file")
    assert (finding.step, finding.samples) == (4, [3])
    assert doctor.evidence.troubles


@pytest.mark.usefixtures("seeded")
def test_only_the_first_nonfinite_number_is_told():
    def spoil(model, inputs):
        inputs[0] = math.inf

    finding, doctor = origin_of(mlp(), spoil=spoil, steps=30)
    assert finding.step == 4
    assert doctor.evidence.nonfinite.step == 4
    assert len([f for f in doctor.report().findings if f.cause == "non_finite"]) == 1


# --- evidence -----------------------------------------------------------------------------------


def evidence_of(name):
    torch.manual_seed(0)
    model = mlp(nn.BatchNorm1d(12)) if name == "sound" else mlp()
    optimizer = sgd(model, lr=1e4 if name == "lr" else 0.1)
    with Doctor(model, optimizer, cross_entropy, every=5) as doctor:
        rows = list(batches(45))
        if name == "nan":
            rows[7][0][2] = NAN
        if name == "zero_grad":
            optimizer.zero_grad = lambda *args: None
        train(doctor, model, optimizer, rows=rows)
        return doctor.evidence, doctor.report()


@pytest.mark.parametrize("name", ["sound", "lr", "nan", "zero_grad"])
def test_evidence_is_plain_numbers(name):
    evidence, report = evidence_of(name)
    kept = records.load(records.dump(asdict(evidence)))
    assert records.dump(kept) == records.dump(asdict(evidence))
    assert causes.diagnose(evidence, budget=200).to_json() == report.to_json()
    assert report.healthy == (name == "sound")
    losses = [p.step for p in evidence.probes]
    assert all(a < b for a, b in pairwise(losses))


def test_a_diagnosis_can_be_made_again_without_torch(tmp_path):
    evidence, report = evidence_of("nan")
    (tmp_path / "evidence").write_bytes(pickle.dumps(evidence))
    code = f"""if True:
        import pickle, sys
        from debugnn.doctor import causes
        with open({str(tmp_path / "evidence")!r}, "rb") as file:
            report = causes.diagnose(pickle.load(file), budget=200)
        assert "torch" not in sys.modules, "torch was imported"
        print(report.to_json())
    """
    assert in_a_process(code) == report.to_json()


def tensors_of(root):
    """Return the number of tensors that are reachable from an object."""
    seen, ahead = {}, [root]
    while ahead:
        held = ahead.pop()
        if id(held) not in seen and not isinstance(held, type | ModuleType | FunctionType):
            seen[id(held)] = held
            ahead += gc.get_referents(held)
    return sum(isinstance(held, torch.Tensor) for held in seen.values())


def test_no_tensor_a_step_is_kept():
    """In a long training, small tensors that stay would fragment the memory."""
    model = mlp()
    optimizer = sgd(model)
    doctor = Doctor(model, optimizer, cross_entropy)
    train(doctor, model, optimizer, steps=201)
    before = tensors_of(doctor)
    train(doctor, model, optimizer, steps=200)
    assert tensors_of(doctor) == before > 20  # both after a probe
