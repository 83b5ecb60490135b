"""What is kept of many runs is what they say, and runs that are not comparable are not mixed."""

import gzip
import shutil

import numpy as np
import pandas as pd
import pytest
from test_runs import epoch, stats, write_run

from debugnn import records
from debugnn.analysis import archive
from debugnn.analysis.directories import Unusable, load_runs, scan_runs
from debugnn.errors import ConfigError
from debugnn.records import Layers, LrPoint, LrSuggestion, Step

LONG = 2000  # steps


def training(seed):
    rng = np.random.default_rng(seed)
    for step in range(LONG):
        if step % 20 == 0:
            tensors = {"fc.weight": stats(rng.normal(size=50))}
            active = {"relu": stats(rng.normal(size=50), dead_units=0.25)}
            yield Layers(0, step, tensors, tensors, active)
        yield Step(0, step, rng.random(), 50.0, 1e-3, rng.random())
    yield epoch(0, loss=1 / 3)
    yield epoch(1, loss=float("nan"), test_loss=float("inf"))


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "runs"
    for seed in (0, 1, 10):
        write_run(root, {"reg": "bn"}, training(seed), seed=seed, article_run="batch_norm")
    ranges = [LrPoint(0, i, 10.0**-i, 10.0**-i, 2.0, 2.0) for i in range(5)]
    write_run(root, {}, [*ranges, LrSuggestion(0, "valley", 1e-3)], experiment="lr", task="lr_find")
    findings = root / "trial" / "reg=bn" / "seed=1" / "findings.json"
    findings.write_text(records.dump({"main_cause": "lr_too_high", "healthy": False}))
    return root


def merged(root, kept=(), **how):
    runs, unusable = archive.merge(kept, scan_runs(root), **how)
    assert unusable == []
    return runs


def assert_equal(one, other):
    pd.testing.assert_frame_equal(one, other, rtol=1e-5, check_dtype=False)


def test_what_is_kept_is_what_the_runs_say(directory, tmp_path):
    archive.write(merged(directory), tmp_path / "kept")
    for run, kept in zip(load_runs(directory), archive.read(tmp_path / "kept"), strict=True):
        for name in ("experiment", "arm", "seed", "data", "article_run", "config", "facts"):
            assert getattr(kept, name) == getattr(run, name)
        assert kept.findings == run.findings
        if run.experiment == "lr":
            assert_equal(kept.lr_points(), run.lr_points())
            assert kept.lr_suggestions().equals(run.lr_suggestions())
            continue
        assert_equal(kept.epochs(), run.epochs())
        for quantity in ("gradients", "activations"):
            thinned = kept.layers(quantity)
            whole = run.layers(quantity)
            rows = whole[whole["step"].isin(thinned["step"])].reset_index(drop=True)
            assert thinned["step"].iloc[[0, -1]].tolist() == [0, LONG - 20]
            assert len(thinned) == (archive.RECORDS if run.seed == 0 else archive.FEW_RECORDS)
            shared = [c for c in whole.columns if c in thinned.columns]
            assert set(whole.columns) - set(shared) <= {"histogram"}
            assert_equal(thinned[shared], rows[shared])


def test_steps_are_thinned_to_the_first_ones_and_evenly_spaced_ones(directory):
    steps = merged(directory)[1].steps()["step"].to_numpy()
    assert len(steps) <= archive.STEPS
    assert steps[: archive.FIRST_STEPS].tolist() == list(range(archive.FIRST_STEPS))
    gaps = np.diff(steps[archive.FIRST_STEPS :])
    assert steps[-1] == LONG - 1
    assert gaps.max() - gaps.min() <= 1


def test_seeds_can_be_compared_at_steps_that_all_of_them_have(directory):
    steps = [set(run.layers("gradients")["step"]) for run in merged(directory)[1:]]
    assert len(steps[0]) == archive.RECORDS
    assert steps[1] == steps[2] < steps[0]
    assert len(steps[1]) == archive.FEW_RECORDS


def test_histograms_are_kept_of_the_first_seeds_gradients(directory, tmp_path):
    archive.write(merged(directory), tmp_path / "kept")
    kept = [run for run in archive.read(tmp_path / "kept") if run.experiment == "trial"]
    whole = load_runs(directory, "trial")[0].layers("gradients")
    shown = kept[0].layers("gradients")
    rows = whole[whole["step"].isin(shown["step"])]
    assert shown["histogram"].tolist() == rows["histogram"].tolist()
    assert "histogram" not in kept[1].layers("gradients")
    assert "histogram" not in kept[0].layers("activations")


def test_the_same_runs_are_the_same_bytes(directory, tmp_path):
    first = {p.name: p.read_bytes() for p in archive.write(merged(directory), tmp_path / "a")}
    again = archive.read(tmp_path / "a")
    second = {p.name: p.read_bytes() for p in archive.write(again, tmp_path / "b")}
    assert first == second


