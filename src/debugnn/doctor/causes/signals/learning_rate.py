"""The learning rate, and how far it moves the weights."""

from typing import NamedTuple

from debugnn.doctor.causes.signals.outcome import NEARLY_PERFECT, judged, reached
from debugnn.doctor.evidence import Evidence

# Rate over its highest value below which hardly anything moves: two tenfold decays.
NOTHING = 0.01
# Share of the updates at such a rate, at the end of the training. A cosine or linear decay to zero
# spends 6 % and 1 % there, an exponential one over four orders of magnitude a half.
MOST = 0.8
# Probes whose updates are compared: the rate shows in the first of them.
UPDATE_PROBES = 6
# ‖Δw‖ / ‖w‖ of one step; TheDeepChecker (Ben Braiek & Khomh 2023) warns above 0.1. Sound programs
# have 0.03 to 0.45 in their first steps, so that a large update alone accuses nobody; rates that
# are 100 times too high have 1.5 and more.
LARGE_UPDATE = 0.05
# ‖w − w₀‖ / ‖w₀‖ after the whole training below which the weights have stayed where they were:
# sound programs have 0.5 and more, rates that are 1,000 times too low 0.016 and less.
STILL = 0.03


class Fall(NamedTuple):
    """A learning rate that is next to nothing from the update `start` on.

    Rates of the group that has the highest.
    """

    start: int
    updates: int
    highest: float
    lowest: float


def vanished_rate(evidence: Evidence) -> Fall | None:
    """Return how a schedule takes all rates to nothing early in a training that has not learnt
    all by then; None where none does."""
    points = evidence.optimizer.rates
    if not judged(evidence) or len(points) < 2 or reached(evidence) > NEARLY_PERFECT:
        return None
    if len({len(point) for point in points}) > 1:
        return None  # groups were added
    updates = int(points[-1][0]) + 1
    highest = [max(rates) for rates in list(zip(*points, strict=True))[1:]]
    above = [
        index
        for index, (_, *rates) in enumerate(points)
        if any(r > NOTHING * h for r, h in zip(rates, highest, strict=True))
    ]
    if not above or above[-1] + 1 == len(points):
        return None
    start = int(points[above[-1] + 1][0])
    if updates - start < MOST * updates:
        return None
    group = max(range(len(highest)), key=highest.__getitem__)
    return Fall(start, updates, highest[group], points[-1][1 + group])


def largest_update(evidence: Evidence) -> tuple[float, str, int]:
    """Return the largest ‖Δw‖ / ‖w‖ of the first probes, the weight's name and the step."""
    found = (0.0, "", 0)
    for probe in evidence.probes[:UPDATE_PROBES]:
        for name, layer in probe.layers.items():
            if layer.update is not None and layer.weight > 0:
                ratio = layer.update / layer.weight
                if ratio > found[0]:
                    found = (ratio, name, probe.step)
    return found
