"""Running averages of batch norm that are those of the last batch, and scales of zero."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.outcome import with_new_averages


class Residual(nn.Module):
    """Adds a branch whose last scale is 0 at the start, by right."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)
        )
        nn.init.zeros_(self.branch[-1].weight)

    def forward(self, x):
        return torch.relu(x + self.branch(x))


def plain(momentum=0.1, scale=1.0):
    norm = nn.BatchNorm1d(32, momentum=momentum)
    nn.init.constant_(norm.weight, scale)
    return nn.Sequential(nn.Linear(8, 32), norm, nn.ReLU(), nn.Linear(32, 4))


def residual():
    return nn.Sequential(Residual(), Residual(), nn.Linear(8, 4))


def train(make, steps=300, size=4):
    torch.manual_seed(0)
    data = torch.randn(2000, 8)
    labels = (data[:, :4] + 0.3 * data[:, 4:]).argmax(dim=1)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Doctor(model, optimizer, F.cross_entropy) as doctor:
        for step in range(steps):
            rows = torch.arange(size * step, size * (step + 1)) % 1600
            loss = F.cross_entropy(model(data[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, data[rows], labels[rows])
        doctor.validate(data[1600:], labels[1600:])
        return doctor.report()


def test_averages_of_the_last_batch_are_named_and_slow_ones_are_sound():
    report = train(lambda: plain(momentum=0.99))
    (finding,) = [f for f in report.findings if f.severity != "note"]
    assert (finding.cause, finding.confidence) == ("train_eval_mode", "shown")
    assert finding.evidence["skill_of_averages_taken_anew"] > 0.7
    assert train(plain).healthy is True


def test_new_averages_are_the_means_over_the_batches_and_the_model_stays_as_it_is():
    torch.manual_seed(0)
    model = plain().eval()
    batches = [Batch(Call((torch.randn(16, 8),)), torch.zeros(16).long()) for _ in range(5)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = with_new_averages(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hidden = [model[0](batch.call.args[0]).double() for batch in batches]
    mean = torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0)
    variance = torch.stack([h.var(dim=0) for h in hidden]).mean(dim=0)
    last = hidden[-1].sub(mean).div(variance.add(1e-5).sqrt()).relu()
    assert torch.allclose(found[0].outputs, model[3](last.float()), atol=1e-5)
    assert with_new_averages(nn.Linear(8, 4), batches) == []


def test_scales_of_zero_that_no_gradient_reaches_are_named():
    report = train(lambda: plain(scale=0.0), size=32)
    assert (report.main.cause, report.main.confidence) == ("init_scale_too_small", "certain")
    assert report.main.evidence["scales"] == ["1.weight"]


def test_a_branch_that_begins_at_zero_is_sound():
    report = train(residual, size=32)
    assert report.healthy is True
    assert report.evidence.network.zero_scales == []


@pytest.mark.parametrize("norm", [nn.LayerNorm(32), nn.GroupNorm(4, 32), nn.RMSNorm(32)])
def test_other_normalisations_have_scales_too(norm):
    def make():
        nn.init.zeros_(norm.weight)
        return nn.Sequential(nn.Linear(8, 32), norm, nn.ReLU(), nn.Linear(32, 4))

    report = train(make, steps=60, size=32)
    assert report.evidence.network.zero_scales == ["1.weight"]


class Places(nn.Module):
    """Three layers, each with a norm of its own, or all with the same one."""

    def __init__(self, shared):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 24)])
        norms = [nn.BatchNorm1d(24) for _ in range(3)]
        self.norms = nn.ModuleList([norms[0]] * 3 if shared else norms)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = torch.relu(norm(10.0**number * layer(x) + number))
        return self.head(x)


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_norm_that_is_run_at_several_places_is_named(shared):
    report = train(lambda: Places(shared), steps=250, size=32)
    assert report.evidence.network.shared_norms == (["norms.0"] if shared else [])
    if shared:
        assert (report.main.cause, report.main.confidence) == ("train_eval_mode", "certain")
        assert report.main.layer == "norms.0"
    else:
        assert report.healthy is True
