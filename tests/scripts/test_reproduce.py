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
from debugnn import config, records

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


@pytest.mark.parametrize("data", ["embedded", "article"])
@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_the_arms_compose_on_either_kind_of_data(composing, name, data):
    """The first and the last of them: test_conf trains every arm."""
    arms = list(reproduce.arms(name, data))
    composed = [
        hydra.compose("config", [f"experiment={name}", *arm]) for arm in (arms[0], arms[-1])
    ]
    real = {settings.data.name for settings in composed} & {"mnist", "cifar10"}
    assert bool(real) == (data == "article" and name != "nan_loss")


def test_what_is_given_replaces_the_sweep_over_it(composing):
    given = ["init=kaiming", "optim.lr=1e-3,1e-2"]
    arms = list(reproduce.arms("weight_init", "article", given))
    assert arms == [
        ["init=kaiming", "data=cifar10", "optim.lr=0.001"],
        ["init=kaiming", "data=cifar10", "optim.lr=0.01"],
    ]


def test_arms_are_those_that_train_py_sweeps_over(tmp_path):
    """The same directories, whether Hydra's sweeper or the script made them.

    In an empty HOME matplotlib makes its list of fonts, and would say so.
    """
    small = ["trainer.epochs=1", "wandb=disabled", "doctor=off"]
    subprocess.run(
        [sys.executable, "train.py", "experiment=nan_loss", *small,
         f"output_dir={tmp_path / 'swept'}"],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    places = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    looped = start(
        "--experiments", "nan_loss", "--output", str(tmp_path / "looped"), *small, cwd=tmp_path,
        environment={**{k: v for k, v in os.environ.items() if k not in places},
                     "HOME": str(tmp_path)},
    )  # fmt: skip
    assert looped.returncode == 0, looped.stderr
    assert list(tmp_path.rglob("fontlist*.json"))
    assert "font" not in looped.stdout + looped.stderr
    runs = {
        side: {path.parent.relative_to(tmp_path / side): records.load(path.read_text())["arm"]
               for path in (tmp_path / side).rglob("run.json")}
        for side in ("swept", "looped")
    }  # fmt: skip
    assert len(runs["swept"]) == 6
    assert runs["swept"] == runs["looped"]
    assert list((tmp_path / "looped" / "figures").glob("*.png"))
    assert re.search(r"^nan_loss +6 +0 +0 ", looped.stdout, re.MULTILINE)


def test_runs_at_once_are_what_they_are_one_by_one(tmp_path):
    small = ("--experiments", "nan_loss", "trainer.epochs=2", "wandb=disabled",
             "data=regression")  # fmt: skip
    losses = {}
    for jobs in ("1", "2"):
        output = tmp_path / jobs
        shown = start(*small, "--output", str(output), "--jobs", jobs, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        # A run's lines follow each other, whatever ran beside it.
        titles = [line for line in shown.stdout.splitlines() if "seed=0" in line.split()]
        spoken = [line for line in titles if not line.startswith("starts")]
        assert len(spoken) == 3
        assert shown.stdout.count("  epoch 0 of 2") == 3
        for part in shown.stdout.split("\n  epoch 0 of 2")[1:]:
            assert "  epoch 1 of 2" in part
        assert sum(line.startswith("starts") for line in titles) == (3 if jobs == "2" else 0)
        losses[jobs] = {
            path.parent.relative_to(output): [
                (row.get("loss"), row.get("grad_norm"), row.get("test_loss"))
                for row in records.read_jsonl(path)
            ]
            for path in output.rglob("metrics.jsonl")
        }
    assert len(losses["1"]) == 3
    assert repr(losses["1"]) == repr(losses["2"])  # of NaN too


KILLED = """
import os
from torch import nn

class Killed(nn.Identity):
    def __init__(self):
        super().__init__()
        os.kill(os.getpid(), 9)
"""


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


def test_a_failing_arm_is_named_and_the_rest_runs(tmp_path):
    shown = start(
        "--experiments", "mnist_baseline,nan_loss", "--output", str(tmp_path),
        "trainer.epochs=1", "wandb=disabled", "doctor=off", "data.batch_size=600", cwd=tmp_path,
    )  # fmt: skip
    assert shown.returncode == 1
    table = shown.stderr[shown.stderr.index("\n7 arms: 1 finished, 6 failed\n") :].splitlines()
    failed = [line for line in table if line.startswith("  failed ")]
    assert len(failed) == 6  # a regression of 500 samples; the digits are enough
    assert all("experiment=nan_loss" in line for line in failed)
    assert sum("at most 500" in line for line in table) == 6
    assert len(list(tmp_path.rglob("run.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--experiments", "nope"], "--experiments=nope"),
        (["--seeds", "a"], "--seeds=a"),
        (["--jobs", "0"], "--jobs=0"),
        (["--jobs", "two"], "--jobs"),
        (["--data", "real"], "invalid choice"),
        (["trainer.epoch=1"], "trainer.epoch"),
        (["optim.lr=-1"], "optim.lr=-1"),
        (["--output", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(tmp_path, arguments, said):
    shown = start(*arguments, cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.splitlines()[-1].count(said) == 1
    assert "Traceback" not in shown.stderr
    assert not list(tmp_path.rglob("run.json"))
