"""From evidence to findings, one file a cause. Needs no torch.

A new cause is one file that makes a `CAUSE`, and one line in `ORDER`. What a rule calls a warning
or an error is either certain from what was seen (a gradient that is added to the last step's is a
mistake in any program), or a suspicion that the outcome bears out: the training did not learn, and
a trial that changed this one thing did, or no other cause came first.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module

from debugnn.doctor.causes.cause import Cause, Kind
from debugnn.doctor.causes.signals.learning_rate import cut_share, vanished_rate
from debugnn.doctor.causes.signals.loss_course import learns_late
from debugnn.doctor.causes.signals.outcome import doubtful, rough_start, short
from debugnn.doctor.causes.signals.padding import promises_without_padding
from debugnn.doctor.causes.signals.skill import last_validation, skill
from debugnn.doctor.causes.signals.trials import promises
from debugnn.doctor.causes.verdict import verdict
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding, Report, worrying
from debugnn.doctor.trials import TRIALS, UNCHANGED, Trial

# What comes first on the way from the data to the weights explains what comes after it.
ORDER = (
    "non_finite",
    "constant_input",
    "label_leak",
    "optimizer_mismatch",
    "frozen_parameters",
    "wrong_loss",
    "batch_mixing",
    "train_eval_mode",
    "missing_zero_grad",
    "no_nonlinearity",
    "wrong_hidden_activation",
    "input_scale",
    "symmetric_init",
    "init_scale_too_large",
    "init_scale_too_small",
    "dead_relu",
    "saturated_activation",
    "loss_reduction",
    "over_regularised",
    "exploding_gradient",
    "vanishing_gradient",
    "bad_labels",
    "lr_too_high",
    "lr_too_low",
    "class_imbalance",
    "train_test_mismatch",
    "overfitting",
)
_BASES = {
    "certain": "this holds whatever the outcome",
    "shown": "a comparison that changes this alone does better",
    "suspected": "that is the likeliest reason for what was seen",
}
LATE = 1  # beyond it, a finding is the end of what another one began

CAUSES: dict[str, Cause] = {name: import_module(f"{__name__}.{name}").CAUSE for name in ORDER}


def diagnose(evidence: Evidence, budget: int, overrides: bool = False) -> Report:
    """Return all findings: the main cause first, what it explains under it.

    Args:
        budget: the most steps that trials were allowed to take, for the report's words.
        overrides: the training is one of train.py's, so that findings name the override that mends
            them.
    """
    found = [finding for cause in CAUSES.values() for finding in cause.findings(evidence)]
    proven = [finding for finding in found if _proven(finding, evidence)]
    suspects = [finding for finding in worrying(found) if finding not in proven]
    notes = [finding for finding in found if finding.severity == "note"]
    outcome, last = evidence.outcome, last_validation(evidence)
    healthy, reason = (False, "") if proven else verdict(evidence)
    for finding in suspects:
        finding.severity = "note"
    ranked = arranged(proven, suspects if healthy is False else [], evidence)
    if healthy is False and not proven:
        ranked = _with_last_resort(ranked, evidence)
    if not overrides:
        for finding in (*found, *ranked):
            finding.override = None
    if proven:
        main = ranked[0]
        reason = f"the training shows {CAUSES[main.cause].meaning}: {_BASES[main.confidence]}"
    return Report(
        healthy=healthy,
        reason=reason,
        main=ranked[0] if ranked else None,
        findings=[*ranked, *notes, *([] if healthy is False else suspects)],
        outcome={
            "task": evidence.task,
            "first_loss": outcome.first_loss,
            "last_loss": outcome.last_loss,
            "skill": skill(evidence),
            "validation_skill": last.skill if last else None,
        },
        steps=evidence.loop.steps,
        trial_steps=evidence.trial_steps,
        trial_budget=budget,
        troubles=list(evidence.troubles),
        evidence=evidence,
    )


def _with_last_resort(ranked: list[Finding], evidence: Evidence) -> list[Finding]:
    """Return suspicions with the likeliest cause where there are none, or none but symptoms of
    causes that come before them in the order."""
    resort = next((f for c in CAUSES.values() for f in c.findings_of_last_resort(evidence)), None)
    if resort is None or any(CAUSES[f.cause].kind is not Kind.SYMPTOM for f in ranked):
        return ranked
    if ranked and ORDER.index(resort.cause) > ORDER.index(ranked[0].cause):
        return ranked
    resort.consequences = [f for one in ranked for f in (one, *one.consequences)]
    return [resort]


def _proven(finding: Finding, evidence: Evidence) -> bool:
    """True for a finding above a note that rests on more than a suspicion.

    What the outcome shows is not sure where the training's start was not seen.
    """
    if finding.severity == "note":
        return False
    return finding.confidence == "certain" or (
        finding.confidence == "shown" and not evidence.loop.steps_before
    )


def arranged(
    proven: Sequence[Finding], suspects: Sequence[Finding], evidence: Evidence
) -> list[Finding]:
    """Return findings in the order of causes, the proven before the suspected ones.

    What ended a divergence stands behind whatever is suspected of it. Symptoms of the first one
    stand under it. Rivals of it, which would explain the same, are left out.
    """

    def rank(finding: Finding) -> tuple[bool, bool, tuple[int, int]]:
        found = place(finding, evidence)
        return found[0] > LATE, finding.severity == "note", found

    ranked = sorted([*proven, *suspects], key=rank)
    if not ranked:
        return []
    main, *others = ranked
    kinds = {finding.cause: CAUSES[finding.cause].kind for finding in others}
    main.consequences = [f for f in others if kinds[f.cause] is Kind.SYMPTOM]
    return [main, *(f for f in others if kinds[f.cause] in (Kind.CERTAIN, Kind.INDEPENDENT))]


def place(finding: Finding, evidence: Evidence) -> tuple[int, int]:
    """Return where a finding stands: its lateness, then its cause's place in `ORDER`."""
    return CAUSES[finding.cause].lateness(evidence, finding), ORDER.index(finding.cause)


