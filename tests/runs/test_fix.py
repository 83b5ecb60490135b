"""`task=fix`: the remedy of the first finding beside a random change, and what it refuses."""

import os
import re
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from debugnn import json_lines, records
from debugnn.runs import fix
from test_cli import launch

pytestmark = pytest.mark.slow

# A dense net on 320 digits: 50 steps in all, enough to be judged.
SMALL = ("wandb=disabled", "trainer.device=cpu", "data=digits", "data.train_size=320",
         "model.blocks=[]", "model.hidden=[32]", "trainer.epochs=10")  # fmt: skip
TOO_SLOW = (*SMALL, "optim=sgd", "optim.lr=1e-7")


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory, prepared):
    """A training whose rate is too low, as typed at a shell: the process and its folder."""
    folder = tmp_path_factory.mktemp("fix")
    shown = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), "task=fix", *TOO_SLOW,
         f"data.cache={prepared}"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    return shown, folder


@pytest.fixture(scope="module")
def rows(fixed):
    (file,) = fixed[1].rglob("fix.json")
    return records.load(file.read_text(encoding="utf-8"))


def test_the_remedy_is_the_first_findings_override(fixed, rows):
    _, folder = fixed
    assert list(rows) == ["before", "after", "control"]
    assert rows["before"]["override"] == ""
    findings = records.load((folder / rows["before"]["directory"] / "findings.json").read_text())
    assert findings["healthy"] is False
    assert findings["findings"][0]["override"] == rows["after"]["override"]
    assert rows["before"]["diagnosis"] == findings["findings"][0]["cause"] == "lr_too_low"
    assert re.fullmatch(r"optim\.lr=[\d.e-]+", rows["after"]["override"])
    assert float(rows["after"]["override"].partition("=")[2]) > 1e-7


def test_the_remedy_mends_more_than_the_control(rows):
    assert rows["after"]["test_accuracy"] > rows["before"]["test_accuracy"] + 10
    assert rows["after"]["test_accuracy"] > rows["control"]["test_accuracy"] + 10
    assert rows["after"]["test_loss"] < rows["before"]["test_loss"]


def test_the_control_is_another_change(rows):
    assert rows["control"]["override"] in fix.CONTROLS
    key = rows["after"]["override"].partition("=")[0].partition(".")[0]
    assert rows["control"]["override"].partition("=")[0].partition(".")[0] != key
    assert rows["control"]["override"] not in TOO_SLOW


def test_the_three_runs_are_the_same_training_but_for_one_override(fixed, rows):
    _, folder = fixed
    directories = [folder / row["directory"] for row in rows.values()]
    assert len(set(directories)) == 3
    epochs = [list(json_lines.read(d / "metrics.jsonl", "epoch")) for d in directories]
    assert [len(e) for e in epochs] == [10, 10, 10]  # the same budget
    for row, last in zip(rows.values(), epochs, strict=True):
        assert row["test_loss"] == last[-1]["test_loss"]
        assert row["test_accuracy"] == last[-1]["test_accuracy"]
    configs = [(d / "config.yaml").read_text().splitlines() for d in directories]
    changed = set(configs[1]) ^ set(configs[0])
    assert changed
    assert all(line.strip().startswith("lr:") for line in changed)
    assert set(configs[2]) != set(configs[0])


def test_the_table_is_printed(fixed, rows):
    lines = fixed[0].stdout.splitlines()
    table = lines[-4:]
    for name, line in zip(rows, table[1:], strict=True):
        assert line.startswith(name)
        assert (rows[name]["override"] or "(as asked)") in line
        assert f"{rows[name]['test_accuracy']:.1f} %" in line
        assert line.endswith(rows[name]["diagnosis"])
    assert "Traceback" not in fixed[0].stderr


def test_a_healthy_run_has_nothing_to_fix(monkeypatch, capsys, here, prepared):
    code, out, err = launch(
        monkeypatch, capsys, "task=fix", *SMALL, "trainer.epochs=8", "optim.lr=0.01",
        "model.hidden=[64]", "data.train_size=null", f"data.cache={prepared}",
    )  # fmt: skip
    assert code == 0, err
    assert "nothing to fix" in out
    assert len(list(here.rglob("run.json"))) == 1
    assert not list(here.rglob("fix.json"))


def test_without_the_doctor_it_is_refused(monkeypatch, capsys, here):
    code, out, err = launch(monkeypatch, capsys, "task=fix", *SMALL, "doctor=off")
    assert code == 2
    assert "doctor=off" in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert not list(here.rglob("run.json"))


def test_a_remedy_that_looks_like_a_number_is_composed(monkeypatch, capsys, here):
    code, _, err = launch(
        monkeypatch, capsys, "task=fix", "wandb=disabled", "trainer.device=cpu", "model=regressor",
        "data=regression", "loss=mse", "optim=sgd", "optim.lr=1", "trainer.epochs=3",
    )  # fmt: skip
    assert code == 0, err
    (file,) = here.rglob("fix.json")
    assert records.load(file.read_text())["after"]["override"] == "clip=4.0"


def test_a_remedy_fits_the_data(monkeypatch, capsys, here):
    code, _, err = launch(
        monkeypatch, capsys, "task=fix", "wandb=disabled", "trainer.device=cpu", "model=regressor",
        "model.activation._target_=torch.nn.Identity", "data=regression", "loss=mse",
        "optim.lr=0.01", "trainer.epochs=3",
    )  # fmt: skip
    assert code == 0, err


@pytest.mark.parametrize("seed", range(4))
def test_controls_leave_out_the_remedys_group_and_what_is_set(seed):
    asked = ["init=xavier", "optim.lr=1"]
    found = fix._controls(seed, asked, "optim.lr=0.1")
    assert found == fix._controls(seed, asked, "optim.lr=0.1")
    assert set(found) <= set(fix.CONTROLS)
    assert not any(control.startswith("optim") for control in found)
    assert "init=xavier" not in found
    assert "init=kaiming" in found


def test_controls_differ_between_seeds():
    assert len({fix._controls(seed, [], "clip=4.0")[0] for seed in range(8)}) > 2


def test_an_override_is_replaced_or_added():
    assert fix._with(["a=1", "b.c=2"], "b.c=3") == ["a=1", "b.c=3"]
    assert fix._with(["a=1"], "init=kaiming") == ["a=1", "init=kaiming"]
