"""Each member of a stack leaves the directory that the same run would leave alone."""

import signal
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from test_stack import DENSE, SMALL, STEADY

from debugnn import json_lines, records
from debugnn.runs.execute import execute
from debugnn.runs.naming import directory_of
from debugnn.runs.pauses import Interrupted
from debugnn.stacking.sweep import Job, execute_together
from debugnn.training import checkpoint
from left_by_runs import weights
from offline_wandb import read_back

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(compose, tmp_path):
    def make(*overrides, output="stacked"):
        config = compose(*SMALL, *DENSE, "reg=bn_dropout", STEADY, "trainer.epochs=4", *overrides)
        config.output_dir = str(tmp_path / output)
        return config

    return make


def refuse(job, error):
    raise error


def together(*configs, failed=refuse):
    """Execute the runs of these configurations at once; return their directories."""
    execute_together([Job(config, [], None) for config in configs], failed)
    return [directory_of(config, "adhoc", {}) for config in configs]


def rows_of(directory, kind):
    found = json_lines.read(directory / "metrics.jsonl", kind)
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
    for seed, own in zip((3, 4), together(settings("seed=3"), settings("seed=4")), strict=True):
        alone = execute(settings(f"seed={seed}", output="alone"), [], None)
        kept = {p.name for p in alone.iterdir()} - {"findings.json", "evidence.json"}
        assert {p.name for p in own.iterdir()} == kept  # a stack is not diagnosed
        text = (alone / "config.yaml").read_text().replace("/alone", "/stacked")
        assert (own / "config.yaml").read_text() == text
        assert facts_of(own).keys() - facts_of(alone).keys() == {"stacked"}
        assert facts_of(own)["status"] == "finished"
        for kind in ("step", "epoch"):
            assert_rows_close(rows_of(own, kind), rows_of(alone, kind))
        steps = [[row["step"] for row in json_lines.read(d / "layers.jsonl")]
                 for d in (own, alone)]  # fmt: skip
        assert steps[0] == steps[1] == [0]


