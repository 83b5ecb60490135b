"""A learning rate that is too low."""

import math
from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.learning_rate import (
    LARGE_UPDATE,
    NOTHING,
    STILL,
    Fall,
    cut_share,
    faded_rate,
    has_fallen,
    highest_rates,
    largest_update,
    never_at_its_rate,
    schedule_is_stuck,
    unfinished_rise,
    updates_at_the_highest_rate,
    vanished_rate,
)
from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.outcome import AT_CHANCE, failing, severity, short
from debugnn.doctor.causes.signals.own_samples import UNKNOWN_JUDGED_AFTER
from debugnn.doctor.causes.signals.skill import FAILING, judged, reached
from debugnn.doctor.causes.signals.trials import (
    LEARNT,
    cured,
    goes_on,
    overtakes,
    progress,
    promises,
    shown_by,
    trial_numbers,
)
from debugnn.doctor.causes.signals.without_skill import stays_where_it_began
from debugnn.doctor.evidence import Evidence, TrialOutcome
from debugnn.doctor.trials import HIGHER_RATES, RESUMED, RESUMED_FASTER, UNCHANGED, Trial

# Movement, over STILL, below which no trial is needed.
WITHOUT_TRIAL = 0.1
# Factor on the rate that is proposed where no trial tells one.
PROPOSED = 1000.0


def constant_rate_learns_more(evidence: Evidence) -> TrialOutcome | None:
    """Return the trial at the constant highest rate, where it gets farther in its few steps than
    the whole training did, on two sets of batches."""
    constant = evidence.trials.get(UNCHANGED.name)
    own = evidence.outcome.train.relative_loss
    if constant is None or own is None or constant.end_again is None or not math.isfinite(own):
        return None
    gains = progress(constant.end), progress(constant.end_again)
    return constant if min(gains) > progress(own) + LEARNT else None


def taken_to_nothing(evidence: Evidence) -> Iterator[Sign]:
    """A schedule that takes the rate to nothing at the beginning, before anything is learnt."""
    fall = vanished_rate(evidence)
    if fall is None:
        return
    constant, resumed = constant_rate_learns_more(evidence), goes_on(evidence, RESUMED)
    mended = ""
    if constant is not None:
        mended = (
            f"; at the constant rate a copy gets farther in {constant.steps} steps (relative loss "
            f"{constant.end:.2f})"
        )
    elif resumed is not None:
        mended = _gained(resumed)
    certain = (failing(evidence) or not judged(evidence)) and not diverged(evidence)
    shown = constant is not None or resumed is not None
    few = updates_at_the_highest_rate(evidence, fall)
    over = few is not None
    if over and not mended:
        mended = f"; all of them together move the weights as far as {few:.0f} at the highest rate"
    yield Sign(
        severity(evidence) if certain or shown or over else "note",
        _course(fall) + mended,
        "let the schedule fall over the whole training: step the scheduler once an epoch, not once "
        "a batch, or count its step sizes in batches",
        step=fall.start,
        evidence={
            "highest": fall.highest,
            "last": fall.lowest,
            "rates": evidence.optimizer.rates[:8],
            **trial_numbers(evidence, RESUMED),
        },
        confidence="certain" if certain or over else "shown" if shown else "suspected",
        override=None,
    )


def faded(evidence: Evidence) -> Iterator[Sign]:
    """A rate that is next to nothing for half of the training, whose weights learn more at the
    highest rate."""
    fall, resumed = faded_rate(evidence), goes_on(evidence, RESUMED)
    if fall is None or resumed is None or diverged(evidence):
        return
    yield Sign(
        severity(evidence),
        _course(fall) + _gained(resumed),
        "let the rate fall over the whole training: compute it from the initial rate (lr = "
        "initial_lr * decay ** epoch) and not from the one that has fallen already, and count the "
        "schedule's steps as it is stepped",
        step=fall.start,
        evidence={
            "highest": fall.highest,
            "last": fall.lowest,
            "rates": evidence.optimizer.rates[:8],
            "loss_before": resumed.start,
            **trial_numbers(evidence, RESUMED),
        },
        confidence="shown",
        override=None,
        harm="the weights stand still while there is more to learn",
    )


