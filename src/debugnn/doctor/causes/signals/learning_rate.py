"""The learning rate, and how far it moves the weights."""

import statistics
from itertools import pairwise
from typing import NamedTuple

from debugnn.doctor.causes.signals.loss_course import unlearns
from debugnn.doctor.causes.signals.outcome import SIMPLE_FINDS, short
from debugnn.doctor.causes.signals.own_samples import UNKNOWN_JUDGED_AFTER
from debugnn.doctor.causes.signals.skill import NEARLY_PERFECT, judged, not_all_learnt, reached
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import HIGHER_RATES

# Rate over its highest value below which hardly anything moves: two tenfold decays.
NOTHING = 0.01
# Share of the updates at such a rate, at the end of the training. A cosine or linear decay to zero
# spends 6 % and 1 % there, an exponential one over four orders of magnitude a half.
MOST = 0.8
# The same from which a trial tells whether the training was over by then.
HALF = 0.5
# Sum of the rates of all updates over what the highest one would make in as many, of a schedule
# that is over near the beginning; and how often the samples have come by then. A rate that is
# lowered whenever the loss stands still has gone through them more often.
WORKED = 0.06
PASSES = 20.0
# Skill above which it is not tried out whether there is more to learn.
ALL_LEARNT = 0.97
# Last loss over the first of an unknown task, above which it is not taken for learnt: sound
# programs whose loss has no floor but 0 end below.
LEFT_OVER = 0.3
# The highest rate over that of the schedule below which it never came near it, and the first rate
# over the last of a warm-up that was under way: the least trial of a higher rate is at ten times
# the highest rate, and so at no more than the schedule was to reach.
NEAR = 0.1
# Levels of a rate from which a rise is a schedule's: a warm-up by hand may have one step.
LEVELS = 4
# Updates at each level, at least, of a schedule that is stepped once an epoch; and points of the
# rate's course from which on some may have been dropped, so that levels seem longer.
EPOCH = 10
THINNED = 32
# Probes whose updates are compared: the rate shows in the first of them.
UPDATE_PROBES = 6
# ‖Δw‖ / ‖w‖ of one step; TheDeepChecker (Ben Braiek & Khomh 2023) warns above 0.1. Sound programs
# have 0.03 to 0.45 in their first steps, so that a large update alone accuses nobody; rates that
# are 100 times too high have 1.5 and more.
LARGE_UPDATE = 0.05
# ‖Δw‖ / ‖w‖ of a step that leaves nothing of a weight.
REPLACED = 1.0
# Last rate over the highest one, below which a schedule has lowered it: half of a decay by ten.
FELL = 0.3
# ‖w − w₀‖ / ‖w₀‖ after the whole training below which the weights have stayed where they were:
# sound programs have 0.5 and more, rates that are 1,000 times too low 0.016 and less.
STILL = 0.03
# Norm of the gradients at an update over their norm as they arrived, below which they are cut: a
# threshold for the norm stands at a usual one, or above.
CUT = 0.1
# Fewest comparisons of which a median tells.
COMPARED = 5


class Fall(NamedTuple):
    """A learning rate that is next to nothing from the update `start` on.

    Rates of the group that has the highest.
    """

    start: int
    updates: int
    highest: float
    lowest: float


def vanished_rate(evidence: Evidence) -> Fall | None:
    """Return how a schedule takes all rates to nothing near the beginning of a training that has
    not learnt all by then; None where none does.

    What an unknown task's loss may come to is not known: it is taken to be far from there as long
    as it is a good part of the first loss.
    """
    return _fall_to_nothing(evidence, MOST, NEARLY_PERFECT)


def updates_at_the_highest_rate(evidence: Evidence, fall: Fall) -> float | None:
    """Return how many updates at the highest rate do as much as all updates of a schedule that
    takes all rates to nothing; None where these are no small part, or where the samples have come
    often by then."""
    points = evidence.optimizer.rates
    rates = [max(each) for _, *each in points]
    lasted = [later[0] - point[0] for point, later in pairwise(points)]
    done = sum(rate * count for rate, count in zip(rates, lasted, strict=False)) / fall.highest
    passes = (evidence.outcome.epochs or 1.0) * fall.start / fall.updates
    return done if done < WORKED * fall.updates and passes < PASSES else None


def faded_rate(evidence: Evidence) -> Fall | None:
    """Return the same of a rate that is next to nothing for half of the training, or longer."""
    return _fall_to_nothing(evidence, HALF, ALL_LEARNT)


