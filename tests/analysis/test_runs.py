"""The tables of run directories are complete, and tell a NaN from a missing value."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from debugnn import records
from debugnn.analysis import tables
from debugnn.analysis.directories import load_runs
from debugnn.analysis.runs import over_seeds, paired, select, varying
from debugnn.errors import ConfigError
from debugnn.records import Epoch, Layers, LrPoint, LrSuggestion, Record, Step, TensorStats


def write_run(
    root: Path,
    arm: Mapping[str, str],
    rows: Iterable[Record] = (),
    *,
    experiment: str = "trial",
    seed: int = 0,
    data: str = "digits",
    article_run: str | None = None,
    status: str = "finished",
    figures: Iterable[Mapping[str, Any]] = (),
    task: str = "train",
    loss: str = "cross_entropy",
) -> Path:
    """Write a run's directory with the files that figures and tables read."""
    label = ",".join(f"{k}={v}" for k, v in arm.items()) or "default"
    directory = root / experiment / label.replace("/", "_") / f"seed={seed}"
    directory.mkdir(parents=True)
    facts = {
        "status": status,
        "experiment": experiment,
        "arm": dict(arm),
        "seed": seed,
        "data": data,
        "article_run": article_run,
        "started": f"2026-01-01T00:00:{seed:02d}+00:00",
        "git": {"commit": "c0ffee", "dirty": False},
        "versions": {"python": "3.11.0", "torch": "2.14.1"},
        "device": "a processor",
        "threads": 1,
    }
    config = {
        "loss": {"_target_": f"debugnn.nn.losses.{loss}"},
        "data": {"batch_size": 4, "train_size": None},
        "trainer": {"steps_per_epoch": 21, "precision": "fp32"},
        "task": {"name": task},
        "report": {
            "title": f"About {experiment}",
            "data": {"article": ["data=mnist"]},
            "figures": [dict(f) for f in figures],
        },
    }
    (directory / "run.json").write_text(records.dump(facts, indent=2))
    (directory / "config.yaml").write_text(records.dump(config))  # JSON is YAML
    files = {"metrics": "", "layers": ""}
    for row in rows:
        files["layers" if isinstance(row, Layers) else "metrics"] += records.encode(row) + "\n"
    for name, text in files.items():
        (directory / f"{name}.jsonl").write_text(text)
    return directory


def epoch(number: int, loss: float = 1.0, accuracy: float | None = 50.0, **fields: Any) -> Epoch:
    values = {
        "epoch": number,
        "step": 21 * number + 20,
        "train_loss": loss,
        "last_batch_loss": loss,
        "train_accuracy": accuracy,
        "test_loss": loss,
        "test_accuracy": accuracy,
        "seconds": 0.1,
    }
    return Epoch(**{**values, **fields})


def stats(values: np.ndarray, bins: int = 64, dead_units: float | None = None) -> TensorStats:
    """Compute with NumPy what `tensor_stats.describe` returns for these values."""
    counts, edges = np.histogram(values, bins=bins)
    return TensorStats(
        size=values.size,
        nonfinite=0,
        norm=float(np.linalg.norm(values)),
        mean=float(values.mean()),
        std=float(values.std()),
        low=float(edges[0]),
        high=float(edges[-1]),
        zeros=float((values == 0).mean()),
        histogram=counts.tolist(),
        dead_units=dead_units,
    )


# --- finding runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["running", "failed"])
def test_only_finished_runs_are_loaded(tmp_path: Path, status: str) -> None:
    write_run(tmp_path, {"reg": "none"}, seed=1)
    write_run(tmp_path, {"reg": "none"}, seed=2, status=status)
    (tmp_path / "trial" / "reg=bn" / "seed=0").mkdir(parents=True)
    assert [run.seed for run in load_runs(tmp_path)] == [1]


def test_seeds_are_ordered_as_numbers(tmp_path: Path) -> None:
    for seed in (10, 9, 2):
        write_run(tmp_path, {}, seed=seed)
    assert [run.seed for run in load_runs(tmp_path)] == [2, 9, 10]


def test_one_experiment_can_be_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, {}, experiment="first")
    write_run(tmp_path, {}, experiment="second")
    assert [run.experiment for run in load_runs(tmp_path, "second")] == ["second"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"status": "finished"}'])
def test_an_unreadable_record_is_named(tmp_path: Path, text: str) -> None:
    path = write_run(tmp_path, {}) / "run.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json") as raised:
        load_runs(tmp_path)
    assert str(path) in str(raised.value)


def test_an_unreadable_configuration_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path, {}) / "config.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_runs(tmp_path)


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_runs(tmp_path / "nowhere")


# --- tables of a run ----------------------------------------------------------------------------


def test_each_kind_of_row_has_its_table(tmp_path: Path) -> None:
    layers = Layers(0, 0, {"fc.weight": stats(np.arange(4.0))}, {}, {})
    rows = [
        Step(0, 0, 2.3, 10.0, 1e-3, 0.5),
        epoch(0),
        LrPoint(0, 0, 1e-9, 2e-9, 2.3, 2.3),
        LrSuggestion(0, "valley", 1e-3),
        layers,
    ]
    write_run(tmp_path, {}, rows)
    (run,) = load_runs(tmp_path)
    assert run.steps()["loss"].tolist() == [2.3]
    assert run.epochs()["test_accuracy"].tolist() == [50.0]
    assert run.lr_points()["lr_as_logged"].tolist() == [2e-9]
    assert run.lr_suggestions()["rule"].tolist() == ["valley"]
    assert run.layers("gradients")[["layer", "size"]].to_numpy().tolist() == [["fc.weight", 4]]


