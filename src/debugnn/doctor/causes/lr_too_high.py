"""A learning rate that is too high."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.learning_rate import (
    LARGE_UPDATE,
    REPLACED,
    jumps_about,
    largest_update,
)
from debugnn.doctor.causes.signals.loss_course import diverged, unlearns
from debugnn.doctor.causes.signals.outcome import at_chance, severity, short
from debugnn.doctor.causes.signals.trials import (
    CALM,
    FAR_WORSE,
    cured,
    overtakes,
    shown_by,
    trial_numbers,
)
from debugnn.doctor.causes.signals.wording import module_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import LOWER_RATES, UNCHANGED, Trial

# Update, over LARGE_UPDATE, by which a training at chance is suspected where no trial could be run.
# Lower rates that were tried, and of which none learns, clear the rate.
WITHOUT_TRIAL = 4.0
# Update, over LARGE_UPDATE, above which lower rates are tried.
WORTH_A_TRIAL = 0.5
# ‖w − w₀‖ / ‖w₀‖ after the whole training above which nothing of the initialisation is left; sound
# programs have up to 5.
FAR = 30.0


def calmed(evidence: Evidence) -> Trial | None:
    """Return the lower rate at which a copy does no worse than guessing, where the training and a
    copy at its own rate diverge; None where none does."""
    unchanged = evidence.trials.get(UNCHANGED.name)
    if unchanged is None or unchanged.end < FAR_WORSE or not diverged(evidence):
        return None
    run = {t: evidence.trials[t.name].end for t in LOWER_RATES if t.name in evidence.trials}
    return min((t for t in run if run[t] < CALM), key=run.__getitem__, default=None)


def large_updates(evidence: Evidence) -> Iterator[Sign]:
    """Updates that are large against the weights, and a copy learns at a lower rate."""
    update, *_ = largest_update(evidence)
    if not short(evidence) or not (update > LARGE_UPDATE or diverged(evidence)):
        return
    slower, calmer = cured(evidence, *LOWER_RATES), calmed(evidence)
    tried = any(trial.name in evidence.trials for trial in LOWER_RATES)
    stuck = update > WITHOUT_TRIAL * LARGE_UPDATE and at_chance(evidence)
    if slower is None and calmer is None and (tried or not stuck):
        return
    lower = _rate(evidence, slower or calmer or LOWER_RATES[0])
    seen = ""
    if slower or calmer:
        seen = f"; at a rate of {lower} a copy " + (
            "learns" if slower else "does not get worse than guessing, as it does at this rate"
        )
    yield _sign(evidence, seen, lower, shown_by(evidence, slower))


def lower_rate_learns_more(evidence: Evidence) -> Iterator[Sign]:
    """Steps that replace whole weights or lose what was learnt, and a copy gets farther at a lower
    rate, in its few steps, than the whole training did."""
    own = evidence.outcome.train.relative_loss
    better = [trial for trial in LOWER_RATES if overtakes(evidence, trial)]
    if not better or not jumps_about(evidence):
        return
    slower = min(better, key=lambda trial: evidence.trials[trial.name].end)
    outcome, lower = evidence.trials[slower.name], _rate(evidence, slower)
    seen = ", what was learnt is lost again" if unlearns(evidence) else ""
    seen += (
        f", and after {evidence.loop.steps} steps the relative loss is {own:.2f}; at a rate of "
        f"{lower} a copy gets to {outcome.end:.2f} in {outcome.steps} steps"
    )
    yield _sign(evidence, seen, lower, "shown", relative_loss=own)


def thrown_far(evidence: Evidence) -> Iterator[Sign]:
    """Steps that replace whole weights, in a training of an unknown task that ends far from where
    it began: what its loss says of how it went is not known."""
    movement = evidence.outcome.movement or 0.0
    if evidence.task != "unknown" or movement < FAR or largest_update(evidence)[0] < REPLACED:
        return
    seen = (
        f", and the weights end {movement:.0f} times their initial size away from where they began"
    )
    lower = f"{(evidence.optimizer.lr or 0) * LOWER_RATES[-1].lr:.3g}"
    yield _sign(evidence, seen, lower, "certain", movement=movement)


def _rate(evidence: Evidence, trial: Trial) -> str:
    """Return the rate of a trial in words."""
    return f"{(evidence.optimizer.lr or 0) * trial.lr:.3g}"


def _sign(
    evidence: Evidence, seen: str, lower: str, confidence: str, **numbers: float | None
) -> Sign:
    """Return what is said of large updates.

    Args:
        seen: what was seen besides.
        lower: the rate that is proposed.
        numbers: behind what was seen besides.
    """
    update, name, step = largest_update(evidence)
    return Sign(
        severity(evidence),
        f"a step changes a weight tensor by up to {100 * update:.3g} %{seen}",
        f"lower the learning rate, to {lower} say",
        layer=module_of(name),
        step=step,
        evidence={
            "lr": evidence.optimizer.lr,
            "largest_update": update,
            **numbers,
            **trial_numbers(evidence, *LOWER_RATES),
        },
        confidence=confidence,
        override=f"optim.lr={lower}",
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Try lower rates where the loss diverged or updates are large."""
    if diverged(evidence) or largest_update(evidence)[0] > WORTH_A_TRIAL * LARGE_UPDATE:
        yield from LOWER_RATES


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Try lower rates where steps replace whole weights, or what was learnt is lost again."""
    if jumps_about(evidence):
        yield from (UNCHANGED, *LOWER_RATES)


CAUSE = Cause(
    name="lr_too_high",
    meaning="a learning rate that is too high",
    kind=Kind.RIVAL,
    rules=(first_of(large_updates, lower_rate_learns_more, thrown_far),),
    fix="lower the learning rate",
    harm="each step jumps over the minimum that it aims at",
    source="Smith 2017, arXiv:1506.01186; the article's claim 4",
    override="optim.lr=1e-4",
    trials=trials,
    trials_if_learning=trials_if_learning,
)