def trials_to_confirm(evidence: Evidence) -> Iterator[Trial]:
    """Yield the trials that promise a cure on the first set of batches, with none on the second.

    The unchanged one comes first, which they are compared with.
    """
    unchanged = evidence.trials.get(UNCHANGED.name)
    slowed = vanished_rate(evidence) is not None or cut_share(evidence) is not None
    if slowed and unchanged is not None and unchanged.end_again is None:
        yield UNCHANGED
    for trial in TRIALS:
        outcome = evidence.trials.get(trial.name)
        if trial.padding is not None:
            unconfirmed = outcome is not None and outcome.end_again is None
            if unconfirmed and promises_without_padding(evidence):
                yield trial
            continue
        if trial.resumed:
            if outcome is not None and outcome.end_again is None and outcome.end < outcome.start:
                yield trial
            continue
        if outcome is None or outcome.end_again is not None or not promises(evidence, trial):
            continue
        if unchanged is not None and unchanged.end_again is None:
            yield UNCHANGED
        yield trial


def _answers(finding: Finding, evidence: Evidence) -> bool:
    """True unless the finding may be the end of a divergence, whose cause trials tell."""
    return CAUSES[finding.cause].lateness(evidence, finding) == 0


def trials_wanted(evidence: Evidence) -> Iterator[Trial]:
    """Yield the trials that would tell apart the causes in question, in the order of `TRIALS`.

    Few are wanted for a training that learns, and none where the cause is certain. To be asked
    again after each trial, which may answer what another was wanted for.
    """
    looked_into = short(evidence) or doubtful(evidence)
    if not (looked_into or rough_start(evidence) or learns_late(evidence)):
        wanted = {trial for c in CAUSES.values() for trial in c.trials_if_learning(evidence)}
        yield from (trial for trial in TRIALS if trial in wanted)
        return
    found = [finding for cause in CAUSES.values() for finding in cause.findings(evidence)]
    if any(f.confidence == "certain" and _answers(f, evidence) for f in worrying(found)):
        return
    wanted = {trial for cause in CAUSES.values() for trial in cause.trials(evidence)}
    yield from (trial for trial in TRIALS if trial is UNCHANGED or trial in wanted)