@pytest.mark.parametrize("table", ["steps", "epochs", "lr_points", "lr_suggestions"])
def test_missing_rows_raise(tmp_path: Path, table: str) -> None:
    write_run(tmp_path, {})
    (run,) = load_runs(tmp_path)
    with pytest.raises(ConfigError, match=r"seed=0: no rows of kind"):
        getattr(run, table)()
    with pytest.raises(ConfigError, match=r"seed=0: no gradients were recorded"):
        run.layers("gradients")


def test_a_missing_file_raises(tmp_path: Path) -> None:
    (write_run(tmp_path, {}) / "metrics.jsonl").unlink()
    (run,) = load_runs(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        run.epochs()


def test_a_nan_loss_is_no_missing_loss(tmp_path: Path) -> None:
    lost, unevaluated = epoch(0, math.nan, None), epoch(1, 1.0, None, test_loss=None)
    write_run(tmp_path, {}, [lost, unevaluated, epoch(2, math.inf, None)])
    epochs = load_runs(tmp_path)[0].epochs()
    assert epochs["evaluated"].tolist() == [True, False, True]
    assert np.isnan(epochs["test_loss"][0])
    assert epochs["test_loss"][2] == math.inf
    assert epochs["test_accuracy"].isna().all()


# --- arms ---------------------------------------------------------------------------------------


def test_arms_are_matched_by_a_part_of_their_settings(tmp_path: Path) -> None:
    for clip in ("off", "4.0"):
        for data in ("regression", "regression_notebook"):
            write_run(tmp_path, {"clip": clip, "data": data})
    runs = load_runs(tmp_path)
    assert {r.arm["clip"] for r in select(runs, ["data=regression_notebook"])} == {"off", "4.0"}
    assert len(select(runs, ["data=regression_notebook"])) == 2
    assert len(select(runs, ["clip=off,data=regression"])) == 1
    assert select(runs, ["clip=scaling"]) == []
    assert len(select(runs, None)) == 4


def test_arms_come_in_the_order_of_the_patterns(tmp_path: Path) -> None:
    for reg in ("bn", "dropout", "none"):
        write_run(tmp_path, {"reg": reg})
    chosen = select(load_runs(tmp_path), ["reg=none", "reg=bn"])
    assert [run.arm["reg"] for run in chosen] == ["none", "bn"]


def test_varying_keys(tmp_path: Path) -> None:
    write_run(tmp_path, {"reg": "bn", "trainer.epochs": "3"})
    write_run(tmp_path, {"reg": "bn", "trainer.epochs": "3", "init": "kaiming"})
    assert varying(load_runs(tmp_path)) == ["init"]


def test_seeds_are_aggregated_and_none_drops_out() -> None:
    def frame(*losses: float) -> pd.DataFrame:
        return pd.DataFrame({"epoch": range(len(losses)), "loss": losses})

    frames = {0: frame(1.0, 2.0, 3.0), 1: frame(3.0, math.nan), 2: frame(11.0, 1.0)}
    found = over_seeds(frames, "loss", "epoch")
    assert found.loc[0].to_dict() == {"mean": 5.0, "median": 3.0, "low": 1.0, "high": 11.0}
    assert found.loc[[1, 2]].isna().all(axis=None)


# --- pairs of runs --------------------------------------------------------------------------------


def test_runs_are_paired_by_all_but_one_setting(tmp_path: Path) -> None:
    for seed, (plain, other) in enumerate([(90.0, 91.0), (92.0, 92.0), (94.0, 96.0)]):
        for precision, accuracy in (("fp32", plain), ("bf16", other)):
            arm = {"data": "mnist", "model": "tanh", "trainer.precision": precision}
            rows = [epoch(0, accuracy=1.0), epoch(1, loss=accuracy / 100, accuracy=accuracy)]
            write_run(tmp_path, arm, rows, seed=seed, data="mnist")
    # A run without a partner is in no pair.
    lonely = {"model": "relu_net", "trainer.precision": "bf16"}
    write_run(tmp_path, lonely, [epoch(0)])
    table = paired(load_runs(tmp_path), "trainer.precision", ("fp32", "bf16"))
    assert table.to_dict("list") == {
        "data": ["mnist"] * 3, "arm": ["model=tanh"] * 3, "seed": [0, 1, 2], "epochs": [2] * 3,
        "fp32": [90.0, 92.0, 94.0], "train_loss_fp32": [0.9, 0.92, 0.94],
        "bf16": [91.0, 92.0, 96.0], "train_loss_bf16": [0.91, 0.92, 0.96],
    }  # fmt: skip
    # Differences 1, 0, 2: mean 1, standard error 1/√3, and t(2) reaches 0.975 at 4.303.
    low, high = 1 - 4.3027 / 3**0.5, 1 + 4.3027 / 3**0.5
    shown = tables.pairs(table, ("fp32", "bf16"))
    assert "| mnist `model=tanh` | 2 | 3 | 92.00 ± 2.00 | 93.00 ± 2.65 | +1.00 (" in shown
    assert shown.endswith(f"| +0.0100 ({low / 100:+.4f} to {high / 100:+.4f}) |")
    with pytest.raises(ConfigError, match="differ in optim=adam and sgd"):
        paired(load_runs(tmp_path), "optim", ("adam", "sgd"))
