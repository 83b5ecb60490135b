"""A doctor that takes its hooks off between probes sees what one does that never rests."""

import io
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn.doctor import Doctor
from debugnn.doctor.resting import RestingDoctor

STEPS, EPOCH, SAMPLES = 260, 16, 512


def task():
    inputs = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :1] * inputs[:, 1:2] + inputs[:, 2:3]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))


class Watched(RestingDoctor):
    """One that is told the same, and never rests."""

    def before_update(self, outputs, norm):
        pass


def train(kind, model=None, *, change=None, loss_fn=F.mse_loss, evaluate=None, stops=(), lr=0.02):
    """Train with a doctor; return the doctor, the model, and at how many steps hooks were on.

    Args:
        change: takes (step, inputs, targets, model) and returns the step's inputs and targets.
        evaluate: of the model, after each epoch.
        stops: steps after which another doctor goes on.
    """
    model = model or net()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    inputs, targets = task()
    doctor, hooked = kind(model, optimizer, loss_fn), 0
    order = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        if step % EPOCH == 0:
            indices = torch.randperm(SAMPLES, generator=order).split(SAMPLES // EPOCH)
        batch = inputs[indices[step % EPOCH]], targets[indices[step % EPOCH]]
        if change is not None:
            batch = change(step, *batch, model)
        hooked += bool(model._forward_hooks)
        optimizer.zero_grad()
        outputs = model(batch[0])
        loss = loss_fn(outputs, batch[1])
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.tensor(0.0)
        if isinstance(doctor, RestingDoctor):
            doctor.before_update(outputs, norm)
        optimizer.step()
        doctor.step(loss, *batch)
        if (step + 1) % EPOCH == 0 and evaluate is not None:
            if isinstance(doctor, RestingDoctor):
                doctor.before_evaluation()
            evaluate(model, inputs)
            doctor.validate(inputs[:128], targets[:128])
        if step in stops:
            file = io.BytesIO()
            torch.save(doctor.state_dict(), file)
            file.seek(0)
            doctor.close()
            doctor = kind(model, optimizer, loss_fn)
            doctor.load_state_dict(torch.load(file, weights_only=True))
    return doctor, model, hooked


def evidence(doctor):
    seen = json.loads(json.dumps(asdict(doctor.report().evidence)))
    doctor.close()
    return seen


def in_evaluation_mode(model, inputs):
    model.eval()
    with torch.no_grad():
        model(inputs)
    model.train()


def test_hooks_are_on_at_few_steps():
    assert train(RestingDoctor)[2] < 60
    assert train(Watched)[2] == STEPS


def test_the_evidence_is_that_of_a_doctor_that_never_rests():
    resting, watched = (
        evidence(train(kind, evaluate=in_evaluation_mode)[0]) for kind in (RestingDoctor, Watched)
    )
    assert resting == watched


def test_the_weights_are_those_of_a_training_without_a_doctor():
    class Nobody:
        def __init__(self, *_):
            pass

        def step(self, *_):
            pass

        validate = step

    trained = [train(kind, evaluate=in_evaluation_mode)[1] for kind in (RestingDoctor, Nobody)]
    for own, one in zip(*(model.parameters() for model in trained), strict=True):
        assert torch.equal(own, one)


def broken_loss(outputs, targets):
    """Return a finite loss, whose gradient is NaN where a target is 1e6."""
    root = (0 * outputs[targets == 1e6]).abs().sqrt().sum()
    return F.mse_loss(outputs, targets.clamp(max=10)) + root


def infinite_input(step, inputs, targets, model):
    return inputs.index_fill(1, torch.tensor(0), torch.inf) if step == 207 else inputs, targets


def infinite_gradient(step, inputs, targets, model):
    return inputs, targets.index_fill(0, torch.tensor(3), 1e6) if step == 207 else targets


@pytest.mark.parametrize("change", [infinite_input, infinite_gradient])
def test_a_step_that_breaks_between_two_probes_is_repeated(change):
    found = []
    for kind in (RestingDoctor, Watched):
        doctor, model, _ = train(kind, change=change, loss_fn=broken_loss)
        found.append(evidence(doctor)["nonfinite"])
        assert not all(p.isfinite().all() for p in model.parameters())
    assert found[0]["step"] == 207
    assert found[0]["where"] != "unknown"
    assert found[0] == found[1]


def test_a_jump_between_two_probes_names_its_samples():
    def spoilt(step, inputs, targets, model):
        return inputs, targets.index_fill(0, torch.tensor(5), 40.0) if step == 207 else targets

    jumps = []
    for kind in (RestingDoctor, Watched):
        jumps.append(evidence(train(kind, change=spoilt, lr=1e-3)[0])["outcome"]["jumps"])
    assert jumps[0][0]["step"] == 207
    assert jumps[0][0]["samples"][0] == 5
    assert jumps[0] == jumps[1]


def test_steps_in_evaluation_mode_are_counted_between_probes():
    def leave_training_mode(step, inputs, targets, model):
        if step == 150:
            model.eval()
        return inputs, targets

    loops = [evidence(train(kind, change=leave_training_mode)[0])["loop"]
             for kind in (RestingDoctor, Watched)]  # fmt: skip
    assert loops[0]["eval_mode_forwards"] == STEPS - 150
    assert loops[0]["first_eval_mode"] == 150
    assert loops[0] == loops[1]


def test_an_evaluation_in_training_mode_is_seen_though_the_doctor_rests_before_it():
    def forgotten(model, inputs):
        with torch.no_grad():
            model(inputs)

    loop = evidence(train(RestingDoctor, evaluate=forgotten)[0])["loop"]
    assert loop["train_mode_evaluations"] == loop["evaluations"] == STEPS // EPOCH


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, inputs):
        return self.net(inputs + 0.1 * torch.randn_like(inputs) * self.training)


