"""From evidence to findings. Needs no torch: a diagnosis can be made again from a file.

A rule is a function of the evidence that returns findings of its cause. What it may call a
warning or an error is either certain from what was seen (a gradient that is added to the last
step's is a mistake in any program), or a suspicion that the outcome bears out: the training did
not learn, and a fork that changed just this one thing did, or no other cause came first.
"""

from collections.abc import Callable, Iterator

from debugnn.doctor.causes import data, loop, loss, network, training
from debugnn.doctor.causes.signals import (
    FAR_SCALE,
    FASTER,
    LARGE_UPDATE,
    cured,
    dead_units,
    diverged,
    extreme_gain,
    judged,
    largest_update,
    odd_inputs,
    outsized_constant,
    overflowed,
    rough_start,
    saturated_values,
    short,
    skill,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import CAUSES, Finding, Report

Rule = Callable[[Evidence], Iterator[Finding]]

# Certain from what was seen, whatever the outcome.
CERTAIN: tuple[Rule, ...] = (
    data.constant_input,
    data.label_leak,
    loss.wrong_loss,
    loop.optimizer_mismatch,
    loop.batch_mixing,
    loop.train_eval_mode,
    loop.missing_zero_grad,
    network.no_nonlinearity,
    network.wrong_hidden_activation,
)
RULES: tuple[Rule, ...] = (
    *CERTAIN,
    data.non_finite,
    data.bad_labels,
    loop.frozen_parameters,
    data.input_scale,
    loss.loss_reduction,
    network.symmetric_init,
    network.init_scale_too_large,
    network.init_scale_too_small,
    training.dead_relu,
    training.saturated_activation,
    training.over_regularised,
    training.lr_too_high,
    training.lr_too_low,
    training.exploding_gradient,
    training.vanishing_gradient,
    data.train_test_mismatch,
    data.class_imbalance,
    training.overfitting,
)
# What follows from a cause: shown under it.
SYMPTOMS = frozenset({
    "non_finite", "dead_relu", "saturated_activation", "exploding_gradient", "vanishing_gradient",
    "symmetric_init", "overfitting", "class_imbalance",
})  # fmt: skip
# Rival explanations of a failing training: not shown beside one that comes before them.
RIVALS = frozenset({
    "lr_too_high", "lr_too_low", "init_scale_too_large", "init_scale_too_small", "input_scale",
    "over_regularised", "loss_reduction", "bad_labels",
})  # fmt: skip


def diagnose(evidence: Evidence, budget: int) -> Report:
    """All findings, the main cause first, what it explains under it."""
    found = [finding for rule in RULES for finding in rule(evidence)]
    outcome = evidence.outcome
    last = outcome.validations[-1].score if outcome.validations else None
    return Report(
        findings=arranged(found, evidence),
        outcome={
            "task": evidence.task,
            "first_loss": outcome.first_loss,
            "last_loss": outcome.last_loss,
            "skill": skill(evidence),
            "validation_skill": last.skill if last else None,
        },
        judged=judged(evidence),
        steps=evidence.loop.steps,
        fork_steps=evidence.fork_steps,
        fork_budget=budget,
        troubles=list(evidence.troubles),
        evidence=evidence,
    )


def arranged(found: list[Finding], evidence: Evidence) -> list[Finding]:
    """Warnings and errors, what comes first from data to weights in front, then notes.

    What follows from the first stands under it; what would explain the same is left out.
    """
    worrying = sorted((f for f in found if f.severity != "note"), key=lambda f: place(f, evidence))
    notes = [f for f in found if f.severity == "note"]
    if not worrying:
        return notes
    main, *others = worrying
    main.consequences = [f for f in others if f.cause in SYMPTOMS]
    beside = [f for f in others if f.cause not in SYMPTOMS | RIVALS]
    return [main, *beside, *notes]


def forks_wanted(evidence: Evidence) -> Iterator[str]:
    """Names of the forks that would tell the causes apart that are in question, in turn."""
    if not short(evidence) and not rough_start(evidence):
        return
    if any(f.severity != "note" for rule in CERTAIN for f in rule(evidence)):
        return
    optimizer = evidence.optimizer
    yield "same"
    if odd_inputs(evidence):
        yield "inputs"
    if evidence.loss.reduction == "sum":
        yield "mean"
    if (
        extreme_gain(evidence, large=True)
        or extreme_gain(evidence, large=False)
        or dead_units(evidence)
        or saturated_values(evidence)
    ):
        yield "init"
    if optimizer.weight_decay > 0 or evidence.network.dropout > 0:
        yield "unregularised"
    if evidence.task == "values" and (evidence.data.target_rms or 0) > FAR_SCALE:
        yield "targets"
    if optimizer.frozen_held:
        yield "unfrozen"
    if diverged(evidence) or largest_update(evidence)[0] > LARGE_UPDATE / 2:
        yield from ("lr/10", "lr/100")
    if not diverged(evidence) and largest_update(evidence)[0] < LARGE_UPDATE:
        for name in FASTER:
            if not cured(evidence, *FASTER):
                yield name


def place(finding: Finding, evidence: Evidence) -> tuple[int, int]:
    """Where a finding stands: the earlier on the way from data to weights, the further in front."""
    order = list(CAUSES).index(finding.cause)
    late = 0
    if finding.cause == "non_finite" and overflowed(evidence):
        late = 2  # the end of a divergence
    elif finding.cause in ("dead_relu", "saturated_activation") and finding.step:
        late = 1  # it was not so at the start: something drove them there
    elif finding.cause == "symmetric_init" and outsized_constant(evidence):
        late = 1
    return late, order