def cut_before_the_update(evidence: Evidence) -> Iterator[Sign]:
    """Gradients that are cut to a small part after the backward pass, and a copy that leaves them
    as they are gets farther in its few steps than the whole training did."""
    left, whole = cut_share(evidence), constant_rate_learns_more(evidence)
    if left is None or whole is None or diverged(evidence):
        return
    yield Sign(
        severity(evidence),
        f"between the backward pass and the update the gradients are cut to {100 * left:.2g} % of "
        f"their size; with whole gradients a copy gets farther in {whole.steps} steps (relative "
        f"loss {whole.end:.2f}) than the training in {evidence.loop.steps}",
        "raise the threshold that they are clipped at above their usual norm, or leave the "
        "clipping out",
        evidence={"share": left, **trial_numbers(evidence)},
        confidence="shown",
        override="clip=off",
        harm="the steps are as small as with a learning rate that is divided by as much",
        line=evidence.loop.update_line,
    )


def _course(fall: Fall) -> str:
    return (
        f"the learning rate falls from {fall.highest:.3g} to {fall.lowest:.3g}: it is below "
        f"{100 * NOTHING:g} % of its highest value from update {fall.start} on, for "
        f"{fall.updates - fall.start} of {fall.updates} updates"
    )


def _gained(resumed: TrialOutcome, rate: str = "at the highest rate") -> str:
    return (
        f"; a copy that goes on {rate} learns more (the relative loss of other "
        f"batches falls from {resumed.start:.2f} to {resumed.end:.2f} in {resumed.steps} steps)"
    )


def never_arrives(evidence: Evidence) -> Iterator[Sign]:
    """A schedule that is at the beginning of its warm-up all along, and a copy learns at a higher
    rate than it ever had, or goes on to learn more."""
    rise = unfinished_rise(evidence)
    faster, resumed = cured(evidence, *HIGHER_RATES), goes_on(evidence, RESUMED_FASTER)
    if rise is None or diverged(evidence):
        return
    stuck = schedule_is_stuck(evidence)
    # Without a loss function nothing can be tried.
    untold = faster is None and resumed is None and (evidence.trials or not failing(evidence))
    if untold and not stuck:
        return
    # A factor that stays as it is may be the rate itself, of an optimiser's rate of 1.
    known = rise.scheduled is not None and rise.first < rise.highest
    slow = faster is not None and reached(evidence) < FAILING
    if not (failing(evidence) or slow or resumed is not None or (known and short(evidence))):
        return
    if rise.scheduled is not None:
        course = f"stays at or below {rise.highest:.3g}, of a schedule's {rise.scheduled:.3g}"
    else:
        course = f"rises from {rise.first:.3g} to {rise.highest:.3g}, and still does at the end"
    mended = ""
    if faster is not None:
        mended = f"; at a rate of {rise.highest * faster.lr:.3g} a copy learns"
    elif resumed is not None:
        mended = _gained(resumed, f"at {rise.highest * RESUMED_FASTER.lr:.3g}")
    yield Sign(
        severity(evidence),
        f"in {evidence.loop.steps} steps the learning rate {course}{mended}",
        "let the warm-up end early in the training: step the scheduler once a batch where its "
        "warm-up is counted in batches, or count it in epochs",
        evidence={
            "first": rise.first,
            "highest": rise.highest,
            "scheduled": rise.scheduled,
            "rates": evidence.optimizer.rates[:8],
            **trial_numbers(evidence, *HIGHER_RATES, RESUMED_FASTER),
        },
        confidence="certain" if stuck else _shown_by_either(evidence, faster, resumed),
        override=None,
    )


