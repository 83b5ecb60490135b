"""The operations of a training step as a Markdown page with one figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarking.onednn import Primitive
from benchmarking.output import table
from debugnn.analysis.figures.canvas import DPI, PALETTE, STYLE, WIDTH, save

TITLES = {"mnist": "MNIST net", "cifar": "CIFAR net"}
SHOWN = 0.003  # of a step: rows of less are added up
Row = Mapping[str, Any]


def peak(results: Mapping[str, Any]) -> float:
    """Return the higher of the two measured peaks, in operations a second."""
    return max(results["peaks"].values())


def kind(row: Row) -> str:
    """Return whether a row is a convolution, a dense layer, or what else it belongs to."""
    if row["operations"]:
        return "convolutions" if row["layer"].startswith("conv") else "dense layers"
    if "ReLU" in row["what"] or "pool" in row["what"]:
        return "ReLUs and pools"
    if row["what"] in ("optimiser", "norm of the gradients"):
        return "optimiser and gradient norm"
    return "other"


COLOURS = {"convolutions": 0, "dense layers": 1, "ReLUs and pools": 2,
           "optimiser and gradient norm": 3, "other": 6}  # fmt: skip


def tried(directory: Path) -> list[Row]:
    """Return what was tried to shorten a step, as measured; [] without the file."""
    path = directory / "operations_tried.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def shown(net: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a net's table, those of a small share of the step as one."""
    least = SHOWN * net["step"]["median"]
    rows = [dict(row) for row in net["rows"] if abs(row["median"]) >= least]
    small = [row["median"] for row in net["rows"] if abs(row["median"]) < least]
    if small:
        rows.append({"layer": "", "what": f"{len(small)} smaller ones", "shape": "", "kernel": "",
                     "median": sum(small), "operations": 0})  # fmt: skip
    return rows


def markdown(results: Mapping[str, Any], tries: Sequence[Row]) -> str:
    """Return a table for each net, what it says in words, and what was tried."""
    blocks = [results["busy"]] if results["busy"] else []
    blocks += [
        "Where the time of a bare training step goes: no doctor, no records, fp32, one thread.",
        "![Bars: milliseconds of each operation of a step](operations.png)",
    ]
    for name, net in results["nets"].items():
        step = net["step"]
        rows = [["layer", "operation", "sizes", "kernel", "µs", "quartiles", "GFLOP/s",
                 "of the peak", "of the step"]]  # fmt: skip
        rows += [cells(row, peak(results), step["median"]) for row in shown(net)]
        blocks += [
            f"## {TITLES[name]}: {1000 * step['median']:.1f} ms a step "
            f"({1000 * step['low']:.1f} – {1000 * step['high']:.1f}, n = {step['n']})",
            sentences(name, results), table(rows),
        ]  # fmt: skip
    blocks.append(provenance(results))
    if tries:
        blocks += ["## Tried", *tries_table(tries)]
    return "\n\n".join(blocks) + "\n"


def cells(row: Row, highest: float, step: float) -> list[str]:
    """Return a row of the table; without quartiles if it is a sum or a difference of others."""
    between, speed, share = "", "", ""
    if "low" in row:
        between = f"{1e6 * row['low']:.0f} – {1e6 * row['high']:.0f}"
    if row["operations"]:
        reached = row["operations"] / row["median"]
        speed, share = f"{reached / 1e9:.0f}", f"{100 * reached / highest:.0f} %"
    return [
        row["layer"], row["what"], sizes(row["shape"]), row["kernel"], f"{1e6 * row['median']:.0f}",
        between, speed, share, f"{100 * row['median'] / step:.1f} %",
    ]  # fmt: skip


def sizes(shape: str) -> str:
    """Write the sizes of oneDNN's problems as shapes; any others are returned as they are.

    `mb32_ic3oc32_ih32oh30…iw32ow30…` becomes 32×3×32×32 → 32×32×30×30, and `mb32ic512oc128`
    becomes 32×512 · 512×128.
    """
    named = Primitive("", "", "", shape, 0.0).sizes
    if "ih" in named:
        of = [[named[key] for key in ("mb", *(f"{side}{at}" for at in "chw"))] for side in "io"]
        return " → ".join("×".join(map(str, each)) for each in of)
    if named:
        return "{mb}×{ic} · {ic}×{oc}".format(**named)
    return shape.replace("x", "×")


def shares(net: Mapping[str, Any]) -> dict[str, float]:
    """Return kind of operation → its share of the step."""
    sums = dict.fromkeys(COLOURS, 0.0)
    for row in net["rows"]:
        sums[kind(row)] += row["median"] / net["step"]["median"]
    return sums


def at_peak(results: Mapping[str, Any], net: Mapping[str, Any], of: str) -> float:
    """Return the share of the step that one kind of products would take at the peak."""
    operations = sum(row["operations"] for row in net["rows"] if kind(row) == of)
    return operations / peak(results) / net["step"]["median"]


