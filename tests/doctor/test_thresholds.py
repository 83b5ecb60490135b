"""Every number that a rule compares with has a name, a reason, and can be moved."""

import ast
from pathlib import Path

import pytest
from handmade_evidence import evidence

from debugnn.doctor import causes
from debugnn.doctor.causes import ORDER, diagnose, train_test_mismatch, vanishing_gradient
from debugnn.doctor.causes.signals import outcome
from debugnn.doctor.causes.thresholds import SIGNALS, Threshold, moved, thresholds

FOLDER = Path(causes.__file__).parent
FILES = [*(f"signals/{name}" for name in SIGNALS), *ORDER]


@pytest.mark.parametrize("file", FILES)
def test_no_rule_compares_with_a_number_that_has_no_name(file):
    tree = ast.parse((FOLDER / f"{file}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                for part in ast.walk(side):
                    if isinstance(part, ast.Constant) and isinstance(part.value, int | float):
                        # Signs, counts of one or two things, and shares of all.
                        assert part.value in (0, 1, 2, 1e-9, 1e-30), (file, node.lineno)


@pytest.mark.parametrize("file", FILES)
def test_each_threshold_has_a_reason_above_it(file):
    lines = (FOLDER / f"{file}.py").read_text(encoding="utf-8").splitlines()
    names = {t.name for t in thresholds() if t.file == Path(file).name}
    for number, line in enumerate(lines):
        if line.partition(" = ")[0].strip() in names and not line.startswith(" "):
            above = number
            while lines[above - 1].partition(" = ")[0] in names:  # a group shares one reason
                above -= 1
            assert lines[above - 1].startswith("# "), (file, line)


def test_all_thresholds_are_listed_once():
    listed = thresholds()
    assert len({str(t) for t in listed}) == len(listed)
    assert Threshold("vanishing_gradient", "VANISHED", 0.02) in listed
    assert [t.file for t in listed if t.name == "SHIFTED"] == ["data"]
    assert [t.file for t in listed if t.name == "KAIMING_GAIN"] == ["init_scale_too_large"]


def test_a_moved_threshold_changes_the_diagnosis_and_comes_back():
    given = evidence()
    given.network.mixing = 0.02
    shared = next(t for t in thresholds() if t.name == "MIXED")
    assert diagnose(given, 0).main_cause == "batch_mixing"
    with moved(shared, 0.03):
        assert diagnose(given, 0).main_cause == "healthy"
    assert diagnose(given, 0).main_cause == "batch_mixing"
    given = evidence()
    given.loop.residues = [[step, 0.5, 1.0] for step in range(200)]
    own = next(t for t in thresholds() if str(t) == "missing_zero_grad.NEAR")
    nearer = next(t for t in thresholds() if str(t) == "missing_zero_grad.NEARER")
    with moved(own, 0.6), moved(nearer, 0.6):
        assert diagnose(given, 0).main_cause == "missing_zero_grad"
    assert diagnose(given, 0).main_cause == "healthy"


def test_a_threshold_is_moved_in_the_files_that_import_it_and_in_no_other():
    """Two files have a BEHIND of their own, and a third imports one of them."""
    modules = [outcome, train_test_mismatch, vanishing_gradient]
    before = [module.BEHIND for module in modules]
    for name, expected in (
        ("outcome.BEHIND", [0.2, before[1], 0.2]),
        ("train_test_mismatch.BEHIND", [before[0], 0.2, before[2]]),
    ):
        threshold = next(t for t in thresholds() if str(t) == name)
        with moved(threshold, 0.2):
            assert [module.BEHIND for module in modules] == expected
        assert [module.BEHIND for module in modules] == before


def test_a_count_is_moved_to_a_whole_number():
    count = next(t for t in thresholds() if t.name == "JUDGED_AFTER")
    given = evidence(0.0)
    given.loop.steps = 50
    assert diagnose(given, 0).healthy is False
    with moved(count, 1.26 * count.value):  # 50.4
        assert diagnose(given, 0).healthy is False
    with moved(count, 1.3 * count.value):  # 52
        assert diagnose(given, 0).healthy is None
