"""A regulariser that outweighs the data."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.loss_course import diverged, stands_still, unlearns
from debugnn.doctor.causes.signals.network import extreme_gain
from debugnn.doctor.causes.signals.outcome import doubtful, failing, severity, short
from debugnn.doctor.causes.signals.skill import FAILING, NEARLY_PERFECT, judged, reached
from debugnn.doctor.causes.signals.trials import (
    LEARNT,
    cured,
    goes_on,
    progress,
    shown_by,
    trial_numbers,
)
from debugnn.doctor.causes.signals.without_skill import (
    chooses_candidate,
    code_ignored,
    collapsed,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import MAIN_ALONE, UNREGULARISED, UNREGULARISED_ON, Trial

# Share of the loss that the loss function does not explain: more than half of it is a penalty.
MOSTLY_PENALTY = 0.5
# The lowest loss handed over / the loss function's own value: mixed targets, which only the loop
# knows, leave a rest to both sides, a penalty to one.
ONE_SIDED = 0.95
# ‖w‖/‖w₀‖ below which weight decay has shrunk the weights.
SHRUNK = 0.6
# ‖w‖/‖w₀‖ below which nothing of the weights is left: a decay alone takes them there.
GONE = 0.01
# The same of a training whose outputs have become the same for all inputs: sound programs keep a
# third of their weights and more.
SHRUNK_AWAY = 0.05
# Weight decay from which a copy goes on without it, where training has come to a standstill: in an
# optimiser that divides the decay by the gradients' size too, usual values of it are 1e-4 and less.
STRONG_DECAY = 1e-2
# In another: decay · learning rate · updates, the logarithm of what it alone shrinks a weight by.
STRONG_SHRINKAGE = 0.5
# Dropout rate above the usual 0.5.
HIGH_DROPOUT = 0.7


def penalty_share(evidence: Evidence) -> float:
    """Return the largest share of the loss that is a penalty."""
    low, high = evidence.loop.loss_ratio_low, evidence.loop.loss_ratio_high
    if low is None or high is None or high <= 1 or low <= ONE_SIDED:
        return 0.0
    return 1 - 1 / high


def strong_regulariser(evidence: Evidence) -> Iterator[Sign]:
    """A penalty, weight decay or dropout that keeps the training samples from being learnt."""
    penalty, decay = penalty_share(evidence), evidence.optimizer.weight_decay
    dropout, shrunk = evidence.network.dropout, evidence.outcome.shrinkage
    gone = decay > 0 and shrunk is not None and shrunk < GONE
    # What is left, as biases, may learn a little.
    little = gone and judged(evidence) and reached(evidence) < FAILING
    fails = short(evidence) or doubtful(evidence) or chooses_candidate(evidence) is False
    if not (fails or little):
        return
    relieved = cured(evidence, UNREGULARISED)
    if relieved is not None and _by_heart(evidence, relieved):
        relieved = None
    shrinks = _shrinks_by_itself(evidence)
    if penalty > MOSTLY_PENALTY:
        what, fix = f"{100 * penalty:.0f} % of the loss is a penalty", "weaken the penalty"
    elif decay > 0 and ((shrinks and shrunk is not None and shrunk < SHRUNK) or relieved):
        to = ""
        if shrunk is not None and shrunk < 1:
            to = f" shrinks the weights to {100 * shrunk:.2g} %"
        what = f"a weight decay of {decay:g}{to}"
        fix = "lower the weight decay (1e-4 to 1e-2 are usual)"
    elif dropout >= HIGH_DROPOUT and relieved:
        what, fix = f"dropout leaves {100 * (1 - dropout):.0f} % of the units", "use dropout ≤ 0.5"
    else:
        return
    yield Sign(
        severity(evidence),
        f"{what}: even the training samples are not learnt",
        fix,
        evidence={
            "penalty_share": penalty,
            "weight_decay": decay,
            "dropout": dropout,
            "shrinkage": shrunk,
            **trial_numbers(evidence, UNREGULARISED),
        },
        confidence="certain" if gone else shown_by(evidence, relieved),
    )


def _shrinks_by_itself(evidence: Evidence) -> bool:
    """Return whether it is the size of the weight decay that shrinks weights: where no gradient
    comes any more, Adam takes them down by any decay within it."""
    return not evidence.optimizer.decay_rescaled or evidence.optimizer.weight_decay >= STRONG_DECAY


def weights_shrunk_away(evidence: Evidence) -> Iterator[Sign]:
    """Weights of usual size that have shrunk to next to nothing, and outputs that have become the
    same for all inputs: what is added to the loss takes them there."""
    shrunk, decay = evidence.outcome.shrinkage, evidence.optimizer.weight_decay
    if shrunk is None or shrunk > SHRUNK_AWAY or not (failing(evidence) or collapsed(evidence)):
        return
    if diverged(evidence) or extreme_gain(evidence, large=True) is not None:
        return
    if decay and not _shrinks_by_itself(evidence):
        return
    by = f"a weight decay of {decay:g}" if decay else "what the loop adds to the loss"
    yield Sign(
        "error",
        f"the weights have shrunk to {100 * shrunk:.2g} % of their size, and the outputs tell "
        f"nothing of the inputs any more: {by} takes them there",
        "lower the weight decay (1e-4 to 1e-2 are usual)"
        if decay
        else "give the penalty a smaller weight; divide what is summed over a batch by its size, "
        "as the error is",
        evidence={
            "shrinkage": shrunk,
            "weight_decay": decay,
            "output_signal": evidence.outcome.output_signal,
            "output_signal_at_start": evidence.network.output_signal,
        },
        confidence="certain",
    )


def _by_heart(evidence: Evidence, trial: Trial) -> bool:
    """Return whether a trial learns its few batches, and nothing that holds for others."""
    outcome = evidence.trials[trial.name]
    measured = [end for end in (outcome.others, outcome.others_again) if end is not None]
    return any(progress(end) < LEARNT for end in measured)


def strong_decay(evidence: Evidence) -> bool:
    """Return whether decay is strong where a training that has more to learn stands still, or loses
    what it had learnt."""
    decay = evidence.optimizer.weight_decay
    if not judged(evidence) or reached(evidence) > NEARLY_PERFECT:
        return False
    shrinkage = decay * (evidence.optimizer.lr or 0.0) * evidence.loop.optimizer_steps
    strong = evidence.optimizer.decay_rescaled and decay >= STRONG_DECAY
    strong = strong or shrinkage > STRONG_SHRINKAGE
    held = stands_still(evidence) or unlearns(evidence)
    return strong and held and not diverged(evidence)


def decay_holds_back(evidence: Evidence) -> Iterator[Sign]:
    """A training that stands still under weight decay, or loses what it had learnt, and whose
    weights learn more without it."""
    resumed = goes_on(evidence, UNREGULARISED_ON)
    if resumed is None or not strong_decay(evidence):
        return
    decay = evidence.optimizer.weight_decay
    course = "loses what it had learnt" if unlearns(evidence) else "has come to a standstill"
    yield Sign(
        severity(evidence),
        f"training {course} under a weight decay of {decay:g}; a copy that goes on "
        f"without it learns more (the relative loss of other batches falls from "
        f"{resumed.start:.2f} to {resumed.end:.2f} in {resumed.steps} steps)",
        "lower the weight decay (1e-4 to 1e-2 are usual)"
        + (", or use AdamW, which keeps it apart from the gradients" if _adam(evidence) else ""),
        evidence={
            "weight_decay": decay,
            "skill": reached(evidence),
            "loss_before": resumed.start,
            **trial_numbers(evidence, UNREGULARISED_ON),
        },
        confidence="shown",
    )


def _adam(evidence: Evidence) -> bool:
    return evidence.optimizer.decay_rescaled and evidence.optimizer.name == "Adam"


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Go on without weight decay where a strong one may hold the training back."""
    if strong_decay(evidence):
        yield UNREGULARISED_ON


