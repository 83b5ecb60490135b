"""What a model keeps in itself between passes: copies begin where the loop's own passes begin."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.batch_mixing import state_of_others
from debugnn.doctor.evidence import Evidence, NetworkFacts, StateFacts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.module_state import kept_state
from debugnn.doctor.observe.replica import Replica
from debugnn.doctor.observe.samples import came_again

LENGTH, WIDTH, BATCH, SAMPLES = 10, 16, 16, 160


class Meter(nn.Module):
    """Reads a leaking sum of its inputs, step by step, and keeps its state where `kept` says."""

    def __init__(self, kept="attribute"):
        super().__init__()
        self.kept = kept
        self.cell = nn.GRU(1, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)
        if kept.startswith("buffer"):
            self.register_buffer("state", torch.zeros(1, BATCH, WIDTH))
        elif kept == "unsaved buffer":
            self.register_buffer("state", torch.zeros(1, BATCH, WIDTH), persistent=False)
        else:
            self.state = {} if kept == "dict" else None
        self.reset()

    def reset(self):
        if "buffer" in self.kept:
            self.state = torch.zeros(1, BATCH, WIDTH)
        elif self.kept == "dict":
            self.state.clear()
        else:
            self.state = None

    def forward(self, x):
        state = self.state.get("h") if self.kept == "dict" else self.state
        if state is not None and state.shape[1] != len(x):
            state = state.new_zeros(1, len(x), WIDTH)
        outputs, state = self.cell(x, None if state is None else state.clone())
        state = state.detach()
        if self.kept == "dict":
            self.state["h"] = state
        elif self.kept == "buffer in place" and self.state.shape == state.shape:
            self.state.copy_(state)
        else:
            self.state = state
        return self.head(outputs)


KEPT = ["attribute", "buffer", "buffer in place", "unsaved buffer", "dict"]


def series(seed=0, samples=SAMPLES):
    inputs = torch.randn(samples, LENGTH, 1, generator=torch.Generator().manual_seed(seed))
    total, sums = torch.zeros(samples, 1), []
    for step in range(LENGTH):
        total = 0.9 * total + inputs[:, step]
        sums.append(total)
    return inputs, torch.stack(sums, dim=1)


def train(model, before_batch=None, shuffled=True, epochs=16, data=None, validation=None):
    torch.manual_seed(0)
    inputs, targets = data or series()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, nn.MSELoss()) as doctor:
        for _ in range(epochs):
            order = torch.randperm(len(inputs)) if shuffled else torch.arange(len(inputs))
            for chosen in order.split(BATCH):
                if before_batch is not None:
                    before_batch(model, int(chosen[0]) == 0)
                optimizer.zero_grad()
                loss = F.mse_loss(model(inputs[chosen]), targets[chosen])
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs[chosen], targets[chosen])
            if validation is not None:
                doctor.validate(*validation)
        return doctor.report()


def reset(model, _):
    model.reset()


@pytest.mark.parametrize("kept", KEPT)
def test_each_pass_of_a_copy_begins_with_the_first_state(kept):
    torch.manual_seed(0)
    model, inputs = Meter(kept), torch.randn(BATCH, LENGTH, 1)
    replica = Replica(model, torch.optim.Adam(model.parameters()))
    tried = Replica(model, torch.optim.Adam(model.parameters())).model.eval()
    with torch.no_grad():
        wanted = Meter.forward(model, inputs)
        replica.keep(kept_state(tried, Call((inputs,))))
        model(inputs)  # the loop goes on
        for copy in (replica.current(), replica.fresh(), replica.start()):
            for _ in range(3):
                assert torch.equal(copy(inputs), wanted)
        assert not torch.equal(model(inputs), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kept", KEPT)
def test_a_state_that_the_loop_resets_is_no_fault(kept):
    report = train(Meter(kept), reset, validation=series(1, 64))
    assert (report.healthy, report.main_cause) == (True, "healthy")
    assert report.evidence.outcome.train.skill > 0.9
    assert report.evidence.outcome.validations[-1].score.skill > 0.9
    assert not report.troubles


@pytest.mark.parametrize("kept", KEPT)
def test_a_state_that_shuffled_samples_leave_to_each_other_is(kept):
    report = train(Meter(kept))
    assert (report.main_cause, report.main.confidence) == ("batch_mixing", "certain")
    assert "`state`" in report.main.summary
    assert "shuffled" in report.main.summary


def test_parts_of_long_series_may_go_on_from_each_other():
    torch.manual_seed(1)
    whole = torch.randn(BATCH, 10 * LENGTH, 1)
    total, sums = torch.zeros(BATCH, 1), []
    for step in range(whole.shape[1]):
        total = 0.9 * total + whole[:, step]
        sums.append(total)
    parts = torch.cat(whole.split(LENGTH, dim=1))
    targets = torch.cat(torch.stack(sums, dim=1).split(LENGTH, dim=1))

    def at_start(model, first):
        if first:
            model.reset()

    report = train(Meter(), at_start, shuffled=False, data=(parts, targets))
    state = report.evidence.network.state
    assert state.carried > 0.8 * state.compared > 0
    assert state.change > 0.01
    assert state.after_another < 0.2 * state.came_again
    assert report.evidence.outcome.train.skill > 0.9  # from the states that its batches began with
    assert report.healthy
    assert not report.findings


class Stepwise(nn.Module):
    """Is called once for each time step, and keeps its state until it is reset."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(1, WIDTH), nn.Linear(WIDTH, 1)
        self.state = None

    def forward(self, x):
        self.state = self.cell(x, self.state)
        return self.head(self.state)


