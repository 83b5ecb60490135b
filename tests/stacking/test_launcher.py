"""`hydra/launcher=stacked` leaves what Hydra's own launcher leaves, and says what it says."""

import os
import subprocess
import sys

import pytest
from test_sweep import assert_rows_close, facts_of, rows_of

from conftest import REPOSITORY
from debugnn.stacking.stack import Stack
from test_cli import launch, start

pytestmark = pytest.mark.slow

STACKED = "hydra/launcher=stacked"
TINY = (
    "model=deep_mlp", "model.hidden=[20,12]", "data.train_size=100", "data.batch_size=32",
    "trainer.epochs=2", "trainer.device=cpu", "wandb=disabled", "+optim.eps=1e-3",
)  # fmt: skip


@pytest.fixture
def sweep(monkeypatch, capsys, tmp_path, prepared):
    """`sweep(…)`: a sweep in this process by the stacked launcher, or by another one."""

    def run(*arguments, launcher=STACKED, output="stacked"):
        given = (*TINY, f"data.cache={prepared}", f"output_dir={tmp_path / output}", *arguments)
        return launch(monkeypatch, capsys, "-m", *([launcher] if launcher else []), *given)

    return run


@pytest.fixture
def runs(tmp_path):
    """`runs()`: `experiment/arm/seed=n` → directory, of each run."""

    def found(output="stacked"):
        root = tmp_path / output
        return {str(p.parent.relative_to(root)): p.parent for p in root.rglob("run.json")}

    return found


def stacked(found):
    """How many runs trained at once with each, None for those that trained alone."""
    return [facts_of(directory).get("stacked") for _, directory in sorted(found.items())]


def last_changes(found):
    return {name: os.stat(path / "metrics.jsonl").st_mtime_ns for name, path in found.items()}


def test_each_job_equals_the_job_of_the_basic_launcher(sweep, runs):
    arms = ("init=kaiming,xavier", "optim.lr=1e-3,1e-2", "reg=none,dropout", "doctor=off")
    assert sweep(*arms)[0] == 0
    assert sweep(*arms, launcher=None, output="basic")[0] == 0
    ours, theirs = runs(), runs("basic")
    assert ours.keys() == theirs.keys()
    assert stacked(ours) == [8] * 8
    assert stacked(theirs) == [None] * 8
    for name, own in ours.items():
        alone = theirs[name]
        text = (alone / "config.yaml").read_text().replace("/basic", "/stacked")
        assert (own / "config.yaml").read_text() == text
        kept = ("experiment", "arm", "seed", "status", "article_run")
        assert [facts_of(own)[k] for k in kept] == [facts_of(alone)[k] for k in kept]
        for kind in ("step", "epoch"):
            assert_rows_close(rows_of(own, kind), rows_of(alone, kind))


@pytest.mark.parametrize("first", [STACKED, None], ids=["stacked_first", "basic_first"])
def test_what_one_launcher_finished_the_other_skips(sweep, runs, first):
    second = None if first else STACKED
    sweep("init=kaiming,xavier", "seed=0,1", "doctor=off", launcher=first)
    before = last_changes(runs())
    code, out, err = sweep("init=kaiming,xavier,lecun", "seed=0,1", "doctor=off", launcher=second)
    assert (code, err) == (0, "")
    assert out.count("finished before, skipped") == 4
    added = {name: path for name, path in runs().items() if name not in before}
    assert stacked(added) == ([2, 2] if second else [None, None])
    assert last_changes(runs()).items() >= before.items()


def test_an_experiments_jobs_are_named_by_it(sweep, runs):
    """And ${hydra:...} means each job's own."""
    settings = ("experiment=vanishing_gradient", "trainer.steps_per_epoch=null", "doctor.every=20")
    code, *_ = sweep(*settings, "model=deep_mlp", "seed=0,1", 'wandb.tags=["${hydra:job.num}"]')
    assert code == 0
    found = runs()
    assert stacked(found) == [2, 2]
    assert {name.split("/")[0] for name in found} == {"vanishing_gradient"}
    tags = [(path / "config.yaml").read_text().split("tags:\n  - ")[1][:3]
            for _, path in sorted(found.items())]  # fmt: skip
    assert tags == ["'0'", "'1'"]


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        (("model.hidden=[20,12],[16]", "init=kaiming,xavier", "clip=off,4.0"), [4] * 8),
        (("model.hidden=[20,12],[16]",), [None, None]),  # each fits no other
        ((), [None]),
        (("seed=0,1,2,3,4", "hydra.launcher.at_once=2"), [2, 2, 2, 2, None]),
        (("optim.lr=1e-3,0.0010,1e-2",), [2, 2]),  # two names of one run
    ],
)
def test_jobs_that_differ_in_numbers_alone_train_in_sets(sweep, runs, arms, expected):
    assert sweep(*arms)[0] == 0
    assert stacked(runs()) == expected
    for path in runs().values():
        assert (path / "findings.json").exists() == (facts_of(path).get("stacked") is None)


