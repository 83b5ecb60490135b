"""What a person types: help, mistakes, and the two launch forms."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train
import yaml

from conftest import CONF, REPOSITORY
from debugnn import cli, records


def start(*arguments, cwd=REPOSITORY, **environment):
    """`python train.py ...` as a process of its own."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *arguments],
        cwd=cwd,
        # Without what a W&B run in this process left there for its own service.
        env={k: v for k, v in os.environ.items() if "WANDB" not in k} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def launch(monkeypatch, capsys, *arguments, full_error="0"):
    """The same in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(cli, "_exit_codes", set())
    monkeypatch.setattr(cli, "_arms", [])
    monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
    code = 0
    try:
        cli.launch(train.main, CONF)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


ENDING = """
import atexit, sys, threading, time
import torch
from pathlib import Path
from debugnn import cli

def main():
    atexit.register(print, "atexit")
    threading.Thread(target=lambda: (held.wait(), print("thread"))).start()
    threading.Timer(0.1, held.set).start()
    print("main")
    sys.exit(int(sys.argv[1]))

held = threading.Event()
cli.start(main, Path())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code"),
    [([], 0), ([], 3), (["-X", "utf8"], 3)],  # started on the script alone, and not
)
def test_a_process_ends_with_its_code_after_threads_and_exit_functions(tmp_path, options, code):
    (tmp_path / "script.py").write_text(ENDING)
    shown = subprocess.run(
        [sys.executable, *options, "script.py", str(code)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (code, "")
    assert shown.stdout.split() == ["main", "thread", "atexit"]


@pytest.mark.slow
def test_a_profiler_of_the_whole_script_still_reports(tmp_path):
    (tmp_path / "script.py").write_text(ENDING)
    shown = subprocess.run(
        [sys.executable, "-m", "cProfile", "script.py", "0"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    said = [word for word in shown.stdout.split() if word in ("main", "thread", "atexit")]
    assert said == ["main", "thread", "atexit"]
    assert "function calls" in shown.stdout


def test_help_names_every_group_and_option_within_80_columns():
    shown = start("--help")
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines())) <= 80
    words = set(re.findall(r"[\w.]+", shown.stdout))
    for path in (*CONF.glob("*/*.yaml"), *CONF.glob("hydra/sweeper/*.yaml")):
        assert {path.parent.name, path.stem} <= words, path
    page = (REPOSITORY / "src" / "debugnn" / "runs" / "README.md").read_text()
    launchers = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert {"local", "ray"} <= set(launchers) <= words


def test_help_names_a_users_own_options(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "hydra" / "launcher").mkdir()
    for group, name in (
        ("model", "mish"),
        ("model", "a_second_net"),
        ("reg", "small"),
        ("hydra/launcher", "ours"),
    ):
        (tmp_path / "conf" / group / f"{name}.yaml").write_text("{}")
    plain, own = cli.help_text(CONF).splitlines(), cli.help_text(tmp_path / "conf").splitlines()
    added = [line for line in own if line not in plain]
    expected = ["a_second_net mish", "small", "ours"]  # `small` is a decision too
    assert added == [f"{'':14}{names}" for names in expected]
    assert own[own.index(added[0]) + 1].strip().startswith("the network")
    assert own[own.index(added[1]) - 1].startswith("  reg ")
    assert [line for line in own if line not in added] == plain


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_a_reader_that_closes_the_pipe_causes_no_traceback(arguments):
    shown = subprocess.run(
        f"{shlex.quote(sys.executable)} train.py {' '.join(arguments)} | true; "
        "echo code ${PIPESTATUS[0]}",
        shell=True, executable="/bin/bash", cwd=REPOSITORY,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (shown.stdout, shown.stderr) == ("code 0\n", "")


def test_doctor_off_holds_in_an_experiment_that_sets_the_cadence():
    shown = start("experiment=vanishing_gradient", "doctor=off", "--cfg", "job")
    doctor = yaml.safe_load(shown.stdout)["doctor"]
    assert (doctor["enabled"], doctor["every"]) == (False, 10)


@pytest.mark.slow
def test_help_is_what_hydra_prints_of_the_same_page():
    assert start("--help").stdout == start("--help", "seed=0").stdout == start("-h").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_do_not_import_torch(arguments):
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = set(re.findall(r"\| +([\w.]+)$", shown.stderr, re.MULTILINE))
    assert "hydra" in imported
    assert not {"torch", "wandb", "sklearn", "pandas", "matplotlib"} & imported


# Words that stand in the answer to each mistake.
MISTAKES = {
    "model=foo": ["model=foo", "relu_net"],
    "clip=5.0": ["clip=5.0", "4.0", "off"],
    "experiment=nope": ["experiment=nope", "nan_loss"],
    "optim.lrr=1": ["optim.lrr"],
    "trainer.foo=3": ["trainer.foo"],
    "foo=1": ["foo"],
    "trainer.epochs=abc": ["trainer.epochs=abc", "Integer"],
    "trainer.epochs=0": ["trainer.epochs=0", "[1, inf)"],
    "optim.lr=-1": ["optim.lr=-1", "(0, inf)"],
    "optim.lr=abc": ["optim.lr=abc", "number"],
    "seed=1.5": ["seed=1.5", "Integer"],
    "seed=-1": ["seed=-1", "[0, "],
    "reg.dropout=1.0": ["reg.dropout=1.0", "[0, 1)"],
    "clip.max_norm=-1": ["clip.max_norm=-1", "(0, inf)"],
    "trainer.precision=fp16": ["trainer.precision=fp16", "bf16"],
    "wandb.mode=on": ["wandb.mode", "offline"],
    "model=regressor": ["model.outputs=1", "data=regression"],
    "data=regression": ["model.blocks", "model=regressor"],
    "data.batch_size=5000": ["data.batch_size=5000", "1440"],
    "data.train_size=100000": ["data.train_size=100000", "1440"],
    "data.mean=[1,2]": ["data.mean", "data.std"],
    "data.as_shape=[1,8,8]": ["data.as_shape", "28"],
    "model.hidden=[0]": ["model.hidden=[0]"],
    "model.bias=maybe": ["model.bias=maybe"],
    "model.activation._target_=torch.nn.Nope": ["torch.nn.Nope"],
    "init.weight._target_=torch.nn.init.nope_": ["init.weight", "nope_"],
    "init=kaiming init.weight.mode=fan_uot": ["init.weight", "fan_uot", "fan_in"],
    "init=pretrained": ["shapes"],
    "loss._target_=null": ["loss._target_"],
    "optim._target_=torch.optim.LBFGS": ["LBFGS", "closure"],
    "output_dir=/dev/null/x": ["output_dir", "/dev/null/x"],
    "data=mnist data.root=nowhere data.download=false": ["nowhere", "DEBUGNN_DATA", "digits"],
    "task.finder.end_lr=1e-12": ["task.finder.end_lr"],
    "task.lr_from=best": ["task.lr_from=best", "null, minimum, steepest, valley"],
    "init=pretrained init.pretrain.epochs=0": ["init.pretrain.epochs=0", "[1, inf)"],
    "init=pretrained init.pretrain.data.scale=log": ["init.pretrain.data.scale=log", "raw"],
    "init=pretrained init.pretrain.data.tran_size=9": ["init.pretrain.data.tran_size"],
    "init=[": ["init=["],
    "init=kaiming,xavier": ["init=kaiming,xavier", "-m"],
    "sigmoid_net": ["sigmoid_net", "key=value"],
    "--experiment=nan_loss": ["--experiment=nan_loss", "no dashes"],
    "optim.weight_decay=0.1": ["optim.weight_decay", "+optim.weight_decay"],
    "report.title=x": ["report.title=x", "null", "experiment"],
    "init.pretrain.epochs=1": ["init.pretrain.epochs=1", "null", "init"],
    "experiment=nan_loss report.claims=[x]": ["report.claims=[x]", "Integer"],
    "wandb.project=a/b": ["wandb.project=a/b", "without /"],
    f"wandb.tags=[{'x' * 65}]": ["wandb.tags=", "1 to 64 characters"],
    "optim.lr=null": ["optim.lr=null", "(0, inf)"],
    "~optim": ["optim._target_=null", "import path"],
    "~model": ["model._target_=null", "import path"],
    "~seed": ["seed", "no value"],
    "seed=${nope}": ["seed", "nope"],
    "data.name=null": ["data.name", "not Optional"],
    "model.activation=relu": ["model.activation=relu", "_target_"],
    "model.activation._partial_=3": ["model.activation._partial_=3", "true and false"],
    "model.hidden=7": ["model.hidden=7", "a list, each item a whole number"],
    "+optim.betas=[0.9]": ["optim.betas=[0.9]", "a list of 2: a number, a number"],
    "+optim.amsgrad=3": ["optim.amsgrad=3", "true or false"],
    "loss._target_=2.5": ["loss._target_=2.5", "import path"],
    "data.mean=[nan] data.std=[1]": ["data.mean=[nan]", "finite"],
    "output_dir=": ["output_dir=", "folder"],
    "data.cache=": ["data.cache=", "folder"],
    "data.name=../../../x": ["data.name=../../../x", "without /"],
    f"data.name={'x' * 61}": ["data.name=", "60 characters"],
    "experiment=../data/digits": ["experiment/../data/digits"],
    "experiment=null": ["experiment=null", "nan_loss"],
    "trainer=null": ["trainer=null", "default"],
    "--foo": ["--foo", "no such flag"],
    "--cfg foo": ["--cfg", "foo", "job"],
}


# Each composes a configuration: every fourth is enough for the quick suite.
@pytest.mark.parametrize(
    "mistake",
    [pytest.param(m, marks=pytest.mark.slow if i % 4 else ()) for i, m in enumerate(MISTAKES)],
)
def test_a_mistake_is_one_line_that_names_it(monkeypatch, capsys, tmp_path, prepared, mistake):
    monkeypatch.chdir(tmp_path)
    given = ("wandb=disabled", f"data.cache={prepared}", *mistake.split())
    code, out, err = launch(monkeypatch, capsys, *given)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    for part in MISTAKES[mistake]:
        assert part in err
    assert "Traceback" not in out + err
    # Nothing is left that a later run could take for its own.
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("name", "value"), [("WANDB_BASE_URL", "not a url"), ("WANDB_INIT_TIMEOUT", "soon")]
)
def test_a_wrong_variable_of_wandb_is_named(monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    code, _, err = launch(monkeypatch, capsys, "wandb=offline")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"error: {name}={value}: ")
    assert not list(tmp_path.rglob("run.json"))


def test_flags_and_overrides_come_in_any_order(monkeypatch, capsys, tmp_path):
    code, out, err = launch(monkeypatch, capsys, "seed=3", "--cfg", "job", "trainer.epochs=7")
    assert (code, err) == (0, "")
    assert "seed: 3\n" in out
    assert "epochs: 7\n" in out


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [False, True])
def test_a_launcher_without_a_sweep_is_said_to_have_no_effect(monkeypatch, capsys, tmp_path, sweep):
    code, _, err = launch(
        monkeypatch, capsys, *["-m"] * sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1",
        "model=regressor", "data=regression", "loss=mse", "doctor=off", "wandb=disabled",
        "trainer.epochs=1", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert code == 0
    said = [line for line in err.splitlines() if "has no effect on a run alone; add -m" in line]
    assert [line.split()[1] for line in said] == (
        [] if sweep else ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    )


@pytest.mark.slow
def test_a_run_ends_in_silence_where_nobody_reads_what_it_prints(tmp_path):
    """`| head -1`, of a sweep in this and in other processes, and a closed standard output."""
    run = f"{shlex.quote(sys.executable)} train.py doctor=off trainer.epochs=2 data.train_size=64"
    tiny = "model=regressor data=regression loss=mse"
    shown = subprocess.run(
        f"set -o pipefail; {run} {tiny} output_dir={tmp_path}/a wandb=disabled >&- && {run} {tiny} "
        f"output_dir={tmp_path}/b -m seed=1,2 hydra/launcher=joblib hydra.launcher.n_jobs=1 "
        "| head -1",
        shell=True, executable="/bin/bash", cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if "WANDB" not in k},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert len(shown.stdout.splitlines()) == 1
    statuses = [records.load(path.read_text())["status"] for path in tmp_path.rglob("run.json")]
    assert statuses == ["finished"] * 3


def test_full_error_shows_the_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = launch(monkeypatch, capsys, "trainer.epochs=0", full_error="1")
    assert code == 2
    assert "Traceback" in err


@pytest.mark.slow
def test_an_arm_that_fails_is_named_and_the_others_run(monkeypatch, capsys, tmp_path):
    code, _, err = launch(
        monkeypatch, capsys, "-m", "optim.lr=-1,1e-3", "trainer.epochs=1", "doctor=off",
        "trainer.steps_per_epoch=2", "wandb=disabled", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert code == 2
    assert "optim.lr=-1" in err
    assert [path.parent.parent.name for path in tmp_path.rglob("run.json")] == [
        "doctor=off,optim.lr=0.001,trainer.epochs=1,trainer.steps_per_epoch=2"
    ]


@pytest.mark.slow
def test_an_experiment_sweeps_as_typed(monkeypatch, capsys, tmp_path):
    """With and without -m, and with single values for what it sweeps over."""

    def arms(*arguments):
        code, _, err = launch(
            monkeypatch, capsys, *arguments, "experiment=vanishing_gradient", "trainer.epochs=1",
            "trainer.steps_per_epoch=1", "doctor=off", "data.train_size=64",
            "wandb=disabled", f"output_dir={tmp_path}",
        )  # fmt: skip
        assert (code, err) == (0, "")
        runs = [records.load(path.read_text()) for path in tmp_path.rglob("run.json")]
        return sorted((run["arm"]["model"], run["seed"]) for run in runs)

    assert arms("model=relu_net") == [("relu_net", 0)]
    assert arms() == [("relu_net", 0), ("sigmoid_net", 0)]
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert arms("-m") == arms()
    assert finished == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert arms("seed=1,2", "model=relu_net")[1:3] == [("relu_net", 1), ("relu_net", 2)]


def test_an_experiments_configuration_is_printed_and_nothing_runs(monkeypatch, capsys, tmp_path):
    code, out, err = launch(
        monkeypatch, capsys, "experiment=vanishing_gradient", f"output_dir={tmp_path}",
        "--cfg", "job",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "torch.nn.Sigmoid" in out  # the first arm's
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_readmes_sweep_runs_as_typed_from_a_clean_start(tmp_path):
    """In an empty folder with an empty HOME: no network, no account, no prompt."""
    started = time.monotonic()
    shown = start(
        "-m", "init=kaiming,xavier", "trainer.epochs=1", "trainer.steps_per_epoch=3",
        cwd=tmp_path, HOME=str(tmp_path), DEBUGNN_DATA="",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert time.monotonic() - started < 60
    arms = {path.parent.parent.name for path in (tmp_path / "outputs").rglob("run.json")}
    short = "trainer.epochs=1,trainer.steps_per_epoch=3"
    assert arms == {f"init=kaiming,{short}", f"init=xavier,{short}"}
    assert list((tmp_path / "outputs").rglob("*.wandb"))


BREAKING = """
import os, sys
from torch import nn

class Breaks(nn.Module):
    # In the fourth step, after the tries before the training.
    calls = 0

    def forward(self, inputs):
        self.calls += 1
        if self.calls > 3:
            self.end()
        return inputs

    def end(self):
        raise RuntimeError("the device is gone")

class Exits(Breaks):
    def end(self):
        sys.exit(3)

class Dies(Breaks):
    def end(self):
        os._exit(7)
"""

SMALL = ("model=deep_mlp", "trainer.epochs=1", "doctor=off", "wandb=disabled")


def statuses(output):
    """The status that each run tells, by the name of its activation."""
    return {
        path.parts[-3].split("activation=")[1].split(",")[0]:
        records.load(path.read_text())["status"]
        for path in output.rglob("run.json")
    }  # fmt: skip


@pytest.mark.injects("a broken arm")
@pytest.mark.slow
def test_arms_that_break_are_listed_and_run_again(monkeypatch, capsys, tmp_path):
    """The traceback is in the run's directory, until the run goes on."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    monkeypatch.syspath_prepend(tmp_path)
    breaking = "model.activation._target_=breaking.Breaks,torch.nn.ReLU,breaking.Exits"
    code, _, errors = launch(monkeypatch, capsys, "-m", breaking, *SMALL, f"output_dir={tmp_path}")
    assert code == 1
    assert "Traceback" not in errors
    listed = errors[errors.index("\n3 arms: 1 finished, 2 failed\n") :].splitlines()[2:]
    broken, why, where, exits, with_what, there, *hint = listed
    assert broken.split() == ["failed", "model.activation._target_=breaking.Breaks"]
    assert why.strip() == "RuntimeError: the device is gone"
    assert "RuntimeError: the device is gone" in Path(where.strip()).read_text().splitlines()
    assert exits.split() == ["failed", "model.activation._target_=breaking.Exits"]
    assert with_what.strip() == "SystemExit: 3"
    assert "sys.exit(3)" in Path(there.strip()).read_text()
    assert "--failed" in " ".join(hint)
    assert statuses(tmp_path) == {"Breaks": "failed", "ReLU": "finished", "Exits": "failed"}

    monkeypatch.setattr("breaking.Breaks.end", lambda self: None)
    code, shown, errors = launch(
        monkeypatch, capsys, "-m", "--failed", f"{breaking},torch.nn.Tanh", *SMALL,
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert code == 1  # the other one still breaks
    assert "4 arms: 1 finished, 2 left out, 1 failed" in errors
    assert statuses(tmp_path) == {"Breaks": "finished", "ReLU": "finished", "Exits": "failed"}
    assert not Path(where.strip()).exists()
    code, shown, _ = launch(
        monkeypatch, capsys, "--failed", "model.activation._target_=torch.nn.Tanh", *SMALL,
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert code == 0
    assert "left out" in shown


@pytest.mark.slow
def test_a_sweep_side_by_side_goes_on_after_what_ends_an_arm(tmp_path, prepared):
    """An error, a refused setting, an exit, a process that dies."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    acts = ("breaking.Breaks", "breaking.Dies", "torch.nn.Softmax1", "breaking.Exits",
            "torch.nn.ReLU")  # fmt: skip
    shown = start(
        "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SMALL,
        f"model.activation._target_={','.join(acts)}", f"data.cache={prepared}",
        f"output_dir={tmp_path}",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )  # fmt: skip
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr
    _, listed = shown.stderr.split("\n5 arms: 1 finished, 4 failed\n")
    arms = {
        name.split()[-1].split("_target_=")[1]: reason.strip()
        for name, reason in itertools.pairwise(listed.splitlines())
        if name.startswith("  failed ")
    }
    assert arms.keys() == set(acts[:4])
    assert arms["breaking.Breaks"] == "RuntimeError: the device is gone"
    assert arms["breaking.Exits"] == "SystemExit: 3"
    assert arms["breaking.Dies"] == "its process died (exit code 7)"
    assert "torch.nn.Softmax1" in arms["torch.nn.Softmax1"]
    assert statuses(tmp_path) == {
        "Breaks": "failed", "Dies": "running", "Exits": "failed", "ReLU": "finished",
    }  # fmt: skip


def test_a_number_of_workers_that_cannot_be_is_refused(monkeypatch, capsys, tmp_path):
    code, _, err = launch(
        monkeypatch, capsys, "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=0,1",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert code == 2
    assert err.splitlines() == [
        "error: hydra.launcher.n_jobs=0: allowed is [1, inf), or -1 for one a core"
    ]