def test_a_state_within_a_step_is_no_fault():
    torch.manual_seed(0)
    model, (inputs, targets) = Stepwise(), series()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(8):
            for chosen in torch.randperm(SAMPLES).split(BATCH):
                model.state = None
                outputs = torch.stack([model(inputs[chosen, t]) for t in range(LENGTH)], dim=1)
                loss = F.mse_loss(outputs, targets[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                doctor.step(loss)
        report = doctor.report()
    state = report.evidence.network.state
    assert state.compared > 0
    assert state.carried == 0
    assert report.healthy is not False
    assert not report.findings


class Centred(nn.Module):
    """Takes a running mean over samples off, which it keeps in a plain attribute."""

    def __init__(self, evaluates):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LENGTH, 32), nn.ReLU(), nn.Linear(32, LENGTH))
        self.mean, self.evaluates = torch.zeros(LENGTH), evaluates

    def forward(self, x):
        outputs = self.net(x.squeeze(2) - self.mean).unsqueeze(2)
        if self.training or self.evaluates:
            self.mean = 0.9 * self.mean + 0.1 * x.squeeze(2).mean(dim=0).detach()
        return outputs


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_running_mean_is_no_state_of_a_sample(evaluates):
    report = train(Centred(evaluates))
    assert report.healthy
    assert not report.findings
    state = report.evidence.network.state
    assert state is None or state.change is None


class Logging(nn.Module):
    """Keeps what somebody may want to look at, and a table that it makes at its first pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LENGTH, 32), nn.ReLU(), nn.Linear(32, LENGTH))
        self.table, self.hidden, self.calls = None, None, 0

    def forward(self, x):
        if self.table is None:
            self.table = 1.0 / x.squeeze(2).std(dim=0).clamp_min(0.1)
        self.calls += 1
        self.hidden = self.net[:2](x.squeeze(2) * self.table)
        return self.net[2](self.hidden).unsqueeze(2)


def test_what_is_only_noted_or_made_once_is_no_state():
    model = Logging()
    report = train(model)
    assert report.evidence.network.state is None
    assert report.evidence.network.mixing == 0
    assert report.healthy
    assert not report.findings


class Cooled(nn.Module):
    """Its loop opens a gate, which is a plain number or a tensor."""

    def __init__(self, gate):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LENGTH, 32), nn.ReLU(), nn.Linear(32, LENGTH))
        self.gate = gate

    def forward(self, x):
        return self.gate * self.net(x.squeeze(2)).unsqueeze(2)


@pytest.mark.parametrize("gate", [0.001, torch.tensor(0.001)])
def test_what_the_loop_sets_is_followed(gate):
    def open_gate(model, _):
        model.gate = model.gate + (1 - model.gate) / 20

    report = train(Cooled(gate), open_gate, validation=series(1, 64))
    assert report.healthy
    assert report.evidence.outcome.train.skill > 0.8


def test_samples_that_come_again_after_others():
    batches = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert came_again(batches * 3) == (7 - 1, 0)
    assert came_again([*batches, torch.tensor([2.0, 1.0]), torch.tensor([3.0, 4.0])]) == (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"change": None},
        {"change": 0.001},
        {"carried": 5},
        {"compared": 10, "carried": 10},
        {"after_another": 50},
        {"came_again": 10, "after_another": 10},
    ],
)
def test_all_that_makes_it_certain_is_asked_for(change):
    facts = {"paths": ["rnn.h"], "compared": 100, "carried": 99, "change": 0.5}
    facts |= {"came_again": 100, "after_another": 99}
    found = list(state_of_others(Evidence(network=NetworkFacts(state=StateFacts(**facts)))))
    assert len(found) == 1
    assert found[0].layer == "rnn"
    left = StateFacts(**(facts | change))
    assert not list(state_of_others(Evidence(network=NetworkFacts(state=left))))