@pytest.mark.parametrize("saved", [1, 4, 5], ids=["at_first", "between_epochs", "between_members"])
@pytest.mark.injects("a kill")
def test_a_stack_that_was_cut_off_goes_on(settings, monkeypatch, saved):
    whole = together(*(settings(f"seed={s}", output="whole") for s in (0, 1)))
    write, count = checkpoint.write, Counter()

    def write_then_stop(path, state):
        write(path, state)
        count["written"] += 1
        if count["written"] == saved:
            raise KeyboardInterrupt

    configs = [settings(f"seed={s}") for s in (0, 1)]
    monkeypatch.setattr(checkpoint, "write", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        together(*configs)
    for own, expected in zip(together(*configs), whole, strict=True):
        assert facts_of(own)["status"] == "finished"
        for kind in ("step", "epoch"):
            assert rows_of(own, kind) == rows_of(expected, kind)


calls: Counter[str] = Counter()


def fails_from_the_tenth_batch(outputs, targets):
    """Cross-entropy that counts the batches of training, which have more than two samples."""
    if len(outputs) > 2 and torch.is_grad_enabled():
        calls["training"] += 1
        if calls["training"] >= 10:
            raise ArithmeticError("the tenth")
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("members", [1, 2])
def test_a_run_that_fails_keeps_the_rows_before_the_failure(settings, members):
    calls.clear()
    failing = ("doctor=off", "trainer.eval_every=3",
               "loss._target_=test_sweep.fails_from_the_tenth_batch")  # fmt: skip
    configs = [settings(f"seed={seed}", *failing) for seed in range(members)]
    errors = []
    together(*configs, failed=lambda job, error: errors.append((job.config.seed, str(error))))
    assert errors == [(seed, "the tenth") for seed in range(members)]
    for config in configs:
        directory = directory_of(config, "adhoc", {})
        facts = facts_of(directory)
        assert (facts["status"], facts["error"]) == ("failed", "ArithmeticError: the tenth")
        # Where a stack has failed, each member has tried it again from its checkpoint at step 8.
        kept = 9 if members == 1 else 8
        assert [row["step"] for row in rows_of(directory, "step")] == list(range(kept))


def is_told_to_stop(outputs, targets):
    """Cross-entropy; the signal comes at the sixth batch of a kind. An epoch trains on four."""
    if len(outputs) > 2:
        kind = "training" if torch.is_grad_enabled() else "evaluation"
        calls[kind] += 1
        if calls[kind] == 6 and calls["stops in"] == kind:
            signal.raise_signal(signal.SIGTERM)
    return F.cross_entropy(outputs, targets)


STOPPING = ("doctor=off", f"loss._target_={__name__}.is_told_to_stop", "trainer.eval_every=1")


def stopped(kind, run, *arguments):
    """Call `run`, which is told to stop at the sixth batch of this kind."""
    calls.clear()
    calls["stops in"] = kind
    with pytest.raises(Interrupted):
        run(*arguments)
    calls.clear()


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_stack_stops_inside_an_epoch_and_goes_on_there(settings, kind):
    seeds = [f"seed={seed}" for seed in (0, 1)]
    whole = together(*(settings(*STOPPING, seed, output="whole") for seed in seeds))
    configs = [settings(*STOPPING, seed) for seed in seeds]
    stopped(kind, together, *configs)
    directories = [directory_of(config, "adhoc", {}) for config in configs]
    assert [facts_of(directory)["status"] for directory in directories] == ["interrupted"] * 2
    kept = [len(rows_of(directory, "step")) for directory in directories]
    assert kept == {"training": [6, 6], "evaluation": [4, 4]}[kind]  # both within an epoch
    together(*configs)
    for own, expected in zip(directories, whole, strict=True):
        for rows in ("step", "epoch"):
            assert rows_of(own, rows) == rows_of(expected, rows)
        ours, theirs = (weights(directory) for directory in (own, expected))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_runs_that_stopped_inside_an_epoch_alone_go_on_in_a_stack(settings):
    configs = [settings(*STOPPING, f"seed={seed}") for seed in (0, 1)]
    for config in configs:
        stopped("training", execute, config, [], None)
    for seed, own in enumerate(together(*configs)):
        assert facts_of(own)["stacked"] == 2
        alone = execute(settings(*STOPPING, f"seed={seed}", output="alone"), [], None)
        for kind in ("step", "epoch"):
            assert_rows_close(rows_of(own, kind), rows_of(alone, kind))


def test_a_range_test_chooses_each_members_rate(settings):
    test = ("task=lr_train", "task.lr_from=minimum", "task.finder.start_lr=1e-5", "reg=dropout")
    directories = together(*(settings(*test, f"seed={seed}") for seed in (0, 1)))
    for seed, own in enumerate(directories):
        alone = execute(settings(*test, f"seed={seed}", output="alone"), [], None)
        assert rows_of(own, "lr_point") == rows_of(alone, "lr_point")
        assert rows_of(own, "step")[0]["lr"] == rows_of(alone, "step")[0]["lr"]
        assert_rows_close(rows_of(own, "epoch"), rows_of(alone, "epoch"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [(["model.activation._target_=torch.nn.RReLU"], "the network or its loss cannot be stacked"),
     (["model=relu_net", "model.blocks=[[4]]"], "on a CPU, stacked convolutions are slower")],
)  # fmt: skip
def test_what_does_not_stack_runs_one_after_the_other(settings, caplog, overrides, reason):
    with caplog.at_level("INFO"):
        directories = together(
            *(settings("trainer.epochs=1", f"seed={seed}", *overrides) for seed in (0, 1))
        )
    assert f"One after the other: {reason}" in caplog.text
    for directory in directories:
        assert facts_of(directory).get("stacked") is None
        assert (directory / "findings.json").exists()


def test_each_member_has_a_wandb_run_of_its_own(settings):
    given = ("wandb=offline", "trainer.epochs=1")
    directories = together(*(settings(*given, f"seed={seed}") for seed in (0, 1)))
    ids = [facts_of(directory)["wandb_id"] for directory in directories]
    assert len(set(ids)) == 2
    for seed, (directory, run_id) in enumerate(zip(directories, ids, strict=True)):
        seen = read_back(directory)
        (described,) = seen["run"]
        assert described["run_id"] == run_id
        assert described["config"]["update"]["seed"] == seed
        losses = [h["item"]["step/loss"] for h in seen["history"] if "step/loss" in h["item"]]
        expected = [row["loss"] for row in rows_of(directory, "step")]
        assert losses == pytest.approx(expected)
