"""Recurrences written out in Python: whether gradients go back from step to step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.vanishing_gradient import CUT_TO, JUMP
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.recurrence import recurrence_facts

SAMPLES, STEPS, FEATURES, WIDTH = 24, 9, 5, 12


class Loop(nn.Module):
    """A GRU cell over (B, T, features) or (T, B, features), read at the end or at each step."""

    def __init__(self, hand_on, *, tokens=False, each=False, both=False, time=1):
        super().__init__()
        self.hand_on, self.each, self.both, self.time = hand_on, each, both, time
        self.embed = nn.Embedding(30, FEATURES) if tokens else nn.Identity()
        self.cell = nn.GRUCell(FEATURES, WIDTH)
        self.head = nn.Linear(WIDTH * (1 + both), 3)

    def forward(self, x):
        steps = self.embed(x).unbind(self.time)
        forth = self.run(steps)
        states = [forth, self.run(steps[::-1])[::-1]] if self.both else [forth]
        if self.each:
            return self.head(torch.cat([torch.stack(s, self.time) for s in states], -1))
        return self.head(torch.cat([forth[-1], *(s[0] for s in states[1:])], -1))

    def run(self, steps):
        state, states = steps[0].new_zeros(len(steps[0]), WIDTH), []
        for number, now in enumerate(steps):
            state = self.cell(now, self.hand_on(number, state))
            states.append(state)
        return states


def as_it_is(step, state):
    return state


def cut(step, state):
    return state.detach()


def in_windows(step, state):
    return state if step % 3 else state.detach()


def looked_at(model, tokens=False, time=1):
    torch.manual_seed(0)
    shape = (SAMPLES, STEPS) if time == 1 else (STEPS, SAMPLES)
    x = torch.randint(30, shape) if tokens else torch.randn(*shape, FEATURES)
    return recurrence_facts(model, Call((x,)), Layout(1 - time))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("time", [0, 1])
def test_a_state_without_its_graph_is_seen(each, tokens, time):
    torch.manual_seed(1)
    facts = looked_at(Loop(cut, tokens=tokens, each=each, time=time), tokens, time)
    assert (facts.layer, facts.steps, facts.reached) == ("cell", STEPS, 1)
    assert (facts.calls, facts.idle, facts.each_step) == (STEPS, STEPS - 1, each)
    assert facts.uneven < JUMP / 2
    assert facts.cut_by == ".detach()"
    assert "test_recurrence.py:" in facts.line


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_a_state_with_its_graph_is_not_accused(each, both):
    torch.manual_seed(1)
    assert looked_at(Loop(as_it_is, each=each, both=both)) is None


def test_both_directions_that_are_cut_keep_one_step_each():
    torch.manual_seed(1)
    assert looked_at(Loop(cut, both=True)).reached == CUT_TO


def test_windows_of_steps_keep_more_than_a_cut():
    torch.manual_seed(1)
    assert looked_at(Loop(in_windows)).reached > CUT_TO


class Equilibrium(nn.Module):
    """Iterates without a graph, and learns through the last iteration."""

    def __init__(self):
        super().__init__()
        self.inner, self.step = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        given = self.inner(x).mean(1)
        state = torch.zeros_like(given)
        for _ in range(2 * STEPS):
            state = torch.tanh(self.step(state.detach()) + given)
        return state


class History(nn.Module):
    """Looks at earlier steps without a graph, and learns through the last one."""

    def __init__(self):
        super().__init__()
        self.look, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(2 * WIDTH, 3)

    def forward(self, x):
        *before, last = x.unbind(1)
        with torch.no_grad():
            memory = torch.stack([self.look(now).tanh() for now in before]).mean(0)
        return self.head(torch.cat([memory, self.look(last).tanh()], 1))


class Reservoir(nn.Module):
    """A recurrence that is not trained, and a head that is."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(FEATURES, WIDTH), nn.Linear(WIDTH, 3)
        self.cell.requires_grad_(False)

    def forward(self, x):
        state = x.new_zeros(len(x), WIDTH)
        for now in x.unbind(1):
            state = self.cell(now, state).detach()
        return self.head(state)


class Selection(nn.Module):
    """Reads the step of the highest score; the choice has no gradient."""

    def __init__(self):
        super().__init__()
        self.score, self.head = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 3)

    def forward(self, x):
        scores = torch.cat([self.score(now) for now in x.unbind(1)], 1)
        return self.head(x[torch.arange(len(x)), scores.argmax(1)])


@pytest.mark.parametrize("kind", [Equilibrium, History, Reservoir])
def test_gradients_that_are_meant_to_end_are_left_alone(kind):
    torch.manual_seed(1)
    assert looked_at(kind()) is None


def test_a_hard_choice_is_no_smooth_dependence():
    for seed in range(5):
        torch.manual_seed(seed)
        facts = looked_at(Selection())
        assert facts is None or facts.uneven > JUMP


def trained(model, targets_of, steps=60):
    """Train on a rule over nine steps while a doctor watches, and return its report."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=loss_of, every=10) as doctor:
        for _ in range(steps):
            x = torch.randn(32, STEPS, FEATURES)
            targets = targets_of(x)
            optimizer.zero_grad()
            loss = loss_of(model(x), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, targets)
        return doctor.report()


def loss_of(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def first_step(x):
    return x[:, 0, :3].argmax(1)


def own_step(x):
    return x[:, :, :3].argmax(2)


@pytest.mark.slow
def test_a_cut_recurrence_is_named_and_the_line_is_given():
    torch.manual_seed(1)
    report = trained(Loop(cut), first_step)
    assert (report.main_cause, report.main.confidence) == ("vanishing_gradient", "certain")
    assert report.main.layer == "cell"
    assert "test_recurrence.py:" in report.main.line
    assert ".detach()" in report.main.summary


@pytest.mark.slow
def test_learning_from_each_step_alone_may_be_meant():
    torch.manual_seed(1)
    report = trained(Loop(cut, each=True), own_step, steps=150)
    assert report.healthy
    assert [f.severity for f in report.findings if f.cause == "vanishing_gradient"] == ["note"]


def early_steps_own_then_the_first(x):
    own = own_step(x)
    return torch.where(torch.arange(STEPS) < 6, own, first_step(x)[:, None])


@pytest.mark.slow
def test_a_cut_is_named_where_the_last_steps_miss_what_the_first_one_tells():
    torch.manual_seed(1)
    report = trained(Loop(cut, each=True), early_steps_own_then_the_first, steps=300)
    facts = report.evidence.network.recurrence
    assert facts.end_by_all > facts.end_skill + 0.4
    assert facts.end_by_itself < 0.15
    assert (report.main_cause, report.main.confidence) == ("vanishing_gradient", "certain"), report
    assert "at the last step" in report.main.summary


@pytest.mark.slow
def test_with_its_graph_the_same_recurrence_is_healthy():
    torch.manual_seed(1)
    report = trained(Loop(as_it_is, each=True), early_steps_own_then_the_first, steps=300)
    assert report.healthy
    assert report.findings == []


@pytest.mark.slow
def test_a_cut_is_no_fault_where_the_own_step_tells_all():
    torch.manual_seed(1)
    facts = trained(Loop(cut, each=True), own_step, 150).evidence.network.recurrence
    assert facts.end_skill > 0.7
    assert facts.end_by_all < facts.end_skill + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("hand_on", [as_it_is, in_windows])
def test_a_recurrence_that_learns_is_healthy(hand_on):
    torch.manual_seed(1)
    report = trained(Loop(hand_on), lambda x: x[:, -1, :3].argmax(1), steps=120)
    assert report.healthy
    assert report.findings == []