class Twice(nn.Module):
    """Calls itself with half of its samples, as the loop calls it."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, inputs):
        if len(inputs) > 16:
            return torch.cat([self(half) for half in inputs.chunk(2)])
        return self.net(inputs)


@pytest.mark.parametrize("model", [Noisy, Twice])
def test_a_model_that_could_not_be_repeated_is_watched_at_every_step(model):
    torch.manual_seed(0)
    assert train(RestingDoctor, model())[2] == STEPS


def test_one_that_is_to_stop_at_the_first_nan_never_rests():
    doctor = RestingDoctor  # as `Doctor` takes it

    def stopping(*arguments):
        return doctor(*arguments, on_nonfinite="warn")

    assert train(stopping)[2] == STEPS


def test_a_doctor_that_goes_on_from_a_checkpoint_rests_where_it_would_have():
    stops = (7, 128, 161, 205, 206, 240)
    whole, parts = (train(RestingDoctor, evaluate=in_evaluation_mode, stops=s) for s in ((), stops))
    assert whole[2] == parts[2]
    assert evidence(whole[0]) == evidence(parts[0])


def test_a_loop_that_does_not_say_what_it_does_is_watched_at_every_step():
    class Silent(RestingDoctor):
        def before_update(self, outputs, norm):
            if len(norm.shape):  # never
                super().before_update(outputs, norm)

    assert train(Silent)[2] == train(Doctor)[2] == STEPS


def test_the_evidence_holds_every_step_while_the_doctor_rests():
    seen = []

    class Asked(RestingDoctor):
        def step(self, loss, inputs=None, targets=None):
            super().step(loss, inputs, targets)
            seen.append((self.evidence.loop.steps, self.evidence.loop.optimizer_steps))

    train(Asked)
    assert seen == [(step, step) for step in range(1, STEPS + 1)]


class Flattening(nn.Module):
    """Takes rows of three, as a loop makes them of its batch."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, inputs):
        return self.net(inputs.flatten(1))


def test_a_loop_that_reshapes_its_batch_is_watched_at_every_step():
    class Reshaped(Flattening):
        def __call__(self, inputs):
            return super().__call__(inputs.reshape(len(inputs), 3, 2))

    assert train(RestingDoctor, Reshaped())[2] == STEPS


def test_batches_and_outputs_that_are_large_are_not_kept_together():
    held = []

    class Wide(RestingDoctor):
        def step(self, loss, inputs=None, targets=None):
            super().step(loss, inputs, targets)
            held.append(len(self._observer.rest._steps))

    torch.manual_seed(0)
    wide = nn.Linear(6, 2**17)  # outputs of 16 MiB
    train(Wide, wide, loss_fn=lambda outputs, targets: (outputs[:, :1] - targets).square().mean())
    assert max(held) == 0


def test_no_hooks_come_back_after_the_end():
    doctor, model, _ = train(RestingDoctor)
    doctor.close()
    inputs, targets = task()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(40):
        outputs = model(inputs)
        loss = F.mse_loss(outputs, targets)
        loss.backward()
        doctor.before_update(outputs, torch.tensor(1.0))
        optimizer.step()
        doctor.step(loss, inputs, targets)
    assert not model._forward_hooks


def test_a_doctor_that_is_to_stop_at_the_first_nan_does_not_rest_after_a_checkpoint():
    doctor, model, _ = train(RestingDoctor)
    state = doctor.state_dict()
    doctor.close()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with RestingDoctor(model, optimizer, F.mse_loss, on_nonfinite="warn") as stopping:
        stopping.load_state_dict(state)
        assert model._forward_hooks


def test_another_distance_of_probes_counts_after_a_checkpoint():
    doctor, model, _ = train(RestingDoctor)
    state = doctor.state_dict()
    doctor.close()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs, targets = task()
    with RestingDoctor(model, optimizer, F.mse_loss, every=300) as rare:
        rare.load_state_dict(state)
        for _ in range(600 - STEPS + 1):
            outputs = model(inputs[:32])
            loss = F.mse_loss(outputs, targets[:32])
            loss.backward()
            rare.before_update(outputs, torch.tensor(1.0))
            rare.step(loss, inputs[:32], targets[:32])
        probes = [probe.step for probe in rare.report(trials=False).evidence.probes]
    assert probes[-2:] == [300, 600]


def test_hooks_come_off_with_the_doctor():
    doctor, model, _ = train(RestingDoctor)
    doctor.close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
