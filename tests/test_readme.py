"""The README's tables, examples and commands hold."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from benchmarking import output
from conftest import CONF, REPOSITORY
from debugnn.analysis import tables

README = (REPOSITORY / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- example: (\S+) -->\n```yaml\n(.*?)```", README, re.DOTALL)


def between(name):
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.DOTALL).group(1)


def test_tables_are_those_that_the_configuration_makes():
    """`python scripts/report.py --conf-only` writes them."""
    assert between("groups") == tables.groups(CONF)
    assert between("experiments") == tables.experiments(CONF)
    assert between("causes") == tables.causes()


def test_the_speed_table_is_that_of_the_measured_numbers():
    """`python scripts/benchmark.py --output outputs/reference/benchmark` writes both."""
    kept = REPOSITORY / "outputs" / "reference" / "benchmark" / "benchmark.json"
    assert between("speed") == output.summary(json.loads(kept.read_text(encoding="utf-8")))


def test_files_that_the_readme_names_are_there():
    named = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"scripts/\w+\.\w+", README)
    assert named
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_the_readmes_ablation_runs_from_its_two_files_alone(tmp_path):
    """In a copy of the project: the option, the experiment, its sweep and its figure."""
    assert [path for path, _ in EXAMPLES] == ["conf/model/mish.yaml", "conf/experiment/mish.yaml"]
    for name in ("conf", "train.py", "scripts"):
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    for path, text in EXAMPLES:
        (tmp_path / path).write_text(text)
    for command in (
        ["train.py", "-m", "experiment=mish", "trainer.epochs=1", "trainer.steps_per_epoch=2"],
        ["scripts/figures.py", "--experiments", "mish"],
    ):
        shown = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "outputs" / "figures" / "mish_digits.png").stat().st_size > 10_000
    arms = {path.parent.parent.name.split(",")[0] for path in tmp_path.rglob("run.json")}
    assert arms == {"model=mish", "model=relu_net"}


def test_the_readmes_watched_loop_names_its_fault(tmp_path):
    (program,) = re.findall(r"<!-- example: watched.py -->\n```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "watched.py").write_text(program)
    shown = subprocess.run(
        [sys.executable, "watched.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "✗ loss fits" in shown.stdout
    assert "diagnosis: wrong_loss" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("False wrong_loss give cross_entropy")


def test_markdown_table():
    table = tables.markdown(["a", "b"], [["1", "2"]])
    assert table == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_fill_replaces_only_what_stands_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("top\n<!-- x -->\nold\n<!-- /x -->\nend\n")
    tables.fill(page, "x", "new")
    tables.fill(page, "x", "newer")
    assert page.read_text() == "top\n<!-- x -->\nnewer\n<!-- /x -->\nend\n"


def test_fill_refuses_a_page_without_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("top\n")
    with pytest.raises(ValueError, match="marks"):
        tables.fill(page, "x", "new")
