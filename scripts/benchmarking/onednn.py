"""The primitives that oneDNN executes, as it prints a line for each where it is asked to."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

VERBOSE = {"ONEDNN_VERBOSE": "profile_exec"}  # in the environment: asks for the lines
STEP = "step of training"  # a line before those of a step, and its mark in a profile


@dataclass(frozen=True)
class Primitive:
    """One execution of a primitive.

    Attributes:
        kind: `convolution`, `inner_product`, `reorder` and so on.
        implementation: oneDNN's name of the kernel.
        direction: `forward_training`, `backward_data` and so on; `undef` of a reorder.
        problem: the sizes, `mb32_ic3oc32_ih32oh30kh3…` of a convolution, `64x32x3x3` of a reorder.
        seconds: its duration.
    """

    kind: str
    implementation: str
    direction: str
    problem: str
    seconds: float

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by name (`mb`, `ic`, `oc` and so on); {} of a reorder."""
        named = re.findall(r"([a-z]+)(\d+)", self.problem) if "mb" in self.problem else []
        return {name: int(size) for name, size in named}

    @property
    def operations(self) -> int:
        """Floating-point operations: a product and a sum are two. 0 of a reorder."""
        names = {
            "convolution": ("mb", "oc", "ic", "oh", "ow", "kh", "kw"),
            "inner_product": ("mb", "ic", "oc"),
        }.get(self.kind, ())
        return 2 * math.prod(self.sizes[name] for name in names) if names else 0


def primitive(line: str) -> Primitive | None:
    """Return the primitive that a line of oneDNN's output tells of; None for any other line."""
    words = line.strip().split(",")
    if words[:4] != ["onednn_verbose", "v1", "primitive", "exec"] or len(words) < 11:
        return None
    kind, implementation, direction = words[5:8]
    return Primitive(kind, implementation, direction, words[-2], float(words[-1]) / 1000)


def by_step(lines: Iterable[str]) -> list[list[Primitive]]:
    """Return the primitives of each step; those before the first step's mark are left out."""
    steps: list[list[Primitive]] = []
    for line in lines:
        if line.strip() == STEP:
            steps.append([])
        elif steps and (found := primitive(line)) is not None:
            steps[-1].append(found)
    return steps
