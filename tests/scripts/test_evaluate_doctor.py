"""The evaluation script: intervals, what it prints of the held-out half, evidence judged again."""

import subprocess
import sys

import pytest

import evaluate_doctor
from conftest import REPOSITORY
from debugnn import records
from debugnn.faults import FAULTY, SOUND
from debugnn.runs.execute import execute

pytestmark = pytest.mark.slow

SCRIPT = REPOSITORY / "scripts" / "evaluate_doctor.py"
TUNING = "constant_input/friedman+constant_inputs(value=1.0)"
HELD_OUT = "constant_input/friedman_huber+clamped_to_maximum"

WITHOUT_TORCH = """
import runpy, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed")

sys.meta_path.insert(0, NoTorch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def evaluate(*arguments, program=None):
    command = [sys.executable, *(["-c", program] if program else []), str(SCRIPT), *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def judge(monkeypatch, capsys, *arguments):
    """The same in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    try:
        code = evaluate_doctor.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the run of one tuning and one held-out program, and what was printed."""
    directory = tmp_path_factory.mktemp("saved")
    options = ["--only", "constant_input/friedman", "--seeds", "1", "--jobs", "1"]
    return directory, evaluate(*options, "--save", str(directory))


@pytest.fixture
def wrong(saved, tmp_path):
    """The same runs, as if another cause had been put in, so that both are diagnosed wrongly."""
    for path in saved[0].glob("*.json"):
        row = records.load(path.read_text(encoding="utf-8"))
        (tmp_path / path.name).write_text(records.dump(row | {"cause": "lr_too_low"}))
    return tmp_path


def test_each_run_is_saved_in_a_file_of_its_own(saved):
    directory, _ = saved
    rows = {path.name: records.load(path.read_text()) for path in directory.iterdir()}
    assert set(rows) == {
        "constant_input-friedman-constant_inputs-value=1.0-seed=0.json",
        "constant_input-friedman_huber-clamped_to_maximum-seed=0.json",
    }
    assert {row["program"] for row in rows.values()} == {TUNING, HELD_OUT}
    assert {row["family"] for row in rows.values()} == {"constant_inputs", "clamped_to_maximum"}


def test_saved_runs_are_judged_again_without_torch(saved):
    directory, printed = saved
    again = evaluate("--rejudge", str(directory), program=WITHOUT_TORCH)
    assert again == printed
    assert "tuning    0 sound, 1 faulty runs" in again


def test_held_out_programs_are_named_only_where_it_is_asked_for(monkeypatch, capsys, wrong):
    code, printed, _ = judge(monkeypatch, capsys, "--rejudge", str(wrong))
    assert code == 0
    assert TUNING in printed
    assert HELD_OUT not in printed
    assert "clamped_to_maximum" not in printed
    _, revealed, _ = judge(monkeypatch, capsys, "--rejudge", str(wrong), "--reveal")
    assert f"held_out {HELD_OUT} seed 0: lr_too_low -> error (certain): constant_input" in revealed
    assert "| `lr_too_low` | `clamped_to_maximum` | 1 | 0.0 % (0.0 to 79.3) |" in revealed


def test_saved_runs_are_judged_under_another_threshold(monkeypatch, capsys, saved):
    directory, printed = saved
    # Either of these rules would find it.
    change = ["--set", "constant_input.SAMPLES=1000000", "--set", "constant_input.BATCHES=2"]
    _, other, _ = judge(monkeypatch, capsys, "--rejudge", str(directory), *change)
    assert "constant_input ->" in other.splitlines()[0]
    _, moved, _ = judge(monkeypatch, capsys, "--rejudge", str(directory), "--sensitivity")
    assert "| threshold | value | × 0.5 | × 0.8 | × 1.25 | × 2 |" in moved
    assert "vanishing_gradient" not in moved  # it has no part in this diagnosis
    _, again, _ = judge(monkeypatch, capsys, "--rejudge", str(directory))
    assert again == printed  # the thresholds are as before


def test_the_evidence_of_a_run_is_judged_again_without_torch(monkeypatch, capsys, compose):
    config = compose("data=regression", "model=regressor", "loss=mse", "init=const100",
                     "trainer.epochs=20")  # fmt: skip
    directory = execute(config, ["init=const100"], None)
    kept = records.load((directory / "findings.json").read_text())["main_cause"]
    assert kept == "init_scale_too_large"
    runs = ("--rejudge", str(config.output_dir))
    assert evaluate(*runs, program=WITHOUT_TORCH) == f"{directory}: {kept} -> {kept}\n"
    _, other, _ = judge(monkeypatch, capsys, *runs, "--set", "network.LARGE_GAIN=1e12")
    assert kept in other.partition(" -> ")[0]
    assert kept not in other.partition(" -> ")[2]


@pytest.mark.parametrize("given", ["nothing.AT_ALL=1", "vanishing_gradient.VANISHED=much"])
def test_a_threshold_that_there_is_not_is_an_error(monkeypatch, capsys, tmp_path, given):
    code, _, errors = judge(monkeypatch, capsys, "--rejudge", str(tmp_path), "--set", given)
    assert code == 2
    assert "error: argument --set: " in errors


def test_an_empty_directory_is_an_error(monkeypatch, capsys, tmp_path):
    said, *_ = judge(monkeypatch, capsys, "--rejudge", str(tmp_path))
    assert "no run" in said  # Python prints such a code and ends with 1


def test_no_two_runs_are_saved_in_one_file(tmp_path):
    programs = [p.name for p in (*SOUND, *FAULTY)]
    for name in programs:
        evaluate_doctor.save({"program": name, "seed": 0}, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(programs)


def row(cause, found, accepted=()):
    healthy = {"healthy": True, "cannot tell": None}.get(found, False)
    return {"cause": cause, "found": found, "accepted": list(accepted), "healthy": healthy}


def test_rates_count_false_alarms_found_faults_and_right_causes():
    rows = [
        row("healthy", "healthy"),
        row("healthy", "lr_too_low"),
        row("dead_relu", "dead_relu"),
        row("dead_relu", "lr_too_high", ["lr_too_high"]),
        row("dead_relu", "overfitting"),
        row("dead_relu", "healthy"),
        row("dead_relu", "cannot tell"),
    ]
    assert evaluate_doctor.rates(rows) == {
        "false alarms": (1, 2),
        "faults found": (3, 5),
        "right cause": (2, 5),
    }
    counts = evaluate_doctor.confusion(rows)
    assert counts.loc["dead_relu", "dead_relu"] == 2
    assert counts.loc["healthy", "lr_too_low"] == 1
