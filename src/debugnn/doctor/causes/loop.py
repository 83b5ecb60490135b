"""Mistakes of the loop: the optimiser's parameters, modes, gradients that stay."""

from collections.abc import Iterator

from debugnn.doctor.causes.signals import (
    MIXED,
    cured,
    short,
)
from debugnn.doctor.causes.wording import fork_numbers, listed, severity
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding


def optimizer_mismatch(evidence: Evidence) -> Iterator[Finding]:
    facts = evidence.optimizer
    if evidence.network.parameters == 0 and facts.trainable == 0:
        yield Finding(
            "optimizer_mismatch",
            "error",
            "the model has no trainable parameters",
            "give the doctor the module that is trained, and register its layers on it",
        )
        return
    if evidence.loop.steps >= 2 and evidence.loop.optimizer_steps == 0:
        yield Finding(
            "optimizer_mismatch",
            "error",
            f"in {evidence.loop.steps} steps this optimiser's step() was never called",
            "call optimizer.step() after loss.backward(), and give the doctor that optimiser",
        )
        return
    unreached = set(evidence.network.unreached) | set(evidence.network.unused)
    missing = [name for name in facts.missing if name not in unreached]
    if facts.trainable and facts.held == 0:
        yield Finding(
            "optimizer_mismatch",
            "error",
            f"the optimiser holds none of the model's {facts.trainable} trainable parameters",
            "make the optimiser from model.parameters(), after the model is complete and on its "
            "device",
            evidence={"foreign": facts.foreign},
        )
    elif missing and evidence.loop.optimizer_steps > 0:
        yield Finding(
            "optimizer_mismatch",
            "error",
            f"the optimiser does not hold {len(missing)} of {facts.trainable} trainable "
            f"parameters, and they never change: {listed(missing)}",
            "hand them to the optimiser, or freeze them with requires_grad_(False)",
            layer=missing[0].rpartition(".")[0] or None,
            evidence={"missing": missing[:32], "foreign": facts.foreign},
        )


def frozen_parameters(evidence: Evidence) -> Iterator[Finding]:
    unreached, loop = evidence.network.unreached, evidence.loop
    if unreached:
        yield Finding(
            "frozen_parameters",
            "error",
            f"no gradient reaches {len(unreached)} parameters that the outputs depend on: "
            f"{listed(unreached)}",
            "remove detach(), .data, no_grad() or a step without derivative (argmax, round) "
            "between them and the loss",
            layer=unreached[0].rpartition(".")[0] or None,
            evidence={"parameters": unreached[:32]},
        )
        return
    if loop.empty_steps >= 2 and evidence.optimizer.held:
        yield Finding(
            "frozen_parameters",
            "error",
            f"{loop.empty_steps} optimiser steps found no gradient at all",
            "call loss.backward() before optimizer.step(), on a loss that is not detached",
            evidence={"steps_without_gradient": loop.empty_steps},
        )
        return
    frozen = evidence.optimizer.frozen_held
    if frozen:
        mended = cured(evidence, "unfrozen")
        yield Finding(
            "frozen_parameters",
            severity(evidence) if short(evidence) else "note",
            f"{len(frozen)} parameters of the optimiser have requires_grad=False: "
            f"{listed(frozen)}" + ("; with all of them learning, a copy learns" if mended else ""),
            "set requires_grad_(True), or leave them out of the optimiser if they are meant to be "
            "frozen",
            layer=frozen[0].rpartition(".")[0] or None,
            evidence={"parameters": frozen[:32], **fork_numbers(evidence, "unfrozen")},
        )


def batch_mixing(evidence: Evidence) -> Iterator[Finding]:
    network = evidence.network
    if network.mixing is None or network.mixing <= MIXED or network.batch_softmax:
        return
    # One graph or set, seen whole in every step, may be what is to be learnt.
    whole = (evidence.outcome.epochs or 0) >= 0.9 * evidence.loop.steps > 0
    yield Finding(
        "batch_mixing",
        "note" if whole and not short(evidence) else severity(evidence),
        f"a sample's output changes by {100 * network.mixing:.2g} % when only other samples of the "
        "batch change, in evaluation mode",
        "keep the batch axis apart: look for view or reshape where permute is meant, batch_first, "
        "and statistics or attention over axis 0",
        layer=network.mixing_layer,
        evidence={"relative_change": network.mixing},
    )


def train_eval_mode(evidence: Evidence) -> Iterator[Finding]:
    loop = evidence.loop
    if evidence.network.random_evaluation:
        yield Finding(
            "train_eval_mode",
            severity(evidence),
            "two evaluations of one batch differ: something stays random in evaluation mode",
            "use nn.Dropout, or F.dropout(x, p, training=self.training)",
        )
        return
    if not evidence.network.mode_sensitive:
        return
    if loop.eval_mode_forwards > max(2, 0.05 * loop.training_forwards):
        yield Finding(
            "train_eval_mode",
            severity(evidence),
            f"{loop.eval_mode_forwards} of {loop.training_forwards} training steps ran in "
            "evaluation mode: dropout was off, batch norm did not follow the batches",
            "call model.train() before each epoch's training",
            step=loop.first_eval_mode,
            evidence={"steps": loop.eval_mode_forwards},
        )
    elif loop.train_mode_evaluations or loop.validated_in_train_mode:
        count = max(loop.train_mode_evaluations, loop.validated_in_train_mode)
        yield Finding(
            "train_eval_mode",
            "warning",
            f"{count} evaluations ran in training mode: dropout was on, batch norm used (and "
            "updated) batch statistics",
            "call model.eval() before evaluating, and model.train() after",
            evidence={"evaluations": count},
        )


def missing_zero_grad(evidence: Evidence) -> Iterator[Finding]:
    loop = evidence.loop
    if loop.residual_steps >= 2 and loop.residual_steps >= 0.3 * loop.compared_steps:
        yield Finding(
            "missing_zero_grad",
            severity(evidence),
            f"in {loop.residual_steps} of {loop.compared_steps} steps that were compared the "
            "gradient was added to that of earlier steps, which had been used already",
            "call optimizer.zero_grad() in every step",
            step=loop.residual_step,
            evidence={"steps": loop.residual_steps, "compared": loop.compared_steps},
        )
