"""The wheel holds the whole package, needs torch and numpy alone, and is enough for the doctor."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from conftest import REPOSITORY

pytestmark = pytest.mark.slow

EXPERIMENTS = (
    "hydra", "hydra_plugins", "joblib", "matplotlib", "omegaconf", "pandas", "scipy", "sklearn",
    "torchvision", "tqdm", "wandb", "yaml",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources: setuptools writes beside what it builds."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=ignored)
    # Without isolation: the build needs no network, only the setuptools that is installed.
    command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), "."]
    shown = subprocess.run(
        [sys.executable, "-m", *command], cwd=source, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_the_articles_numbers(wheel: Path) -> None:
    source = REPOSITORY / "src"
    wanted = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    wanted.add("debugnn/analysis/article_runs.csv")
    templates = (source / "debugnn" / "analysis" / "page" / "templates").iterdir()
    wanted |= {str(path.relative_to(source)) for path in templates}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert held == wanted
    assert len(licences) == 1


def test_the_wheel_requires_torch_and_numpy_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    required = metadata.get_all("Requires-Dist")
    always = {re.match(r"[\w.-]+", line).group() for line in required if "extra ==" not in line}
    assert always == {"torch", "numpy"}
    optional = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(metadata.get_all("Provides-Extra")) == set(optional)


def test_the_readmes_watched_loop_names_its_fault_with_the_wheel_torch_and_numpy_alone(
    wheel: Path, tmp_path: Path
) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (program,) = re.findall(r"<!-- example: watched.py -->\n```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "watched.py").write_text(program)
    # A module that sys.modules holds as None cannot be imported.
    blocked = f"import runpy, sys; sys.modules.update(dict.fromkeys({EXPERIMENTS}));"
    blocked += f"sys.path.insert(0, {str(wheel)!r}); runpy.run_path('watched.py');"
    blocked += "print(sys.modules['debugnn'].__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", blocked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "✗ loss fits" in shown.stdout
    assert "diagnosis: wrong_loss" in shown.stdout
    *_, verdict, place = shown.stdout.splitlines()
    assert verdict.startswith("False wrong_loss give cross_entropy")
    assert place.startswith(str(wheel))
