"""The benchmark's results as Markdown tables and as a figure."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from debugnn.analysis.figures.canvas import DPI, FAINT, PALETTE, STYLE, WIDTH, save

# Key of a result → title of its row, in the order of the table.
RATIOS = {
    "article_fp32": "whole article, fp32, runs side by side",
    "article_bf16": "whole article, bf16, runs side by side",
    "article_fp32_alone": "whole article, fp32, one run at a time",
    "article_bf16_alone": "whole article, bf16, one run at a time",
    "article_notebook": "whole article, the notebooks' loops side by side",
    **{f"{kind}_{precision}": f"{title}, {precision}"
       for kind, title in (
           ("eval", "both evaluations"), ("eval_mnist", "evaluation, MNIST net"),
           ("eval_cifar", "evaluation, CIFAR net"),
           ("epoch_mnist", "the article's epoch, MNIST net"),
           ("epoch_cifar", "the article's epoch, CIFAR net"),
           ("step_mnist", "training step, MNIST net"), ("step_cifar", "training step, CIFAR net"),
       ) for precision in ("fp32", "bf16")},
    **{f"step_{net}_{side}_together": f"training step, {net.upper()} net, {title}, side by side"
       for net in ("mnist", "cifar")
       for side, title in (("fp32", "fp32"), ("bf16", "bf16"), ("notebook", "notebooks"))},
    "step_regression_fp32": "training step, regression net, fp32",
    **{f"{kind}_{net}_lightning": f"{title}, {net.upper()} net, Lightning"
       for kind, title in (("step", "training step"), ("eval", "evaluation"))
       for net in ("mnist", "cifar")},
}  # fmt: skip
STACKED = {"mlp": "20-layer MLP", "regression": "regression net", "mnist": "MNIST net"}
TARGETS = {
    "article_fp32": 2.0, "article_bf16": 3.2, "eval_fp32": 2.0, "eval_bf16": 4.0,
    "step_regression_fp32": 1.0,
}  # fmt: skip
DOCTOR = {"doctor_mnist": "5 %", "doctor_cifar": "5 %", "doctor_regression": "10 %"}  # targets


def markdown(results: Mapping[str, Any]) -> str:
    """Return all results: first the ratios, then the others, then the notes."""
    rows = [["against the notebooks' loop", "times as fast", "quartiles", "notebooks", "here"]]
    for key, title in RATIOS.items():
        if key in results["ratio"]:
            low, high = results["spread"].get(key, (None, None))
            plain, side = results["seconds"].get(key, (None, None))
            rows.append([
                title, f"{results['ratio'][key]:.2f}",
                "" if low is None else f"{low:.2f} – {high:.2f}", duration(plain), duration(side),
            ])  # fmt: skip
    blocks = [results["busy"]] if results.get("busy") else []
    blocks.append(table(rows))
    rows = [["", "measured", "quartiles"]]
    for key, value in results["overhead"].items():
        low, high = results["spread"][f"overhead_{key}"]
        quartiles = f"{100 * low:.1f} – {100 * high:.1f} %"
        rows.append([f"{key} adds to a step", f"{100 * value:.1f} %", quartiles])
    for net in (key for key in results["stack"] if not key.endswith("_per_s")):
        low, high = results["spread"][f"stack_{net}"]
        alone, stacked = (results["stack"][f"{net}_{side}_per_s"] for side in ("alone", "stacked"))
        rows.append([
            f"8 seeds stacked, {net}: {stacked:.0f} members × steps a second, {alone:.0f} one "
            "after the other", f"{results['stack'][net]:.2f} ×", f"{low:.2f} – {high:.2f}",
        ])  # fmt: skip
    for key, value in results["startup"].items():
        low, high = results["spread"].get(f"startup_{key}", (value, value))
        rows.append([f"start-up: {key}", f"{value:.2f} s", f"{low:.2f} – {high:.2f} s"])
    for net, value in results["peak_rss_mb"].items():
        rows.append([f"peak RSS, {net}", f"{value:.0f} MB", ""])
    for key, value in results["gflops"].items():
        share = results["peak_share"].get(key)
        of_peak = "" if share is None else f"{100 * share:.0f} % of the matrix product"
        rows.append([f"GFLOP/s, {key}", f"{value:.0f}", of_peak])
    blocks.append(table(rows))
    rows = [["a bare step's time", *next(iter(results["profile"].values()), ()), "ratio's bound"]]
    for key, shares in results["profile"].items():
        cells = [f"{100 * share:.0f} %" for share in shares.values()]
        rows.append([key, *cells, f"{results['bound'][f'step_{key}']:.2f}"])
    blocks.append(table(rows))
    blocks.append(
        "The bound is the notebooks' seconds divided by the time that the step's products alone "
        "would take at the speed of a large matrix product or a large convolution, whichever is "
        "faster here: about the most that a program of these kernels can reach."
    )
    blocks.append("\n".join(results["notes"]))
    return "\n\n".join(blocks) + "\n"


def summary(results: Mapping[str, Any]) -> str:
    """Return the table of the results page: ratios, overheads, start-up, memory, targets."""
    rows = [["", "measured", "quartiles", "target"]]
    for key in (
        "article_fp32", "article_bf16", "article_fp32_alone", "article_bf16_alone",
        "article_notebook", "eval_fp32", "eval_bf16", "step_mnist_fp32", "step_mnist_bf16",
        "step_cifar_fp32", "step_cifar_bf16", "step_regression_fp32",
    ):  # fmt: skip
        if key not in results["ratio"] and "bf16" in key:
            continue  # the processor has no bf16 instructions, as a note says
        target = str(TARGETS.get(key, ""))
        if key in results["bound"]:
            target = f"bound {results['bound'][key]:.2f}"
        measured = f"{results['ratio'][key]:.2f} times as fast"
        rows.append([RATIOS[key], measured, quartiles(results, key), target])
    for key, title in (
        ("doctor_mnist", "the doctor, MNIST net"), ("doctor_cifar", "the doctor, CIFAR net"),
        ("doctor_regression", "the doctor, regression net"),
        ("wandb_watch_mnist", "`wandb.watch` at every step, MNIST net"),
        ("wandb_watch_cifar", "`wandb.watch` at every step, CIFAR net"),
    ):  # fmt: skip
        target = DOCTOR.get(key, "")
        measured = f"{100 * results['overhead'][key]:+.1f} % of a step"
        between = quartiles(results, f"overhead_{key}", "+.1f", 100)
        rows.append([title, measured, between, target])
    for net in (key for key in results["stack"] if not key.endswith("_per_s")):
        rows.append([
            f"8 seeds stacked, {STACKED[net]}",
            f"{results['stack'][net]:.2f} times as fast as one by one",
            quartiles(results, f"stack_{net}"), "",
        ])  # fmt: skip
    for key, title, target in (
        ("help_s", "`train.py --help`", "1 s"), ("cfg_s", "`train.py --cfg job`", "1 s"),
        ("first_step_s", "from the start to the first step", "5 s"),
        ("extra_job_s", "each further job of a sweep, besides its epochs", "0.4 s"),
    ):  # fmt: skip
        if key in results["startup"]:
            between = quartiles(results, f"startup_{key}")
            rows.append([title, f"{results['startup'][key]:.2f} s", between, target])
    for net, limit in (("mnist", 900), ("cifar", 1200)):
        if net not in results["peak_rss_mb"]:
            continue
        whole = f"{results['peak_rss_mb'][net]:.0f} MB"
        rows.append([f"peak memory, {net}", whole, "", f"{limit} MB"])
        first = results["peak_rss_mb"][f"{net}_first"]
        rows.append([
            f"peak memory, {net}, the first run, which decodes", f"{first:.0f} MB", "",
            f"{limit} MB",
        ])  # fmt: skip
    first, *others = results["notes"]
    notes = [first, *(note for note in others if "again" in note or "left out" in note)]
    return "\n\n".join(filter(None, [results.get("busy"), table(rows), " ".join(notes)]))


def quartiles(results: Mapping[str, Any], key: str, form: str = ".2f", scale: float = 1) -> str:
    """Format the quartiles of a result; "" where no rounds of it were kept."""
    if key not in results["spread"]:
        return ""
    return " – ".join(format(scale * value, form) for value in results["spread"][key])


def duration(seconds: float | None) -> str:
    """Format seconds in a readable unit; "" for None."""
    if seconds is None:
        return ""
    if seconds < 0.0005:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw one bar per ratio with its quartiles, the target as a tick, and a line at 1."""
    keys = [key for key in RATIOS if key in results["ratio"]][::-1]
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 1.8 + 0.27 * len(keys)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(drawn)
        drawn.suptitle(
            "Times as fast as the notebooks' loop", x=0.01, ha="left", fontsize=11.5,
            fontweight="bold",
        )  # fmt: skip
        axes = drawn.subplots()
        for place, key in enumerate(keys):
            value = results["ratio"][key]
            side = next((name for name in ("fp32", "bf16") if name in key), None)
            colour = PALETTE[{"fp32": 0, "bf16": 1}.get(side, 3)]
            axes.barh(place, value, color=colour, height=0.7)
            low, high = results["spread"].get(key, (value, value))
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            target = TARGETS.get(key, 0)
            beside = max(value, high, target if target - value < 0.5 else 0)
            axes.text(beside + 0.05, place, f"{value:.2f}", va="center", fontsize=8)
            if key in TARGETS:
                axes.plot(TARGETS[key], place, marker="|", color="black", markersize=13)
        axes.axvline(1, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(keys)), [RATIOS[key] for key in keys])
        axes.set_xlabel("notebooks' seconds / seconds here; thin line: quartiles; tick: target")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        axes.set_ylim(-0.6, len(keys) - 0.4)
        meanings = {"train.py, fp32": 0, "train.py, bf16": 1, "another loop": 3}
        axes.legend(
            handles=[Patch(color=PALETTE[i], label=text) for text, i in meanings.items()],
            loc="lower right",
        )
        foot = "\n".join(textwrap.fill(note, width=150) for note in results["notes"])
        drawn.supxlabel(foot, x=0.01, ha="left", fontsize=7.5, color="#555555")
        save(drawn, path)
