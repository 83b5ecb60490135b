"""Watching changes nothing, whatever the loss function or the model reaches.

Each program is run twice, with the doctor and with `Nobody` in its place, and everything that it
returns must be the same, bit for bit.
"""

import copy
import random
from collections import deque
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from debugnn import Doctor
from debugnn.doctor.copies import copied_model

STEPS = 30


class Nobody:
    """Stands in for the doctor and does nothing."""

    def step(self, loss, inputs, targets): ...
    def validate(self, inputs, targets): ...
    def report(self): ...


def bits(value):
    """Return the bytes of everything that is reachable, gradients and modes too."""
    if isinstance(value, nn.Module):
        own = [bits(p.grad) for p in value.parameters()]
        modes = [m.training for m in value.modules()]
        return [bits(dict(value.state_dict())), own, modes, repr(sorted(vars(value)))]
    if isinstance(value, torch.optim.Optimizer):
        return bits(value.state_dict())
    if isinstance(value, torch.Generator):
        return bits(value.get_state())
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.detach().contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [bits(item) for item in value]
    return repr(value)


def run(program, watch):
    """Return what a program returns, the random states after it, and its doctors."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    doctors = []

    def doctor(*args, **settings):
        if not watch:
            return Nobody()
        doctors.append(Doctor(*args, **{"every": 5, **settings}))
        return doctors[-1]

    returned = program(doctor)
    for each in doctors:
        each.report()
    states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    return bits(returned), states, doctors


def untouched(program):
    """Assert that the doctor changes nothing; return its doctors."""
    plain, state, _ = run(program, watch=False)
    watched, after, doctors = run(program, watch=True)
    assert watched == plain
    assert after == state
    for doctor in doctors:
        assert doctor.report().troubles == []
        doctor.close()
    return doctors


def train(doctor, model, optimizer, loss_fn, batches):
    """The plain loop, which evaluates now and then."""
    for step, (inputs, targets) in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        doctor.step(loss, inputs, targets)
        if step % 10 == 9:
            doctor.validate(inputs, targets)
            doctor.report()


def noise(steps=STEPS, size=24, features=4):
    for _ in range(steps):
        yield torch.randn(size, features), torch.ones(size, 1)


def critic():
    return nn.Sequential(
        spectral_norm(nn.Linear(2, 16)), nn.LeakyReLU(0.2), nn.Dropout(0.2),
        spectral_norm(nn.Linear(16, 1)),
    )  # fmt: skip


def generator():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def adam(*models, lr=2e-3):
    return torch.optim.Adam([p for m in models for p in m.parameters()], lr=lr)


def a_generator_and_a_critic_with_spectral_norm(doctor):
    maker, judge = generator(), critic()
    moves, judges = adam(maker), adam(judge)
    bce = nn.BCEWithLogitsLoss()
    first = doctor(judge, judges, bce)
    second = doctor(maker, moves, lambda fake, wanted: bce(judge(fake), wanted))
    for z, ones in noise():
        fake = maker(z)
        both = torch.cat([torch.randn_like(fake) + 1, fake.detach()])
        labels = torch.cat([ones, 0 * ones])
        judges.zero_grad()
        loss = bce(judge(both), labels)
        loss.backward()
        judges.step()
        first.step(loss, both, labels)
        moves.zero_grad()
        loss = bce(judge(fake), ones)
        loss.backward()
        moves.step()
        second.step(loss, z, ones)
    return maker, judge, moves, judges


def the_older_spectral_norm(doctor):
    model = generator()
    judge = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 8)), nn.ReLU(), nn.Linear(8, 1))
    optimizer = adam(model)

    def loss_fn(fake, _):
        return F.softplus(-judge(fake)).mean()

    train(doctor(model, optimizer, loss_fn), model, optimizer, loss_fn, noise())
    return model, judge, optimizer


def a_perceptual_loss_through_a_net_with_batch_norm(doctor):
    features = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12, momentum=0.3), nn.Tanh(), nn.Linear(12, 4)
    )
    features.requires_grad_(False)  # and left in training mode, so that its statistics move
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    optimizer = adam(model)

    class Perceptual:
        def __init__(self):
            self.net, self.calls = features, 0

        def __call__(self, outputs, targets):
            self.calls += 1
            return F.mse_loss(self.net(outputs), self.net(targets))

    loss_fn = Perceptual()
    batches = ((x, x.roll(1, dims=1)) for x in torch.randn(STEPS, 20, 6))
    train(doctor(model, optimizer, loss_fn), model, optimizer, loss_fn, batches)
    return model, features, loss_fn.calls


def layers_that_train_forward(doctor):
    """Hinton's forward-forward: each layer has its own optimiser and its own loss."""

    class Layer(nn.Module):
        def __init__(self, features, width):
            super().__init__()
            self.linear = nn.Linear(features, width)
            self.moves = adam(self.linear, lr=1e-2)
            self.goodness = []

        def forward(self, x):
            x = x / (x.norm(dim=1, keepdim=True) + 1e-4)
            return torch.relu(self.linear(x))

        def loss(self, outputs, signs):
            good = outputs.square().mean(dim=1) - 0.5
            self.goodness.append(good.mean().item())
            return F.softplus(-signs * good).mean()

    layers = [Layer(6, 16), Layer(16, 12)]
    watchers = [doctor(layer, layer.moves, layer.loss) for layer in layers]
    for _ in range(STEPS):
        x = torch.randn(32, 6)
        signs = torch.where(torch.arange(32) < 16, 1.0, -1.0)
        x[:16] += 1
        for layer, watcher in zip(layers, watchers, strict=True):
            layer.moves.zero_grad()
            outputs = layer(x)
            loss = layer.loss(outputs, signs)
            loss.backward()
            layer.moves.step()
            watcher.step(loss, x, signs)
            x = layer(x).detach()
    return layers, [layer.goodness for layer in layers], [layer.moves for layer in layers]


