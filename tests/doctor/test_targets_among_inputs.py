"""A net that forecasts is given no value that it is to forecast."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor

PAST, AHEAD = 16, 4


class Windows(nn.Module):
    """Reads a window (B, time, 2) and says the last values of its first channel."""

    def __init__(self, wanted=AHEAD, steps=PAST + AHEAD):
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(nn.Linear(2 * steps, 32), nn.Tanh(), nn.Linear(32, wanted))

    def forward(self, rows):
        return self.net(rows[:, : self.steps].flatten(1))


class StepAhead(nn.Module):
    """Says the next value of the first channel at each position, from what came until then; or from
    what comes later too."""

    def __init__(self, both_ways=False):
        super().__init__()
        self.cell = nn.GRU(2, 16, batch_first=True, bidirectional=both_ways)
        self.out = nn.Linear(32 if both_ways else 16, 1)

    def forward(self, rows):
        return self.out(self.cell(rows)[0]).squeeze(-1)


class ConvolvedAhead(nn.Module):
    """The same from (B, channels, time), by a convolution that is padded on the left, or around."""

    def __init__(self, around=False):
        super().__init__()
        self.pad = (2, 2) if around else (4, 0)
        self.reads, self.out = nn.Conv1d(2, 16, 5), nn.Conv1d(16, 1, 1)

    def forward(self, rows):
        return self.out(self.reads(F.pad(rows, self.pad)).tanh())


def series(length=900):
    """An autoregressive series and another one that says nothing of it, (length, 2)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(length, 2, generator=generator)
    values = noise.clone()
    for t in range(1, length):
        values[t, 0] = 0.9 * values[t - 1, 0] + 0.4 * noise[t, 0]
    return values


def windows(values, length):
    return values.unfold(0, length, 1).transpose(1, 2).contiguous()


