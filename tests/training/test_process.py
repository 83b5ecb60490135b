"""Process settings: they save time, and no number depends on them."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from conftest import REPOSITORY
from debugnn.training import process

pytestmark = pytest.mark.slow

PROGRAM = """
import json, resource, sys
import torch
from debugnn.training import process
if {set}:
    process.keep_freed_memory()
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, kernel = torch.randn(16, 32, 24, 24), torch.randn(64, 32, 3, 3, requires_grad=True)
for step in range(12):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kernel.grad = None
    torch.conv2d(inputs, kernel).relu().pow(2).mean().backward()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

trained = {{}}
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
    if {set}:
        process.leave_dynamo_out(kind)
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    optimizer = kind(layer.parameters(), lr=0.01)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    trained[kind.__name__] = len(seen), layer.weight.tolist()
json.dump({{"faults": faults, "sum": kernel.grad.sum().item(), "trained": trained,
            "dynamo": "torch._dynamo" in sys.modules}}, sys.stdout)
"""


@pytest.fixture(scope="module")
def processes():
    """What a process computes that is left as it is, and one with all settings."""
    found = []
    for chosen in (False, True):
        shown = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(set=chosen)],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(shown.stdout))
    return found


def test_kept_memory_spares_page_faults_and_changes_no_number(processes):
    plain, kept = processes
    assert kept["sum"] == plain["sum"]
    if sys.platform == "linux" and process.keep_freed_memory():
        assert kept["faults"] < 0.5 * plain["faults"]


def test_a_plain_process_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("DEBUGNN_PLAIN_PROCESS", "1")
    assert not process.keep_freed_memory()
    step = torch.optim.Adadelta.step
    process.leave_dynamo_out(torch.optim.Adadelta)
    assert torch.optim.Adadelta.step is step
    monkeypatch.setenv("DEBUGNN_PLAIN_PROCESS", "0")
    assert not process.plain()


def test_an_optimizer_without_dynamo_takes_the_same_steps(processes):
    plain, spared = (found["trained"] for found in processes)
    assert spared == plain
    assert {name: steps for name, (steps, _) in spared.items()} == {
        "SGD": 3, "Adam": 3, "AdamW": 3,
    }  # fmt: skip
    assert not processes[1]["dynamo"]


def test_an_imported_dynamo_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", object())
    step = torch.optim.RMSprop.step
    process.leave_dynamo_out(torch.optim.RMSprop)
    assert torch.optim.RMSprop.step is step


@pytest.mark.parametrize(
    ("model", "batch_size", "threads"),
    [(nn.Linear(20, 10), 32, 1), (nn.Linear(20, 10), 10_000, 3), (nn.Conv1d(1, 2, 3), 32, 3)],
    ids=["small", "large batch", "convolution"],
)
def test_small_steps_are_computed_in_one_thread(monkeypatch, model, batch_size, threads):
    monkeypatch.setattr(process, "_THREADS", 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        process.choose_threads(model, batch_size)
        assert torch.get_num_threads() == threads
        monkeypatch.setenv("DEBUGNN_PLAIN_PROCESS", "1")
        torch.set_num_threads(2)
        process.choose_threads(model, batch_size)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