def _fall_to_nothing(evidence: Evidence, share: float, skill: float) -> Fall | None:
    points = evidence.optimizer.rates
    if len(points) < 2 or not _more_to_learn(evidence, skill):
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
    if updates - start < share * updates:
        return None
    group = max(range(len(highest)), key=highest.__getitem__)
    return Fall(start, updates, highest[group], points[-1][1 + group])


def _more_to_learn(evidence: Evidence, skill: float) -> bool:
    """Return whether a skill is not exceeded, or an unknown task's loss is far from nothing."""
    if judged(evidence):
        return reached(evidence) <= skill
    first, last = evidence.outcome.first_loss, evidence.outcome.last_loss
    if first is None or last is None or evidence.loop.steps < UNKNOWN_JUDGED_AFTER:
        return False
    return evidence.task == "unknown" and 0 < LEFT_OVER * first < last <= first


class Rise(NamedTuple):
    """A learning rate that never falls and is far from where its schedule leads at the end.

    Rates are the highest of all groups.
    """

    first: float
    highest: float
    scheduled: float | None  # None where it is not known
    seldom: bool  # each of its levels but the last one lasts many updates


def unfinished_rise(evidence: Evidence) -> Rise | None:
    """Return how a rate is still at the beginning of its way up at the end; None where not."""
    points = [(point[0], max(point[1:])) for point in evidence.optimizer.rates if len(point) > 1]
    rates = [rate for _, rate in points]
    if not judged(evidence) or not rates or any(b < a for a, b in pairwise(rates)):
        return None
    first, highest, scheduled = rates[0], rates[-1], evidence.optimizer.scheduled
    if highest == 0:
        return None
    # The last point is the last update's, whether the rate changed there or not.
    changes = [at for at, rate in points if rate < highest]
    changes.append(next(at for at, rate in points if rate == highest))
    intervals = [later - earlier for earlier, later in pairwise(changes)]
    seldom = len(intervals) > 0 and len(points) < THINNED and min(intervals) >= EPOCH
    if scheduled is not None and scheduled >= highest:
        return Rise(first, highest, scheduled, seldom) if highest < NEAR * scheduled else None
    if len(intervals) < LEVELS - 1 or first >= NEAR * highest:
        return None
    rising = points[-1][0] - changes[-1] <= max(intervals)
    return Rise(first, highest, None, seldom) if rising else None


def schedule_is_stuck(evidence: Evidence) -> bool:
    """Return whether a warm-up that is stepped once in many updates is at its beginning at the end
    of a training that falls short, though there is something to learn: whatever else is odd was
    hardly tried out. Higher rates were tried, and do not tell within a trial's few steps."""
    rise, simple = unfinished_rise(evidence), evidence.data.simple_skill
    known = rise is not None and rise.scheduled is not None and rise.first < rise.highest
    tried = all(trial.name in evidence.trials for trial in HIGHER_RATES)
    learnable = simple is not None and simple > SIMPLE_FINDS
    return known and rise is not None and rise.seldom and tried and learnable and short(evidence)


def never_at_its_rate(evidence: Evidence) -> float | None:
    """Return the highest rate, where it is the first one and far below that which the scheduler
    multiplies, in a training that has not learnt all; None where it is not.

    A schedule may also be written as factors of a rate of 1, which rise first.
    """
    rates, scheduled = highest_rates(evidence), evidence.optimizer.scheduled
    if not rates or scheduled is None or not not_all_learnt(evidence):
        return None
    return rates[0] if 0 < rates[0] == max(rates) < NEAR * scheduled else None


def highest_rates(evidence: Evidence) -> list[float]:
    """Return the highest rate of all parameter groups, at the start and after each change."""
    return [max(rates) for _, *rates in evidence.optimizer.rates if rates]


def cut_share(evidence: Evidence) -> float | None:
    """Return what is left of the gradients' size at an update, the median, where it is little."""
    shares = evidence.loop.gradient_shares
    left = statistics.median(shares) if len(shares) >= COMPARED else 1.0
    return left if left < CUT else None


def has_fallen(rates: list[float]) -> bool:
    """Return whether a schedule has lowered the rate by the end."""
    return bool(rates) and rates[-1] < FELL * max(rates)


def jumps_about(evidence: Evidence) -> bool:
    """Return whether steps replace a whole weight tensor, or what was learnt is lost again, at a
    rate that no schedule has lowered, in a training that learns something and not all that there
    is."""
    lowered = has_fallen(highest_rates(evidence))
    wild = largest_update(evidence)[0] > REPLACED or unlearns(evidence)
    return wild and not lowered and not_all_learnt(evidence)


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
