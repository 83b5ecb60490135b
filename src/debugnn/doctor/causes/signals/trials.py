"""What trials on copies of the model show."""

import math

from debugnn.doctor.evidence import Evidence, TrialOutcome
from debugnn.doctor.trials import UNCHANGED, Trial

# Gain (1 − relative loss) by which a trial has learnt something at all.
LEARNT = 0.02
# A changed trial cures where its gain is this many times the unchanged one's and LEARNT more, or
# BETTER above it: twice as fast from little, clearly better from much.
CURED = 2.0
BETTER = 0.1
# Relative loss of the unchanged trial above which it does far worse than guessing; a change of
# anything but the rate then cures where it brings the loss down to CALM.
FAR_WORSE = 1.5
CALM = 1.05
# The same where the change makes it better than guessing, be it by a little: both together are more
# than the scatter of a loss over a few batches.
WORSE = 1.25

# What a trained copy gains as it goes on at the highest rate, in relative loss of other batches,
# from which the training had not come to its end: a converged one gains nothing, or loses.
GOES_ON = 0.05
# Less is enough where it is this share of what the whole training had gained, many times the steps,
# and more than the scatter of a relative loss over some hundred samples.
GOES_ON_SHARE = 0.3
GOES_ON_LEAST = 0.005


def cured(evidence: Evidence, *trials: Trial) -> Trial | None:
    """Return the trial, the best of those given, that learns where the unchanged one does not.

    On the first set of batches. `shown_by` asks the second one too.
    """
    run = {trial: evidence.trials[trial.name] for trial in trials if trial.name in evidence.trials}
    unchanged = evidence.trials.get(UNCHANGED.name)
    if unchanged is None or unchanged.steps == 0:
        return None
    scale = _scale(evidence, unchanged)
    if scale is None:
        return None
    scores = {t: _cure(t, o.end / scale, unchanged.end / scale) for t, o in run.items() if o.steps}
    return max((t for t in scores if scores[t] > 0), key=scores.__getitem__, default=None)


def shown_by(evidence: Evidence, cure: Trial | None) -> str:
    """Return the confidence that a cure gives: shown where a second set of batches confirms it."""
    unchanged = evidence.trials.get(UNCHANGED.name)
    changed = None if cure is None else evidence.trials.get(cure.name)
    if cure is None or changed is None or unchanged is None:
        return "suspected"
    if changed.end_again is None or unchanged.end_again is None:
        return "suspected"
    scale = _scale(evidence, unchanged)
    if scale is None:
        return "suspected"
    again = _cure(cure, changed.end_again / scale, unchanged.end_again / scale)
    return "shown" if again > 0 else "suspected"


def _scale(evidence: Evidence, unchanged: TrialOutcome) -> float | None:
    """Return what a trial's losses are divided by: 1 of relative ones; of an unknown task, of which
    they are the loss itself, that which the unchanged trial begins with, where it is positive."""
    if evidence.task != "unknown":
        return 1.0
    return unchanged.start if 0 < unchanged.start < math.inf else None


def _cure(trial: Trial, end: float, unchanged: float) -> float:
    """Return how well a trial cures, 0 where it does not.

    Args:
        end: its relative loss at the end.
        unchanged: the same of the unchanged trial.
    """
    far_worse = not math.isfinite(unchanged) or unchanged > FAR_WORSE
    calmed = (far_worse and end < CALM) or (unchanged > WORSE and end < 1)
    if calmed and trial.lr == 1.0:
        # A change that leaves the rate alone tells enough where it brings a loss far above that of
        # guessing down to it. A lower rate does so without curing anything.
        return 2.0 - end
    return progress(end) if _clearly_better(end, unchanged) else 0.0


def _clearly_better(end: float, unchanged: float) -> bool:
    base = progress(unchanged)
    return progress(end) >= min(CURED * base + LEARNT, base + BETTER)


def overtakes(evidence: Evidence, trial: Trial | None) -> bool:
    """Return whether a trial gets farther in its few steps than the whole training did.

    On two sets of batches; and on other batches than it trains on, where they were measured: a high
    rate may learn a few by heart. Of an unknown task by the loss itself.
    """
    own = evidence.outcome.train.relative_loss
    outcome = None if trial is None else evidence.trials.get(trial.name)
    if outcome is None or outcome.end_again is None:
        return False
    measured = (outcome.end, outcome.end_again, outcome.others, outcome.others_again)
    ends = [end for end in measured if end is not None]
    if evidence.task == "unknown":
        return _falls_below(evidence, outcome.start, *ends)
    return own is not None and min(map(progress, ends)) > progress(own) + LEARNT


