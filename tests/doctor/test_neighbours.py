"""Along which axis of a batch neighbours depend on each other."""

import pytest
import torch
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes.batch_mixing import DEPENDENT, INDEPENDENT
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.neighbours import neighbour_facts

SYMBOLS, LENGTH, SIZE = 12, 15, 32


def chains(count, generator):
    """Sequences whose next symbol is nearly always the successor of a permutation, (count, T)."""
    follows = torch.randperm(SYMBOLS, generator=torch.Generator().manual_seed(5))
    rows = [torch.randint(SYMBOLS, (count,), generator=generator)]
    for _ in range(LENGTH - 1):
        noise = torch.randint(SYMBOLS, (count,), generator=generator)
        jumps = torch.rand(count, generator=generator) < 0.2
        rows.append(torch.where(jumps, noise, follows[rows[-1]]))
    return torch.stack(rows, dim=1)


def independent(count, generator):
    return torch.randint(SYMBOLS, (count, LENGTH), generator=generator)


def padded(count, generator):
    """Independent symbols behind which a padding of random length stands at the same places."""
    rows = 1 + torch.randint(SYMBOLS - 1, (count, LENGTH), generator=generator)
    rows[:, LENGTH // 2 :] = 0
    rows[:, 0] = 1
    return rows


def walks(count, generator):
    """Autoregressive values of three features, (count, T, 3)."""
    noise = torch.randn(count, LENGTH, 3, generator=generator)
    rows = [noise[:, 0]]
    for t in range(1, LENGTH):
        rows.append(0.9 * rows[-1] + 0.4 * noise[:, t])
    return torch.stack(rows, dim=1) + torch.arange(LENGTH)[:, None]  # and a trend of all


def season(count, generator):
    """Independent values about a mean that changes with the place."""
    return torch.randn(count, LENGTH, 2, generator=generator) + torch.arange(LENGTH)[:, None].sin()


def facts_of(make, time_first=False):
    generator = torch.Generator().manual_seed(0)
    batches = [make(SIZE, generator) for _ in range(8)]
    if time_first:
        batches = [x.transpose(0, 1) for x in batches]
    return neighbour_facts([Batch(Call((x,)), None) for x in batches], Layout(1))


@pytest.mark.parametrize("make", [chains, walks])
def test_neighbours_in_time_depend_on_each_other_and_samples_do_not(make):
    facts = facts_of(make)
    assert facts.second > 0.2
    assert facts.first < 0.03
    turned = facts_of(make, time_first=True)
    assert turned.first > 0.2
    assert turned.second < 0.03


@pytest.mark.parametrize("make", [independent, padded, season])
def test_what_a_place_alone_tells_is_no_dependence(make):
    for time_first in (False, True):
        facts = facts_of(make, time_first)
        assert max(facts.first, facts.second) < 0.04


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_of_noise_the_targets_tell_which_axis_is_time(time_first, flat):
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(8):
        noise = torch.randn(SIZE, LENGTH, 1, generator=generator)
        states = [noise[:, 0]]
        for t in range(1, LENGTH):
            states.append(0.9 * states[-1] + noise[:, t])
        targets = torch.stack(states, dim=1)
        targets = targets.squeeze(2) if flat else targets
        pair = [x.transpose(0, 1) if time_first else x for x in (noise, targets)]
        batches.append(Batch(Call((pair[0],)), pair[1]))
    facts = neighbour_facts(batches, Layout(1))
    along = facts.first if time_first else facts.second
    across = facts.second if time_first else facts.first
    assert facts.values == "targets"
    assert along > DEPENDENT
    assert across < INDEPENDENT
    without = [Batch(batch.call, None) for batch in batches]
    assert neighbour_facts(without, Layout(1)).values == "inputs"


def test_tables_and_few_symbols_tell_nothing():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(SIZE, LENGTH, generator=generator)
    few = torch.randint(100_000, (SIZE, LENGTH), generator=generator)
    for x in (table, few, table[:2]):
        assert neighbour_facts([Batch(Call((x,)), None)], Layout(1)) is None


class Tagger(nn.Module):
    """Names the symbol before the last one at each position, by a recurrent layer."""

    def __init__(self, batch_first):
        super().__init__()
        self.embedded = nn.Embedding(SYMBOLS, 16)
        self.cell = nn.GRU(16, 32, batch_first=batch_first)
        self.out = nn.Linear(32, SYMBOLS)

    def forward(self, symbols):
        return self.out(self.cell(self.embedded(symbols))[0]).transpose(1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch_first", "time_first"), [(True, False), (False, True), (False, False), (True, True)]
)
def test_a_layer_that_runs_over_the_batch_is_told_from_a_batch_whose_time_comes_first(
    batch_first, time_first
):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x = chains(640, generator)
    y = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    model, loss_fn = Tagger(batch_first), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(6):
            for batch in torch.randperm(len(x), generator=generator).split(SIZE):
                inputs, targets = x[batch], y[batch]
                if time_first:
                    inputs, targets = inputs.T, targets.T
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs, targets)
        report = doctor.report()
    if batch_first != time_first:
        assert report.healthy, str(report)
    else:
        assert (report.main_cause, report.findings[0].confidence) == ("batch_mixing", "certain")
