"""The doctor's interface: what it takes and refuses, when it reports, and what it leaves behind."""

import copy
import gc
import io
import pickle
import weakref
from dataclasses import asdict
from types import FunctionType, ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor import causes
from debugnn.doctor.copies import nothing
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding, Report
from doctor.watched_programs import (
    FEATURES,
    NAN,
    SAMPLES,
    Nobody,
    accused,
    batches,
    bits,
    cross_entropy,
    data,
    in_a_process,
    mlp,
    sgd,
    sound,
    train,
    train_with_a_nan_at,
)


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


@pytest.mark.parametrize(
    "budget", [30, *(pytest.param(b, marks=pytest.mark.slow) for b in (0, 200))]
)
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
        kept = doctor._observer.training.buffer.batches
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


@pytest.mark.slow
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
    gc.collect()  # a doctor that is left over from another test is another network's rival
    model = mlp()
    optimizer = sgd(model)
    doctor = Doctor(model, optimizer, cross_entropy)
    numbers = []
    for steps in (201, 200):  # both end with a probe
        train(doctor, model, optimizer, steps=steps)
        doctor.report(trials=False)
        numbers.append(tensors_of(doctor))
    assert numbers[0] == numbers[1] > 20
