"""A reader follows config → build → fit → sinks without opening the doctor or the stacks."""

import subprocess
import sys

import pytest

from conftest import CONF, REPOSITORY
from debugnn.data import decoded, digits

pytestmark = pytest.mark.slow

# Executes a run for each command, and prints what was imported of the package until its end. Runs
# train.py's own function too, and prints which of the libraries were imported that no run needs:
# torch's compiler, what that computes with, and tables.
PROGRAM = """
import sys
from hydra import compose, initialize_config_dir
from debugnn import config
from debugnn.runs.execute import execute
config.register()
conf, *commands = sys.argv[1:]
for command in commands:
    with initialize_config_dir(conf, version_base="1.3"):
        settings = compose("config", command.split())
    execute(settings, command.split(), None)
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "debugnn" and getattr(module, "__file__", None):
            lines = len(open(module.__file__, encoding="utf-8").readlines())
            print("reached", command, name, lines, sep="\t")
sys.path.insert(0, ".")
import train
from debugnn import cli
sys.argv = ["train.py", *command.split(), "seed=1"]
cli.launch(train.main, train.CONF)
print("large", *{"torch._dynamo", "sympy", "pandas"} & set(sys.modules), sep="\t")
"""


def reached(tmp_path, prepared, *commands):
    """Return for each short run: module → its lines, of the modules that were imported until its
    end; and which large libraries any of them, or the command line, imported."""
    short = "trainer.epochs=1 trainer.steps_per_epoch=2 trainer.device=cpu"
    asked = [
        f"{command} {short} output_dir={tmp_path} data.cache={prepared}" for command in commands
    ]
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(CONF), *asked],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {command: {} for command in asked}
    for kind, *rest in (line.split("\t") for line in shown.stdout.splitlines()):
        if kind == "reached":
            command, name, lines = rest
            found[command][name] = int(lines)
        elif kind == "large":
            large = rest
    return *found.values(), large


def test_a_run_without_the_doctor_imports_neither_it_nor_the_stacks(tmp_path, prepared):
    decoded(digits, "digits", "", str(prepared), False)  # a run that finds its data in the cache
    commands = (
        "doctor=off wandb=disabled", "doctor=on wandb=disabled",
        "doctor=on doctor.every=1 optim=sgd wandb=offline",
    )  # fmt: skip
    without, with_it, _, large = reached(tmp_path, prepared, *commands)
    rooms = {name.split(".")[1] for name in without if "." in name}
    assert not rooms & {"doctor", "stacking", "faults", "analysis"}
    print(f"{len(without)} modules, {sum(without.values())} lines")
    assert sum(without.values()) < 3500
    assert "debugnn.doctor.watch" in with_it
    assert "debugnn.training.process" in without
    assert not large  # each takes 0.2 s or more