def a_normalising_flow(doctor):
    """Affine couplings; the first pass of an actnorm sets its scale from the data."""

    class ActNorm(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(features))
            self.log_scale = nn.Parameter(torch.zeros(features))
            self.started = False

        def forward(self, x):
            if not self.started:
                self.started = True
                with torch.no_grad():
                    self.shift.copy_(-x.mean(dim=0))
                    self.log_scale.copy_(-x.std(dim=0).log())
            return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum()

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([ActNorm(2), ActNorm(2)])
            self.nets = nn.ModuleList([generator_of(1, 2), generator_of(1, 2)])

        def forward(self, x):
            volume = 0
            for norm, net in zip(self.norms, self.nets, strict=True):
                x, own = norm(x)
                first, second = x[:, :1], x[:, 1:]
                log_scale, shift = net(first).chunk(2, dim=1)
                second = second * log_scale.tanh().exp() + shift
                x = torch.cat([second, first], dim=1)
                volume = volume + own + log_scale.tanh().sum(dim=1)
            return x, volume

        def log_prob(self, x):
            z, volume = self(x)
            return -0.5 * z.square().sum(dim=1) + volume

    flow = Flow()
    optimizer = adam(flow)
    watcher = doctor(flow, optimizer, lambda _, x: -flow.log_prob(x).mean())
    for _ in range(STEPS):
        x = torch.randn(32, 2) * torch.tensor([1.0, 0.3]) + 2
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        watcher.step(loss, x, x)
    return flow, optimizer


def generator_of(features, outputs):
    return nn.Sequential(nn.Linear(features, 12), nn.Tanh(), nn.Linear(12, outputs))


def a_diffusion_whose_loss_draws_random_numbers(doctor):
    draws = torch.Generator().manual_seed(3)
    numpys = np.random.default_rng(4)
    model = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
    optimizer = adam(model)

    def loss_fn(_, x):
        t = torch.rand(len(x), 1, generator=draws)
        added = torch.randn(x.shape, generator=draws)
        scale = float(numpys.uniform(0.9, 1.1)) * random.random()
        noisy = (1 - t) * x + scale * t * added
        return F.mse_loss(model(torch.cat([noisy, t], dim=1)), added)

    watcher = doctor(model, optimizer, loss_fn)
    for _ in range(STEPS):
        x = torch.randn(32, 2)
        optimizer.zero_grad()
        loss = loss_fn(None, x)
        loss.backward()
        optimizer.step()
        watcher.step(loss, torch.cat([x, 0 * x[:, :1]], dim=1), x)
    return model, draws, repr(numpys.bit_generator.state), optimizer


BANK = torch.zeros(64, 4)
COUNTS = {"calls": 0}
BACKBONE = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())


