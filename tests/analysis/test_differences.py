"""`scripts/report.py compare` says what differs between two arms, and nothing that does not."""

import dataclasses
import math
import sys

import numpy as np
import pytest
from scipy import stats
from test_runs import epoch, write_run

import report
from debugnn import records


@dataclasses.dataclass
class Said:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def compare(monkeypatch, capsys):
    """`compare(A, B)`: `scripts/report.py compare A B` in this process."""

    def run(*places):
        monkeypatch.setattr(sys, "argv", ["report.py", "compare", *map(str, places)])
        return Said(report.main(), *capsys.readouterr())

    return run


def arm(root, name, accuracies, loss=1.0, **settings):
    """Write a run of two epochs for each seed, and return the folder of all of them."""
    for seed, accuracy in accuracies.items():
        rows = [epoch(0, 2.0, 20.0), epoch(1, loss, accuracy)]
        directory = write_run(root, {"reg": name}, rows, seed=seed)
        config = records.load((directory / "config.yaml").read_text())
        (directory / "config.yaml").write_text(records.dump(config | settings))
        report = {"main_cause": "overfitting" if name == "none" else "healthy"}
        (directory / "findings.json").write_text(records.dump(report))
    return directory.parent


def row(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()


def test_arms_are_compared_seed_by_seed(compare, tmp_path):
    one, other = {0: 70.0, 1: 74.0, 2: 72.0}, {2: 73.5, 0: 71.0, 1: 75.9, 7: 12.0}
    left = arm(tmp_path, "none", one, dropout=0.0)
    right = arm(tmp_path, "dropout", other, dropout=0.5)
    said = compare(left, right)
    assert said.returncode == 0, said.stderr
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert "A  trial reg=none  (seeds 0, 1, 2)" in said.stdout
    assert "dropout  0.0  →  0.5" in said.stdout
    assert "batch_size" not in said.stdout
    changes = np.array([1.0, 1.9, 1.5])
    reach = stats.t.ppf(0.975, 2) * changes.std(ddof=1) / math.sqrt(3)
    shown = f"+1.5 ({1.4667 - reach:+.2g} to {1.4667 + reach:+.2g})".split()
    assert row(said.stdout, "last test accuracy %") == ["72", "±2", "58.1", "±31", *shown]
    assert row(said.stdout, "first test accuracy %")[-4:] == ["+0", "(+0", "to", "+0)"]
    assert "  A  overfitting 3\n  B  healthy 4\n" in said.stdout
    assert "paired by seed (n = 3)" in said.stdout
    assert "1 seed that only one side has is left out" in " ".join(said.stdout.split())


def test_arms_without_a_common_seed_are_compared_unpaired(compare, tmp_path):
    said = compare(
        arm(tmp_path, "none", {0: 70.0, 1: 74.0}), arm(tmp_path, "bn", {2: 75.0, 3: 9.0})
    )
    assert "Welch" in said.stdout
    assert "the settings are the same" in said.stdout


def test_two_runs_have_no_interval(compare, tmp_path):
    left, right = arm(tmp_path, "none", {0: 70.0, 1: 1.0}), arm(tmp_path, "bn", {0: 71.0})
    said = compare(left / "seed=0", right)
    assert row(said.stdout, "last test accuracy %") == ["70", "71", "+1"]
    assert "there is no interval" in said.stdout


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_lost_loss_is_counted_and_not_averaged(compare, tmp_path, loss):
    left, right = arm(tmp_path, "none", {0: 7.0, 1: 9.0}), arm(tmp_path, "bn", {0: 9.0}, loss)
    arm(tmp_path, "bn", {1: 9.0})
    said = compare(left, right)
    assert row(said.stdout, "last test loss") == [
        "1",
        "±0",
        str(loss).replace("nan", "NaN"),
        "in",
        "1",
        "of",
        "2",
        "–",
    ]


def test_what_cannot_be_compared_is_said_in_a_line(compare, tmp_path):
    one, other = arm(tmp_path, "none", {0: 70.0}), arm(tmp_path, "bn", {0: 70.0})
    several = compare(one.parent, other)
    assert several.returncode == 1
    assert f"{one.parent} holds 2 arms; name one of them:\n  {other}\n  {one}\n" in several.stderr
    assert "no such directory" in compare(tmp_path / "nowhere", other).stderr
    write_run(tmp_path, {"reg": "x"}, status="failed")
    failed = compare(one.parent / "reg=x", other)
    assert "no finished run\n" in failed.stderr
    assert "failed: no error was recorded" in failed.stderr
    assert "Traceback" not in several.stderr + failed.stderr
