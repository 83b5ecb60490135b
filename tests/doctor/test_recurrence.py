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

SAMPLES, STEPS, FEATURES, WIDTH, SYMBOLS = 24, 9, 5, 12, 30


class Loop(nn.Module):
    """A GRU cell over (B, T, features) or (T, B, features), read at the end or at each step."""

    def __init__(self, hand_on, *, tokens=False, each=False, both=False, time=1):
        super().__init__()
        self.hand_on, self.each, self.both, self.time = hand_on, each, both, time
        self.embed = nn.Embedding(SYMBOLS, FEATURES) if tokens else nn.Identity()
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
    x = torch.randint(SYMBOLS, shape) if tokens else torch.randn(*shape, FEATURES)
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


class Reader(nn.Module):
    """A GRU cell over symbols (B, T) or (T, B), each read in a step of its own."""

    def __init__(self, read, hand_on, *, time=1, each=False, both=False):
        super().__init__()
        self.read, self.hand_on, self.time, self.each, self.both = read, hand_on, time, each, both
        self.table = nn.Embedding(SYMBOLS, FEATURES)
        self.project = nn.Linear(SYMBOLS, FEATURES)
        self.cell = nn.GRUCell(SYMBOLS if read is codes else FEATURES, WIDTH)
        self.head = nn.Linear(WIDTH * (1 + both), 3)

    def forward(self, symbols):
        places = range(symbols.shape[self.time])
        forth = self.run(symbols, places)
        if not self.both:
            return self.head(torch.stack(forth, self.time) if self.each else forth[-1])
        back = self.run(symbols, reversed(places))[::-1]
        if self.each:
            return self.head(torch.cat([torch.stack(s, self.time) for s in (forth, back)], -1))
        return self.head(torch.cat([forth[-1], back[0]], -1))

    def run(self, symbols, places):
        state, states = torch.zeros(symbols.shape[1 - self.time], WIDTH), []
        for number, place in enumerate(places):
            now = self.read(self, symbols.narrow(self.time, place, 1).squeeze(self.time))
            state = self.cell(now, self.hand_on(number, state))
            states.append(state)
        return states


def embedded(model, column):
    return model.table(column)


def looked_up(model, column):
    return model.table.weight[column]


def projected(model, column):
    return model.project(F.one_hot(column, SYMBOLS).float())


def codes(model, column):
    return F.one_hot(column, SYMBOLS).to(torch.float32)


READINGS = [embedded, looked_up, projected, codes]


@pytest.mark.parametrize("read", READINGS)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("time", [0, 1])
def test_symbols_that_are_read_one_at_a_time_are_followed_to_each(read, each, time):
    torch.manual_seed(1)
    facts = looked_at(Reader(read, cut, time=time, each=each), tokens=True, time=time)
    assert (facts.layer, facts.steps, facts.reached) == ("cell", STEPS, 1)
    assert (facts.calls, facts.idle, facts.each_step) == (STEPS, STEPS - 1, each)
    assert facts.uneven < JUMP / 2
    assert facts.cut_by == ".detach()"


@pytest.mark.parametrize("read", READINGS)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_symbols_that_are_read_one_at_a_time_with_the_graph_are_not_accused(read, each, both):
    torch.manual_seed(1)
    assert looked_at(Reader(read, as_it_is, each=each, both=both), tokens=True) is None


def test_both_directions_over_symbols_keep_one_step_each():
    torch.manual_seed(1)
    assert looked_at(Reader(embedded, cut, both=True), tokens=True).reached == CUT_TO


def test_windows_of_symbols_keep_more_than_a_cut():
    torch.manual_seed(1)
    assert looked_at(Reader(embedded, in_windows), tokens=True).reached > CUT_TO


class Decoder(nn.Module):
    """Reads symbols, and says as many, each of which it is given back or has said itself.

    Args:
        start: turns what the reader ends with into what the writer starts from.
        given_back: is given the scores and the right symbol, and returns the vector of the next.
    """

    def __init__(self, start, given_back):
        super().__init__()
        self.start, self.given_back = start, given_back
        self.table = nn.Embedding(SYMBOLS, FEATURES)
        self.reader, self.writer = nn.GRUCell(FEATURES, WIDTH), nn.GRUCell(FEATURES, WIDTH)
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols):
        state = torch.zeros(len(symbols), WIDTH)
        for place in range(STEPS):
            state = self.reader(self.table(symbols[:, place]), state)
        state, said = self.start(state), []
        now = torch.zeros(len(symbols), FEATURES)
        for place in range(STEPS):
            state = self.writer(now, state)
            said.append(self.head(state))
            now = self.given_back(self, said[-1], symbols[:, place])
        return torch.stack(said, 1)


