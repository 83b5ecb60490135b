"""Process settings: they save time, and no number depends on them."""

import json
import subprocess
import sys

import pytest
import torch

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


CPUINFO = {
    "Haswell": (
        "model name\t: Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz\n"
        "flags\t\t: fpu vme sse sse2 ssse3 fma cx16 sse4_1 sse4_2 avx f16c bmi1 avx2 smep bmi2\n",
        False,
    ),
    "Cascade Lake": (
        "model name\t: Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz\n"
        "flags\t\t: fpu sse2 fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni\n",
        False,
    ),
    "Zen 4": (
        "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\n"
        "flags\t\t: fpu sse2 fma avx2 avx512f avx512dq avx512_bf16 avx512_vnni avx512_bitalg\n",
        True,
    ),
    "Sapphire Rapids, its AMX alone": (
        "model name\t: Intel(R) Xeon(R) Platinum 8488C\n"
        "flags\t\t: fpu sse2 fma avx2 amx_bf16 amx_tile amx_int8\n",
        True,
    ),
    "Neoverse N1": (
        "BogoMIPS\t: 243.75\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp ssbs\n"
        "CPU implementer\t: 0x41\n",
        False,
    ),
    "Neoverse V1": (
        "BogoMIPS\t: 2100.00\n"
        "Features\t: fp asimd atomics fphp asimdhp sve asimdfhm svei8mm svebf16 i8mm bf16 dgh\n"
        "CPU implementer\t: 0x41\n",
        True,
    ),
    "RISC-V, which lists no features by name": ("hart\t\t: 1\nisa\t\t: rv64imafdc\n", True),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_bf16_is_read_off_the_processors_features(name):
    text, expected = CPUINFO[name]
    assert process.has_bf16("processor\t: 0\n" + text) is expected


def test_this_processors_features_are_read_where_none_are_given(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "CPUINFO", tmp_path / "cpuinfo")
    assert process.has_bf16()  # another system than Linux: nothing is known
    process.CPUINFO.write_text(CPUINFO["Haswell"][0])
    assert not process.has_bf16()