def trained(model, x, y, epochs=6, loss_fn=F.mse_loss):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator).split(32):
                optimizer.zero_grad()
                loss = loss_fn(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
                doctor.step(loss, x[batch], y[batch])
        return doctor.report()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("hide", [True, False])
def test_the_future_in_the_window_is_a_leak(hide):
    x = windows(series(), PAST + AHEAD)
    y = 3.0 * x[:, PAST:, 0] + 1.0  # targets in another unit
    if hide:
        x = x.clone()
        x[:, PAST:, 0] = 0.0
    report = trained(Windows(), x, y)
    facts = report.evidence.data.target_copies
    if hide:
        assert facts is None
        assert "label_leak" not in [f.cause for f in report.findings]
        return
    assert report.main_cause == "label_leak", str(report)
    leak = report.findings[0]
    assert (leak.severity, leak.confidence) == ("error", "certain")
    assert "all 4 target values of a sample stand in `rows`" in leak.summary
    assert leak.evidence["copied_target_columns"] == AHEAD
    assert (facts.last_of_axis, facts.last_positions, facts.positions) == (1, 4, 20)


def test_a_window_that_ends_with_its_target_is_a_leak():
    x = windows(series(), PAST)
    report = trained(Windows(1, PAST), x, x[:, -1, :1])
    assert report.main_cause == "label_leak", str(report)
    assert "the target stands in `rows`" in report.findings[0].summary


@pytest.mark.parametrize(("lag", "named"), [(1, True), (0, False)])
def test_quantiles_of_a_value_that_the_window_ends_with_are_a_leak(lag, named):
    """Three outputs have one target."""
    shares = torch.tensor([0.1, 0.5, 0.9])

    def pinball(outputs, targets):
        errors = targets[:, None] - outputs
        return torch.maximum(shares * errors, (shares - 1) * errors).mean()

    values = series()
    x = windows(values, PAST)[:-1]
    report = trained(Windows(3, PAST), x, values[PAST - lag :, 0][: len(x)], loss_fn=pinball)
    assert (report.main_cause == "label_leak") is named, str(report)


def test_a_future_that_the_net_does_not_read_is_no_leak():
    x = windows(series(), PAST + AHEAD)
    report = trained(Windows(steps=PAST), x, x[:, PAST:, 0])
    assert report.evidence.data.target_copies.change == 0.0
    assert "label_leak" not in [f.cause for f in report.findings]


@pytest.mark.slow
@pytest.mark.parametrize(("both_ways", "ahead"), [(False, 1), (True, 1), (True, 3)])
def test_the_next_values_at_each_position_are_a_leak_where_they_are_seen(both_ways, ahead):
    x = windows(series(), PAST + ahead)
    report = trained(StepAhead(both_ways), x[:, :-ahead], x[:, ahead:, 0])
    facts = report.evidence.data.target_copies
    assert (facts.shifted, facts.columns, facts.positions) == (ahead, PAST - ahead, PAST)
    if both_ways:
        assert report.main_cause == "label_leak", str(report)
        assert report.findings[0].confidence == "certain"
    else:
        assert facts.change == 0.0
        assert "label_leak" not in [f.cause for f in report.findings]


@pytest.mark.slow
@pytest.mark.parametrize("around", [False, True])
def test_the_same_of_channels_before_time(around):
    x = windows(series(), PAST + 1).transpose(1, 2).contiguous()
    report = trained(ConvolvedAhead(around), x[:, :, :-1], x[:, :1, 1:])
    facts = report.evidence.data.target_copies
    assert (facts.shifted, facts.columns, facts.positions) == (1, PAST - 1, PAST)
    assert ("label_leak" in [f.cause for f in report.findings]) is around, str(report)
    assert around or facts.change == 0.0


def test_one_channel_that_is_rebuilt_from_both_is_no_leak():
    x = windows(series(), PAST)
    report = trained(Windows(PAST, PAST), x, x[:, :, 0])
    assert report.evidence.data.target_copies.columns == PAST
    assert "label_leak" not in [f.cause for f in report.findings]


def test_one_channel_at_each_position_is_a_leak_where_nothing_later_is_seen():
    x = windows(series(), PAST)
    report = trained(StepAhead(), x, x[:, :, 0])
    assert report.evidence.data.target_copies.aligned
    assert report.main_cause == "label_leak", str(report)
    both = trained(StepAhead(both_ways=True), x, x[:, :, 0])
    assert not both.evidence.data.target_copies.aligned


@pytest.mark.parametrize("period", [12, 16, 24])
def test_a_season_without_noise_is_no_leak(period):
    time = torch.arange(900.0)
    values = torch.stack([torch.sin(2 * math.pi * time / period), torch.randn(900)], dim=1)
    x = windows(values, PAST + AHEAD)
    given = x.clone()
    given[:, PAST:, 0] = 0.0
    report = trained(Windows(), given, x[:, PAST:, 0])
    assert "label_leak" not in [f.cause for f in report.findings]


class Decoder(nn.Module):
    """Says values of a series from its past and from what is known of the time ahead."""

    def __init__(self):
        super().__init__()
        self.past, self.ahead = nn.GRU(2, 16, batch_first=True), nn.GRU(2, 16, batch_first=True)
        self.out = nn.Linear(16, 1)

    def forward(self, past, known):
        return self.out(self.ahead(known, self.past(past)[1])[0]).squeeze(-1)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_decoder_that_is_given_its_targets_is_a_leak(shifted):
    x = windows(series(), PAST + 2 * AHEAD)
    past, ahead = x[:, : -2 * AHEAD], x[:, -2 * AHEAD :]
    known = ahead.clone()
    if shifted:  # each position is given the value before its own
        known[:, :, 0] = x[:, -2 * AHEAD - 1 : -1, 0]
    torch.manual_seed(0)
    model = Decoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with Doctor(model, optimizer, loss_fn=F.mse_loss) as doctor:
        for batch in torch.randperm(len(x)).repeat(4).split(32):
            optimizer.zero_grad()
            given = past[batch], known[batch]
            loss = F.mse_loss(model(*given), 2 * ahead[batch][:, :, 0] - 1)
            loss.backward()
            optimizer.step()
            doctor.step(loss, given, 2 * ahead[batch][:, :, 0] - 1)
        report = doctor.report()
    named = [f.cause for f in report.findings]
    assert ("label_leak" in named) is not shifted, report.details()
