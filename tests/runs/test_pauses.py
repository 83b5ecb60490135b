"""A run that is told to stop is saved after its step, and the same command goes on from there."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from test_workers import DEADLINE, nobody_is_left, until

from conftest import REPOSITORY
from debugnn.doctor.resting import RestingDoctor
from debugnn.doctor.trial_runner import TrialRunner
from debugnn.runs.execute import execute
from debugnn.runs.pauses import Interrupted, Pauses
from debugnn.training.loop import Training
from left_by_runs import facts, rows, weights
from test_cli import launch

pytestmark = pytest.mark.slow  # processes

SETTINGS = ["model=deep_mlp", "reg=dropout", "trainer.epochs=8", "trainer.device=cpu",
            "wandb=disabled", "doctor=off"]  # fmt: skip


def begin(*arguments, settings=SETTINGS, **options):
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **options)


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text} was not said: {process.stderr.read()}")


@pytest.fixture(scope="module")
def undisturbed(compose):
    """The directory of the same run without a signal."""
    return execute(compose(*SETTINGS), [], None)


def run_in(output):
    (facts,) = output.rglob("run.json")
    return facts.parent


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGINT, ("-m", "seed=0,1")), (signal.SIGTERM, ()), (signal.SIGUSR2, ())],
    ids=["SIGINT in a sweep", "SIGTERM", "SIGUSR2"],
)
@pytest.mark.injects("a stop signal")
def test_a_signal_stops_a_run_that_goes_on_bit_for_bit(
    monkeypatch, capsys, tmp_path, undisturbed, number, asked
):
    """A sweep ends with the run that is told to stop; the same command goes on with both."""
    command = (*asked, f"output_dir={tmp_path}")
    process = begin(*command)
    wait_for(process, "epoch 1 of 8")
    process.send_signal(number)
    shown, errors = process.communicate()
    assert process.returncode == 128 + number, shown + errors
    assert "Traceback" not in shown + errors
    directory = run_in(tmp_path)
    assert directory.name == "seed=0"
    told = facts(directory)
    assert told["status"] == "interrupted"
    reached = torch.load(directory / "checkpoint.pt", weights_only=True)["step"]
    assert f"stopped after step {reached}: the same command goes on" in shown
    assert max(row["step"] for row in rows(directory)) == reached - 1
    assert launch(monkeypatch, capsys, *command, *SETTINGS)[0] == 0
    assert rows(directory) == rows(undisturbed)
    expected = weights(undisturbed)
    assert weights(directory).keys() == expected.keys()
    assert all(torch.equal(w, expected[name]) for name, w in weights(directory).items())
    assert facts(directory)["status"] == "finished"
    assert facts(directory)["started"] == told["started"]
    assert facts(directory)["seconds"] > told["seconds"]
    names = {path.parent.name for path in tmp_path.rglob("run.json")}
    assert names == ({"seed=0", "seed=1"} if asked else {"seed=0"})


@pytest.mark.injects("a stop signal")
def test_a_stack_stops_and_goes_on(monkeypatch, capsys, tmp_path):
    settings = ["-m", "hydra/launcher=stacked", "seed=0,1", f"output_dir={tmp_path}"]
    process = begin(*settings)
    wait_for(process, "epoch 1 of 8")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    found = {path.parent.name: facts(path.parent)["status"] for path in tmp_path.rglob("run.json")}
    assert found == {"seed=0": "interrupted", "seed=1": "interrupted"}
    code, shown, _ = launch(monkeypatch, capsys, *settings, *SETTINGS)
    assert code == 0
    assert "continue from epoch" in shown
    for path in tmp_path.rglob("run.json"):
        assert len([row for row in rows(path.parent) if row["kind"] == "epoch"]) == 8


SLOW = """
import time
from pathlib import Path
import torch

def loss(outputs, targets):
    if outputs.requires_grad and not Path(__file__).with_name("fast").exists():
        time.sleep(0.15)
    return torch.nn.functional.cross_entropy(outputs, targets)
