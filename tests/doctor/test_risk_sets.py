"""Which samples a Cox partial likelihood compares an event with, however it is written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.observe.risk_sets import risk_sets as found_in

BATCH = 24
RANDOM = torch.Generator().manual_seed(0)
TIME = torch.rand(BATCH, generator=RANDOM) * 5
EVENT = (torch.rand(BATCH, generator=RANDOM) < 0.6).float()
SCORES = torch.randn(BATCH, 1, generator=RANDOM)


def by_sorting(right):
    def loss(scores, targets):
        time, event = targets
        order = time.argsort(descending=right)
        h, e = scores.view(-1)[order], event[order]
        return -((h - h.logcumsumexp(0)) * e).sum() / e.sum()

    return loss


def by_flipping(right):
    """Sorted by rising time, and summed up from the end; with a penalty of large scores."""

    def loss(scores, targets):
        time, event = targets
        order = time.argsort()
        h, e = scores.view(-1)[order], event[order]
        total = h.exp().flip(0).cumsum(0).flip(0) if right else h.exp().cumsum(0)
        return -((h - total.log()) * e).mean() + 0.1 * scores.square().mean() + 0.01 * h.abs().sum()

    return loss


def by_mask(right):
    def loss(scores, targets):
        time, event = targets
        h = scores.view(-1)
        mask = time[None] >= time[:, None] if right else time[None] <= time[:, None]
        at_risk = h[None].expand(len(h), -1).masked_fill(~mask, -torch.inf).logsumexp(1)
        return (at_risk - h)[event.bool()].sum()

    return loss


def by_pairs(right):
    def loss(scores, targets):
        time, event = targets
        total, h = 0.0, scores.view(-1)
        for i in event.nonzero().view(-1).tolist():
            others = time >= time[i] if right else time <= time[i]
            total = total + (h[others] - h[i]).exp().sum().log()
        return total / len(h)

    return loss


def by_stable_sum(right):
    """Scores are taken less their largest, and a small number is added to each sum."""

    def loss(scores, targets):
        time, event = targets
        order = time.argsort(descending=right)
        h, e = scores.view(-1)[order], event[order]
        largest = h.max()
        total = (h - largest).exp().cumsum(0).add(1e-7).log() + largest
        return -(h - total).mul(e).sum() / e.sum().clamp(min=1)

    return loss


def efron(right):
    """The likelihood of tied events by Efron."""

    def loss(scores, targets):
        time, event = targets
        h, total = scores.view(-1), 0.0
        for t in time[event > 0].unique():
            tied = (time == t) & (event > 0)
            at_risk = h[time >= t if right else time <= t].exp().sum()
            steps = torch.arange(int(tied.sum())) / tied.sum()
            total = total - h[tied].sum() + (at_risk - steps * h[tied].exp().sum()).log().sum()
        return total / event.sum()

    return loss


def risk_sets(*arguments):
    found = found_in(*arguments)
    return None if found is None else found.compared


WAYS = [by_sorting, by_flipping, by_mask, by_pairs, by_stable_sum, efron]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("right", [True, False])
def test_risk_sets_are_told_however_the_loss_is_written(way, right):
    named = "later" if right else "earlier"
    assert risk_sets(way(right), SCORES, (TIME, EVENT)) == named
    months = (TIME * 3).ceil().long()  # with ties
    assert risk_sets(way(right), SCORES.view(-1), [months, EVENT.bool()]) == named


@pytest.mark.parametrize("right", [True, False])
def test_risk_sets_are_told_whatever_holds_events_and_times(right):
    loss, named = by_sorting(right), "later" if right else "earlier"
    columns = torch.stack([EVENT, TIME, TIME.sqrt()], dim=1)
    assert risk_sets(lambda o, t: loss(o, (t[:, 1], t[:, 0])), SCORES, columns) == named
    given = {"id": torch.arange(BATCH), "event": EVENT[:, None], "time": TIME[:, None]}

    def of_dict(outputs, targets):
        return loss(outputs["risk"], (targets["time"][:, 0], targets["event"][:, 0]))

    assert risk_sets(of_dict, {"risk": SCORES, "code": torch.ones(3)}, given) == named
    hazards = SCORES.exp()
    assert risk_sets(lambda o, t: loss(o.log(), t), hazards, (TIME, EVENT)) == named


def presorted(scores, targets):
    """The loss of a batch that is sorted by falling time."""
    _, event = targets
    h = scores.view(-1)
    return -((h - h.logcumsumexp(0)) * event).sum() / event.sum()


def test_a_loss_that_relies_on_the_order_of_the_batch():
    falling = TIME.argsort(descending=True)
    for order, named in ((falling, "later"), (falling.flip(0), "earlier")):
        assert risk_sets(presorted, SCORES, (TIME[order], EVENT[order])) == named
    assert risk_sets(presorted, SCORES, (TIME, EVENT)) is None


def ranking(form, right=True):
    """Comparable pairs: one has an event, and the other a longer time."""

    def loss(scores, targets):
        time, event = targets
        h = scores.view(-1)
        later = time[None] > time[:, None] if right else time[None] < time[:, None]
        pairs = later & (event[:, None] > 0)
        return form(h[None] - h[:, None])[pairs].sum() / pairs.sum()

    return loss


def plackett_luce(scores, targets):
    """A ranking by relevance of those samples that are no padding."""
    relevance, known = targets
    order = relevance.argsort(descending=True)
    h, kept = scores.view(-1)[order], known[order] > 0
    return (h[kept].flip(0).logcumsumexp(0).flip(0) - h[kept]).sum()


def exponential_times(scores, targets):
    time, event = targets
    h = scores.view(-1)
    return (h.exp() * time - event * h).mean()


@pytest.mark.parametrize(
    "loss",
    [
        ranking(F.softplus),
        ranking(F.softplus, right=False),
        ranking(lambda gap: F.relu(1 + gap)),
        ranking(torch.sigmoid),
        plackett_luce,
        exponential_times,
        lambda o, t: ((o.view(-1) - t[0].log1p()).square() * t[1]).sum() / t[1].sum(),
        lambda o, t: F.binary_cross_entropy_with_logits(o.view(-1), t[1], weight=t[0]),
    ],
)
def test_other_losses_of_events_and_times_have_no_risk_sets(loss):
    assert risk_sets(loss, SCORES, (TIME, EVENT)) is None


def test_what_may_be_a_turned_time_is_not_judged():
    loss = by_sorting(right=False)
    assert risk_sets(loss, SCORES, (-TIME, EVENT)) is None
    assert risk_sets(loss, SCORES, (TIME - TIME.mean(), EVENT)) is None
    assert (
        risk_sets(ranking(torch.exp), SCORES, (TIME, EVENT)) == "later"
    )  # its risk sets are right


def report_of(x, time, event, loss_fn):
    """Train a net of log hazards, and return the doctor's report."""
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ELU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(len(x) // 4):
                optimizer.zero_grad()
                loss = loss_fn(model(x[rows]), (time[rows], event[rows]))
                loss.backward()
                optimizer.step()
                doctor.step(loss, x[rows], (time[rows], event[rows]))
        return doctor.report()


@pytest.mark.parametrize("right", [True, False])
def test_a_program_whose_risk_sets_are_reversed_is_named(right):
    torch.manual_seed(0)
    x = torch.randn(192, 4)
    length = -torch.rand(192).log() * torch.exp(-x[:, 0] - x[:, 1] * x[:, 2])
    gone = -torch.rand(192).log() * 2
    time, event = torch.minimum(length, gone), (length <= gone).float()
    report = report_of(x, time, event, by_sorting(right))
    assert report.evidence.loss.risk_sets == ("later" if right else "earlier")
    if right:
        assert report.healthy is not False, str(report)
        assert not [f for f in report.findings if f.severity != "note"]
    else:
        finding = report.findings[0]
        assert (finding.cause, finding.confidence) == ("wrong_loss", "certain")
        assert finding.severity == "warning"
        assert "reversed risk sets" in finding.summary
        assert "descending=True" in finding.fix


@pytest.mark.parametrize("leak", ["time", "logarithm of the time", "rough time", None])
def test_a_feature_that_tells_the_time_of_an_event_is_named(leak):
    torch.manual_seed(0)
    x = torch.randn(256, 5)
    length = -torch.rand(256).log() * torch.exp(-x[:, 0])
    gone = -torch.rand(256).log() * 2
    time, event = torch.minimum(length, gone), (length <= gone).float()
    if leak is not None:
        made = {"time": -time, "logarithm of the time": time.log(), "rough time": time + x[:, 4]}
        x = torch.cat([x, made[leak][:, None]], dim=1)
    report = report_of(x, time, event, by_sorting(right=True))
    named = [f.cause for f in report.findings if f.severity != "note"]
    assert named == ["label_leak"] * (leak in ("time", "logarithm of the time"))
