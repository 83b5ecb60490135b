"""The run contract: named by what it is, skipped when done, resumed bit for bit, never mixed up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import REPOSITORY
from debugnn import json_lines, records
from debugnn.doctor import causes, evidence
from debugnn.errors import ConfigError
from debugnn.runs.execute import execute
from debugnn.runs.naming import arm_of, label
from debugnn.runs.wandb_sink import run_name

SMALL = ("model=deep_mlp", "reg=bn_dropout", "data.batch_size=64", "trainer.steps_per_epoch=4")


@pytest.fixture
def settings(compose, tmp_path):
    def make(*overrides):
        config = compose(*SMALL, *overrides)
        config.output_dir = str(tmp_path)
        return config

    return make


def weights(directory):
    return torch.load(directory / "checkpoint.pt", weights_only=True)["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(directory, kind):
    """The rows without what a clock measured."""
    found = json_lines.read(directory / "metrics.jsonl", kind)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_a_run_leaves_what_the_contract_says(settings):
    directory = execute(settings("trainer.epochs=2"), ["trainer.epochs=2"], None)
    assert directory.parts[-3:] == ("adhoc", "trainer.epochs=2", "seed=0")
    facts = records.load((directory / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["seconds"] > 0
    assert facts["classes"] == 10
    assert [row["epoch"] for row in rows(directory, "epoch")] == [0, 1]
    assert [row["step"] for row in rows(directory, "step")] == list(range(8))
    layers = list(json_lines.read(directory / "layers.jsonl"))
    assert [row["step"] for row in layers] == [0]  # every 20 steps, of 8
    assert {"config.yaml", "checkpoint.pt"} <= {path.name for path in directory.iterdir()}
    assert not list(directory.glob("*.tmp"))


def test_json_is_strict_where_the_loss_is_nan(compose, tmp_path):
    config = compose("experiment=nan_loss", "trainer.epochs=1")
    config.output_dir = str(tmp_path)
    directory = execute(config, ["trainer.epochs=1"], "nan_loss")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for path in (directory / "metrics.jsonl", directory / "layers.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    assert rows(directory, "epoch")[0]["train_loss"] != rows(directory, "epoch")[0]["train_loss"]
    assert records.load((directory / "run.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_finished_run_is_skipped_and_overwrite_runs_it_again(settings, caplog):
    config = settings("trainer.epochs=1")
    directory = execute(config, [], None)
    before = (directory / "metrics.jsonl").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert execute(config, [], None) == directory
    assert "skipped" in caplog.text
    assert (directory / "metrics.jsonl").stat().st_mtime_ns == before
    config.overwrite = True
    execute(config, [], None)
    assert (directory / "metrics.jsonl").stat().st_mtime_ns > before
    assert len(rows(directory, "epoch")) == 1


def test_another_configuration_in_the_same_directory_is_refused_by_name(settings):
    execute(settings("trainer.epochs=1"), [], None)
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.001, and optim\.lr=0\.01"):
        execute(settings("trainer.epochs=1", "optim.lr=0.01"), [], None)


def test_where_things_are_kept_may_change(settings, tmp_path):
    config = settings("trainer.epochs=1")
    directory = execute(config, [], None)
    config.data.root = str(tmp_path / "elsewhere")
    config.wandb.project = "another"
    assert execute(config, [], None) == directory


KILLED = """
import os, signal, sys
from omegaconf import OmegaConf
from debugnn.runs import execute
from debugnn.training import checkpoint

write = checkpoint.write

