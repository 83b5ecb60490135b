"""Categories of validation samples that another table numbers than the training's."""

from itertools import permutations

import pytest
import torch
from torch import nn

from debugnn.doctor import Doctor
from debugnn.doctor.observe.recoded import _one_to_one

TOWNS, TRADES = 12, 7


@pytest.mark.parametrize("seed", range(20))
def test_the_table_is_the_cheapest_one(seed):
    costs = torch.rand(7, 5, generator=torch.Generator().manual_seed(seed)) - 0.5
    chosen = _one_to_one(costs)
    assert len(chosen.unique()) == 5
    cost = costs[chosen, torch.arange(5)].sum()
    cheapest = min(costs[list(p), range(5)].sum() for p in permutations(range(7), 5))
    assert cost == pytest.approx(float(cheapest))


def test_a_table_that_another_one_renumbers_is_found_again():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    costs = torch.rand(40, 40, generator=torch.Generator().manual_seed(1))
    costs[order, torch.arange(40)] = 0.0
    assert torch.equal(_one_to_one(costs), order)


class Prices(nn.Module):
    """Reads a town and a trade, (B, 2), and two amounts (B, 2)."""

    def __init__(self):
        super().__init__()
        self.towns, self.trades = nn.Embedding(TOWNS, 6), nn.Embedding(TRADES, 4)
        self.joined = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, codes, amounts):
        known = [self.towns(codes[:, 0]), self.trades(codes[:, 1]), amounts]
        return self.joined(torch.cat(known, dim=1)).squeeze(1)


def tables(count, seed, noise=0.1):
    """Draw towns and trades, amounts, and prices that follow from all."""
    own = torch.Generator().manual_seed(17)
    of_town, of_trade = torch.randn(TOWNS, generator=own), torch.randn(TRADES, generator=own)
    draw = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(n, (count,), generator=draw) for n in (TOWNS, TRADES)], 1)
    amounts = torch.randn(count, 2, generator=draw)
    prices = of_town[codes[:, 0]] + of_trade[codes[:, 1]] + amounts[:, 0] * amounts[:, 1]
    return codes, amounts, prices + noise * torch.randn(count, generator=draw)


def report_of(train, val, *, epochs=30, loss_fn=None):
    """Train on a table, validate on another one after each epoch."""
    torch.manual_seed(0)
    model, loss_fn = Prices(), loss_fn or nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    *inputs, targets = train
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(epochs):
            model.train()
            for rows in torch.randperm(len(targets)).split(64):
                batch = tuple(part[rows] for part in inputs)
                optimizer.zero_grad()
                loss = loss_fn(model(*batch), targets[rows])
                loss.backward()
                optimizer.step()
                doctor.step(loss, batch, targets[rows])
            model.eval()
            doctor.validate(tuple(val[:2]), val[2])
        return doctor.report()


def renumbered(table, *columns):
    """Number the categories of some columns in the order in which they appear."""
    codes, *others = table
    codes = codes.clone()
    for column in columns:
        seen = {}
        codes[:, column] = torch.tensor(
            [seen.setdefault(value, len(seen)) for value in codes[:, column].tolist()]
        )
    return codes, *others


@pytest.mark.parametrize("columns", [(0,), (1,), (0, 1)])
def test_categories_numbered_by_appearance_are_named(columns):
    report = report_of(tables(1500, 0), renumbered(tables(400, 1), *columns))
    finding = report.findings[0]
    assert (finding.cause, finding.confidence) == ("train_test_mismatch", "shown")
    assert "numbered" in str(finding)


def test_categories_numbered_by_one_table_are_healthy():
    report = report_of(tables(1500, 0), tables(400, 1))
    assert report.healthy
    assert not report.findings


def test_what_is_learnt_by_heart_is_no_other_table():
    report = report_of(tables(150, 0, noise=1.5), tables(400, 1, noise=1.5), epochs=250)
    assert report.evidence.data.recoded is not None
    assert report.findings[0].cause == "overfitting"


def test_labels_that_are_exchanged_are_no_other_table():
    def likes(count, seed):
        codes, amounts, prices = tables(count, seed)
        return codes, amounts, (prices > 0).float()

    codes, amounts, liked = likes(400, 1)
    report = report_of(likes(1500, 0), (codes, amounts, 1 - liked), loss_fn=nn.BCEWithLogitsLoss())
    assert report.findings[0].cause == "bad_labels"
