"""One command over many experiments."""

import os
import re
import subprocess
import sys

import hydra
import pytest
import yaml

import reproduce
from conftest import CONF, REPOSITORY
from debugnn import config, json_lines, records
from test_cli import launch

pytestmark = pytest.mark.slow


def start(*arguments, cwd, environment=os.environ):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "reproduce.py"), *arguments],
        cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def composing():
    config.register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def test_notebooks_are_seven(composing):
    assert len(reproduce.experiments("notebooks")) == 7
    assert len(reproduce.experiments("all")) == len(list((CONF / "experiment").glob("*.yaml")))


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_arms_are_the_sweeps_product(composing, name):
    written = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    params = written.get("hydra", {}).get("sweeper", {}).get("params", {})
    wanted = 1
    for values in params.values():
        wanted *= len(values.split(","))
    arms = [tuple(arm) for arm in reproduce.arms(name, "article")]
    assert len(set(arms)) == len(arms) == wanted


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_the_arms_compose_on_the_articles_data(composing, name):
    """The first and the last of them: test_conf trains every arm on embedded data."""
    arms = list(reproduce.arms(name, "article"))
    composed = [
        hydra.compose("config", [f"experiment={name}", *arm]) for arm in (arms[0], arms[-1])
    ]
    real = {settings.data.name for settings in composed} & {"mnist", "cifar10"}
    assert bool(real) == (name != "nan_loss")


def test_what_is_given_replaces_the_sweep_over_it(composing):
    given = ["init=kaiming", "optim.lr=1e-3,1e-2"]
    arms = list(reproduce.arms("weight_init", "article", given))
    assert arms == [
        ["init=kaiming", "data=cifar10", "optim.lr=0.001"],
        ["init=kaiming", "data=cifar10", "optim.lr=0.01"],
    ]


def numbers(output):
    """Directory below `output` → the arm's settings and what was computed, of each run."""
    found = {}
    for path in output.rglob("run.json"):
        rows = json_lines.read(path.with_name("metrics.jsonl"))
        found[path.parent.relative_to(output)] = (
            records.load(path.read_text())["arm"],
            [(row.get("loss"), row.get("grad_norm"), row.get("test_loss")) for row in rows],
        )
    return found


