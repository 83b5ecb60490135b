"""What watching costs: copies of the parameters, and nothing that is compiled again."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from debugnn.doctor import Doctor

pytestmark = pytest.mark.slow

WIDE = 1500  # the size of a weight that cannot be taken for an activation


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(),
                         nn.Linear(WIDE, 4))  # fmt: skip


def copies(model):
    """Count the tensors that are as large as the model's largest weight."""
    gc.collect()
    found = {
        each.untyped_storage().data_ptr()
        for each in gc.get_objects()
        if isinstance(each, torch.Tensor) and each.shape == (WIDE, WIDE)
    }
    assert model[2].weight.untyped_storage().data_ptr() in found
    return len(found)


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts large tensors after each operation that makes one, and keeps the largest count."""

    def __init__(self, model):
        super().__init__()
        self.model, self.most = model, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape == (WIDE, WIDE):
            self.most = max(self.most, copies(self.model))
        return made


def watch(model, steps=25, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    doctor = Doctor(model, optimizer, F.cross_entropy, **options)
    inputs, targets = torch.randn(16, 8), torch.randint(4, (16,))
    before = after = 0
    with Peak(model) as peak:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            before = max(before, copies(model))
            peak.most = 0
            doctor.step(loss, inputs, targets)
            after = max(after, peak.most, copies(model))
    return doctor, before, after


def test_the_doctor_holds_the_parameters_twice_at_most():
    """Beside the weights and their gradients: the copy, and the initial weights."""
    doctor, before, after = watch(wide())
    assert before <= 4
    # A difference of two tensors, or a gradient of the copy before the initial weights are kept.
    assert after <= 5
    doctor.close()


def test_low_memory_holds_none():
    doctor, before, after = watch(wide(), memory="low")
    assert (before, after) == (2, 2)
    report = doctor.report()
    assert report.troubles == []
    assert report.healthy is None
    assert report.evidence.loop.steps == 25


def test_low_memory_accuses_no_parameter_that_another_optimiser_moves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with Doctor(model, first, F.cross_entropy, memory="low") as doctor:
        for _ in range(50):
            inputs = torch.randn(16, 8)
            targets = inputs[:, :4].argmax(dim=1)
            model.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            first.step()
            second.step()
            doctor.step(loss, inputs, targets)
        report = doctor.report()
    assert report.evidence.optimizer.missing == []
    assert report.healthy is not False, report.details()


# --- torch.compile ------------------------------------------------------------------------------


def compiled(part):
    """Return a model and a loss, of which one part is compiled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    loss_fn = F.cross_entropy
    if part == "model":
        model = torch.compile(model, backend="aot_eager")
    elif part == "model in place":
        model.compile(backend="aot_eager")
    elif part == "layer":
        model[0] = torch.compile(model[0], backend="aot_eager")
    elif part == "loss":

        @torch.compile(backend="aot_eager")
        def loss_fn(outputs, targets):
            return F.cross_entropy(outputs, targets)

    return model, loss_fn


def compiles(part, watched):
    """Train and evaluate; return what was compiled, and the weights."""
    torch._dynamo.reset()
    counters.clear()
    model, loss_fn = compiled(part)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    doctor = Doctor(model, optimizer, loss_fn) if watched else None
    inputs = torch.randn(256, 8)
    targets = inputs[:, :4].argmax(dim=1)
    for _ in range(6):
        model.train()
        for rows in torch.arange(256).split(32):
            optimizer.zero_grad()
            loss = loss_fn(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            if doctor is not None:
                doctor.step(loss, inputs[rows], targets[rows])
        model.eval()
        if doctor is not None:
            doctor.validate(inputs, targets)
    report = None if doctor is None else doctor.report()
    kept = dict(counters["stats"]), dict(counters["graph_break"])
    return kept, [p.detach().clone() for p in model.parameters()], report


@pytest.mark.parametrize("part", ["model", "model in place", "layer", "loss"])
def test_nothing_is_compiled_again_and_no_graph_is_broken(part):
    plain, weights, _ = compiles(part, watched=False)
    seen, watched, report = compiles(part, watched=True)
    assert plain[0]["unique_graphs"] == 1
    assert seen == plain
    assert report.healthy is True, report.details()
    assert report.troubles == []
    assert all(map(torch.equal, weights, watched))