def _with_memory(outputs, targets, momentum=0.9, history=[]):  # noqa: B006
    COUNTS["calls"] += 1
    history.append(outputs.detach().mean().item())
    BANK[targets] = momentum * BANK[targets] + (1 - momentum) * outputs.detach()
    return F.cross_entropy(outputs @ BANK.T + outputs.sum(dim=1, keepdim=True), targets)


def a_memory_bank_that_a_global_holds(doctor):
    BANK.copy_(torch.randn(64, 4))
    COUNTS["calls"] = 0
    _with_memory.__defaults__[1].clear()
    model = nn.Linear(6, 4)
    optimizer = adam(model)
    loss_fn = partial(_with_memory, momentum=0.8)
    batches = ((torch.randn(16, 6), torch.randint(64, (16,))) for _ in range(STEPS))
    train(doctor(model, optimizer, loss_fn), model, optimizer, loss_fn, batches)
    return model, BANK, COUNTS, _with_memory.__defaults__[1]


def a_backbone_that_the_model_takes_from_a_global(doctor):
    with torch.no_grad():
        for value in BACKBONE.state_dict().values():
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else 0 * value)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                x = BACKBONE(x)
            return self.linear(x)

    model = Head()
    optimizer = adam(model)
    batches = ((torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(STEPS))
    loss_fn = F.cross_entropy
    train(doctor(model, optimizer, loss_fn), model, optimizer, loss_fn, batches)
    return model, BACKBONE


def a_teacher_that_follows_within_the_loss(doctor):
    student = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = adam(student)
    seen = deque(maxlen=4)
    steps = 0

    def loss_fn(outputs, targets):
        nonlocal steps
        steps += 1
        seen.append(len(targets))
        teacher.eval()
        for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
            slow.mul_(0.9).add_(fast.detach(), alpha=0.1)
        known = targets >= 0
        return F.cross_entropy(outputs[known], targets[known])

    batches = ((torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(STEPS))
    train(doctor(student, optimizer, loss_fn), student, optimizer, loss_fn, batches)
    return student, teacher, seen, steps


def a_critic_that_trains_within_the_loss(doctor):
    model, judge = generator(), generator_of(2, 1)
    moves, judges = adam(model), adam(judge)

    def loss_fn(fake, real):
        judges.zero_grad()
        (judge(fake.detach()).mean() - judge(real).mean()).backward()
        judges.step()
        for p in judge.parameters():
            p.data.clamp_(-0.1, 0.1)
        return -judge(fake).mean()

    batches = ((torch.randn(24, 4), torch.randn(24, 2) + 1) for _ in range(STEPS))
    train(doctor(model, moves, loss_fn), model, moves, loss_fn, batches)
    return model, judge, moves, judges


PROGRAMS = [
    the_older_spectral_norm,
    layers_that_train_forward,
    a_normalising_flow,
    a_diffusion_whose_loss_draws_random_numbers,
    a_memory_bank_that_a_global_holds,
    a_teacher_that_follows_within_the_loss,
]
LONGER_PROGRAMS = [
    a_perceptual_loss_through_a_net_with_batch_norm,
    a_backbone_that_the_model_takes_from_a_global,
    a_critic_that_trains_within_the_loss,
]


@pytest.mark.parametrize(
    "program",
    PROGRAMS + [pytest.param(program, marks=pytest.mark.slow) for program in LONGER_PROGRAMS],
    ids=lambda program: program.__name__,
)
def test_a_watched_training_is_the_same_bit_for_bit(program):
    untouched(program)


@pytest.mark.slow
def test_the_discriminators_doctor_does_not_count_what_the_generators_tries_out():
    judges, makers = untouched(a_generator_and_a_critic_with_spectral_norm)
    loop = judges.evidence.loop
    assert loop.evaluations == 0
    assert loop.train_mode_evaluations == 0
    assert loop.training_forwards == STEPS
    assert makers.evidence.loop.training_forwards == STEPS
    beside = makers.evidence.loss.beside_discriminator
    assert beside
    assert max(beside) < 0


def test_a_backward_pass_may_follow_a_probe_between_forward_and_backward():
    """What is put back keeps its version: autograd takes it for unchanged."""
    model, net = nn.Linear(4, 3), nn.BatchNorm1d(3)
    optimizer = adam(model)

    def loss_fn(outputs, targets):
        return F.cross_entropy(net(outputs), targets)

    inputs, targets = torch.randn(16, 4), torch.randint(3, (16,))
    with Doctor(model, optimizer, loss_fn, every=1) as doctor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            pending = net.eval()(model(inputs)).sum()  # saves the running statistics
            net.train()
            version = net.running_mean._version
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
            assert net.running_mean._version == version
            torch.autograd.grad(pending, net.weight)


class Closing(nn.Module):
    """Calls a part of itself by a function that was made with it."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        parts = self.parts
        self.run = lambda x: parts(x)

    def forward(self, x):
        return self.run(x)


def test_a_copy_calls_its_own_layers_from_a_function_that_closes_over_them():
    torch.manual_seed(0)
    model, inputs = Closing(), torch.randn(4, 6)
    replica = copied_model(model).eval()
    assert torch.equal(replica(inputs), replica(inputs))  # without the dropout of the original
    with torch.no_grad():
        model.parts[0].weight.zero_()
        model.parts[0].bias.zero_()
    assert not torch.equal(replica(inputs)[0], replica(inputs)[1])
    assert model.training
    assert model.run.__closure__[0].cell_contents is model.parts


def by_method(model):
    model.inner.register_forward_hook(model.keep)


def by_closure(model):
    kept = model.kept
    model.inner.register_forward_hook(lambda module, inputs, output: kept.update(x=output))


def by_default(model):
    def hook(module, inputs, kwargs, output, kept=model.kept):
        kept["x"] = output

    model.inner.register_forward_hook(hook, with_kwargs=True)


def by_partial(model):
    model.inner.register_forward_hook(partial(lambda kept, m, i, o: kept.update(x=o), model.kept))


def before_the_layer(model):
    kept, inner = model.kept, model.inner
    model.last.register_forward_pre_hook(lambda module, inputs: kept.update(x=inner(inputs[0])))


class Extractor(nn.Module):
    """Hands an inner layer's output on by a hook."""

    def __init__(self, register):
        super().__init__()
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.kept = {}
        register(self)

    def keep(self, module, inputs, output):
        self.kept["x"] = output

    def forward(self, x):
        self.last(self.inner(x))
        return self.kept.pop("x") + 1


@pytest.mark.parametrize(
    "register", [by_method, by_closure, by_default, by_partial, before_the_layer]
)
def test_a_copy_keeps_the_hooks_that_its_own_forward_pass_needs(register):
    torch.manual_seed(0)
    model, inputs = Extractor(register), torch.randn(4, 6)
    seen = []
    model.inner.register_forward_hook(lambda module, inputs, output: seen.append(1))
    replica = copied_model(model)
    before = replica(inputs)
    assert seen == []  # somebody else's hook
    assert torch.equal(before, model(inputs))
    with torch.no_grad():
        model.inner.weight.zero_()
    assert torch.equal(before, replica(inputs))
    assert not torch.equal(before, model(inputs))
    again = copied_model(replica)
    with torch.no_grad():
        replica.inner.weight.zero_()
    assert torch.equal(before, again(inputs))


class Counted(nn.Module):
    """A net with a hook of its own that nothing is computed from."""

    passes = 0

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.inner.register_forward_hook(self.count)

    def count(self, module, inputs, output):
        Counted.passes += 1

    def forward(self, x):
        return self.last(self.inner(x).relu())


def warmed_up(net):
    calls = 0

    def hook(module, inputs, output):
        nonlocal calls
        if net.training:
            calls += 1
        return output * min(1.0, 0.5 + calls / 200)

    net.inner.register_forward_hook(hook)
    return lambda: calls


@pytest.mark.parametrize("warms_up", [False, True])
def test_hooks_that_count_are_called_by_the_loop_alone(warms_up):
    def run(doctor_of):
        torch.manual_seed(0)
        Counted.passes = 0
        model, kept = Counted(), []
        calls = warmed_up(model) if warms_up else None
        model.last.register_forward_hook(lambda m, i, o: kept.append(model.training))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with doctor_of(model, optimizer) as watching:
            for _ in range(STEPS):
                x = torch.randn(16, 6)
                loss = F.cross_entropy(model(x), x[:, :3].argmax(dim=1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watching.step(loss, x, x[:, :3].argmax(dim=1))
            watching.report()
        counted = [len(kept), *([calls()] if warms_up else [Counted.passes])]
        return bits(dict(model.state_dict())), counted

    plain = run(lambda model, optimizer: nullcontext(Nobody()))
    watched = run(lambda model, optimizer: Doctor(model, optimizer, F.cross_entropy))
    assert plain[1] == [STEPS, STEPS]
    assert watched == plain
