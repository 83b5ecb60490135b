"""Every figure shows what the runs and the article recorded, and names its data and seeds."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_runs import epoch, stats, write_run

import figures
from conftest import REPOSITORY
from debugnn.analysis import archive
from debugnn.analysis.article import article_epochs
from debugnn.analysis.directories import load_runs
from debugnn.analysis.figures import KINDS, draw
from debugnn.analysis.figures.layers import magnitudes, rebin
from debugnn.analysis.runs import Run
from debugnn.errors import ConfigError
from debugnn.records import Layers, LrPoint, LrSuggestion, Step
from debugnn.tensor_stats import describe

WEIGHTS = ("conv1.weight", "fc1.weight", "fc2.weight")
ACTIVATIONS = ("conv1", "act1", "fc1", "fc1_act", "fc2")


def layers(step: int, scale: float = 1.0, dead: float = 0.0) -> Layers:
    """Three weight tensors and five activations; the output is a batch of 4 with 10 classes."""
    values = np.random.default_rng(step).normal(size=40)
    return Layers(
        0,
        step,
        {name: stats(scale * values) for name in (*WEIGHTS, "bn1.weight")},
        {},
        {name: stats(values, dead_units=dead) for name in ACTIVATIONS},
    )


def plotted(kind: str, runs: list[Run], **entry: Any) -> Figure:
    defaults = {"name": "fig", "kind": kind, "title": "A title", "arms": None, "options": {}}
    return KINDS[kind](runs, {**defaults, **entry})


def texts(figure: Figure) -> str:
    """Return the text outside of the panels: title, legends, caption."""
    parts = [figure, *figure.subfigs]
    found = [part._suptitle.get_text() for part in parts if part._suptitle]
    found += [text.get_text() for part in parts for text in part.texts]
    found += [t.get_text() for part in parts for legend in part.legends for t in legend.texts]
    return " ".join(found).replace("\n", " ")


def lines(axes: Axes, colour: str | None = None) -> list[tuple[list[float], list[float]]]:
    found = [line for line in axes.lines if colour is None or line.get_color() == colour]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


# --- what is drawn ------------------------------------------------------------------------------


def test_every_experiments_figures_are_of_a_known_kind(each_experiment: str) -> None:
    path = REPOSITORY / "conf" / "experiment" / f"{each_experiment}.yaml"
    report = yaml.safe_load(path.read_text())["report"]
    for figure in report["figures"]:
        assert figure["kind"] in KINDS
        assert figure["title"]
        assert figure["caption"].endswith(".")


def test_figures_are_drawn_once_for_each_data_set(tmp_path: Path, caplog) -> None:
    curves = {"name": "fig", "kind": "curves", "title": "T", "arms": None, "options": {}}
    missing = {**curves, "name": "other", "arms": ["reg=bn"]}
    for data in ("shapes", "cifar10"):
        arm = {"reg": "none", **({"data": data} if data == "cifar10" else {})}
        write_run(tmp_path, arm, [epoch(0)], data=data, figures=[curves, missing])
    write_run(tmp_path, {}, [epoch(0)], experiment="cut_off", status="running", figures=[curves])
    plain = write_run(tmp_path, {}, [epoch(0)], experiment="adhoc")
    config = yaml.safe_load((plain / "config.yaml").read_text())
    (plain / "config.yaml").write_text(yaml.safe_dump({**config, "report": None}))
    written = draw(tmp_path, tmp_path / "figures")
    assert sorted(path.name for path in written) == ["fig_cifar10.png", "fig_shapes.png"]
    assert "adhoc" not in caplog.text
    assert draw(tmp_path, tmp_path / "figures", ["adhoc"]) == []
    assert "adhoc: skipped, no report section" in caplog.text
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert "cut_off: skipped, no finished run" in caplog.text
    assert "other_shapes: skipped, no finished run of reg=bn" in caplog.text


def test_kept_results_give_the_figures_of_their_runs(tmp_path: Path) -> None:
    curves = {"name": "fig", "kind": "curves", "title": "T", "arms": None, "options": {}}
    write_run(tmp_path / "runs", {}, [epoch(0)], experiment="trial", figures=[curves])
    archive.write(load_runs(tmp_path / "runs"), tmp_path / "kept")
    first, second = (draw(tmp_path / side, tmp_path / f"of {side}") for side in ("runs", "kept"))
    assert [path.name for path in first] == [path.name for path in second] == ["fig_digits.png"]
    assert (image.imread(first[0]) == image.imread(second[0])).all()


def test_a_figure_of_unknown_kind_is_an_error(tmp_path: Path) -> None:
    pie = {"name": "fig", "kind": "pie", "title": "T", "arms": None, "options": {}}
    write_run(tmp_path, {}, [epoch(0)], figures=[pie])
    with pytest.raises(ConfigError, match="kind=pie"):
        draw(tmp_path, tmp_path / "figures")


def test_a_comparison_that_lacks_an_arm_is_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, {"reg": "none"}, [epoch(0)])
    with pytest.raises(ConfigError, match="reg=bn"):
        plotted("curves", load_runs(tmp_path), arms=["reg=none", "reg=bn"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("digits", "embedded stand-in, not the article's MNIST"),
        ("shapes", "embedded stand-in, not the article's CIFAR-10"),
        ("mnist", "Data: MNIST."),
    ],
)
def test_the_caption_names_data_seeds_and_n(tmp_path: Path, data: str, said: str) -> None:
    for seed in (0, 1):
        write_run(tmp_path, {"reg": "bn"}, [epoch(0)], data=data, seed=seed)
    write_run(tmp_path, {"reg": "none"}, [epoch(0)], data=data)
    caption = texts(plotted("curves", load_runs(tmp_path)))
    assert said in caption
    assert "Seeds 0, 1, n = 1 to 2 an arm" in caption


# --- curves -------------------------------------------------------------------------------------


def test_seeds_become_a_mean_and_a_band(tmp_path: Path) -> None:
    for seed, loss in enumerate((1.0, 3.0)):
        write_run(tmp_path, {}, [epoch(0, loss), epoch(1, loss / 2)], seed=seed)
    axes = plotted("curves", load_runs(tmp_path)).axes[0]
    assert ([0, 1], [2.0, 1.0]) in lines(axes)
    low, high = axes.collections[0].get_datalim(axes.transData).intervaly
    assert (low, high) == (0.5, 3.0)


def test_the_articles_points_have_their_arms_colour(tmp_path: Path) -> None:
    for reg, name in (("dropout", "dropout_model"), ("none", "base_model")):
        write_run(tmp_path, {"reg": reg}, [epoch(0), epoch(1)], article_run=name, data="mnist")
    figure = plotted("curves", load_runs(tmp_path))
    for axes, column in zip(figure.axes, ("test_loss", "test_accuracy"), strict=True):
        points = {line.get_label(): line for line in axes.lines if "article" in line.get_label()}
        assert set(points) == {"article: dropout_model", "article: base_model"}
        for label, line in points.items():
            recorded = article_epochs(label.removeprefix("article: "))
            assert list(line.get_ydata()) == recorded[column].tolist()
    colours = {
        line.get_label(): line.get_color() for line in figure.subfigs[0].legends[0].legend_handles
    }
    for reg, name in (("dropout", "dropout_model"), ("none", "base_model")):
        assert points[f"article: {name}"].get_markeredgecolor() == colours[reg]


def test_the_articles_points_are_not_drawn_beside_another_data_set(tmp_path: Path) -> None:
    write_run(tmp_path, {}, [epoch(0), epoch(1)], article_run="base_model", data="digits")
    figure = plotted("curves", load_runs(tmp_path))
    assert not [line for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert "The article's points, made on MNIST, are drawn there alone" in texts(figure)
    assert not [
        text for legend in figure.subfigs[0].legends for text in legend.texts
        if "article" in text.get_text()
    ]  # fmt: skip


def test_an_arm_keeps_its_colour_when_others_are_left_out(tmp_path: Path) -> None:
    for reg in ("bn", "dropout", "none"):
        write_run(tmp_path, {"reg": reg}, [epoch(0), epoch(1)])
    runs = load_runs(tmp_path)
    every, alone = plotted("curves", runs), plotted("curves", runs, arms=["reg=none"])
    assert alone.axes[0].lines[0].get_color() == every.axes[0].lines[-1].get_color()


def test_training_only(tmp_path: Path) -> None:
    rows = [epoch(0, 2.0, 40.0, test_loss=None, last_batch_loss=1.5, test_accuracy=None)]
    write_run(tmp_path, {}, rows, article_run="overfitsmall", data="mnist")
    loss, accuracy = plotted("curves", load_runs(tmp_path), options={"split": "train"}).axes
    recorded = article_epochs("overfitsmall")
    assert lines(loss)[0] == ([0], [1.5])
    assert lines(loss)[1][1] == recorded["last_batch_loss"].tolist()
    assert lines(accuracy)[1][1] == recorded["train_accuracy"].tolist()


def test_unevaluated_epochs_leave_no_gap(tmp_path: Path) -> None:
    rows = [epoch(0, test_loss=None, test_accuracy=None), epoch(1), epoch(2, test_loss=None)]
    write_run(tmp_path, {}, rows)
    axes = plotted("curves", load_runs(tmp_path)).axes[0]
    assert [x for x, _ in lines(axes)] == [[0, 1, 2], [1]]
    assert "NaN" not in texts(axes.figure.figure)


def test_a_nan_loss_is_marked_and_named(tmp_path: Path) -> None:
    data = {"data": "regression_notebook"}
    lost = [epoch(n, math.nan, None) for n in range(3)]
    write_run(
        tmp_path, {"clip": "off", **data}, lost, article_run="before_nan", loss="mse", data="mnist"
    )
    kept = [epoch(n, 10.0, None) for n in range(3)]
    write_run(
        tmp_path, {"clip": "4.0", **data}, kept, article_run="after_nan", loss="mse", data="mnist"
    )
    figure = plotted("nan_loss", load_runs(tmp_path), arms=["data=regression_notebook"])
    assert "off (NaN from epoch 0)" in texts(figure)
    assert "4.0 (NaN" not in texts(figure)
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        marks = [line for line in axes.lines if line.get_gid() == "lost"]
        ours, article = sorted(marks, key=lambda line: line.get_marker() != "x")
        assert list(ours.get_xdata()) == [0, 1, 2]
        assert article.get_marker() == "o"
        assert len(article.get_xdata())


def test_one_lost_seed_of_two_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, {}, [epoch(0, 1.0), epoch(1, 1.0)], seed=0)
    write_run(tmp_path, {}, [epoch(0, 1.0), epoch(1, math.inf)], seed=1)
    assert "(infinite from epoch 1, 1 of 2 seeds)" in texts(plotted("curves", load_runs(tmp_path)))


# --- the range test -----------------------------------------------------------------------------


def test_the_divergence_does_not_set_the_scale_of_the_range_test(tmp_path: Path) -> None:
    rates = np.geomspace(1e-9, 10, 20)
    losses = [2.3] * 12 + [1.5, 1.0, 0.9, 5.0, 1e3, 1e6, math.inf, math.nan]
    rows = [
        LrPoint(test, i, lr, 2 * lr, loss, loss)
        for test in range(2)
        for i, (lr, loss) in enumerate(zip(rates, losses, strict=True))
    ]
    rows += [LrSuggestion(0, "minimum", 0.1), LrSuggestion(1, "minimum", 0.3)]
    rows += [LrSuggestion(1, "valley", 0.02)]
    write_run(tmp_path, {"task": "lr_find"}, rows, task="lr_find")
    (axes,) = plotted("lr_curve", load_runs(tmp_path), arms=["task=lr_find"]).axes
    low, high = axes.get_ylim()
    assert low < 0.9
    assert 2.3 < high < 4
    assert axes.get_xscale() == "log"
    drawn = lines(axes)
    assert drawn[0][0] == pytest.approx(rates)
    assert any(x == pytest.approx(2 * rates) for x, _ in drawn if len(x) == 20)
    assert [x[0] for x, _ in drawn if len(x) == 2] == pytest.approx([0.2, 0.02])
    labels = [text.get_text() for text in axes.get_legend().texts]
    assert "minimum: 2.0e-01 (1.0e-01 to 3.0e-01 in 2 of 2 tests)" in labels
    assert "valley: 2.0e-02 (2.0e-02 to 2.0e-02 in 1 of 2 tests)" in labels


# --- layers -------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(0, 1000), min_size=2, max_size=70),
    low=st.floats(-1e9, 1e9),
    width=st.floats(1e-6, 1e9),
    inner=st.lists(st.floats(0, 1), max_size=20),
)
def test_rebinning_keeps_the_count(counts, low, width, inner) -> None:
    high = low + width
    edges = np.array([low - 1, *(low + width * x for x in sorted(inner)), high + 1])
    moved = rebin(counts, low, high, edges)
    assert moved.sum() == pytest.approx(sum(counts))
    assert (moved >= 0).all()


def test_rebinning_to_the_same_edges_changes_nothing() -> None:
    assert rebin([3, 0, 5], 0.0, 3.0, np.arange(4.0)).tolist() == [3, 0, 5]
    assert rebin([4, 8], 0.0, 2.0, np.array([0.0, 0.5, 1.5, 2.0])).tolist() == [2, 6, 4]


def test_rebinning_one_value() -> None:
    assert rebin([0, 7, 0], 2.0, 2.0, np.array([0.0, 1.0, 3.0])).tolist() == [0, 7]


def test_magnitudes_merge_the_signs_and_separate_the_zeros() -> None:
    values = np.array([-2.0] * 10 + [0.0] * 25 + [2.0] * 15)
    shares = magnitudes(vars_of(stats(values)), np.array([0.01, 0.1, 1.0, 10.0]))
    assert shares == pytest.approx([0.5, 0, 0, 0.5], abs=1e-9)
    assert magnitudes(vars_of(stats(np.zeros(5))), np.array([0.1, 1.0])).tolist() == [1, 0]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.floats(1e-9, 1e3))
def test_magnitudes_are_shares_of_all_values(values, smallest) -> None:
    edges = np.geomspace(smallest, 1e7, 30)
    shares = magnitudes(vars_of(stats(np.asarray(values, float))), edges)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()


@pytest.mark.parametrize("size", [100, 4096, 5000, 1_000_000])
def test_magnitudes_of_tensors_of_any_size_are_shares(size) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, generator=generator)
    third = torch.randint(3, (size,), generator=generator)
    values[third == 0] = 0
    shares = magnitudes(vars_of(describe(values)), np.geomspace(1e-3, 10, 20))
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(1 / 3, abs=0.1)
    values[third == 1] = math.nan
    shares = magnitudes(vars_of(describe(values)), np.geomspace(1e-3, 10, 20))
    assert shares.sum() == pytest.approx(2 / 3, abs=0.1)


def vars_of(tensor) -> dict[str, Any]:
    return {name: getattr(tensor, name) for name in tensor.__slots__}


def test_a_panel_for_every_weight_tensor(tmp_path: Path) -> None:
    write_run(tmp_path, {}, [layers(0), layers(10, 1e-6), layers(20, 1e-6)])
    figure = plotted("gradient_heatmap", load_runs(tmp_path))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(WEIGHTS)
    mesh = panels[0].collections[0].get_array()
    tops = [np.flatnonzero(~mesh.mask[:, step]).max() for step in range(3)]
    assert tops[0] - tops[1] == pytest.approx(36, abs=6)  # six decades of six bins
    assert "share" in figure.axes[-1].get_ylabel()


def test_chosen_layers_alone(tmp_path: Path) -> None:
    write_run(tmp_path, {}, [layers(0, 1e7), layers(5, 1e7)])
    runs = load_runs(tmp_path)
    figure = plotted("gradient_heatmap", runs, options={"layers": ["fc1.weight"]})
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["fc1.weight"]
    assert figure.axes[0].get_ylim()[1] == pytest.approx(1e8)
    with pytest.raises(ConfigError, match=r"conv9\.weight"):
        plotted("gradient_heatmap", runs, options={"layers": ["conv9.weight"]})


def test_zero_and_infinite_norms_are_marked(tmp_path: Path) -> None:
    first, zero = layers(0), layers(5, 0.0)
    write_run(tmp_path, {}, [first, zero])
    (axes,) = plotted("gradient_norms", load_runs(tmp_path)).axes
    marks = [line for line in axes.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert len(marks) == len(WEIGHTS)
    assert [list(line.get_xdata()) for line in marks] == [[5]] * len(WEIGHTS)


def test_dead_units_of_activations_at_the_last_step(tmp_path: Path) -> None:
    write_run(tmp_path, {"model": "relu_net"}, [layers(0, dead=0.1), layers(20, dead=0.75)])
    write_run(tmp_path, {"model": "leaky_relu"}, [layers(0), layers(20)])
    axes = plotted("dead_units", load_runs(tmp_path)).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["act1", "fc1_act"]
    assert axes.images[0].get_array().tolist() == [[0, 0], [75, 75]]


def test_profiles_are_of_step_0(tmp_path: Path) -> None:
    for activation in ("ReLU", "Tanh", "ELU"):
        for init in ("kaiming", "xavier"):
            arm = {"model.activation": activation, "init": init}
            write_run(tmp_path, arm, [layers(0), layers(20, 100.0)])
    figure = plotted("layer_profile", load_runs(tmp_path))
    assert len(figure.axes) == 6
    assert {axes.get_title() for axes in figure.axes[:3]} == {"ReLU", "Tanh", "ELU"}
    spread, norm = figure.axes[0], figure.axes[3]
    assert [len(y) for _, y in lines(spread)] == [2, 2]
    assert lines(norm)[0][1] == pytest.approx([layers(0).gradients["fc1.weight"].norm] * 3)


def test_a_profile_needs_step_0(tmp_path: Path) -> None:
    write_run(tmp_path, {"init": "kaiming"}, [layers(20)])
    with pytest.raises(ConfigError, match="step 0"):
        plotted("layer_profile", load_runs(tmp_path))


# --- one number an arm --------------------------------------------------------------------------


def test_final_accuracy_is_a_heatmap_of_two_or_three_keys_and_else_bars(tmp_path: Path) -> None:
    for reg in ("none", "bn"):
        for lr in ("0.01", "0.001"):
            for init in ("a", "b", "c"):
                rows = [epoch(0), epoch(1, accuracy=100 * float(lr))]
                write_run(tmp_path, {"reg": reg, "optim.lr": lr, "init": init}, rows)
    runs = load_runs(tmp_path)

    def images(arms: list[str] | None) -> list[tuple[int, ...]]:
        figure = plotted("final_accuracy", runs, arms=arms)
        return [image.get_array().shape for axes in figure.axes for image in axes.images]

    assert images(None) == [(3, 2), (3, 2)]
    assert images(["reg=bn"]) == [(3, 2)]
    assert images(["reg=bn,init=a"]) == []
    axes = plotted("final_accuracy", runs, arms=["reg=bn"]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.01"]
    assert axes.images[0].get_array()[0].tolist() == pytest.approx([0.1, 1.0])
    bars = plotted("final_accuracy", runs, arms=["reg=bn,init=a"]).axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == pytest.approx([0.1, 1.0])


def test_final_accuracy_refuses_a_run_without_one(tmp_path: Path) -> None:
    write_run(tmp_path, {}, [epoch(0, accuracy=None)])
    with pytest.raises(ConfigError, match="no test accuracy"):
        plotted("final_accuracy", load_runs(tmp_path))


@pytest.mark.parametrize("huge", [1e23, math.inf, math.nan])
def test_the_first_loss_stands_against_that_of_a_guess(tmp_path: Path, huge: float) -> None:
    for init, loss in (("default", 2.31), ("const100", huge)):
        rows = [Step(0, 0, loss, 10.0, 1e-3, 1.0), Step(0, 1, 0.0, 10.0, 1e-3, 1.0), layers(0)]
        write_run(tmp_path, {"init": init}, rows)
    (axes,) = plotted("first_loss", load_runs(tmp_path)).axes
    assert [x[0] for x, _ in lines(axes)] == pytest.approx([math.log(10)])
    low, high = axes.get_xlim()
    assert low < 2.3 < high < 100
    assert {text.get_text().strip() for text in axes.texts} >= {"2.310"}
    assert any("▸" in text.get_text() for text in axes.texts)


# --- the command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_what_it_wrote(tmp_path: Path) -> None:
    curves = {"name": "fig", "kind": "curves", "title": "T", "arms": None, "options": {}}
    write_run(tmp_path / "runs", {}, [epoch(0), epoch(1)], figures=[curves])
    script = REPOSITORY / "scripts" / "figures.py"
    places = ("--runs", tmp_path / "runs", "--output", tmp_path / "figures")
    done = subprocess.run([sys.executable, script, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("folder", ["empty", "nowhere", "broken"])
def test_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    folder: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "broken", {}) / "run.json").write_text("{")
    places = ["--runs", str(tmp_path / folder), "--output", str(tmp_path / "figures")]
    monkeypatch.setattr(sys, "argv", ["figures.py", *places])
    assert figures.main() == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert caplog.records == []  # which would be lines too