def _shown_by_either(evidence: Evidence, faster: Trial | None, resumed: TrialOutcome | None) -> str:
    """Return how sure a higher rate is of what it mends, from the start or where the weights are.

    Args:
        faster: the trial that learns from the start.
        resumed: the one that goes on to learn more, measured on other samples than it trains on.
    """
    if resumed is not None:
        return "shown"
    simple = evidence.data.simple_skill
    # A trial learns labels of chance by heart, if its rate is high enough.
    if simple is not None and simple < AT_CHANCE:
        return "suspected"
    return shown_by(evidence, faster)


def far_below_its_schedule(evidence: Evidence) -> Iterator[Sign]:
    """A schedule whose highest rate, the first one, is far below the rate that it multiplies, and
    weights that learn more at ten times this rate."""
    resumed, rate = goes_on(evidence, RESUMED_FASTER), never_at_its_rate(evidence)
    if rate is None or resumed is None or diverged(evidence):
        return
    scheduled, faster = evidence.optimizer.scheduled, rate * RESUMED_FASTER.lr
    yield Sign(
        severity(evidence),
        f"the learning rate is {rate:.3g} at its highest, where the optimiser was given "
        f"{scheduled:.3g}{_gained(resumed, f'at {faster:.3g}')}",
        "let the function of LambdaLR return a factor, 1 at first, and not the rate itself: the "
        "scheduler multiplies the optimiser's rate by it",
        evidence={
            "highest": rate,
            "scheduled": scheduled,
            "loss_before": resumed.start,
            **trial_numbers(evidence, RESUMED_FASTER),
        },
        confidence="shown",
        override=None,
    )


def still_weights(evidence: Evidence) -> Iterator[Sign]:
    """Weights that have hardly moved in the whole training, and a copy learns at a higher rate."""
    movement = evidence.outcome.movement
    if not short(evidence) or diverged(evidence) or movement is None:
        return
    if movement == 0:
        # No rate is too low for any movement at all: there was no update, or nothing in it.
        return
    faster = cured(evidence, *HIGHER_RATES)
    if movement > STILL or (faster is None and movement > WITHOUT_TRIAL * STILL):
        return
    factor = faster.lr if faster else PROPOSED
    higher = f"{(evidence.optimizer.lr or 0) * factor:.3g}"
    yield Sign(
        severity(evidence),
        f"after {evidence.loop.steps} steps the weights have moved by {100 * movement:.2g} % of "
        "their size" + (f"; at a rate of {higher} a copy learns" if faster else ""),
        f"raise the learning rate, to {higher} say",
        evidence={
            "lr": evidence.optimizer.lr,
            "movement": movement,
            **trial_numbers(evidence, *HIGHER_RATES),
        },
        confidence=shown_by(evidence, faster),
        override=f"optim.lr={higher}",
    )


def still_and_overtaken(evidence: Evidence) -> Iterator[Sign]:
    """Weights that have hardly moved on an unknown task, and the loss as little; or a copy at a
    higher rate whose loss falls below that which the whole training came to."""
    better = [trial for trial in HIGHER_RATES if overtakes(evidence, trial)]
    if not hardly_moved(evidence) or not (better or stays_where_it_began(evidence)):
        return
    faster = min(better, key=lambda t: evidence.trials[t.name].end, default=None)
    higher = f"{(evidence.optimizer.lr or 0) * (faster.lr if faster else PROPOSED):.3g}"
    movement, seen = evidence.outcome.movement or 0.0, ""
    if faster is not None:
        outcome = evidence.trials[faster.name]
        seen = f"; at a rate of {higher} a copy gets to {outcome.end:.3g} in {outcome.steps} steps"
    yield Sign(
        "error",
        f"after {evidence.loop.steps} steps the weights have moved by {100 * movement:.2g} % of "
        f"their size, and the loss is {evidence.outcome.last_loss:.3g}{seen}",
        f"raise the learning rate, to {higher} say",
        evidence={
            "lr": evidence.optimizer.lr,
            "movement": movement,
            "last_loss": evidence.outcome.last_loss,
            **trial_numbers(evidence, *HIGHER_RATES),
        },
        confidence="shown" if faster else "suspected",
        override=f"optim.lr={higher}",
    )


