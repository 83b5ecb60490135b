"""A reader follows config → build → fit → sinks without opening the doctor or the stacks."""

import subprocess
import sys

import pytest

from conftest import CONF, REPOSITORY

pytestmark = pytest.mark.slow

# Executes one run, and prints what was imported of the package.
PROGRAM = """
import sys
from hydra import compose, initialize_config_dir
from debugnn import config
from debugnn.runs.execute import execute
config.register()
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    settings = compose("config", sys.argv[2:])
execute(settings, sys.argv[2:], None)
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] == "debugnn" and getattr(module, "__file__", None):
        print("reached", name, len(open(module.__file__, encoding="utf-8").readlines()))
"""


def reached(tmp_path, *arguments):
    """Module → its lines, of the package's modules that one short run imports."""
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(CONF), "trainer.epochs=1", "trainer.steps_per_epoch=2",
         "wandb=disabled", "trainer.device=cpu", f"output_dir={tmp_path}", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith("reached ")]
    return {name: int(lines) for _, name, lines in rows}


def test_a_run_without_the_doctor_imports_neither_it_nor_the_stacks(tmp_path):
    modules = reached(tmp_path, "doctor=off")
    rooms = {name.split(".")[1] for name in modules if "." in name}
    assert not rooms & {"doctor", "stacking", "faults", "analysis"}
    print(f"{len(modules)} modules, {sum(modules.values())} lines")
    assert sum(modules.values()) < 4000
    assert "debugnn.doctor.watch" in reached(tmp_path, "doctor=on")