def goes_on(evidence: Evidence, trial: Trial) -> TrialOutcome | None:
    """Return a trial that goes on from the trained weights, where it learns more of other batches
    than it trains on; None where it does not, on one of two sets."""
    outcome = evidence.trials.get(trial.name)
    if outcome is None or outcome.end_again is None or outcome.start_again is None:
        return None
    pairs = (outcome.start, outcome.end), (outcome.start_again, outcome.end_again)
    return outcome if all(_gains_much(*pair) for pair in pairs) else None


def _gains_much(start: float, end: float) -> bool:
    before = progress(start)
    gain = progress(end) - before
    return gain > min(GOES_ON, max(GOES_ON_LEAST, GOES_ON_SHARE * before))


def goes_on_better(
    evidence: Evidence, trial: Trial, beside: Trial, confirmed: bool = True
) -> TrialOutcome | None:
    """Return a trial that goes on from the trained weights, where it gains twice as much of other
    batches as another one that goes on too, and clearly more.

    Args:
        trial: the one that is to be better.
        beside: the other one.
        confirmed: on two sets of batches; False asks the first one alone.
    """
    outcome, plain = evidence.trials.get(trial.name), evidence.trials.get(beside.name)
    if outcome is None or plain is None:
        return None
    courses = [(outcome.start, outcome.end, plain.end)]
    if confirmed:
        if outcome.start_again is None or outcome.end_again is None or plain.end_again is None:
            return None
        courses.append((outcome.start_again, outcome.end_again, plain.end_again))
    return outcome if all(_gains_more(*course) for course in courses) else None


def _gains_more(start: float, end: float, other: float) -> bool:
    # Another course that lost what had been learnt says no more than one that stood still.
    other = other if other < start else start
    return start - end > CURED * (start - other) and _clearly_better(end, other)


def progress(end: float) -> float:
    """Return how much of the way from the best constant predictor to a perfect one was gone.

    Args:
        end: the relative loss at the end.
    """
    return max(0.0, 1 - end) if math.isfinite(end) else 0.0


def trial_numbers(evidence: Evidence, *trials: Trial) -> dict[str, float]:
    """Return the relative losses at the end of trials: 1 is the best constant predictor."""
    run = (trial for trial in (UNCHANGED, *trials) if trial.name in evidence.trials)
    return {f"trial: {trial.name}": evidence.trials[trial.name].end for trial in run}


def promises(evidence: Evidence, trial: Trial) -> bool:
    """Return whether a trial's outcome on the first set of batches is worth a second one."""
    if cured(evidence, trial) is not None:
        return True
    if evidence.task != "unknown":
        return False
    outcome, unchanged = (evidence.trials.get(t.name) for t in (trial, UNCHANGED))
    if outcome is None:
        return False
    if trial.exchanged_labels and unchanged is not None:
        return outcome.end < unchanged.end
    return _falls_below(evidence, outcome.start, outcome.end)


def _falls_below(evidence: Evidence, start: float, *ends: float) -> bool:
    """Return whether a trial's losses are below that which the whole training came to."""
    last = evidence.outcome.last_loss
    if last is None or evidence.adversarial or evidence.loss.opposed:
        return False
    return all(end < last - LEARNT * max(abs(last), abs(start)) for end in ends)  # never by NaN


def learns_better(evidence: Evidence, trial: Trial) -> bool:
    """Return whether a trial of an unknown task ends with a clearly lower loss than the unchanged
    one, on both sets of batches and on others than they train on."""
    unchanged, changed = (evidence.trials.get(t.name) for t in (UNCHANGED, trial))
    if unchanged is None or changed is None or changed.end_again is None:
        return False
    pairs = [
        (getattr(unchanged, name), getattr(changed, name))
        for name in ("end", "end_again", "others", "others_again")
    ]
    return all(
        plain is not None and other is not None and other < plain - BETTER * abs(plain)
        for plain, other in pairs
    )