def right_one(model, scores, symbol):
    return model.table(symbol)


def own_choice(model, scores, symbol):
    return model.table(scores.argmax(1))


def now_and_then_its_own(model, scores, symbol):
    chosen = torch.where(torch.rand(len(symbol)) < 0.5, scores.argmax(1), symbol)
    return model.table(chosen)


def straight_through(model, scores, symbol):
    soft = scores.softmax(1)
    hard = F.one_hot(scores.argmax(1), SYMBOLS).float()
    return (soft + (hard - soft).detach()) @ model.table.weight


@pytest.mark.parametrize(
    "given_back", [right_one, own_choice, now_and_then_its_own, straight_through]
)
@pytest.mark.parametrize("start", [torch.clone, torch.detach])
def test_a_writer_that_is_given_symbols_back_is_not_accused(start, given_back):
    torch.manual_seed(1)
    facts = looked_at(Decoder(start, given_back), tokens=True)
    assert facts is None or facts.reached > CUT_TO or facts.uneven > JUMP


class Memory(nn.Module):
    """Attends from its last symbol to what it has kept of the others, without their graph."""

    def __init__(self, of_symbols):
        super().__init__()
        self.table = nn.Embedding(SYMBOLS, FEATURES) if of_symbols else nn.Identity()
        self.look, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(2 * WIDTH, 3)

    def forward(self, x):
        seen = [self.look(self.table(x[:, place])).tanh() for place in range(STEPS)]
        kept = torch.stack([each.detach() for each in seen], 1)
        weights = (kept @ seen[-1].unsqueeze(2)).softmax(1)
        return self.head(torch.cat([(weights * kept).sum(1), seen[-1]], 1))


@pytest.mark.parametrize("of_symbols", [False, True])
def test_a_memory_without_a_graph_is_no_recurrence(of_symbols):
    torch.manual_seed(1)
    assert looked_at(Memory(of_symbols), tokens=of_symbols) is None


class Attentive(nn.Module):
    """A recurrence with its graph, whose last state attends to the earlier ones without theirs."""

    def __init__(self):
        super().__init__()
        self.table, self.cell = nn.Embedding(SYMBOLS, FEATURES), nn.GRUCell(FEATURES, WIDTH)
        self.head = nn.Linear(2 * WIDTH, 3)

    def forward(self, x):
        state, kept = torch.zeros(len(x), WIDTH), []
        for column in x.unbind(1):
            state = self.cell(self.table(column), state)
            kept.append(state.detach())
        kept = torch.stack(kept, 1)
        weights = (kept @ state.unsqueeze(2)).softmax(1)
        return self.head(torch.cat([(weights * kept).sum(1), state], 1))


def test_attention_to_states_without_a_graph_is_not_accused():
    torch.manual_seed(1)
    assert looked_at(Attentive(), tokens=True) is None


def numbers():
    return torch.randn(32, STEPS, FEATURES)


def symbols():
    return torch.randint(SYMBOLS, (32, STEPS))


def trained(model, targets_of, steps=60, draw=numbers):
    """Train on a rule over nine steps while a doctor watches, and return its report."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=loss_of, every=10) as doctor:
        for _ in range(steps):
            x = draw()
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


def third_symbol(x):
    return x[:, 2] % 3


@pytest.mark.slow
@pytest.mark.parametrize("read", [embedded, codes])
def test_a_cut_between_symbols_is_named(read):
    torch.manual_seed(1)
    report = trained(Reader(read, cut), third_symbol, 150, symbols)
    assert (report.main_cause, report.main.confidence) == ("vanishing_gradient", "certain"), report
    assert report.main.layer == "cell"
    assert report.main.severity == "error"


@pytest.mark.slow
def test_the_same_recurrence_over_symbols_with_its_graph_is_healthy():
    torch.manual_seed(1)
    report = trained(Reader(embedded, as_it_is), third_symbol, 400, symbols)
    assert report.healthy
    assert report.findings == []
