"""Alternating measurements, their ratios and spread, and the projected time of the article."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarking.nets import ARTICLE, NETS

# Floating-point operations of two reference computations: a product of two square matrices, and a
# 3×3 convolution of 64 images with 64 channels, as in the networks.
MATRIX, IMAGES, CHANNELS, SIDE = 2048, 64, 64, 24
FLOPS = {
    "product": 2 * MATRIX**3,
    "convolution": 2 * IMAGES * CHANNELS * (SIDE - 2) ** 2 * CHANNELS * 9,
}


def finished(device: str) -> float:
    """Wait until a device has done all its work, and return the time in seconds."""
    if device != "cpu":
        import torch  # the program that only asks the sides does without

        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, of `n` values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the median and quartiles of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def alternate(
    sides: Mapping[str, Callable[[], float]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Call each side in turn, round after round, so that a drift of the machine affects all.

    Every second round is in reverse order, so that no side always follows the same one.

    Args:
        sides: name → a call that returns the seconds it measured.
        rounds: the largest number of rounds.
        seconds: no round starts after this time.

    Returns:
        Name → the seconds of each round.
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
    """Return how many times as fast `fast` is as `slow`, from the ratio of each round."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def overhead(with_it: Sequence[float], without: Sequence[float]) -> Spread:
    """Return what something adds as a share of the time without it, from each round's ratio."""
    return Spread.of([a / b - 1 for a, b in zip(with_it, without, strict=True)])


def stand_in(net: str, measured: Mapping[str, object]) -> str:
    """Return the network whose time is used for `net`: itself if measured, else the plain one."""
    return net if net in measured else net.split("_")[0]


def article(
    steps: Mapping[str, float], evaluations: Mapping[str, float], at_once: int = 1
) -> float:
    """Return the seconds of all the article's runs, `at_once` of them side by side.

    Each run is given to the first free process, in the article's order. A run that is alone at the
    end is counted as slow as beside others.

    Args:
        steps, evaluations: network → seconds of one, divided by the number of simultaneous runs.
    """
    busy = [0.0] * at_once
    for run in ARTICLE:
        seconds = run.steps * steps[stand_in(run.net, steps)]
        if run.evaluations:
            seconds += run.evaluations * evaluations[stand_in(run.net, evaluations)]
        first = busy.index(min(busy))
        busy[first] += at_once * seconds
    return max(busy)


def by_round(table: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return for each round that all networks have: network → its seconds in that round."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=False)]


def epoch(step: float, evaluation: float, net: str) -> float:
    """Return the seconds of an epoch of the article: its training steps and one evaluation."""
    return NETS[net].steps_per_epoch * step + evaluation