def hardly_moved(evidence: Evidence) -> bool:
    """Return whether the weights have hardly moved in a long training of an unknown task."""
    movement = evidence.outcome.movement or 0.0
    long = evidence.loop.steps >= UNKNOWN_JUDGED_AFTER
    return evidence.task == "unknown" and long and 0 < movement < STILL


def higher_rate_learns_more(evidence: Evidence) -> Iterator[Sign]:
    """A copy gets farther at a higher rate, in its few steps, than the whole training did."""
    own, faster = evidence.outcome.train.relative_loss, cured(evidence, *HIGHER_RATES)
    if faster is None or own is None or not failing(evidence) or diverged(evidence):
        return
    simple, trial = evidence.data.simple_skill, evidence.trials[faster.name]
    # A trial learns labels of chance by heart, if its rate is high enough: not those of other
    # batches, nor where a simple model finds a relation.
    elsewhere = trial.others is not None and trial.others_again is not None
    related = simple is not None and simple >= AT_CHANCE
    if not (elsewhere or related) or not overtakes(evidence, faster):
        return
    rates = highest_rates(evidence)
    higher = f"{max(rates, default=evidence.optimizer.lr or 0) * faster.lr:.3g}"
    fell = (
        f", while the rate fell from {max(rates):.3g} to {rates[-1]:.3g}"
        if has_fallen(rates)
        else ""
    )
    yield Sign(
        severity(evidence),
        f"after {evidence.loop.steps} steps the relative loss is {own:.2f}{fell}; at a rate of "
        f"{higher} a copy gets to {trial.end:.2f} in {trial.steps} steps",
        f"raise the learning rate, to {higher} say"
        + (", and let its schedule fall later" if fell else ""),
        evidence={
            "lr": evidence.optimizer.lr,
            "rates": evidence.optimizer.rates[:8],
            "relative_loss": own,
            **trial_numbers(evidence, *HIGHER_RATES),
        },
        confidence=shown_by(evidence, faster),
        override=f"optim.lr={higher}",
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Try higher rates until one learns; go on at the highest rate where a schedule ends early."""
    yield from _trials_of_schedules(evidence)
    slow = largest_update(evidence)[0] < LARGE_UPDATE and not diverged(evidence)
    if slow and not cured(evidence, *HIGHER_RATES):
        yield from HIGHER_RATES


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Try the rate that a schedule takes to nothing, one nearer to what a slow warm-up leads to,
    and higher ones where weights stand still."""
    if vanished_rate(evidence) is not None:
        yield UNCHANGED
    yield from _trials_of_schedules(evidence)
    if hardly_moved(evidence):
        found = (trial for trial in HIGHER_RATES if promises(evidence, trial))
        if next(found, None) is None:
            yield from HIGHER_RATES


def _trials_of_schedules(evidence: Evidence) -> Iterable[Trial]:
    if faded_rate(evidence) is not None:
        yield RESUMED
    # Of a training that does not learn, higher rates from the start tell it in fewer steps, for
    # which the budget would be spent.
    if failing(evidence):
        return
    rise = unfinished_rise(evidence)
    slow = rise is not None and rise.scheduled is not None and rise.seldom
    if slow or never_at_its_rate(evidence) is not None:
        yield RESUMED_FASTER


CAUSE = Cause(
    name="lr_too_low",
    meaning="a learning rate that is too low",
    kind=Kind.RIVAL,
    rules=(
        first_of(
            taken_to_nothing,
            faded,
            cut_before_the_update,
            never_arrives,
            far_below_its_schedule,
            still_weights,
            still_and_overtaken,
            higher_rate_learns_more,
        ),
    ),
    fix="raise the learning rate",
    harm="the weights hardly leave their initial values in the steps that there are",
    source="Smith 2017, arXiv:1506.01186; the article's claim 4",
    override="optim.lr=1e-3",
    trials=trials,
    trials_if_learning=trials_if_learning,
)
