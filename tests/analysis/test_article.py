"""The article's recorded numbers, and our runs beside them."""

import math
from pathlib import Path

import pytest
from test_runs import epoch, write_run

from debugnn.analysis import tables
from debugnn.analysis.article import article_epochs, compare
from debugnn.analysis.directories import load_runs
from debugnn.errors import ConfigError


def test_the_article_is_read_under_our_names() -> None:
    recorded = article_epochs("VG_Converge")
    assert recorded["epoch"].tolist() == list(range(40))
    assert recorded["test_accuracy"].iloc[-1] == 94.95
    assert recorded["evaluated"].all()


def test_the_article_keeps_nan_apart_from_missing() -> None:
    lost, unevaluated = (article_epochs(n) for n in ("before_nan", "overfitsmall"))
    assert lost["evaluated"].all()
    assert lost["test_loss"].isna().all()
    assert not unevaluated["evaluated"].any()


def test_an_unknown_article_run_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no run invented"):
        article_epochs("invented")


def test_ours_is_compared_at_the_articles_last_epoch(tmp_path: Path) -> None:
    rows = [epoch(n, loss=1 / (n + 1), accuracy=float(n)) for n in range(40)]
    write_run(tmp_path, {"model": "relu_net"}, rows, article_run="VG_solved_Relu")
    (row,) = compare(load_runs(tmp_path)).to_dict("records")
    assert row["epochs"] == 10
    assert (row["final_test_accuracy"], row["best_test_accuracy"]) == (9.0, 9.0)
    assert row["final_test_loss"] == row["min_test_loss"] == 0.1
    recorded = article_epochs("VG_solved_Relu")
    assert row["final_test_accuracy_article"] == recorded["test_accuracy"].iloc[-1]
    assert row["first_train_accuracy_article"] == recorded["train_accuracy"].iloc[0]


def test_the_shorter_sigmoid_run_has_a_row_of_its_own(tmp_path: Path) -> None:
    rows = [epoch(n, accuracy=float(n)) for n in range(40)]
    write_run(tmp_path, {"model": "sigmoid_net"}, rows, article_run="VG_Converge")
    write_run(tmp_path, {"model": "tanh"}, rows)
    table = compare(load_runs(tmp_path)).set_index("article_run")
    assert table["epochs"].to_dict() == {"VG_Converge": 40, "Vanishing_Grad_1": 10}
    assert table["final_test_accuracy"].to_dict() == {"VG_Converge": 39.0, "Vanishing_Grad_1": 9.0}


def test_the_table_says_since_when_a_loss_is_nan(tmp_path: Path) -> None:
    rows = [epoch(0, 5.0, None), epoch(1, math.nan, None), epoch(2, math.nan, None)]
    write_run(tmp_path, {}, rows, article_run="before_nan", data="regression")
    (row,) = compare(load_runs(tmp_path)).to_dict("records")
    assert (row["nonfinite_from"], row["nonfinite_from_article"]) == (1, 0)
    assert math.isnan(row["final_test_loss"])


def test_the_table_shows_means_and_deviations_over_the_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((90.0, 92.0, 94.0)):
        rows = [epoch(n, loss=1.0, accuracy=accuracy) for n in range(10)]
        write_run(tmp_path, {"model": "relu_net"}, rows, seed=seed, article_run="VG_solved_Relu")
    write_run(tmp_path, {"clip": "off"}, [epoch(0, math.nan, None)], article_run="before_nan")
    head, _, *lines = tables.comparison(compare(load_runs(tmp_path))).splitlines()
    named = [cell.strip() for cell in head.split("|")]
    shown = [dict(zip(named, map(str.strip, line.split("|")), strict=True)) for line in lines]
    of_relu = next(row for row in shown if row["article's run"] == "`VG_solved_Relu`")
    assert of_relu["seeds"] == "3"
    assert of_relu["test accuracy, last epoch (%)"] == "92.0 ± 2.0 / 97.3"
    lost = next(row for row in shown if row["article's run"] == "`before_nan`")
    assert lost["test loss, last epoch"] == "NaN / NaN"
    assert lost["test accuracy, last epoch (%)"] == "– / –"
