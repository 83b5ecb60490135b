"""What imports what, and what the files may not say."""

import ast
import re
import subprocess
import sys

import pytest

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "debugnn"
PLUGINS = REPOSITORY / "src" / "hydra_plugins"
MODULES = sorted((*PACKAGE.rglob("*.py"), *PLUGINS.rglob("*.py")))

LEAVES = {
    "errors",
    "files",
    "records",
    "json_lines",
    "settings",
    "processor",
    "cadence",
    "random_state",
    "tensor_stats",
    "lr_curve",
}

# Room → the libraries that it may import besides the standard library, and the other rooms of the
# package. Imports point one way: a room is listed after all that it may import.
ALLOWED = {
    "errors": (set(), set()),
    "files": (set(), set()),
    "settings": ({"yaml"}, set()),
    "records": (set(), set()),
    "json_lines": (set(), {"records"}),
    "processor": (set(), set()),
    "cadence": (set(), set()),
    "random_state": ({"torch"}, set()),
    "tensor_stats": ({"torch"}, {"records"}),
    "lr_curve": ({"numpy"}, {"records"}),
    "nn": ({"torch"}, LEAVES),
    "data": ({"numpy", "torch", "torchvision", "sklearn", "filelock"}, LEAVES),
    "training": ({"numpy", "torch"}, LEAVES | {"nn", "data"}),
    "doctor": ({"numpy", "torch"}, LEAVES),
    "integrations": ({"torch", "lightning", "transformers"}, LEAVES | {"doctor"}),
    "faults": ({"numpy", "torch", "sklearn"}, {"doctor"}),
    "config": ({"hydra", "omegaconf"}, LEAVES),
    "overrides": ({"hydra", "omegaconf"}, LEAVES),
    "arguments": ({"torch", "hydra", "omegaconf"}, LEAVES | {"config"}),
    "pretraining": ({"torch", "omegaconf"}, LEAVES | {"training"}),
    "build": (
        {"torch", "hydra", "omegaconf"},
        LEAVES | {"nn", "data", "training", "config", "pretraining"},
    ),
    "runs": (
        {"numpy", "torch", "hydra", "omegaconf", "filelock", "joblib", "wandb"},
        LEAVES | {"nn", "data", "training", "doctor", "config", "overrides", "build"},
    ),
    "stacking": (
        {"torch", "omegaconf"},
        LEAVES | {"nn", "data", "training", "config", "build", "runs"},
    ),
    "analysis": (
        {"numpy", "pandas", "matplotlib", "PIL", "scipy", "omegaconf", "yaml", "jinja2"}
        | {"wandb", "wandb_workspaces"},
        LEAVES | {"doctor"},
    ),
    "cli": (
        {"hydra", "omegaconf", "yaml"},
        LEAVES | {"training", "config", "overrides", "arguments", "runs"},
    ),
    "debugnn_launcher": (
        {"hydra", "omegaconf"},
        LEAVES | {"arguments", "runs", "cli", "stacking"},
    ),
    "debugnn_workers": ({"hydra", "joblib", "omegaconf"}, LEAVES | {"runs", "cli"}),
    "debugnn_engines": ({"hydra", "omegaconf", "ray", "submitit"}, LEAVES | {"runs", "cli"}),
    "debugnn_sweeper": ({"hydra", "omegaconf"}, set()),
    "search": ({"filelock", "optuna"}, LEAVES),
    "debugnn_search": (
        {"hydra", "hydra_plugins", "omegaconf"},
        LEAVES | {"config", "runs", "search"},
    ),
    "__init__": (set(), {"doctor"}),
}


def room(path):
    """The module, or the folder below its package, that a file belongs to."""
    package = PACKAGE if path.is_relative_to(PACKAGE) else PLUGINS
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(path):
    """The full name of each thing that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_imports_point_one_way(path):
    libraries, rooms = ALLOWED[room(path)]
    names = [name.split(".") for name in imports(path)]
    foreign = {n[0] for n in names} - sys.stdlib_module_names - {"debugnn"}
    assert foreign <= libraries
    inside = {n[1] for n in names if n[0] == "debugnn"} - {room(path)}
    assert inside <= rooms


def test_results_figures_and_findings_need_no_torch():
    modules = [
        "debugnn",
        "debugnn.records",
        "debugnn.doctor.causes",
        "debugnn.analysis.runs",
        "debugnn.analysis.figures",
        "debugnn.analysis.claims",
        "debugnn.analysis.page",
    ]
    unwanted = ("torch", "hydra", "wandb", "sklearn")
    program = (
        f"import importlib, sys\nfor module in {modules}:\n    importlib.import_module(module)\n"
        f"    print(module, *(m for m in {unwanted} if m in sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == modules


def test_no_module_is_called_by_what_it_is_not():
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "helpers", "common", "misc", "extras"}


def test_requirements_are_exact_and_name_no_index():
    lines = [
        line
        for line in (REPOSITORY / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[-1] == "-e ."
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.+]+( ;.*)?", line) for line in lines[:-1])


def test_train_py_is_short():
    assert len((REPOSITORY / "train.py").read_text().splitlines()) < 40
