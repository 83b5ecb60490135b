"""The doctor needs torch and numpy alone, and judging needs not even torch."""

import json
import subprocess
import sys

import pytest

WITHOUT = """
import json, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in ABSENT
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
PLAIN_LOOP = """
import torch
from torch import nn

from debugnn.doctor import Doctor, Finding, Report, check

torch.manual_seed(0)
inputs = torch.randn(256, 6)
targets = (inputs @ torch.randn(6, 3)).argmax(dim=1)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
loss_fn = nn.CrossEntropyLoss()
batches = list(zip(inputs.split(32), targets.split(32), strict=True))
checklist = check(model, loss_fn, batches, optimizer)
with Doctor(model, optimizer, loss_fn) as doctor:
    for _ in range(8):
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        doctor.validate(inputs, targets)
    report = doctor.report()
assert isinstance(report, Report)

import debugnn
import debugnn.doctor.checklist
from debugnn.doctor import check as again

assert again is check is debugnn.check
assert Doctor is debugnn.Doctor
found = {
    "passed": checklist.passed,
    "checks": len(checklist.checks),
    "healthy": report.healthy,
    "steps": report.steps,
    "troubles": report.troubles,
}
"""
JUDGING = """
from debugnn.doctor import Finding, Report, causes
from debugnn.doctor.evidence import Evidence

evidence = Evidence()
evidence.optimizer.trainable = evidence.optimizer.held = 4
found = {"healthy": causes.diagnose(evidence, budget=0).healthy}
"""
LOADED = """
names = sorted(name for name in sys.modules if name.startswith("debugnn."))
print(json.dumps({**found, "modules": names}))
"""


def run(code, *absent):
    """Run code without some packages; return what it finds and the modules of debugnn it loads."""
    whole = f"ABSENT = {absent!r}{WITHOUT}{code}{LOADED}"
    done = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_doctor_works_with_torch_and_numpy_alone():
    found = run(
        PLAIN_LOOP, "hydra", "omegaconf", "wandb", "torchvision", "sklearn", "pandas",
        "matplotlib", "scipy", "joblib",
    )  # fmt: skip
    leaves = {"cadence", "errors", "records", "random_state", "tensor_stats", "lr_curve"}
    rooms = {name.split(".")[1] for name in found["modules"]}
    assert rooms <= {"doctor"} | leaves
    assert (found["passed"], found["healthy"], found["steps"]) == (True, True, 64)
    assert found["checks"] >= 10
    assert found["troubles"] == []


def test_judging_needs_no_torch():
    found = run(JUDGING, "torch", "numpy")
    assert found["healthy"] is None  # nothing was watched
