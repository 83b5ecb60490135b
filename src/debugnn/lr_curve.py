"""The curve of a learning-rate range test (Smith 2017, arXiv:1506.01186), and suggested rates."""

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
    """Run a range test, in which the rate rises exponentially from `start_lr` to `end_lr`.

    Args:
        step: trains one step at the given rate and returns the loss before the update.
        start_lr, end_lr: the rates of the first and the last iteration.
        iterations: number of steps, at least 2.
        smoothing: weight of the new loss in the smoothed one, 0 to 1.
        diverge_at: the test ends early if the smoothed loss exceeds this factor of its minimum.
        test: number of the repetition, for the records.

    Yields:
        A point for each step.
    """
    # One rate more than there are steps: the article's notebook logs each loss with the next rate.
    growth = (end_lr / start_lr) ** (1 / (iterations - 1))
    rates = [*np.geomspace(start_lr, end_lr, iterations).tolist(), end_lr * growth]
    smoothed = best = math.nan
    for iteration in range(iterations):
        lr, lr_after = rates[iteration : iteration + 2]
        value = step(lr)
        smoothed = value if iteration == 0 else smoothing * value + (1 - smoothing) * smoothed
        best = smoothed if iteration == 0 else min(best, smoothed)
        yield LrPoint(test, iteration, lr, lr_after, value, smoothed)
        # For a positive best this is smoothed > diverge_at · best; it holds for negative ones too.
        if not math.isfinite(smoothed) or smoothed - best > (diverge_at - 1) * abs(best):
            return


def suggest(points: Sequence[LrPoint]) -> list[LrSuggestion]:
    """Apply each rule of `RULES` to the curve of one range test, up to the curve's minimum.

    Returns:
        At most one suggestion per rule; none from a rule that does not apply to the curve.
    """
    curve = [p for p in points if math.isfinite(p.smoothed_loss)]
    lrs = np.array([p.lr for p in curve])
    losses = np.array([p.smoothed_loss for p in curve])
    # Beyond the minimum the loss diverges, and its falls there are not a descent.
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
    """Return the index of the lowest loss: the article's choice, at the edge of divergence."""
    return int(losses.argmin())


def steepest(lrs: np.ndarray, losses: np.ndarray) -> int | None:
    """Return the index of the steepest fall per decade of the rate, or None if there is no fall."""
    slopes = np.gradient(losses, np.log10(lrs))
    index = int(slopes.argmin())
    return index if slopes[index] < 0 else None


def valley(lrs: np.ndarray, losses: np.ndarray) -> int | None:
    """Return the middle of the longest decreasing subsequence of the losses, or None.

    This is what the code of fastai's `valley` computes (one third plus half of a third of the
    subsequence); its documentation speaks of two thirds.
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
