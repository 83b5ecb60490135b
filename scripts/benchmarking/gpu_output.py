"""The results of `scripts/benchmark_gpu.py` as Markdown tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarking.output import duration, table

SIDES = {
    "notebook": "the notebooks' loop",
    "fp32": "fp32",
    "fp32 doctor=off": "fp32, without the doctor",
    "bf16": "bf16",
    "bf16 doctor=off": "bf16, without the doctor",
}
STACKS = {"mlp": "20-layer MLP", "cnn": "CIFAR net"}


@dataclass
class Results:
    """What --json writes. A spread is a dict of median, low and high quartile, and n.

    Attributes:
        card, torch: name of the GPU, and version of torch.
        steps: net → side → spread of a step's seconds.
        faster: net → side → spread of how many times as fast it is as the notebooks' loop.
        doctor: net → precision → spread of what the doctor adds, as a share of a step without it.
        waits: net → `early` or `later` steps → where the training waited for the GPU.
        stacks: net → number of members, or `alone` → `rate`, the spread of members × steps a
            second, and `faster`, the spread of the ratio to a run alone.
        checks: net → how stacks and watched runs differ from runs alone.
    """

    card: str = ""
    torch: str = ""
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    faster: dict[str, dict[str, Any]] = field(default_factory=dict)
    doctor: dict[str, dict[str, Any]] = field(default_factory=dict)
    waits: dict[str, dict[str, Any]] = field(default_factory=dict)
    stacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def summary(results: Mapping[str, Any]) -> str:
    """Return the tables of the results page: steps, stacks, waits and checks; then where."""
    blocks = [_steps(results), _stacks(results), _waits(results), _checks(results)]
    return "\n\n".join([*filter(None, blocks), " ".join(results["notes"])])


def markdown(results: Mapping[str, Any]) -> str:
    """Return the tables of the results page and each line of code that waits for the GPU."""
    rows = [["net", "steps", "of", "line that waits", "waits"]]
    for net, phases in results["waits"].items():
        for phase, found in phases.items():
            for part in ("doctor", "rest"):
                for line, count in found[part].items():
                    rows.append([net, f"{phase}, {found['steps']}", part, f"`{line}`", str(count)])
    lines = [table(rows)] if len(rows) > 1 else []
    return "\n\n".join([summary(results), *lines]) + "\n"


def _steps(results: Mapping[str, Any]) -> str:
    rows = [["a step", "seconds", "quartiles", "times as fast", "the doctor adds", "n"]]
    for net, sides in results["steps"].items():
        for side, spread in sides.items():
            faster = results["faster"][net].get(side)
            added = results["doctor"][net].get(side)
            rows.append([
                f"{net}, {SIDES[side]}", duration(spread["median"]),
                f"{duration(spread['low'])} – {duration(spread['high'])}",
                "" if faster is None else _spread(faster, 1, "{:.2f}"),
                "" if added is None else _spread(added, 100, "{:+.0f}") + " %",
                str(spread["n"]),
            ])  # fmt: skip
    return table(rows) if len(rows) > 1 else ""


def _stacks(results: Mapping[str, Any]) -> str:
    rows = [["seeds at once", "members × steps a second", "times as fast as one by one", "n"]]
    for net, sizes in results["stacks"].items():
        for size, found in sizes.items():
            title = "one run alone" if size == "alone" else f"{size} stacked"
            faster = found.get("faster")
            rows.append([
                f"{STACKS[net]}, {title}", _spread(found["rate"], 1, "{:.0f}"),
                "" if faster is None else _spread(faster, 1, "{:.2f}"), str(found["rate"]["n"]),
            ])  # fmt: skip
    return table(rows) if len(rows) > 1 else ""


def _waits(results: Mapping[str, Any]) -> str:
    rows = [["waits for the GPU", "steps", "of these probed",
             "other steps in which the doctor waits", "evaluations in which it waits",
             "its waits in all", "of the rest"]]  # fmt: skip
    for net, phases in results["waits"].items():
        for phase, found in phases.items():
            rows.append([
                f"{net}, {phase} steps", str(found["steps"]), str(found["probed"]),
                str(found["ordinary_steps_with_waits"]), str(len(found["evaluations_with_waits"])),
                str(sum(found["doctor"].values())), str(sum(found["rest"].values())),
            ])  # fmt: skip
    return table(rows) if len(rows) > 1 else ""


def _checks(results: Mapping[str, Any]) -> str:
    rows = [["check", "steps", "stacked losses differ by at most", "weights that differ"]]
    for net, found in results["checks"].items():
        changed = ", ".join(f"{count} {name}" for name, count in found["doctor_changes"].items())
        rows.append([
            STACKS[net], str(found["steps"]), f"{found['stack_differs']:.1g} of the loss", changed
        ])  # fmt: skip
    return table(rows) if len(rows) > 1 else ""


def _spread(spread: Mapping[str, float], scale: float, form: str) -> str:
    middle, low, high = (form.format(scale * spread[key]) for key in ("median", "low", "high"))
    return f"{middle} ({low} to {high})"