def other_terms_outweigh(evidence: Evidence) -> Iterator[Sign]:
    """Terms of the loss that read other outputs of the model, without which the one that is
    compared with the targets is learnt."""
    relieved = cured(evidence, MAIN_ALONE)
    if not may_be_outweighed(evidence) or relieved is None:
        return
    if _by_heart(evidence, MAIN_ALONE):
        return
    yield Sign(
        severity(evidence),
        "the loss has terms of other outputs than the one that is compared with the targets, and "
        "without them a copy learns what it does not learn with them",
        "give these terms a smaller weight; average them over the samples where the error is "
        "averaged",
        evidence=trial_numbers(evidence, MAIN_ALONE),
        override=None,
        confidence=shown_by(evidence, relieved),
        harm="the penalty pulls the weights harder than the data do",
    )


def may_be_outweighed(evidence: Evidence) -> bool:
    """Return whether the loss reads several outputs, and what it compares is hardly learnt."""
    known = evidence.loss.other_outputs and evidence.task != "unknown"
    return known and (short(evidence) or doubtful(evidence))


def collapsed_posterior(evidence: Evidence) -> Iterator[Sign]:
    """A code that is pulled to its prior so hard that it tells nothing of the inputs."""
    before, now = evidence.outcome.initial_latent, evidence.outcome.latent
    if not code_ignored(evidence) or before is None or now is None:
        return
    yield Sign(
        "error",
        "what the outputs are made from tells nothing of the inputs: as inputs change places, "
        f"outputs change by {100 * (now.by_input or 0):.1g} % of their size "
        f"({100 * (before.by_input or 0):.1g} % at the start)",
        "give the divergence of the code from its prior a smaller weight, or let it grow from 0 "
        "to 1 and no further; both terms must be summed, or averaged, over the same axes",
        evidence={
            "outputs_by_input": now.by_input,
            "outputs_by_input_at_the_start": before.by_input,
            "outputs_by_noise": now.by_noise,
        },
        override=None,
        confidence="suspected",
        harm="the decoder then makes the same mean output of every input",
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Turn weight decay, dropout and other outputs' terms off; go on without a strong decay."""
    if evidence.optimizer.weight_decay > 0 or evidence.network.dropout > 0:
        yield UNREGULARISED
    if may_be_outweighed(evidence):
        yield MAIN_ALONE
    yield from trials_if_learning(evidence)


CAUSE = Cause(
    name="over_regularised",
    meaning="a regulariser that outweighs the data",
    kind=Kind.RIVAL,
    rules=(
        first_of(strong_regulariser, other_terms_outweigh, decay_holds_back, weights_shrunk_away),
        collapsed_posterior,
    ),
    fix="weaken the regulariser until the training samples are learnt",
    harm="the penalty pulls the weights harder than the data do",
    source="Goodfellow et al. 2016, Deep Learning, chapter 7: underfitting by regularisation",
    override="reg=none",
    trials=trials,
    trials_if_learning=trials_if_learning,
)