def write_then_die(path, state):
    write(path, state)
    if state["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.write = write_then_die
execute.execute(OmegaConf.load(sys.argv[1]), ["killed"], None)
"""


def kill_after_two_epochs(config, tmp_path):
    """Run a configuration in a process that is killed after its second checkpoint."""
    OmegaConf.save(config, tmp_path / "killed.yaml", resolve=True)
    # With a W&B process of its own, and not with that of a run in this process.
    own = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    environment = {**own, "OMP_NUM_THREADS": "1"}
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed.yaml")],
        cwd=REPOSITORY, env=environment, check=False,
    )  # fmt: skip
    assert died.returncode == -signal.SIGKILL
    directory = tmp_path / "adhoc" / "killed=" / "seed=0"
    assert records.load((directory / "run.json").read_text())["status"] == "running"
    return directory


@pytest.mark.slow
@pytest.mark.injects("a kill")
def test_a_killed_run_goes_on_bit_for_bit(settings, tmp_path):
    """A real process, killed after its second checkpoint, against one that was left alone."""
    whole = execute(settings("trainer.epochs=4"), ["whole"], None)
    config = settings("trainer.epochs=4")
    directory = kill_after_two_epochs(config, tmp_path)
    assert execute(config, ["killed"], None) == directory
    assert equal(weights(directory), weights(whole))
    for kind in ("step", "epoch"):
        assert rows(directory, kind) == rows(whole, kind)
    for name in ("layers.jsonl", "findings.json", "evidence.json"):
        assert (directory / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_a_run_that_goes_on_without_its_doctors_state_is_neither_healthy_nor_sick(
    compose, tmp_path
):
    """The whole run is sick, as the front page shows; its last epoch alone cannot tell."""
    config = compose(
        "model=sigmoid_net", "trainer.epochs=3", "data.train_size=640", "doctor.keep=false"
    )
    config.output_dir = str(tmp_path)
    directory = kill_after_two_epochs(config, tmp_path)
    kept = torch.load(directory / "checkpoint.pt", weights_only=True)
    assert kept["watcher"] is None
    execute(config, ["killed"], None)
    told = records.load((directory / "findings.json").read_text())
    assert told["healthy"] is None
    assert "the first 20 steps were taken before" in told["reason"]
    assert all(finding["severity"] == "note" for finding in told["findings"])


@pytest.mark.slow
def test_rows_after_the_checkpoint_are_dropped(settings):
    """A run that was cut off inside an epoch does not keep that epoch's first steps twice."""
    directory = execute(settings("trainer.epochs=2"), [], None)
    facts = records.load((directory / "run.json").read_text())
    (directory / "run.json").write_text(records.dump({**facts, "status": "running"}))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch": 2, "step": 8, "loss": 1.0}\n{"kind": "st')
    execute(settings("trainer.epochs=2"), [], None)
    assert [row["step"] for row in rows(directory, "step")] == list(range(8))


def test_a_range_test_that_was_cut_off_is_not_kept_twice(settings):
    config = settings("task=lr_find", "task.finder.iterations=5", "task.finder.repeats=1")
    directory = execute(config, [], None)
    whole = rows(directory, "lr_point")
    facts = records.load((directory / "run.json").read_text())
    (directory / "run.json").write_text(records.dump({**facts, "status": "running"}))
    execute(config, [], None)
    assert rows(directory, "lr_point") == whole
    assert len(whole) == 5


def test_a_broken_record_is_named(settings):
    directory = execute(settings("trainer.epochs=1"), [], None)
    (directory / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json.*overwrite=true"):
        execute(settings("trainer.epochs=1"), [], None)


def test_a_range_test_that_suggests_nothing_is_refused_before_anything_is_written(settings):
    config = settings("trainer.epochs=1")
    config.task.lr_from = "steepest"
    config.task.finder.start_lr = 1e3  # a curve that explodes at once suggests nothing
    config.task.finder.end_lr = 1e5
    with pytest.raises(ConfigError, match="suggests nothing"):
        execute(config, [], None)
    assert list(Path(config.output_dir).iterdir()) == []


class BreaksLater:
    """A loss that raises after some calls, as a broken batch or a full memory would."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, outputs, targets):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("the loss broke")
        return torch.nn.functional.cross_entropy(outputs, targets)


@pytest.mark.injects("a step that raises")
def test_a_run_that_breaks_keeps_its_rows_and_says_why(settings):
    config = settings("trainer.epochs=2", "doctor=off")
    config.loss = {"_target_": f"{__name__}.BreaksLater", "calls": 4}  # one before the training
    with pytest.raises(RuntimeError, match="the loss broke"):
        execute(config, [], None)
    (facts,) = Path(config.output_dir).rglob("run.json")
    told = records.load(facts.read_text())
    assert told["status"] == "failed"
    assert told["error"] == "RuntimeError: the loss broke"
    rows = json_lines.read(facts.with_name("metrics.jsonl"), "step")
    assert [row["step"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["seed=1", "experiment=x", "wandb=online", "output_dir=o", "overwrite=true"], "default"),
        (["init=kaiming", "clip='4.0'"], "clip=4.0,init=kaiming"),
        (["clip=4.0", "init=kaiming"], "clip=4.0,init=kaiming"),
        (["model.activation._target_=torch.nn.SELU"], "model.activation=SELU"),
        (["model.hidden=[1,2]"], "model.hidden=_1,2_"),
        (["optim.lr=1e-3"], "optim.lr=0.001"),
        (["trainer.epochs=2"], "trainer.epochs=2"),
        (["+trainer.x=a/b"], "trainer.x=a_b"),
        (["task={lr_from:minimum}"], "task.lr_from=minimum"),
        (["clip={max_norm:1e1,rescale:true}"], "clip.max_norm=10.0,clip.rescale=true"),
        (["model={activation:{_target_:torch.nn.SELU}}"], "model.activation=SELU"),
        (["wandb={mode:online}"], "default"),
    ],
)
def test_an_arm_is_named_by_what_differs(overrides, name):
    assert label(arm_of(overrides)) == name


def test_long_arms_stay_apart():
    one, two = ({"a": "x" * 300 + end} for end in "12")
    assert label(one) != label(two)
    assert len(label(one)) <= 120


def test_runs_carry_the_articles_names(compose):
    config = compose("experiment=weight_init", "init=kaiming_conv")
    arm = arm_of(["init=kaiming_conv", "data=cifar10"])
    assert run_name(config, "weight_init", arm) == "run_with_wt"
    config.seed = 3
    assert run_name(config, "weight_init", arm) == "run_with_wt-seed3"
    assert run_name(config, "weight_init", {"init": "lecun"}) == "weight_init/init=lecun-seed3"


@pytest.mark.slow
def test_a_range_test_leaves_the_training_as_it_was(settings):
    """Training after a range test at the same rate equals training without one."""
    shared = ("model=relu_net", "reg=dropout", "data.batch_size=16", "trainer.epochs=1")
    plain = execute(settings(*shared), ["plain"], None)
    config = settings(*shared, "task.finder.start_lr=1e-5")
    config.task.lr_from = "minimum"
    found = execute(config, ["found"], None)
    suggested = next(r["lr"] for r in rows(found, "lr_suggestion") if r["rule"] == "minimum")
    assert {r["lr"] for r in rows(found, "step")} == {suggested}
    assert rows(found, "step")[0]["loss"] == rows(plain, "step")[0]["loss"]


def test_a_runs_diagnosis_can_be_made_again_from_its_evidence(compose, tmp_path):
    config = compose("model=sigmoid_net", "model.blocks=[]", "model.hidden=[16]",
                     "trainer.epochs=2", "data.train_size=640", "optim.lr=1e-7")  # fmt: skip
    config.output_dir = str(tmp_path)
    directory = execute(config, ["optim.lr=1e-7"], None)
    kept = records.load((directory / "findings.json").read_text())
    seen = evidence.load(records.load((directory / "evidence.json").read_text()))
    again = causes.diagnose(seen, budget=config.doctor.budget, overrides=True)
    assert records.load(again.to_json()) == kept


def test_without_the_doctor_there_is_no_diagnosis(compose, tmp_path):
    config = compose("doctor=off", "trainer.epochs=1", "data.train_size=64")
    config.output_dir = str(tmp_path)
    directory = execute(config, ["doctor=off"], None)
    assert not (directory / "findings.json").exists()


@pytest.mark.slow
def test_weights_are_the_same_with_and_without_the_doctor(compose, tmp_path):
    """Dropout, batch norm and forks: an absurd rate makes the doctor probe."""
    trained = []
    for doctor in ("on", "off"):
        config = compose(
            f"doctor={doctor}", "reg=bn_dropout", "trainer.epochs=2", "data.train_size=640",
            "model.blocks=[[4]]", "model.hidden=[12]", "optim.lr=3", "data.batch_size=16",
        )  # fmt: skip
        config.output_dir = str(tmp_path / doctor)
        directory = execute(config, [], None)
        trained.append(torch.load(directory / "checkpoint.pt", weights_only=True))
        assert (trained[-1].pop("watcher") is None) == (doctor == "off")
        if doctor == "on":
            assert records.load((directory / "findings.json").read_text())["trial_steps"] > 0
    assert_same(*trained)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def test_the_configuration_is_kept_with_its_references_resolved(settings):
    directory = execute(
        settings("trainer.epochs=1", "trainer.eval_every=${trainer.epochs}"), [], None
    )
    assert "eval_every: 1\n" in (directory / "config.yaml").read_text()
