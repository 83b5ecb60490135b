"""Alternating measurement, its ratios with their spread, and the projected article."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarking.nets import ARTICLE, NETS

# Floating-point operations of what is timed to know the machine: a product of two square matrices,
# and a 3×3 convolution of 64 images, 64 channels wide, as the nets' are.
MATRIX, IMAGES, CHANNELS, SIDE = 2048, 64, 64, 24
FLOPS = {
    "product": 2 * MATRIX**3,
    "convolution": 2 * IMAGES * CHANNELS * (SIDE - 2) ** 2 * CHANNELS * 9,
}


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def scaled(self, factor: float) -> "Spread":
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.n)


def alternate(
    sides: Mapping[str, Callable[[], float]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Call each side in turn, round after round: a drift of the machine hits all of them.

    Every other round goes backwards, so that no side always follows the same one. Ends after
    `rounds` rounds, or with the first that ends after `seconds`.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    deadline = time.perf_counter() + seconds
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            taken[name].append(sides[name]())
        if time.perf_counter() > deadline:
            break
    return taken


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times as fast as `slow` `fast` is, from the rounds' own ratios."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def overhead(with_it: Sequence[float], without: Sequence[float]) -> Spread:
    """What something adds, as a fraction of the time without it."""
    return Spread.of([a / b - 1 for a, b in zip(with_it, without, strict=True)])


def stand_in(net: str, measured: Mapping[str, object]) -> str:
    """The network whose time serves for `net`: itself, or the plain one where that is all."""
    return net if net in measured else net.split("_")[0]


def article(
    steps: Mapping[str, float], evaluations: Mapping[str, float], at_once: int = 1
) -> float:
    """Seconds of all the article's runs, `at_once` of them side by side.

    Each run goes to the process that is free first, in the article's order. A run that is left
    alone in the end is counted as slow as beside others.

    Args:
        steps, evaluations: network → the seconds of one, over the runs that work at the same time.
    """
    busy = [0.0] * at_once
    for run in ARTICLE:
        seconds = run.steps * steps[stand_in(run.net, steps)]
        if run.evaluations:
            seconds += run.evaluations * evaluations[stand_in(run.net, evaluations)]
        first = busy.index(min(busy))
        busy[first] += at_once * seconds
    return max(busy)


def epoch(step: float, evaluation: float, net: str) -> float:
    """Seconds of the article's epoch: its training steps and one evaluation."""
    return NETS[net].steps_per_epoch * step + evaluation
