"""What watching costs: copies of the parameters, and nothing that is compiled again."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from debugnn.cadence import DENSE
from debugnn.doctor import Doctor

pytestmark = pytest.mark.slow

WIDE = 1000  # the size of a weight that cannot be taken for an activation


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.ReLU(),
                         nn.Linear(WIDE, 4))  # fmt: skip


class LargeTensors(TorchDispatchMode):
    """Counts the memory blocks of large tensors that are alive, and keeps the highest count."""

    def __init__(self, model):
        super().__init__()
        self.most = 0
        self._blocks = {StorageWeakRef(model[2].weight.untyped_storage())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.numel() == WIDE * WIDE:
                self._blocks.add(StorageWeakRef(each.untyped_storage()))
                self.most = max(self.most, self.alive())
        return made

    def alive(self):
        self._blocks = {block for block in self._blocks if not block.expired()}
        return len(self._blocks)


def blocks_of(model, steps=25, watched=True, **options):
    """Train; return the most large blocks that were alive at once, and the doctor's report."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, foreach=False)
    doctor = Doctor(model, optimizer, F.cross_entropy, **options) if watched else None
    inputs, targets = torch.randn(16, 8), torch.randint(4, (16,))
    with LargeTensors(model) as large:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if doctor is not None:
                doctor.step(loss, inputs, targets)
        if doctor is not None:
            doctor.validate(inputs, targets)
        report = None if doctor is None else doctor.report()
    return large.most, report


def test_the_doctor_holds_the_parameters_twice_at_most():
    plain, _ = blocks_of(wide(), watched=False)
    assert plain >= 2  # the weight and its gradient
    watched, report = blocks_of(wide())
    assert report.troubles == []
    assert watched <= plain + 2


def test_low_memory_holds_none():
    plain, _ = blocks_of(wide(), watched=False)
    watched, report = blocks_of(wide(), memory="low")
    assert watched == plain
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


def _seen_of(steps, validations=0, every=20):
    """The evidence of a small net that is trained for so many steps and then validated."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    doctor = Doctor(model, optimizer, nn.functional.mse_loss, every=every)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    y = x.sum(dim=1, keepdim=True)
    for number in range(max(steps, validations)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        doctor.step(loss, x, y)
        if number < validations:
            doctor.validate(x[: number % 4 + 4], y[: number % 4 + 4])
    return doctor.report(trials=False).evidence


@pytest.mark.parametrize("every", [1, 7])
def test_probes_come_further_apart_as_a_training_goes_on(every):
    steps = [probe.step for probe in _seen_of(1000, every=every).probes if probe.step not in (3, 8)]
    dense = [step for step in range(0, DENSE * every, every) if step not in (3, 8)]
    assert steps[: len(dense)] == dense
    apart = [(b - a) / a for a, b in pairwise(steps) if a >= DENSE * every]
    assert 0.8 / DENSE < min(apart) <= max(apart) <= 2 / DENSE
    assert all(step % every == 0 for step in steps)


def test_of_many_validations_the_first_ten_and_the_last_are_evaluated():
    evidence = _seen_of(0, validations=99)
    steps = [validation.step for validation in evidence.outcome.validations]
    assert evidence.loop.validations == 99
    assert steps[:10] == list(range(1, 11))
    assert steps[-1] == 99
    assert evidence.outcome.validations[-1].score.samples == 98 % 4 + 4  # the latest samples
    assert max(b / a for a, b in pairwise(steps[10:])) < 1.35
    assert len(steps) < 25
