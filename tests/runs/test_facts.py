"""The version of the training code follows what is computed, and nothing else."""

import ast
import shutil
from pathlib import Path

import pytest

import debugnn
from debugnn.runs import facts

SOURCE = '''"""About this module."""
import math  # for pi


class Circle:
    """A circle."""

    def area(self, r: float) -> float:
        """Return the area."""
        # as Euclid says
        return math.pi * r**2
'''
REWORDED = '''"""Of round things."""
import math
class Circle:
    """Round."""
    def area(self, r: float) -> float:
        """A number."""
        return (math.pi
                * r ** 2)
'''


def test_words_and_layout_are_no_part_of_the_code():
    assert facts.without_words(SOURCE) == facts.without_words(REWORDED)


@pytest.mark.parametrize(
    ("before", "after"),
    [("r**2", "r**3"), ("math.pi", "3.14"), ("r: float", "radius: float"), ("Circle", "Disc")],
)
def test_a_change_of_the_code_is_one(before, after):
    assert facts.without_words(SOURCE.replace(before, after)) != facts.without_words(SOURCE)


def test_a_body_of_words_alone_stays_a_body():
    (function,) = ast.parse(facts.without_words('def nothing():\n    """Do nothing."""\n')).body
    assert ast.unparse(function) == "def nothing():\n    pass"


@pytest.mark.slow
def test_the_version_follows_the_modules_that_train(tmp_path, monkeypatch):
    package = tmp_path / "debugnn"
    shutil.copytree(Path(debugnn.__file__).parent, package)
    monkeypatch.setattr(facts, "__file__", str(package / "runs" / "facts.py"))

    def version():
        facts.training_code.cache_clear()
        return facts.training_code()

    before = version()
    for name, counts in (
        ("training/loop.py", True),
        ("nn/inits.py", True),
        ("data/readers.py", True),
        ("build.py", True),
        ("doctor/watch.py", False),
        ("analysis/runs.py", False),
        ("runs/writer.py", False),
    ):
        path = package / name
        kept = path.read_text()
        path.write_text(kept + "\nADDED = 1\n")
        assert (version() != before) is counts, name
        path.write_text(kept + "\n# a remark\n")
        assert version() == before, name
        path.write_text(kept)
    facts.training_code.cache_clear()
