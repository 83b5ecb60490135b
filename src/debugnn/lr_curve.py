"""A learning-rate range test (Smith 2017, arXiv:1506.01186): its curve and its suggestions."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from debugnn.records import LrPoint, LrSuggestion


def sweep_rates(
    step: Callable[[float], float],
    *,
    start_lr: float,
    end_lr: float,
    iterations: int,
    smoothing: float,
    diverge_at: float,
    test: int = 0,
) -> Iterator[LrPoint]:
    """The curve of `step`, which trains one step at a rate and returns the loss before it."""
    # One rate more than is stepped with: the notebook logs each loss beside the rate after its own.
    growth = (end_lr / start_lr) ** (1 / (iterations - 1))
    rates = [*np.geomspace(start_lr, end_lr, iterations).tolist(), end_lr * growth]
    smoothed = best = math.nan
    for iteration in range(iterations):
        lr, lr_after = rates[iteration : iteration + 2]
        value = step(lr)
        smoothed = value if iteration == 0 else smoothing * value + (1 - smoothing) * smoothed
        best = smoothed if iteration == 0 else min(best, smoothed)
        yield LrPoint(test, iteration, lr, lr_after, value, smoothed)
        # For a positive best, smoothed > diverge_at · best; a loss may be unbounded below too.
        if not math.isfinite(smoothed) or smoothed - best > (diverge_at - 1) * abs(best):
            return


def suggest(points: Sequence[LrPoint]) -> list[LrSuggestion]:
    """What each rule reads off one range test's curve, up to its minimum.

    A rule that finds nothing gives none.
    """
    curve = [p for p in points if math.isfinite(p.smoothed_loss)]
    lrs = np.array([p.lr for p in curve])
    losses = np.array([p.smoothed_loss for p in curve])
    # What comes after the minimum is the explosion: a loss that falls again there is no descent.
    stop = losses.argmin() + 1 if len(curve) else 0
    lrs, losses = lrs[:stop], losses[:stop]
    test = points[0].test if points else 0
    found = []
    for rule, pick in RULES.items():
        index = pick(lrs, losses) if stop >= 3 else None
        if index is not None:
            found.append(LrSuggestion(test, rule, float(lrs[index])))
    return found


def minimum(lrs: np.ndarray, losses: np.ndarray) -> int | None:
    """Where the smoothed loss is lowest: the article's reading, on the edge of the explosion."""
    return int(losses.argmin())


def steepest(lrs: np.ndarray, losses: np.ndarray) -> int | None:
    """Where the loss falls fastest per decade of the rate; None on a curve that never falls."""
    slopes = np.gradient(losses, np.log10(lrs))
    index = int(slopes.argmin())
    return index if slopes[index] < 0 else None


def valley(lrs: np.ndarray, losses: np.ndarray) -> int | None:
    """Half way down the longest decreasing subsequence of the losses, as fastai's `valley` does.

    Its documentation speaks of two thirds; its code takes one third and a half of a third.
    """
    length = len(losses)
    run, previous = [1] * length, [-1] * length
    for i in range(length):
        for j in range(i):
            if losses[j] > losses[i] and run[j] + 1 > run[i]:
                run[i], previous[i] = run[j] + 1, j
    index = int(np.argmax(run))
    if run[index] < 3:
        return None
    path = [index]
    while previous[path[-1]] >= 0:
        path.append(previous[path[-1]])
    path.reverse()
    return path[len(path) // 2]


Rule = Callable[[np.ndarray, np.ndarray], int | None]
RULES: dict[str, Rule] = {"minimum": minimum, "steepest": steepest, "valley": valley}