@pytest.mark.parametrize(("value", "allowed"), [("0", "[1, inf)"), ("many", "Integer")])
def test_a_limit_that_cannot_be_is_refused(sweep, runs, value, allowed):
    code, _, err = sweep("seed=0,1", f"hydra.launcher.at_once={value}")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert f"hydra.launcher.at_once={value}" in err
    assert allowed in err
    assert not runs()


def test_other_tasks_run_as_under_the_basic_launcher(sweep, runs):
    """One of the two checks fails: the command ends with 1."""
    code, out, _ = sweep("task=check", "loss=cross_entropy,softmax_twice")
    assert code == 1
    assert "✗" in out
    assert not runs()


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arms", "named"),
    [(["optim.lr=1e-3,-1,1e-2"], "optim.lr=-1"),
     (["optim._target_=torch.optim.Adam,torch.optim.LBFGS,torch.optim.AdamW"], "LBFGS"),
     (["init.weight._target_=torch.nn.init.nope_,torch.nn.init.xavier_normal_"], "nope_"),
     (["seed=0,1", "trainer.epochs=${nope}"], "nope"),
     (["init=kaiming,nope"], "nope")],
    ids=["a_value", "not_to_be_built", "one_is_left", "not_to_be_resolved", "no_such_option"],
)  # fmt: skip
def test_a_job_that_fails_is_named_as_under_the_basic_launcher(sweep, runs, arms, named):
    code, _, err = sweep(*arms, "doctor=off")
    assert code == 2
    assert named in err
    basic = sweep(*arms, "doctor=off", launcher=None, output="basic")
    assert (basic[0], basic[2]) == (code, err.replace("/stacked", "/basic"))
    assert runs("basic").keys() == runs().keys()
    assert len(set(stacked(runs()))) <= 1  # the others trained, all at once


def test_a_directory_of_another_run_does_not_stop_the_others(sweep, runs):
    sweep("seed=0")
    before = last_changes(runs())
    # Another value under the same arm, as after a change in an experiment's file.
    path = next(iter(runs().values())) / "config.yaml"
    path.write_text(path.read_text().replace("batch_size: 32", "batch_size: 16"))
    code, _, err = sweep("seed=0,1,2")
    assert code == 2
    assert err.splitlines()[0].count("holds a run with data.batch_size=16") == 1
    assert "\n3 arms: 2 finished, 1 failed\n  failed       seed=0\n" in err
    assert stacked(runs()) == [None, 2, 2]
    assert last_changes(runs()).items() >= before.items()


def test_the_runs_of_a_stack_that_breaks_train_one_after_the_other(sweep, runs, monkeypatch):
    fit, called = Stack.fit, []

    def fail_once(self, *arguments):
        called.append(self)
        yield from fit(self, *arguments) if len(called) > 1 else iter([1 / 0])

    monkeypatch.setattr(Stack, "fit", fail_once)
    code, out, err = sweep("model.hidden=[20,12],[16]", "seed=0,1")
    assert (code, err) == (0, "")
    assert "One after the other: ZeroDivisionError" in out
    assert "4 arms: 4 finished" in out
    assert {facts_of(path)["status"] for path in runs().values()} == {"finished"}
    assert stacked(runs()) == [2, 2, None, None] or stacked(runs()) == [None, None, 2, 2]


# --- as a process -------------------------------------------------------------------------------


def test_hydra_finds_the_launcher_from_anywhere(tmp_path, prepared):
    given = ("-m", STACKED, *TINY, f"data.cache={prepared}")
    shown = start(*given, "init=kaiming,xavier", "seed=0,-1", cwd=tmp_path)
    assert shown.returncode == 2
    one, other, *listed = shown.stderr.splitlines()
    assert "seed=-1" in one
    assert "seed=-1" in other
    assert "4 arms: 2 finished, 2 failed" in listed
    assert sum(line.startswith("  failed ") and "seed=-1" in line for line in listed) == 2
    found = list((tmp_path / "outputs").rglob("run.json"))
    assert [facts_of(path.parent)["stacked"] for path in found] == [2, 2]


def test_the_launcher_is_found_without_torch():
    program = (
        "import sys; from hydra.core.plugins import Plugins; from hydra.plugins.launcher import "
        "Launcher; print([p.__name__ for p in Plugins.instance().discover(Launcher)], "
        "'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "'StackedLauncher'" in shown.stdout
    assert shown.stdout.split()[-1] == "False"
    assert shown.stderr == ""
