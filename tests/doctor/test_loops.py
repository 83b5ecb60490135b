"""Loops of other kinds than the plain one: how the doctor learns what they call, and what it says.

Each is run with a doctor and without, and trains the same weights, bit for bit.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.evidence import LoopFacts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.forward_passes import ForwardPass, ForwardPasses
from debugnn.faults import train
from debugnn.faults.sound import sound

SEED = 11
BATCH, FEATURES, CLASSES = 16, 6, 3


class Nobody:
    def __init__(self, *_): ...
    def step(self, *_): ...
    def validate(self, *_): ...


def data(samples=160):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, FEATURES, generator=generator)
    return inputs, (inputs @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(dim=1)


def batches(steps):
    inputs, targets = data()
    for step in range(steps):
        chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % len(inputs)
        yield inputs[chosen], targets[chosen]


def mlp(outputs=CLASSES):
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, outputs))


def both_ways(program):
    """Run a program without and with doctors; return their reports.

    Args:
        program: is given what makes a doctor, and returns its models.
    """
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        doctors = []

        def make(*args, watched=watched, doctors=doctors, **settings):
            if not watched:
                return Nobody()
            doctors.append(Doctor(*args, every=5, **settings))
            return doctors[-1]

        models = program(make)
        found.append([t.clone() for m in models for t in m.state_dict().values()])
        reports = [doctor.report() for doctor in doctors]
        for doctor in doctors:
            doctor.close()
    assert all(map(torch.equal, *found)), "the doctor changed the training"
    return reports


LOOPS = ["carried_lstm", "packed", "graph_dense", "graph_edges", "contrastive",
         "sharpness_aware", "loss_alone"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_its_own_is_the_same_with_and_without_the_doctor(name):
    weights = []
    for observer in (Nobody, Doctor):
        setup = sound(name, SEED)
        setup.epochs = 3
        watching = train(setup, SEED, observer)
        weights.append([t.clone() for t in setup.model.state_dict().values()])
        state = torch.get_rng_state()
    assert all(map(torch.equal, *weights))
    report = watching.report()
    assert torch.equal(torch.get_rng_state(), state)
    assert "batch_mixing" not in [f.cause for f in report.findings]
    assert [t for t in report.troubles if "step() was given none" not in t] == []
    if report.evidence.network.sample_axis is None:
        assert report.evidence.data.simple_skill is None  # a simple model sees each sample alone


def test_a_full_graph_is_not_accused_after_fingerprints_have_come_to_an_end():
    """They stop after 50,000 samples: here, after 125 steps of 400 nodes."""
    torch.manual_seed(0)
    features = torch.randn(400, 8)
    kinds = (torch.softmax(features @ features.T, dim=1) @ features)[:, :3].argmax(dim=1)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            near = torch.softmax(x @ x.T, dim=1)
            return self.last(torch.relu(near @ self.first(x)))

    model = Attending()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, F.cross_entropy) as doctor:
        for _ in range(160):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(features), kinds)
            loss.backward()
            optimizer.step()
            doctor.step(loss, features, kinds)
        doctor.validate(features, kinds)
        report = doctor.report()
    data = report.evidence.data
    assert report.evidence.network.mixing > 0.01
    assert data.same_batch is True
    assert data.overlap is None  # of one graph, validation has the same nodes by right
    assert [f.cause for f in report.findings if f.severity != "note"] == []


# --- step(loss) alone ---------------------------------------------------------------------------


def test_the_loss_alone_tells_of_gradients_updates_inputs_and_optimiser():
    def program(make):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = make(model, optimizer)
        for x, t in batches(45):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            watcher.step(loss)
        return [model]

    (report,) = both_ways(program)
    found = report.evidence
    assert report.troubles == []
    assert report.healthy is None
    assert found.data.samples >= 160
    assert found.data.rms == pytest.approx(1, abs=0.1)
    assert found.network.axis_dependence[0] == "apart"
    assert found.optimizer.held == found.optimizer.trainable == 4
    assert len(found.outcome.first_below) == 0
    assert found.outcome.last_loss < found.outcome.first_loss
    first = found.probes[0]
    assert all(layer.gradient and layer.update for layer in first.layers.values())
    assert [activation.op for activation in first.activations] == ["relu"]


def test_a_loss_function_that_needs_no_targets_is_looked_at_without():
    def program(make):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = make(model, optimizer, lambda outputs, targets: outputs.square().mean())
        for x, _ in batches(10):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            watcher.step(loss, x)
            watcher.validate(x)
        return [model]

    (report,) = both_ways(program)
    assert report.troubles == []
    assert report.evidence.loss.error is None
    assert report.evidence.loop.loss_ratio == pytest.approx(1, abs=0.01)


def test_a_nan_is_found_without_inputs_or_targets():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        for step, (x, t) in enumerate(batches(6)):
            x[3] = torch.nan if step == 4 else x[3]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        report = doctor.report()
    assert report.main_cause == "non_finite"
    assert (report.evidence.nonfinite.where, report.evidence.nonfinite.step) == ("input", 4)
    assert report.evidence.nonfinite.samples == [3]


def test_what_is_not_looked_at_is_said_in_words():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x, scale):
            return self.body(x) * scale

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer, F.cross_entropy) as doctor:
        for x, t in batches(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, torch.ones(1)), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        doctor.step(loss.detach())
        doctor.validate(*data())
        troubles = doctor.report().troubles
    assert troubles == [
        "the loss function is not looked at: it needs targets, and step() was given none",
        "data and outputs are not looked at: step() was given no inputs, and no call of the model "
        "was seen in the step",
        "validation is not looked at: the model takes 2 arguments and validate() was given 1",
    ]


def test_validation_is_called_as_the_loop_has_just_called_it():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x, scale):
            return self.body(x) * scale

    def program(make):
        model, scale = Scaled(), torch.tensor([2.0])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = make(model, optimizer, F.cross_entropy)
        inputs, targets = data()
        for x, t in batches(6):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, scale=scale), t)
            loss.backward()
            optimizer.step()
            watcher.step(loss, x, t)
        model.eval()
        with torch.no_grad():
            model(inputs, scale=scale)
        watcher.validate(inputs, targets)
        return [model]

    (report,) = both_ways(program)
    assert report.troubles == []
    assert len(report.evidence.outcome.validations) == 1
    assert report.evidence.data.overlap == 0.6


# --- which call was the step's --------------------------------------------------------------------


def passes(*calls):
    noted = ForwardPasses(LoopFacts())
    for call in calls:
        noted.note_training(ForwardPass(call, True, []))
    return noted


REAL, FAKE, STATE = torch.zeros(4, 2), torch.ones(4, 2), torch.zeros(1, 4, 3)


def test_the_call_of_a_step_is_the_one_with_its_inputs():
    real, fake = Call((REAL,), {"train": True}), Call((FAKE,))
    assert passes(real, fake).call_of(REAL) is real
    assert passes(real, fake).call_of(FAKE) is fake
    assert passes(real, fake).call_of(None) is fake
    whole = torch.cat([REAL, FAKE])
    assert passes(Call((REAL,)), fake).call_of(whole).args == (whole,)
    assert passes(real).call_of("a name") is real
    assert passes().call_of(None) is None
    assert passes().call_of((REAL, FAKE)).args == (REAL, FAKE)


def test_a_call_that_was_seen_fills_in_what_was_not_handed_over():
    with_state = Call((REAL, STATE))
    assert passes(with_state, with_state).call_of(REAL) is with_state
    assert passes(with_state, with_state).call_of(REAL.clone()) is with_state


def test_a_discriminator_of_two_passes_and_its_generator_are_watched():
    def program(make):
        generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, FEATURES))
        critic = nn.Sequential(*mlp(1), nn.Sigmoid())
        moves = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (generator, critic)]
        watchers = [make(m, move) for m, move in zip((generator, critic), moves, strict=True)]
        for x, _ in batches(22):
            moves[1].zero_grad()
            fake = generator(torch.randn(BATCH, 4))
            loss = -(critic(x).log() + (1 - critic(fake.detach())).log()).mean()
            loss.backward()
            moves[1].step()
            watchers[1].step(loss)
            moves[0].zero_grad()
            loss = -critic(fake).log().mean()
            loss.backward()
            moves[0].step()
            watchers[0].step(loss)
        return generator, critic

    for report in both_ways(program):
        assert report.troubles == []
        assert [f.cause for f in report.findings if f.severity != "note"] == []
        assert report.evidence.network.axis_dependence[0] == "apart"


def test_gradients_that_are_accumulated_are_watched_with_the_loss_alone():
    def program(make):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = make(model, optimizer)
        for step, (x, t) in enumerate(batches(40)):
            loss = F.cross_entropy(model(x), t) / 4
            loss.backward()
            if step % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
                watcher.step(4 * loss)
        return [model]

    (report,) = both_ways(program)
    assert (report.steps, report.troubles) == (10, [])
    assert [f.cause for f in report.findings if f.severity != "note"] == []


@pytest.mark.parametrize("axis", [2, -1, True, "first", 0.5])
def test_a_sample_axis_that_there_is_not_is_refused(axis):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="sample_axis"):
        Doctor(model, optimizer, sample_axis=axis)


def test_validation_with_targets_of_several_tensors_has_a_loss():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.kind, self.value = mlp(), mlp(1)

        def forward(self, x):
            return {"kind": self.kind(x), "value": self.value(x)}

    def loss_fn(outputs, targets):
        error = F.mse_loss(outputs["value"], targets["value"])
        return F.cross_entropy(outputs["kind"], targets["kind"]) + error

    def program(make):
        model = Heads()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = make(model, optimizer, loss_fn)
        for x, t in batches(10):
            targets = {"kind": t, "value": x[:, :1]}
            optimizer.zero_grad()
            loss = loss_fn(model(x), targets)
            loss.backward()
            optimizer.step()
            watcher.step(loss, x, targets)
            watcher.validate(x, targets)
        watcher.validate(x)
        return [model]

    (report,) = both_ways(program)
    assert report.troubles == []
    validations = report.evidence.outcome.validations
    assert len(validations) == 10
    assert validations[-1].loss < validations[0].loss


RAGGED = {
    "packed": (
        lambda parts: nn.utils.rnn.pack_sequence(parts, enforce_sorted=False),
        lambda packed: nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0],
    ),
    "nested": (torch.nested.nested_tensor, lambda nested: nested.to_padded_tensor(0.0)),
    "jagged": (
        lambda parts: torch.nested.nested_tensor(parts, layout=torch.jagged),
        lambda nested: nested.to_padded_tensor(0.0),
    ),
    "list": (list, lambda parts: nn.utils.rnn.pad_sequence(parts, batch_first=True)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", RAGGED)
def test_samples_of_several_lengths_are_watched(kind):
    pack, pad = RAGGED[kind]

    class Summing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, parts):
            return self.body(pad(parts).sum(dim=1))

    def program(make):
        model = Summing()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = make(model, optimizer, F.cross_entropy)
        for x, t in batches(42):
            lengths = torch.randint(1, 5, (len(x),)).tolist()
            given = pack([row.expand(n, -1) / n for row, n in zip(x, lengths, strict=True)])
            optimizer.zero_grad()
            loss = F.cross_entropy(model(given), t)
            loss.backward()
            optimizer.step()
            watcher.step(loss, (given,), t)
        watcher.validate((given,), t)
        return [model]

    (report,) = both_ways(program)
    assert report.troubles == []
    assert [f.cause for f in report.findings if f.severity != "note"] == []
    assert len(report.evidence.outcome.validations) == 1


def test_a_nan_of_a_step_whose_call_is_not_known_is_told():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        doctor.step(torch.tensor(torch.nan))
        report = doctor.report()
    assert report.main_cause == "non_finite"
    assert report.evidence.nonfinite.where == "unknown"
    assert doctor.replay["step"] == 0


class SparseGraphNet(nn.Module):
    """Two graph convolutions of its own making, on sparse features and a sparse graph."""

    def __init__(self, features, classes):
        super().__init__()
        self.first = nn.Parameter(torch.randn(features, 8) * features**-0.5)
        self.last = nn.Parameter(torch.randn(8, classes) * 8**-0.5)

    def forward(self, nodes, graph):
        hidden = torch.relu(torch.sparse.mm(graph, torch.sparse.mm(nodes, self.first)))
        return torch.sparse.mm(graph, hidden @ self.last)


def test_a_network_of_sparse_tensors_is_looked_at_as_another():
    torch.manual_seed(0)
    count, classes = 80, 4
    targets = torch.randint(0, classes, (count,))
    words = torch.nn.functional.one_hot(torch.arange(24) % classes, classes).T[targets]
    nodes = (torch.rand(count, 24) < 0.1 + 0.4 * words).float()
    same = targets == targets[:, None]
    graph = torch.eye(count) + (torch.rand(count, count) < 0.05 + 0.2 * same).float()
    inputs = nodes.to_sparse(), (graph / graph.sum(1, keepdim=True)).to_sparse()
    known = torch.arange(50)

    def loss_fn(outputs, targets):
        return nn.functional.cross_entropy(outputs[known], targets[known])

    model = SparseGraphNet(24, classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(100):
            optimizer.zero_grad()
            loss = loss_fn(model(*inputs), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        report = doctor.report()
    assert doctor.evidence.troubles == []
    assert doctor.evidence.task == "classes"
    assert doctor.evidence.network.depth == 2  # both products are seen
    assert report.healthy is True, report


class Ratings(nn.Module):
    """Whether a viewer likes a film."""

    def __init__(self, viewers, films):
        super().__init__()
        self.viewers, self.films = nn.Embedding(viewers, 8), nn.Embedding(films, 8)
        self.last = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, viewer, film):
        return self.last(torch.cat([self.viewers(viewer), self.films(film)], dim=1))


class Matcher(nn.Module):
    """Whether two samples are of one kind."""

    def __init__(self, features):
        super().__init__()
        self.code = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, 8))
        self.last = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, one, two):
        return self.last((self.code(one) - self.code(two)).abs())


PARTNERS, FILMS = 1000, 12  # few partners come twice within a batch, and many in the next ones


def pairs(kind):
    """Return a model, two inputs of 2,000 pairs made of few partners, and their labels."""
    one, two = torch.randint(0, PARTNERS, (2000,)), torch.randint(0, PARTNERS, (2000,))
    if kind == "ratings":
        return Ratings(PARTNERS, FILMS), one, two % FILMS, two % FILMS % 2
    labels = (one % 3 == two % 3).long()
    kinds = torch.eye(3)[torch.arange(PARTNERS) % 3].repeat(1, 2)
    samples = kinds + 0.3 * torch.randn(PARTNERS, 6)
    return Matcher(6), samples[one], samples[two], labels


@pytest.mark.parametrize("kind", ["ratings", "matches"])
def test_one_half_of_a_pair_that_comes_again_with_another_label_is_no_contradiction(kind):
    torch.manual_seed(0)
    model, one, two, labels = pairs(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with Doctor(model, optimizer, loss_fn=F.cross_entropy) as doctor:
        for step in range(100):
            chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % 1600
            optimizer.zero_grad()
            loss = F.cross_entropy(model(one[chosen], two[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            doctor.step(loss, (one[chosen], two[chosen]), labels[chosen])
        doctor.validate((one[1600:], two[1600:]), labels[1600:])
        report = doctor.report()
    assert [f for f in report.findings if f.severity != "note"] == []
    assert report.evidence.data.overlap is None


class OneArgument(nn.Module):
    """Takes a batch's tensors in one container, as its only argument."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(7, 1)

    def forward(self, batch):
        parts = list(batch.values()) if isinstance(batch, dict) else list(batch)
        return self.layer(torch.cat(parts, dim=1)).squeeze(1)


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_a_container_that_is_the_models_only_argument_is_validated_as_it_is(kind):
    torch.manual_seed(0)
    rows = torch.randn(800, 7)
    labels = rows.sum(dim=1)

    def batch(start, stop):
        parts = rows[start:stop, :4], rows[start:stop, 4:]
        if kind == "dict":
            return dict(zip(("wide", "narrow"), parts, strict=True))
        return list(parts) if kind == "list" else parts

    model = OneArgument()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with Doctor(model, optimizer, loss_fn=F.mse_loss, every=10) as doctor:
        for start in range(0, 640, 10):
            optimizer.zero_grad()
            inputs, targets = batch(start, start + 10), labels[start : start + 10]
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        doctor.validate(batch(640, 800), labels[640:])
        report = doctor.report()
    assert report.troubles == []
    (validation,) = report.evidence.outcome.validations
    with torch.no_grad():
        wanted = F.mse_loss(model(batch(640, 800)), labels[640:]).item()
    assert validation.loss == pytest.approx(wanted, rel=1e-4)
    assert validation.score.skill > 0.9
