"""What a report prints, its file, and the command that reads it again."""

import json
import subprocess
import sys

import pytest

from debugnn.doctor import Finding, Report, causes
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.evidence import Evidence, Jump, WeightFacts

LONG = "words that go on " * 40


def finding(**changes):
    given = {
        "cause": "wrong_loss", "severity": "error", "confidence": "certain", "layer": "head",
        "summary": "an odd thing was seen", "fix": "do the other thing", "step": 3,
        "evidence": {"ratio": 0.123456789}, "harm": "it hurts", "line": "train.py:31",
    }  # fmt: skip
    return Finding(**{**given, **changes})


def report(*findings, healthy=False, **changes):
    given = {"reason": "certain: wrong loss", "outcome": {"skill": 0.25}, "steps": 40,
             "trial_steps": 0, "trial_budget": 200}  # fmt: skip
    main = findings[0] if findings and healthy is False else None
    return Report(healthy, main=main, findings=list(findings), **{**given, **changes})


def test_the_verdict_and_the_reason_come_first():
    lines = str(report(finding())).splitlines()
    assert lines[0] == "diagnosis: wrong_loss (after 40 steps)"
    assert lines[1] == "  certain: wrong loss"


def test_the_main_finding_says_what_was_seen_why_it_hurts_what_to_change_and_where():
    lines = str(report(finding())).splitlines()[2:]
    assert lines == [
        "  error (certain): wrong_loss in head at step 3: an odd thing was seen",
        "    why it hurts: it hurts",
        "    fix: do the other thing",
        "    called at: train.py:31",
    ]


def test_the_main_finding_takes_twelve_lines_at_most():
    told = str(report(finding(summary=LONG, fix=LONG, harm=LONG, override="a=1"))).splitlines()
    assert len(told) == 2 + 12
    assert all(len(line) <= 80 for line in told)
    assert " …" in told[5]


def test_what_is_not_the_main_finding_is_counted_and_told_in_the_details():
    under = finding(cause="dead_relu", summary="dead units")
    note = finding(cause="overfitting", severity="note", summary="a gap")
    given = report(finding(consequences=[under]), note, troubles=["the data: no"])
    shown = str(given)
    assert shown.splitlines()[-1] == "  also dead_relu, 1 note, 1 not looked at: see details()"
    assert "dead units" not in shown
    details = given.details()
    for told in ("dead units", "a gap", "the data: no", "ratio = 0.1235"):
        assert told in details


def test_a_note_is_not_the_main_finding():
    given = report(finding(severity="note"), healthy=True, reason="it learns")
    assert given.main is None
    assert str(given).splitlines()[-1] == "  1 note: see details()"


def test_every_cause_says_why_it_hurts_in_one_clause():
    for cause in CAUSES.values():
        assert cause.harm
        assert len(cause.harm) <= 100
        assert not cause.harm.endswith(".")
        assert cause.harm[0].islower()


def test_overrides_are_those_of_train_pys_runs_alone():
    given = Evidence()
    given.network.parameters = given.optimizer.trainable = given.optimizer.held = 4
    given.loop.steps = given.loop.optimizer_steps = 100
    given.network.nonlinear, given.network.depth, given.network.weight_layers = False, 2, 2
    given.weights = [
        WeightFacts(name, 100, 1.0, False, False, False, name == "a.weight", 5.0, 10, 10)
        for name in ("a.weight", "b.weight")
    ]
    plain = causes.diagnose(given, budget=0).main
    run = causes.diagnose(given, budget=0, overrides=True).main
    assert (plain.cause, plain.override) == ("no_nonlinearity", None)
    assert run.cause == "no_nonlinearity"
    assert "=torch.nn.ReLU" in run.override
    assert "try:" in str(causes.diagnose(given, budget=0, overrides=True))
    assert "try:" not in str(causes.diagnose(given, budget=0))


# --- loss spikes --------------------------------------------------------------------------------


def spiked(**changes):
    given = Evidence()
    given.outcome.first_loss = 2.0
    jump = {"step": 70, "loss": 9.0, "around": 0.5, "spread": 0.1, "samples": [5, 2, 0],
            "own": [60.0, 0.9, 0.3], "typical": 0.4, "again": [12, 130]}  # fmt: skip
    given.outcome.jumps = [Jump(**{**jump, **changes})]
    return [f for f in CAUSES["bad_labels"].findings(given) if "this step's loss" in f.summary]


def test_a_spike_names_its_step_and_the_samples_that_stand_out():
    (found,) = spiked()
    assert (found.severity, found.step, found.samples) == ("note", 70, [5])
    assert "9, that of its neighbours 0.5" in found.summary
    assert "came again at step 12, 130" in found.summary


def test_a_spike_of_a_whole_batch_names_no_sample():
    (found,) = spiked(own=[9.5, 9.2, 9.0], typical=9.1)
    assert found.samples == []
    assert "no sample stands out" in found.fix


@pytest.mark.parametrize("change", [{"loss": 1.2}, {"spread": 0.5}], ids=["low", "among others"])
def test_what_lies_among_its_neighbours_or_below_the_first_loss_is_no_spike(change):
    assert spiked(**change) == []


# --- saved reports ------------------------------------------------------------------------------


def test_a_saved_report_is_the_same_again(tmp_path):
    note = finding(severity="note", evidence={"loss": float("inf")}, samples=[1, 2])
    given = report(finding(consequences=[finding(cause="dead_relu")]), note, troubles=["one"])
    file = tmp_path / "findings.json"
    file.write_text(given.to_json(), encoding="utf-8")
    again = Report.load(file)
    assert again == given
    assert (str(again), again.details()) == (str(given), given.details())


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "debugnn.doctor", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_prints_a_saved_report(tmp_path):
    given = report(finding(), troubles=["the data"])
    file = tmp_path / "findings.json"
    file.write_text(given.to_json(), encoding="utf-8")
    assert command(file).stdout == f"{given}\n"
    assert command(file, "--details").stdout == f"{given.details()}\n"


@pytest.mark.parametrize(
    "content",
    [
        None, "", "[1]", "{}", '"text"', "{nonsense", '{"healthy": true}',
        json.dumps({**report().to_dict(), "findings": [{"cause": "wrong_loss"}]}),
        json.dumps({**report().to_dict(), "findings": 7}),
        json.dumps({**report().to_dict(), "mood": "good"}),
        json.dumps({**report(finding()).to_dict()}).replace('"error"', '"grave"'),
        "\udcff",
    ],
)  # fmt: skip
def test_a_file_without_a_report_is_one_line_and_exit_code_1(tmp_path, content):
    file = tmp_path / "findings.json"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    shown = command(file)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.count("\n") == 1
    assert shown.stderr.startswith(f"error: {file}: ")


def test_the_command_needs_no_torch(tmp_path):
    file = tmp_path / "findings.json"
    file.write_text(report(finding()).to_json(), encoding="utf-8")
    program = (
        "import runpy, sys; sys.modules['torch'] = None; sys.modules['numpy'] = None; "
        f"sys.argv = ['debugnn.doctor', {str(file)!r}]; "
        "runpy.run_module('debugnn.doctor', run_name='__main__')"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("diagnosis: wrong_loss")