"""


@pytest.mark.injects("a kill")
@pytest.mark.injects("a stop signal")
def test_a_sweep_in_workers_is_killed_then_told_to_stop_and_goes_on(tmp_path, monkeypatch, capsys):
    """Its workers are gone with it, so that the command can be started again at once."""
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    settings = [f"output_dir={tmp_path}", "loss._target_=slow.loss", "trainer.epochs=60",
                "trainer.steps_per_epoch=4", "model=deep_mlp", "trainer.device=cpu",
                "wandb=disabled", "doctor=off"]  # fmt: skip
    aside = ["-m", "hydra/launcher=joblib", *settings, "seed=0,1"]

    def runs():
        return sorted(path.parent for path in tmp_path.rglob("metrics.jsonl"))

    def statuses():
        return [facts(run)["status"] for run in runs()]

    def stop(number, at_once):
        """Send the sweep a signal when so many runs have gone on; return what it said."""
        before = {run: (facts(run)["pid"], len(rows(run))) for run in runs()}
        process = begin(
            *aside, f"hydra.launcher.n_jobs={at_once}", settings=[], start_new_session=True
        )

        def goes_on(run):
            pid, length = before.get(run, (None, 0))
            with suppress(ValueError, FileNotFoundError):  # a line that is half written
                return facts(run)["pid"] != pid and len(rows(run)) > length
            return False

        until(lambda: process.poll() is not None or sum(map(goes_on, runs())) == at_once)
        process.send_signal(number)
        shown, errors = process.communicate(timeout=DEADLINE)
        until(lambda: nobody_is_left(process.pid))
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), errors
        return shown, errors

    stop(signal.SIGKILL, at_once=2)
    assert statuses() == ["running", "running"]
    shown, errors = stop(signal.SIGTERM, at_once=1)
    assert shown.count("the same command goes on") == 1
    assert errors.splitlines()[-1].startswith("interrupted: the same command goes on")
    assert "Traceback" not in errors
    assert statuses() == ["interrupted", "running"]

    (tmp_path / "fast").touch()
    code, shown, errors = launch(monkeypatch, capsys, *settings, "seed=0,1,2", "-m", "--failed")
    assert (code, errors) == (0, "")
    assert shown.splitlines()[-1] == "3 arms: 2 finished, 1 left out"
    assert statuses() == ["finished", "finished"]
    for run in runs():
        steps = [row["step"] for row in rows(run) if row["kind"] == "step"]
        assert steps == list(range(240))


def loss_with_noise(outputs, targets):
    """A loss that draws random numbers in evaluations."""
    noise = 0.0 if torch.is_grad_enabled() else 0.1 * torch.rand(())
    return torch.nn.functional.cross_entropy(outputs, targets) + noise


@pytest.mark.parametrize("evaluated", [(Training, "outputs"), (RestingDoctor, "validate")],
                         ids=["the run's", "the doctor's"])  # fmt: skip
@pytest.mark.injects("a stop signal")
def test_a_signal_ends_an_evaluation_and_the_same_command_makes_it_again(
    compose, tmp_path, monkeypatch, evaluated
):
    """Of the second epoch: rows, weights and diagnosis are those of a run without a signal."""
    config = compose("model=deep_mlp", "reg=dropout", "trainer.epochs=3", "data.train_size=320",
                     "trainer.checkpoint_every=10", "loss._target_=test_pauses.loss_with_noise",
                     "trainer.eval_batch_size=64")  # fmt: skip
    owner, name = evaluated
    evaluate = getattr(owner, name)

    def evaluate_and_be_told(*arguments):
        result = evaluate(*arguments)
        if owner is RestingDoctor or torch.is_inference_mode_enabled():
            calls.append(None)
            if len(calls) == told_at:
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("the evaluation went on")
        return result

    def run(folder):
        config.output_dir = str(tmp_path / folder)
        calls.clear()
        return execute(config, [], None)

    calls, told_at = [], 0
    monkeypatch.setattr(owner, name, evaluate_and_be_told)
    expected = run("undisturbed")
    told_at = len(calls) // 3 + 1
    with pytest.raises(Interrupted):
        run("told")
    directory, told_at = run_in(tmp_path / "told"), 0
    assert facts(directory)["status"] == "interrupted"
    assert torch.load(directory / "checkpoint.pt", weights_only=True)["step"] == 10
    run("told")
    assert rows(directory) == rows(expected)
    assert all(torch.equal(w, weights(expected)[name]) for name, w in weights(directory).items())
    for name in ("findings.json", "evidence.json"):
        assert (directory / name).read_text() == (expected / name).read_text()


@pytest.mark.injects("a stop signal")
def test_a_second_signal_ends_the_process_at_once():
    program = (
        "import sys\nfrom debugnn.runs.pauses import Pauses, told_by_signals\n"
        "with told_by_signals(Pauses(5)):\n    print('listens', flush=True)\n"
        "    while True: pass  # a step without end\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdout.readline() == "listens\n"
    process.send_signal(signal.SIGTERM)
    assert "stops after this step" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM


@pytest.mark.injects("a stop signal")
def test_a_signal_ends_the_doctors_trials_and_the_same_command_makes_them(
    compose, tmp_path, monkeypatch
):
    settings = ("model=deep_mlp", "init=const100", "trainer.epochs=3", "data.train_size=640")
    ran = TrialRunner.run
    trials = []

    def run_and_be_told(*arguments):
        ran(*arguments)
        trials.append(None)
        if len(trials) == 2:  # the first ones were of the undisturbed run
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the run went on")

    monkeypatch.setattr(TrialRunner, "run", run_and_be_told)

    def found_in(folder):
        config = compose(*settings)
        config.output_dir = str(tmp_path / folder)
        return execute(config, [], None) / "findings.json"

    undisturbed = found_in("undisturbed").read_text()
    assert '"healthy": false' in undisturbed
    with pytest.raises(Interrupted):
        found_in("told")
    directory = run_in(tmp_path / "told")
    assert facts(directory)["status"] == "interrupted"
    assert not (directory / "findings.json").exists()
    assert found_in("told").read_text().replace("/told/", "/undisturbed/") == undisturbed


@pytest.fixture
def saves(compose, tmp_path, monkeypatch):
    """Executes a run, and returns how often it was saved, and its directory."""

    def count(*settings):
        config = compose("model=deep_mlp", "doctor=off", *settings)
        config.output_dir = str(tmp_path)
        saved = []
        monkeypatch.setattr(Pauses, "saved", lambda pauses: saved.append(pauses))
        directory = execute(config, [], None)
        return len(saved), directory

    return count


def test_a_long_epoch_is_saved_inside(saves):
    """With no minutes between checkpoints: after every step."""
    saved, _ = saves("trainer.epochs=1", "trainer.steps_per_epoch=5",
                     "trainer.checkpoint_minutes=1e-9")  # fmt: skip
    assert saved == 6  # five steps, and the epoch's end


def test_short_epochs_are_not_saved_one_by_one(saves):
    """As they end sooner after the last checkpoint than asked for: at the end alone."""
    saved, directory = saves("trainer.epochs=3", "trainer.steps_per_epoch=2",
                             "trainer.checkpoint_seconds=1e9")  # fmt: skip
    assert saved == 1
    assert torch.load(directory / "checkpoint.pt", weights_only=True)["epoch"] == 3