def sentences(name: str, results: Mapping[str, Any]) -> str:
    """Return in words where a net's time goes beyond its products."""
    net = results["nets"][name]
    parts = shares(net)
    told = [
        f"{of} take {100 * parts[of]:.0f} % of a step and would take "
        f"{100 * at_peak(results, net, of):.0f} % at the peak"
        for of in ("convolutions", "dense layers")
    ]
    named = {row["what"]: row["median"] / net["step"]["median"] for row in net["rows"]}
    calls = next((share for what, share in named.items() if what.startswith("calls")), 0.0)
    rest = next((share for what, share in named.items() if what.startswith("the rest")), 0.0)
    return (
        f"In the {TITLES[name]}, {told[0]}; {told[1]}. ReLUs and pools take "
        f"{100 * parts['ReLUs and pools']:.0f} %, optimiser and gradient norm "
        f"{100 * parts['optimiser and gradient norm']:.0f} %, reorders of weights "
        f"{100 * named.get('reorders', 0):.1f} %, the calls of oneDNN besides its kernels "
        f"{100 * calls:.0f} %, the rest (Python, autograd, small operations) {100 * rest:.0f} %."
    )


def provenance(results: Mapping[str, Any]) -> str:
    """Return machine, data, load, peak, methods and command."""
    peaks, (before, after) = results["peaks"], results["load"]
    return (
        f"{results['machine']}; data: {results['data']}. Load average {before:.1f} before, "
        f"{after:.1f} after. The peak is the highest speed of a large matrix product "
        f"({peaks['product'] / 1e9:.0f} GFLOP/s) or a large convolution "
        f"({peaks['convolution'] / 1e9:.0f} GFLOP/s), in alternating blocks of steps; "
        f"{100 * results['left_out']:.0f} % of the steps are left out, because other programs used "
        "the core in them. "
        "oneDNN itself times its kernels, PyTorch's profiler the other operations, and the step is "
        "timed without either: its rest is what both do not see. "
        f"`{results['command']}`"
    )


def tries_table(tries: Sequence[Row]) -> list[str]:
    """Return the table of what was tried, and how it was measured."""
    rows = [["", "net", "a step takes", "quartiles", "n", "first losses differ by", ""]]
    for each in tries:
        if "median" not in each:
            rows.append([each["what"], each["net"], "", "", "", "", each["verdict"]])
            continue
        rows.append([
            each["what"], each["net"], f"{each['median']:.3f} ×",
            f"{each['low']:.3f} – {each['high']:.3f}", str(each["n"]),
            "" if each.get("loss") is None else f"{abs(each['loss']):.1g}", each["verdict"],
        ])  # fmt: skip
    return [
        table(rows),
        "Each variant trained in a process of its own, and blocks of 4 to 8 steps alternated with "
        "the same code without the variant, in both orders: medians and quartiles of the n ratios, "
        "one thread, fp32. Losses are those of the tenth step. Other programs used the machine's "
        "other core, and at times this one; rounds on the MNIST net whose steps took twice as long "
        "were left out. A variant that was measured more than once has its last numbers here. "
        "Some of the variants below the kept one were compared with code that had it already.",
    ]


def summary(results: Mapping[str, Any]) -> str:
    """Return the paragraph of the results page: each net in words, and the machine."""
    told = [sentences(name, results) for name in results["nets"]]
    return "\n\n".join([*told, f"{results['machine']}: `{results['command']}`."])


def figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw a bar for each operation, with its quartiles and a tick where the peak would be."""
    nets = results["nets"]
    count = max(len(shown(net)) for net in nets.values())
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 1.5 + 0.24 * count), dpi=DPI, layout="constrained")
        FigureCanvasAgg(drawn)
        drawn.suptitle(
            "A training step, operation by operation", x=0.01, ha="left", fontsize=11.5,
            fontweight="bold",
        )  # fmt: skip
        panels = drawn.subplots(1, len(nets), squeeze=False)[0]
        for axes, (name, net) in zip(panels, nets.items(), strict=True):
            rows = shown(net)
            for place, row in enumerate(reversed(rows)):
                axes.barh(place, 1000 * row["median"], color=PALETTE[COLOURS[kind(row)]])
                if "low" in row:
                    ends = [1000 * row["low"], 1000 * row["high"]]
                    axes.plot(ends, [place, place], color="black", linewidth=1)
                if row["operations"]:
                    least = 1000 * row["operations"] / peak(results)
                    axes.plot(least, place, marker="|", color="white", markersize=9)
            axes.set_yticks(
                range(len(rows)), [f"{r['layer']} {r['what']}".strip() for r in reversed(rows)]
            )
            axes.set_title(f"{TITLES[name]}, {1000 * net['step']['median']:.1f} ms")
            axes.set_xlabel("ms; tick: at the peak")
            axes.grid(axis="y", visible=False)
            axes.set_ylim(-0.6, len(rows) - 0.4)
        drawn.legend(
            handles=[Patch(color=PALETTE[i], label=of) for of, i in COLOURS.items()],
            loc="outside lower center", ncols=len(COLOURS),
        )  # fmt: skip
        save(drawn, path)
