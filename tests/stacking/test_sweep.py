"""Each member of a stack leaves the directory that the same run would leave alone."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_stack import DENSE, SMALL, STEADY

from debugnn import records
from debugnn.errors import ConfigError
from debugnn.runs.execute import execute
from debugnn.stacking.sweep import Job, execute_stack, execute_together
from debugnn.training import checkpoint
from offline_wandb import read_back

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(compose, tmp_path):
    def make(*overrides, output="stacked"):
        config = compose(*SMALL, *DENSE, "reg=bn_dropout", STEADY, "trainer.epochs=4", *overrides)
        config.output_dir = str(tmp_path / output)
        return config

    return make


def rows_of(directory, kind):
    found = records.read_jsonl(directory / "metrics.jsonl", kind)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def assert_rows_close(rows, expected):
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            same = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert row[key] == same, (key, row, other)


def facts_of(directory):
    return records.load((directory / "run.json").read_text())


def test_a_stacks_directories_are_those_of_the_runs_alone(settings):
    config = settings("seed=3", "trainer.stack=2")
    arm = execute_stack(config, ["clip=off", "trainer.stack=2"], None)
    assert arm.parts[-2:] == ("adhoc", "clip=off")
    assert sorted(path.name for path in arm.iterdir()) == ["seed=3", "seed=4"]
    for seed in (3, 4):
        own = arm / f"seed={seed}"
        alone = execute(settings(f"seed={seed}", output="alone"), ["clip=off"], None)
        kept = {p.name for p in alone.iterdir()} - {"findings.json", "evidence.json"}
        assert {p.name for p in own.iterdir()} == kept  # a stack is not diagnosed
        text = (alone / "config.yaml").read_text().replace("/alone", "/stacked")
        assert (own / "config.yaml").read_text() == text
        assert facts_of(own).keys() - facts_of(alone).keys() == {"stacked"}
        assert facts_of(own)["status"] == "finished"
        for kind in ("step", "epoch"):
            assert_rows_close(rows_of(own, kind), rows_of(alone, kind))
        steps = [[row["step"] for row in records.read_jsonl(d / "layers.jsonl")]
                 for d in (own, alone)]  # fmt: skip
        assert steps[0] == steps[1] == [0]


def test_finished_members_are_skipped_whoever_ran_them(settings, caplog):
    alone = execute(settings("seed=1"), [], None)
    before = (alone / "metrics.jsonl").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        arm = execute_stack(settings("trainer.stack=3"), [], None)
        assert "seed=1: finished before, skipped" in caplog.text
        assert (alone / "metrics.jsonl").stat().st_mtime_ns == before
        assert [facts_of(arm / f"seed={s}").get("stacked") for s in range(3)] == [2, None, 2]
        caplog.clear()
        execute_stack(settings("trainer.stack=3"), [], None)
        assert caplog.text.count("skipped") == 3


@pytest.mark.parametrize("saved", [4, 5], ids=["between_epochs", "between_two_members"])
def test_a_stack_that_was_cut_off_goes_on(settings, monkeypatch, saved):
    whole = execute_stack(settings("trainer.stack=2", output="whole"), [], None)
    write, count = checkpoint.write, Counter()

    def write_then_stop(path, state):
        write(path, state)
        count["written"] += 1
        if count["written"] == saved:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        execute_stack(settings("trainer.stack=2"), [], None)
    arm = execute_stack(settings("trainer.stack=2"), [], None)
    for seed in ("seed=0", "seed=1"):
        assert facts_of(arm / seed)["status"] == "finished"
        for kind in ("step", "epoch"):
            found, expected = rows_of(arm / seed, kind), rows_of(whole / seed, kind)
            if saved == 4:  # bit for bit, as a run alone
                assert found == expected
            assert_rows_close(found, expected)


calls: Counter[str] = Counter()


def fails_at_the_tenth_batch(outputs, targets):
    """Cross-entropy that counts the batches of training, which have more than two samples."""
    if len(outputs) > 2 and torch.is_grad_enabled():
        calls["training"] += 1
        if calls["training"] == 10:
            raise ArithmeticError("the tenth")
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("stack", [1, 2])
def test_a_run_that_fails_keeps_the_rows_before_the_failure(settings, stack):
    calls.clear()
    config = settings(
        f"trainer.stack={stack}", "doctor=off", "trainer.eval_every=3",
        "loss._target_=test_sweep.fails_at_the_tenth_batch",
    )  # fmt: skip
    with pytest.raises(ArithmeticError):
        (execute if stack == 1 else execute_stack)(config, [], None)
    for seed in range(stack):
        directory = Path(config.output_dir) / "adhoc" / "default" / f"seed={seed}"
        facts = facts_of(directory)
        assert (facts["status"], facts["error"]) == ("failed", "ArithmeticError: the tenth")
        assert [row["step"] for row in rows_of(directory, "step")] == list(range(9))


def test_a_range_test_chooses_each_members_rate(settings):
    test = ("task=lr_train", "task.lr_from=minimum", "task.finder.start_lr=1e-5", "reg=dropout")
    arm = execute_stack(settings(*test, "trainer.stack=2"), [], None)
    for seed in (0, 1):
        alone = execute(settings(*test, f"seed={seed}", output="alone"), [], None)
        own = arm / f"seed={seed}"
        assert rows_of(own, "lr_point") == rows_of(alone, "lr_point")
        assert rows_of(own, "step")[0]["lr"] == rows_of(alone, "step")[0]["lr"]
        assert_rows_close(rows_of(own, "epoch"), rows_of(alone, "epoch"))


def test_nothing_is_written_if_one_member_is_refused(settings):
    config = settings("trainer.stack=3", "task.lr_from=steepest", "task.finder.start_lr=1e3",
                      "task.finder.end_lr=1e5")  # fmt: skip
    with pytest.raises(ConfigError, match="suggests nothing"):
        execute_stack(config, [], None)
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [(["model.activation._target_=torch.nn.RReLU"], "the network or its loss cannot be stacked"),
     (["model=relu_net", "model.blocks=[[4]]"], "on a CPU, stacked convolutions are slower")],
)  # fmt: skip
def test_what_does_not_stack_runs_one_after_the_other(settings, caplog, overrides, reason):
    with caplog.at_level("INFO"):
        arm = execute_stack(settings("trainer.stack=2", "trainer.epochs=1", *overrides), [], None)
    assert f"One after the other: {reason}" in caplog.text
    for seed in (0, 1):
        assert facts_of(arm / f"seed={seed}").get("stacked") is None
        assert (arm / f"seed={seed}" / "findings.json").exists()


def test_other_tasks_run_for_each_seed(settings):
    test = ("task=lr_find", "task.finder.repeats=1", "task.finder.iterations=5")
    arm = execute_stack(settings(*test, "trainer.stack=2"), [], None)
    points = [rows_of(arm / f"seed={seed}", "lr_point") for seed in (0, 1)]
    assert [len(rows) for rows in points] == [5, 5]
    assert points[0] != points[1]


def test_each_member_has_a_wandb_run_of_its_own(settings):
    config = settings("trainer.stack=2", "wandb=offline", "trainer.epochs=1")
    arm = execute_stack(config, [], None)
    ids = [facts_of(arm / f"seed={s}")["wandb_id"] for s in (0, 1)]
    assert len(set(ids)) == 2
    for seed, run_id in enumerate(ids):
        seen = read_back(arm / f"seed={seed}")
        (described,) = seen["run"]
        assert described["run_id"] == run_id
        assert described["config"]["update"]["seed"] == seed
        losses = [h["item"]["step/loss"] for h in seen["history"] if "step/loss" in h["item"]]
        expected = [row["loss"] for row in rows_of(arm / f"seed={seed}", "step")]
        assert losses == pytest.approx(expected)


def test_arms_are_executed_together_each_in_its_own_directory(settings, tmp_path):
    jobs = [
        Job(settings("optim.lr=0.01"), ["optim.lr=0.01"], None),
        Job(settings("reg.dropout=0.1", "init=kaiming"), ["init=kaiming"], None),
    ]
    execute_together(jobs)
    for job in jobs:
        job.config.output_dir = job.config.output_dir.replace("stacked", "alone")
        alone = execute(job.config, job.overrides, None)
        own = tmp_path / "stacked" / alone.relative_to(tmp_path / "alone")
        assert facts_of(own)["stacked"] == 2
        assert_rows_close(rows_of(own, "epoch"), rows_of(alone, "epoch"))
