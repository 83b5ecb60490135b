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

# Module → what it may import besides the standard library; the rest of the package follows.
ALLOWED = {
    "records": set(),
    "errors": set(),
    "shapes": {"numpy"},
    "results": {"numpy", "pandas", "omegaconf", "yaml"},
    "report": {"pandas", "scipy", "yaml"},
    "figures": {"numpy", "pandas", "matplotlib"},
    "data": {"numpy", "torch", "torchvision", "sklearn"},
    "random_state": {"torch"},
    "batch_norm": {"torch"},
    "dropout": {"torch"},
    "models": {"torch"},
    "inits": {"torch"},
    "losses": {"torch"},
    "clipping": {"torch"},
    "loop": {"torch"},
    "graph": {"torch"},
    "lr_finder": {"numpy", "torch"},
    "stack": {"torch"},
    "stacked": {"omegaconf"},
    "checkpoint": {"torch"},
    "runtime": {"torch"},
    "doctor": {"torch"},
    "sinks": {"numpy", "wandb"},
    "writer": set(),
    "directory": {"torch", "omegaconf"},
    "run": {"torch", "omegaconf"},
    "remedy": {"omegaconf"},
    "tasks": {"omegaconf"},
    "build": {"torch", "hydra", "omegaconf"},
    "config": {"hydra", "omegaconf"},
    "cli": {"hydra", "omegaconf", "yaml"},
    "debugnn_launcher": {"hydra", "omegaconf"},
}


def room(path):
    """The module, or the folder below its package, that a file belongs to."""
    package = PACKAGE if path.is_relative_to(PACKAGE) else PLUGINS
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_one_way(path):
    if path == PACKAGE / "__init__.py":
        return
    foreign = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"debugnn"}
    assert foreign <= ALLOWED[room(path)]


@pytest.mark.parametrize(
    "module",
    ["debugnn", "debugnn.records", "debugnn.analysis.runs", "debugnn.analysis.figures", "debugnn.doctor.causes"],
)
def test_results_figures_and_findings_need_no_torch(module):
    program = (
        f"import sys, {module}; print([m for m in ('torch', 'hydra', 'wandb') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


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
    assert len((REPOSITORY / "train.py").read_text().splitlines()) < 60