def test_runs_at_once_are_those_of_train_pys_sweep_and_those_run_one_by_one(
    monkeypatch, capsys, tmp_path
):
    """The same directories and numbers, whether Hydra's sweeper made them or the script.

    In an empty HOME matplotlib makes its list of fonts, and would say so.
    """
    small = ["trainer.epochs=2", "wandb=disabled", "doctor=off"]
    output = {side: tmp_path / side for side in ("swept", "one_by_one", "at_once")}
    code, _, errors = launch(
        monkeypatch, capsys, "experiment=nan_loss", *small, f"output_dir={output['swept']}"
    )
    assert (code, errors) == (0, "")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        jobs = [reproduce.Job("nan_loss", tuple(arm), "0", str(output["one_by_one"]))
                for arm in reproduce.arms("nan_loss", "embedded", small)]  # fmt: skip
        ended = list(reproduce.outcomes(jobs, at_once=1))
    assert [(job, outcome.arm.exit_code) for job, outcome in ended] == [(job, 0) for job in jobs]
    places = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    shown = start(
        "--experiments", "nan_loss", "--output", str(output["at_once"]), "--jobs", "2", *small,
        cwd=tmp_path,
        environment={**{k: v for k, v in os.environ.items() if k not in places},
                     "HOME": str(tmp_path)},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert list(tmp_path.rglob("fontlist*.json"))
    assert "font" not in shown.stdout + shown.stderr
    # A run's lines follow each other, whatever ran beside it.
    titles = [line for line in shown.stdout.splitlines() if "seed=0" in line.split()]
    assert sum(line.startswith("starts") for line in titles) == 6
    assert len(titles) == 12
    assert shown.stdout.count("  epoch 0 of 2") == 6
    for part in shown.stdout.split("\n  epoch 0 of 2")[1:]:
        assert "  epoch 1 of 2" in part
    runs = {side: numbers(place) for side, place in output.items()}
    assert len(runs["swept"]) == 6
    assert repr(sorted(runs["swept"].items())) == repr(sorted(runs["at_once"].items()))  # of NaN
    assert repr(sorted(runs["swept"].items())) == repr(sorted(runs["one_by_one"].items()))
    assert list((output["at_once"] / "figures").glob("*.png"))
    assert re.search(r"^nan_loss +6 +0 +0 ", shown.stdout, re.MULTILINE)


KILLED = """
import os
from torch import nn

class Killed(nn.Identity):
    def __init__(self):
        super().__init__()
        os.kill(os.getpid(), 9)
"""


@pytest.mark.injects("a worker that dies")
def test_a_killed_process_costs_its_run_alone_which_failed_runs_again(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "killing.py").write_text(KILLED)
    given = ["--experiments", "vanishing_gradient", "--output", str(tmp_path), "wandb=disabled",
             "model=deep_mlp", "trainer.epochs=1"]  # fmt: skip
    swept = "model.activation._target_=killing.Killed,torch.nn.Nope"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    shown = start(
        *given, swept, "--jobs", "2", cwd=tmp_path, environment={**os.environ, "PYTHONPATH": path}
    )
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert "\n2 arms: 2 failed\n" in shown.stderr
    named, reason, where, *rest, last = shown.stderr.split("2 failed\n")[1].splitlines()
    assert named.split() == ["failed", "model.activation._target_=killing.Killed"]
    assert "SIGKILL" in reason
    assert where.endswith("error.txt")
    assert rest[0].split() == ["failed", "model.activation._target_=torch.nn.Nope"]
    assert last.startswith("--jobs 1 needs less memory")
    assert re.search(r"^vanishing_gradient +2 +0 +2 ", shown.stdout, re.MULTILINE)

    # It died before its training had begun. In this process:
    (tmp_path / "killing.py").write_text(KILLED.replace("9", "0"))
    monkeypatch.syspath_prepend(tmp_path)
    swept += ",torch.nn.ELU"  # which has not run at all
    assert reproduce.main([*given, swept, "--failed", "--jobs", "1"]) == 0
    assert re.search(r"^vanishing_gradient +1 +0 +0 ", capsys.readouterr().out, re.MULTILINE)
    (mended,) = tmp_path.rglob("run.json")
    assert "Killed" in str(mended)
    assert sorted(path.name for path in mended.parent.glob("*.txt")) == []
    assert reproduce.main([*given, swept, "--failed"]) == 0
    assert capsys.readouterr().out == "none of these runs has failed or was cut off\n"


def test_a_failing_arm_is_named_and_the_rest_runs(tmp_path, prepared):
    shown = start(
        "--experiments", "mnist_baseline,nan_loss", "--output", str(tmp_path), "--jobs", "1",
        "trainer.epochs=1", "wandb=disabled", "doctor=off", "data.batch_size=600",
        "trainer.steps_per_epoch=1", f"data.cache={prepared}", cwd=tmp_path,
    )  # fmt: skip
    assert shown.returncode == 1
    lines = shown.stdout.splitlines()
    assert [line for line in lines if line.startswith("starts")] == []  # nothing runs beside it
    assert any(line.startswith("  epoch 0 of 1") for line in lines)
    table = shown.stderr[shown.stderr.index("\n7 arms: 1 finished, 6 failed\n") :].splitlines()
    failed = [line for line in table if line.startswith("  failed ")]
    assert len(failed) == 6  # a regression of 500 samples; the digits are enough
    assert all("experiment=nan_loss" in line for line in failed)
    assert sum("at most 500" in line for line in table) == 6
    assert len(list(tmp_path.rglob("run.json"))) == 1


FEW = ["--experiments", "nan_loss,weight_init"]  # a mistake is said once, not for each


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experiments", "nope"], "--experiments=nope"),
        (["--seeds", "a"], "--seeds=a"),
        (["--jobs", "0"], "--jobs=0"),
        (["--jobs", "two"], "--jobs"),
        (["--data", "real"], "invalid choice"),
        ([*FEW, "trainer.epoch=1"], "trainer.epoch"),
        ([*FEW, "optim.lr=-1"], "optim.lr=-1"),
        ([*FEW, "--output", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(monkeypatch, capsys, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    try:
        code = reproduce.main(arguments)
    except SystemExit as stop:  # by argparse
        code = stop.code
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.splitlines()[-1].count(said) == 1
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("run.json"))