def test_new_runs_join_those_that_are_kept(directory, tmp_path):
    archive.write(merged(directory), tmp_path / "kept")
    shutil.rmtree(directory)
    write_run(directory, {"reg": "bn"}, training(2), seed=2)
    write_run(directory, {"reg": "bn"}, training(77), seed=1)  # replaces the one that is there
    runs = merged(directory, archive.read(tmp_path / "kept"))
    assert [(run.experiment, run.seed) for run in runs] == [
        ("lr", 0), ("trial", 0), ("trial", 1), ("trial", 2), ("trial", 10)
    ]  # fmt: skip
    assert runs[2].findings is None


def changed(root, seed, **facts):
    path = root / "trial" / "reg=bn" / f"seed={seed}" / "run.json"
    path.write_text(records.dump({**records.load(path.read_text()), **facts}))


def test_versions_of_the_training_code_are_not_mixed(directory, tmp_path):
    kept = merged(directory)
    shutil.rmtree(directory)
    write_run(directory, {"reg": "bn"}, training(2), seed=2)
    changed(directory, 2, training_code="other")
    with pytest.raises(ConfigError, match=r"version unknown.*version other"):
        merged(directory, kept)
    runs = merged(directory, kept, replace=True)
    assert [(run.experiment, run.seed) for run in runs] == [("lr", 0), ("trial", 2)]
    # Two versions among the new runs are a mistake that nothing excuses.
    write_run(directory, {"reg": "bn"}, training(3), seed=3)
    with pytest.raises(ConfigError, match="not comparable"):
        merged(directory, kept, replace=True)


def test_arms_of_other_settings_are_not_mixed(directory):
    kept = merged(directory)
    shutil.rmtree(directory)
    write_run(directory, {"reg": "bn"}, training(2), seed=2, loss="mse")
    with pytest.raises(ConfigError, match=r"loss\._target_=debugnn.nn.losses.mse"):
        merged(directory, kept)
    assert [run.seed for run in merged(directory, kept, replace=True)] == [0, 2]


def test_what_cannot_be_used_is_named_and_the_rest_is_kept(directory):
    write_run(directory, {"reg": "none"}, status="failed")
    write_run(directory, {"reg": "none"}, status="running", seed=1)
    torn = directory / "trial" / "reg=bn" / "seed=1" / "metrics.jsonl"
    lines = torn.read_text().splitlines()
    torn.write_text("\n".join([*lines[:6], lines[6][:9], *lines[7:]]) + "\n")
    cut = write_run(directory, {"reg": "cut"}, [epoch(0), epoch(1)]) / "metrics.jsonl"
    cut.write_bytes(cut.read_bytes()[:-1])
    (directory / "trial" / "reg=bn" / "seed=10" / "layers.jsonl").unlink()
    (directory / "lr" / "default" / "seed=0" / "config.yaml").write_text("a: [")
    runs, unusable = archive.merge([], scan_runs(directory))
    assert [run.seed for run in runs] == [0]
    reasons = {str(u.path.relative_to(directory)): u.reason for u in unusable}
    assert reasons["trial/reg=none/seed=0"] == "failed: no error was recorded"
    assert reasons["trial/reg=none/seed=1"] == "was cut off, or is running"
    assert f"{torn}: not strict JSON lines (line 7: " in reasons["trial/reg=bn/seed=1"]
    assert reasons["trial/reg=cut/seed=0"].endswith("(line 2: cut off)")
    assert "layers.jsonl: no such file" in reasons["trial/reg=bn/seed=10"]
    assert "config.yaml: not a run's configuration" in reasons["lr/default/seed=0"]
    assert all(isinstance(found, Unusable) for found in unusable)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("epochs", b"", "No columns to parse from file"),
        ("epochs", b"no gzip", "BadGzipFile"),
        ("epochs", gzip.compress(b"a,b", mtime=0)[:20], "EOFError"),
        ("epochs", gzip.compress(b"epoch,run\n0,0\n1", mtime=0), "line 3: 1 values for 2 columns"),
        (
            "epochs",
            gzip.compress(b'epoch,run\n0,0\n"1,0\n', mtime=0),
            "line 3: 1 values for 2 columns",
        ),
        ("steps", gzip.compress(b"step,run\n0,0\nx,0\n", mtime=0), "line 3: step is no number: x"),
        ("runs", gzip.compress(b"seed,arm\n0,x\n", mtime=0), "line 2: not a run"),
    ],
)
def test_a_damaged_table_is_named_and_the_other_experiments_are_read(
    directory, tmp_path, name, content, fault
):
    archive.write(merged(directory), tmp_path / "kept")
    damaged = tmp_path / "kept" / "trial" / f"{name}.csv.gz"
    damaged.write_bytes(content)
    run, unusable = archive.scan(tmp_path / "kept")
    assert run.experiment == "lr"
    assert not run.lr_points().empty
    assert unusable.path == damaged.parent
    assert unusable.reason.startswith(f"{damaged}: ")
    assert fault in unusable.reason
    with pytest.raises(ConfigError, match=r"csv\.gz: "):
        [run.tables.metrics("step") for run in archive.read(tmp_path / "kept")]
