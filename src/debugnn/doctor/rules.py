"""From evidence to findings. Needs no torch: a diagnosis can be made again from a file.

A rule is a function of the evidence that returns findings of its cause. What it may call a
warning or an error is either certain from what was seen (a gradient that is added to the last
step's is a mistake in any program), or a suspicion that the outcome bears out: the training did
not learn, and a fork that changed just this one thing did, or no other cause came first.
"""

import math
from collections.abc import Callable, Iterator

from debugnn.doctor.evidence import Evidence
from debugnn.doctor.findings import CAUSES, Finding, Report
from debugnn.doctor.signals import (
    AT_CHANCE,
    EXPLODED,
    FAR_SCALE,
    GAP,
    LARGE_UPDATE,
    LEAKED,
    MIXED,
    MOSTLY_PENALTY,
    RARE,
    SHIFTED,
    SMALL_GAIN,
    STILL,
    TOLD_APART,
    UNREACHABLE,
    VANISHED,
    activation_growth,
    at_chance,
    cured,
    dead_units,
    diverged,
    extreme_gain,
    failing,
    findable,
    gradient_ratios,
    judged,
    largest_update,
    learns_late,
    odd_inputs,
    outsized_constant,
    overflowed,
    rarest_share,
    rough_start,
    saturated_values,
    short,
    skill,
    symmetric_layer,
)


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


# --- forks --------------------------------------------------------------------------------------


_FASTER = ("lr*10", "lr*100", "lr*1000", "lr*10000")


def forks_wanted(evidence: Evidence) -> Iterator[str]:
    """Names of the forks that would tell the causes apart that are in question, in turn."""
    if not short(evidence) and not rough_start(evidence):
        return
    if any(f.severity != "note" for rule in CERTAIN for f in rule(evidence)):
        return
    data, optimizer = evidence.data, evidence.optimizer
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
    if evidence.task == "values" and (data.target_rms or 0) > FAR_SCALE:
        yield "targets"
    if optimizer.frozen_held:
        yield "unfrozen"
    if diverged(evidence) or largest_update(evidence)[0] > LARGE_UPDATE / 2:
        yield from ("lr/10", "lr/100")
    if not diverged(evidence) and largest_update(evidence)[0] < LARGE_UPDATE:
        for name in _FASTER:
            if not cured(evidence, *_FASTER):
                yield name


# --- rules: data --------------------------------------------------------------------------------

Rule = Callable[[Evidence], Iterator[Finding]]


def _severity(evidence: Evidence) -> str:
    return "error" if failing(evidence) else "warning"


def non_finite(evidence: Evidence) -> Iterator[Finding]:
    found, data = evidence.nonfinite, evidence.data
    if found is None:
        if data.nonfinite_samples:
            yield Finding(
                "non_finite",
                "error",
                f"{data.nonfinite_samples} of {data.samples} kept samples hold NaN or infinity",
                "remove or fill these samples before training",
                evidence={"samples": data.nonfinite_samples},
            )
        elif evidence.outcome.nonfinite_step is not None:
            yield Finding(
                "non_finite",
                "error",
                "the loss is not finite",
                "look at what came before: the first finding's cause",
                step=evidence.outcome.nonfinite_step,
            )
        return
    number = {"nan": "NaN", "inf": "an infinite number"}.get(found.kind, found.kind)
    place = {
        "input": f"the input {found.name} holds it",
        "target": "the targets hold it",
        "parameter": f"the parameter {found.name} holds it before the step",
        "buffer": f"the buffer {found.name} holds it before the step",
        "forward": f"the operation {found.name} of the forward pass produced it",
        "loss": f"the operation {found.name} of the loss function produced it",
        "backward": f"the backward pass of {found.name} produced it",
    }.get(found.where, "where it came from could not be replayed")
    fixes = {
        "input": "remove or fill these samples before training",
        "target": "remove or fill these targets before training",
        "parameter": "look at how this parameter is initialised or loaded",
        "backward": "keep the argument away from where the derivative is infinite (sqrt(x + eps))",
    }
    fix = fixes.get(found.where, "keep the operation's argument in its domain (clamp, + eps)")
    if overflowed(evidence):
        fix = "the numbers had grown beyond bounds before: mend what made them grow"
    replay = f"; batch and weights are in {found.replay}" if found.replay else ""
    yield Finding(
        "non_finite",
        "error",
        f"{number} first appeared here: {place}{replay}",
        fix,
        layer=found.layer,
        step=found.step,
        samples=found.samples,
        evidence={
            "where": found.where,
            "operation": found.name,
            "count": found.count,
            "largest_finite_argument": found.magnitude,
        },
        override="clip=4.0" if overflowed(evidence) else None,
    )


def constant_input(evidence: Evidence) -> Iterator[Finding]:
    data = evidence.data
    alike = f"all {data.samples} kept samples have the same input"
    if data.constant_batches > 0.9:
        alike = f"in {100 * data.constant_batches:.0f} % of the batches all inputs are the same"
    if (data.constant and data.samples >= 8) or data.constant_batches > 0.9:
        yield Finding(
            "constant_input",
            "error",
            alike,
            "look at what the data loader returns: the inputs are overwritten or never filled",
            evidence={"samples": data.samples, "std": data.std},
        )


def bad_labels(evidence: Evidence) -> Iterator[Finding]:
    data, outcome = evidence.data, evidence.outcome
    if data.out_of_range and not (data.void_labels and evidence.loss.error is None):
        yield Finding(
            "bad_labels",
            "error",
            f"{data.out_of_range} of {data.samples} labels lie outside of 0 to "
            f"{(evidence.classes or 1) - 1}, the classes that the outputs stand for",
            "number the classes from 0, or give the model as many outputs as there are classes",
            evidence={"out_of_range": data.out_of_range, "classes": evidence.classes},
        )
        return
    if data.conflicting > 0.3:
        yield Finding(
            "bad_labels",
            "error",
            f"of the samples that came again, {100 * data.conflicting:.0f} % came with another "
            "label",
            "look at where inputs and labels are shuffled: they must be shuffled together",
            evidence={"conflicting": data.conflicting},
            override="data.labels=paired",
        )
        return
    if evidence.loss.unbounded and (data.target_kinds or 9) <= 2:
        yield Finding(
            "bad_labels",
            "error",
            f"two classes are coded as {data.target_low:g} and {data.target_high:g}, for a loss "
            "that expects 0 and 1 and falls without end beyond",
            "code the classes as 0 and 1",
            evidence={"low": data.target_low, "high": data.target_high},
        )
        return
    if not judged(evidence) or overflowed(evidence) or evidence.task == "unknown":
        return
    last = outcome.validations[-1].score if outcome.validations else None
    reached = skill(evidence)
    if last is not None and last.skill is not None:
        transferred = data.transfer_skill
        coded = (data.relabelled_skill or 0) > 0.5 and last.skill < AT_CHANCE
        misplaced = (
            transferred is not None
            and data.distinct >= 150
            and (data.simple_skill or 0) > 0.4
            and transferred < 0.3 * data.simple_skill
            and last.skill < 0.3 * reached
            and (data.shift or 0) < 0.3
            and (data.scale_shift or 0) < SHIFTED
        )
        if reached > 0.4 and (coded or misplaced):
            yield Finding(
                "bad_labels",
                "error",
                f"what is learnt on training labels (skill {reached:.2f}) does not hold for the "
                f"validation labels ({last.skill:.2f}), though the inputs are alike",
                "compare how the labels of the two sets are coded and ordered",
                evidence={
                    "train_skill": reached,
                    "validation_skill": last.skill,
                    "accuracy_after_renaming": data.relabelled_skill,
                    "simple_model_train_to_validation": transferred,
                },
            )
            return
        if (
            evidence.task == "classes"
            and outcome.train.balanced is not None
            and last.samples >= 50
            and last.balanced > outcome.train.balanced + 0.2
            and last.skill > 0.4
        ):
            yield Finding(
                "bad_labels",
                "error",
                f"validation labels are met far better (skill {last.skill:.2f}) than training "
                f"labels ({reached:.2f}): part of the training labels are wrong",
                "look through the training samples with the largest loss",
                evidence={"train_skill": reached, "validation_skill": last.skill},
            )
            return
    held_out = last.skill if last is not None and last.skill is not None else None
    simple = data.simple_skill
    learnt = held_out if held_out is not None else reached
    if (
        simple is not None
        and data.distinct >= 150
        and simple < AT_CHANCE
        and learnt < AT_CHANCE
        and (outcome.movement or 0) > STILL
        and rarest_share(evidence) > 2.5 * RARE
        and not cured(evidence, "lr/10", "lr/100", "init")
        and not diverged(evidence)
    ):
        yield Finding(
            "bad_labels",
            "error",
            "neither the network nor nearest neighbours or a linear model find a relation between "
            "inputs and labels that holds for other samples",
            "look at samples beside their labels: are they shuffled or shifted against each other?",
            evidence={
                "simple_model_skill": simple,
                "train_skill": reached,
                "validation_skill": held_out,
            },
            override="data.labels=paired",
        )


def label_leak(evidence: Evidence) -> Iterator[Finding]:
    data = evidence.data
    yield from leaking_feature(evidence)
    natural = not data.floating or data.natural_repeats > 0.05  # a small domain, or ids
    if data.overlap is not None and data.overlap > 0.5 and not data.same_set and not natural:
        yield Finding(
            "label_leak",
            "warning",
            f"{100 * data.overlap:.0f} % of the validation samples were trained on",
            "split the data before anything else, and keep the validation part out of training",
            evidence={"overlap": data.overlap},
        )


def leaking_feature(evidence: Evidence) -> Iterator[Finding]:
    data = evidence.data
    if data.leak is not None and data.leak > LEAKED and data.samples >= 50:
        features = ", ".join(map(str, data.leak_features[:5]))
        yield Finding(
            "label_leak",
            "error",
            f"input feature {features} alone gives the target away "
            f"({100 * data.leak:.1f} % of its variance)",
            "leave this feature out: it is made from the target",
            evidence={"share": data.leak, "features": data.leak_features[:32]},
        )


def input_scale(evidence: Evidence) -> Iterator[Finding]:
    odd = odd_inputs(evidence)
    if odd is None or not short(evidence):
        return
    fork = cured(evidence, "inputs")
    if fork is None:
        return
    yield Finding(
        "input_scale",
        _severity(evidence),
        f"the inputs are not standardised, {odd}; standardised, a copy learns",
        "subtract the training inputs' mean and divide by their standard deviation",
        evidence={
            "rms": evidence.data.rms,
            "mean": evidence.data.mean,
            "std": evidence.data.std,
            **_fork_numbers(evidence, fork),
        },
        override="data.scale=normalised",
    )


def _fork_numbers(evidence: Evidence, *names: str) -> dict[str, float]:
    """Relative losses after the forks: 1 is the best constant predictor."""
    wanted = ("same", *names)
    return {f"fork_{n}": evidence.forks[n].end for n in wanted if n in evidence.forks}


def train_test_mismatch(evidence: Evidence) -> Iterator[Finding]:
    data, outcome = evidence.data, evidence.outcome
    if not outcome.validations or not judged(evidence):
        return
    last, reached = outcome.validations[-1].score, skill(evidence)
    if last.skill is None or data.shift is None or reached < 0.3:
        return
    behind = reached - last.skill
    moved = (data.scale_shift or 0) > SHIFTED
    apart = data.shift > TOLD_APART
    lost = (
        data.transfer_skill is not None
        and (data.simple_skill or 0) > 0.4
        and data.transfer_skill < 0.5 * data.simple_skill
        and data.shift >= 0.3
    )
    elsewhere = (data.scale_shift or 0) > 1.5  # another preparation, whatever it led to
    if elsewhere or (behind > 0.15 and (moved or apart or lost)):
        yield Finding(
            "train_test_mismatch",
            "error",
            f"validation inputs are unlike training inputs (a simple model tells them apart with "
            f"skill {data.shift:.2f}), and the skill falls from {reached:.2f} to {last.skill:.2f}",
            "prepare validation inputs exactly as training inputs, with the training statistics",
            evidence={
                "told_apart": data.shift,
                "scale_shift": data.scale_shift,
                "train_skill": reached,
                "validation_skill": last.skill,
                "skill_at_training_scale": data.matched_skill,
            },
        )


def class_imbalance(evidence: Evidence) -> Iterator[Finding]:
    counts = {c: n for c, n in evidence.data.class_counts.items() if n > 0}
    if evidence.task not in ("classes", "binary") or len(counts) < 2 or not judged(evidence):
        return
    rarest, commonest = min(counts, key=counts.__getitem__), max(counts.values())
    ratio = counts[rarest] / commonest
    outcome = evidence.outcome
    score = outcome.validations[-1].score if outcome.validations else outcome.train
    recall = score.worst_recall if score.worst_recall is not None else outcome.train.worst_recall
    if ratio > RARE or recall is None or recall > 0.6:
        return
    yield Finding(
        "class_imbalance",
        "warning",
        f"class {rarest} has {counts[rarest]} training samples where the commonest has "
        f"{commonest}, and only {100 * recall:.0f} % of a rare class's samples are recognised",
        "weight the loss by class, or sample the rare classes more often",
        evidence={"counts": counts, "worst_recall": recall, "balanced_accuracy": score.balanced},
        override="data.imbalance=1.0",
    )


# --- rules: loss --------------------------------------------------------------------------------


def wrong_loss(evidence: Evidence) -> Iterator[Finding]:
    reason = _wrong_loss(evidence)
    if reason is None:
        return
    summary, fix = reason
    loss = evidence.loss
    override = {"classes": "loss=cross_entropy", "values": "loss=mse"}.get(evidence.task)
    yield Finding(
        "wrong_loss",
        _severity(evidence),
        summary,
        fix,
        evidence={
            "loss_at_perfect_outputs_over_constant": loss.floor,
            "outputs": loss.output_space,
            "last_operation": evidence.network.last_op,
            "shapes": loss.shapes,
        },
        override=override,
    )


def _wrong_loss(evidence: Evidence) -> tuple[str, str] | None:
    loss, network, task = evidence.loss, evidence.network, evidence.task
    data = evidence.data
    proper = {
        "classes": "give cross_entropy the logits and the class indices",
        "binary": "give binary_cross_entropy_with_logits the logit",
        "values": "compare outputs with targets of the same shape, by the squared error",
    }.get(task, "use a loss that falls as the outputs come nearer to the targets")
    ratio = evidence.loop.loss_ratio
    if loss.error is not None or task == "unknown":
        return None
    if loss.better_when_right is False or (ratio is not None and ratio < -0.5):
        return "the loss rises as the outputs get better: its sign is flipped", proper
    if not loss.gradient:
        return (
            "the loss has no gradient: it does not depend on the outputs, or on detached ones",
            proper,
        )
    if network.batch_softmax or (task == "classes" and loss.mixes_samples):
        return (
            "a softmax runs over the batch axis, so that samples compete instead of classes",
            "take the softmax over the classes: dim=1 (or leave it to cross_entropy)",
        )
    shapes = loss.shapes
    if task == "values" and loss.floor is not None and loss.floor > UNREACHABLE:
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            return (
                f"outputs {tuple(shapes[0])} and targets {tuple(shapes[1])} are broadcast: every "
                "output is compared with every target",
                "bring both to one shape (outputs.squeeze(1), or targets.unsqueeze(1))",
            )
        if failing(evidence) or loss.floor > 1:
            return "perfect outputs would hardly lower the loss", proper
    if task in ("classes", "binary") and loss.floor is not None and loss.floor > UNREACHABLE:
        again = {"simplex": "a softmax", "unit": "a sigmoid"}.get(loss.output_space, "a squashing")
        return (
            f"even perfect outputs leave {100 * loss.floor:.0f} % of the loss of guessing: "
            f"{again} is applied before a loss that applies its own",
            proper,
        )
    if task == "binary" and loss.shift_invariant is False and loss.better_when_right:
        return "a squared error is used for two classes", proper
    if task == "classes":
        if loss.output_space == "real" and loss.shift_invariant is False:
            return (
                "the loss does not compare the classes of a sample with each other: it is none "
                "for choosing one of many (a regression's, a binary one, or one that expects "
                "probabilities and gets logits)",
                proper,
            )
        if loss.output_space in ("simplex", "unit") and loss.target_entry_only is False:
            return "the loss is a regression's or a binary one, and the task has classes", proper
        if network.last_op in ("relu", "tanh", "hardtanh", "clamp_min") and short(evidence):
            return f"the logits pass a {network.last_op}, which cuts their range", proper
    if task == "values":
        low, high = data.target_low, data.target_high
        ranges = {"sigmoid": (0, 1), "softmax": (0, 1), "tanh": (-1, 1), "relu": (0, math.inf)}
        ranges |= {"clamp_min": (0, math.inf), "softplus": (0, math.inf)}
        if network.last_op in ranges and low is not None and high is not None:
            bottom, top = ranges[network.last_op]
            margin = 0.05 * (high - low)
            if low < bottom - margin or high > top + margin:
                return (
                    f"the outputs pass a {network.last_op} and cannot leave [{bottom}, {top}]; "
                    f"the targets reach from {low:.3g} to {high:.3g}",
                    "leave the last layer without an activation",
                )
        if data.integer_values and (skill(evidence) or 0) < 0.9:
            return (
                "class numbers are fitted as if they were quantities",
                "give the model an output for each class, and cross_entropy the class indices",
            )
    return None


def loss_reduction(evidence: Evidence) -> Iterator[Finding]:
    summed = evidence.loss.reduction == "sum"
    if not summed:
        return
    mended = cured(evidence, "mean")
    ran_off = failing(evidence) and diverged(evidence)
    slower = cured(evidence, "lr/10", "lr/100")  # a sum is a rate that is the batch's size higher
    harmful = short(evidence) and (mended or slower or ran_off)
    yield Finding(
        "loss_reduction",
        _severity(evidence) if harmful else "note",
        "the loss is summed over the batch, so that its gradient grows with the batch size"
        + ("; averaged, a copy learns" if mended else ""),
        'average the loss over the batch (reduction="mean")',
        evidence=_fork_numbers(evidence, "mean"),
    )


# --- rules: loop --------------------------------------------------------------------------------


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
            f"parameters, and they never change: {_listed(missing)}",
            "hand them to the optimiser, or freeze them with requires_grad_(False)",
            layer=missing[0].rpartition(".")[0] or None,
            evidence={"missing": missing[:32], "foreign": facts.foreign},
        )


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def frozen_parameters(evidence: Evidence) -> Iterator[Finding]:
    unreached, loop = evidence.network.unreached, evidence.loop
    if unreached:
        yield Finding(
            "frozen_parameters",
            "error",
            f"no gradient reaches {len(unreached)} parameters that the outputs depend on: "
            f"{_listed(unreached)}",
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
            _severity(evidence) if short(evidence) else "note",
            f"{len(frozen)} parameters of the optimiser have requires_grad=False: "
            f"{_listed(frozen)}" + ("; with all of them learning, a copy learns" if mended else ""),
            "set requires_grad_(True), or leave them out of the optimiser if they are meant to be "
            "frozen",
            layer=frozen[0].rpartition(".")[0] or None,
            evidence={"parameters": frozen[:32], **_fork_numbers(evidence, "unfrozen")},
        )


def batch_mixing(evidence: Evidence) -> Iterator[Finding]:
    network = evidence.network
    if network.mixing is None or network.mixing <= MIXED or network.batch_softmax:
        return
    # One graph or set, seen whole in every step, may be what is to be learnt.
    whole = (evidence.outcome.epochs or 0) >= 0.9 * evidence.loop.steps > 0
    yield Finding(
        "batch_mixing",
        "note" if whole and not short(evidence) else _severity(evidence),
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
            _severity(evidence),
            "two evaluations of one batch differ: something stays random in evaluation mode",
            "use nn.Dropout, or F.dropout(x, p, training=self.training)",
        )
        return
    if not evidence.network.mode_sensitive:
        return
    if loop.eval_mode_forwards > max(2, 0.05 * loop.training_forwards):
        yield Finding(
            "train_eval_mode",
            _severity(evidence),
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
            _severity(evidence),
            f"in {loop.residual_steps} of {loop.compared_steps} steps that were compared the "
            "gradient was added to that of earlier steps, which had been used already",
            "call optimizer.zero_grad() in every step",
            step=loop.residual_step,
            evidence={"steps": loop.residual_steps, "compared": loop.compared_steps},
        )


# --- rules: network and initialisation ----------------------------------------------------------


def _relu(evidence: Evidence) -> str:
    """The override that puts ReLUs in: the article's net is for images alone."""
    images = evidence.data.axes == 4
    return "model=relu_net" if images else "model.activation._target_=torch.nn.ReLU"


def no_nonlinearity(evidence: Evidence) -> Iterator[Finding]:
    network = evidence.network
    if network.nonlinear is False and network.depth >= 2:
        # Of several values from a narrow middle: a low-rank map, which can be meant.
        several = evidence.task == "values" and len(evidence.loss.shapes) == 2
        several = several and evidence.loss.shapes[1][-1] > 1 < len(evidence.loss.shapes[1])
        yield Finding(
            "no_nonlinearity",
            "note" if several and not short(evidence) else _severity(evidence),
            f"{network.depth} weight layers follow each other without an activation: "
            "together they are no more than one linear map",
            "put an activation (ReLU) after every hidden layer",
            evidence={"weight_layers": network.depth},
            override=_relu(evidence),
        )


def wrong_hidden_activation(evidence: Evidence) -> Iterator[Finding]:
    layers = evidence.network.softmax_inputs
    if layers:
        yield Finding(
            "wrong_hidden_activation",
            _severity(evidence),
            f"the input of {_listed(layers)} is a distribution: a softmax is used as a hidden "
            "activation, where it makes the units compete and leaves hardly a gradient",
            "use ReLU (or GELU, tanh) in hidden layers",
            layer=layers[0],
            evidence={"layers": layers},
            override=_relu(evidence),
        )


def symmetric_init(evidence: Evidence) -> Iterator[Finding]:
    layer = symmetric_layer(evidence)
    if layer is None:
        return
    yield Finding(
        "symmetric_init",
        _severity(evidence),
        "all units of the layer start with equal weights, get equal gradients, and stay equal"
        if not layer.constant
        else "all weights of the layer start equal, so that its units stay equal",
        "initialise at random (torch.nn.init.kaiming_uniform_)",
        layer=layer.name.rpartition(".")[0],
        step=0,
        evidence={"gain": layer.gain},
        override="init=kaiming",
    )


def init_scale_too_large(evidence: Evidence) -> Iterator[Finding]:
    worst = extreme_gain(evidence, large=True)
    if worst is None or not (short(evidence) or rough_start(evidence)):
        return
    fork = cured(evidence, "init")
    if fork is None and not outsized_constant(evidence):
        return
    initial = evidence.outcome.initial.relative_loss
    yield Finding(
        "init_scale_too_large",
        _severity(evidence),
        f"the weights start {worst.gain / 1.41:.3g} times as large as Kaiming's rule has them"
        + (f", the loss at {initial:.3g} times that of guessing" if initial else ""),
        "initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
        layer=worst.name.rpartition(".")[0],
        step=0,
        evidence={
            "gain": worst.gain,
            "initial_relative_loss": initial,
            **_fork_numbers(evidence, "init"),
        },
        override="init=kaiming",
    )


def init_scale_too_small(evidence: Evidence) -> Iterator[Finding]:
    worst = extreme_gain(evidence, large=False)
    if worst is None or not short(evidence):
        return
    # Deep nets that start far too small may need longer than a fork from any initialisation.
    if cured(evidence, "init") is None and not (failing(evidence) and worst.gain < SMALL_GAIN / 2):
        return
    yield Finding(
        "init_scale_too_small",
        _severity(evidence),
        f"the weights start at {worst.gain / 1.41:.2g} of the size that Kaiming's rule gives them: "
        "signals and gradients fade from layer to layer",
        "initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
        layer=worst.name.rpartition(".")[0],
        step=0,
        evidence={"gain": worst.gain, **_fork_numbers(evidence, "init")},
        override="init=kaiming",
    )


# --- rules: signals and rates -------------------------------------------------------------------


def dead_relu(evidence: Evidence) -> Iterator[Finding]:
    found = dead_units(evidence)
    if found is None or not short(evidence):
        return
    share, layer, step, from_start = found
    yield Finding(
        "dead_relu",
        _severity(evidence),
        f"{100 * share:.0f} % of the units are zero for every sample of a batch"
        + (", from the start" if from_start else ""),
        "start from a bias of 0 and weights by Kaiming's rule, or use leaky ReLU"
        if from_start
        else "lower the learning rate, or use leaky ReLU",
        layer=layer or None,
        step=step,
        evidence={"dead_units": share},
        override="model=leaky_relu",
    )


def saturated_activation(evidence: Evidence) -> Iterator[Finding]:
    found = saturated_values(evidence)
    if found is None or not short(evidence):
        return
    share, layer, step, from_start = found
    yield Finding(
        "saturated_activation",
        _severity(evidence),
        f"{100 * share:.0f} % of the activations lie at their bounds, where the derivative is "
        "almost zero" + (", from the start" if from_start else ""),
        "make weights and biases before the activation smaller (Xavier's rule), or use ReLU",
        layer=layer or None,
        step=step,
        evidence={"saturated": share},
        override="init=xavier",
    )


def over_regularised(evidence: Evidence) -> Iterator[Finding]:
    if not short(evidence):
        return
    penalty, optimizer = evidence.loop.penalty or 0.0, evidence.optimizer
    shrunk = evidence.outcome.shrinkage
    dropout = evidence.network.dropout
    if penalty > MOSTLY_PENALTY:
        what, fix = f"{100 * penalty:.0f} % of the loss is a penalty", "weaken the penalty"
    elif optimizer.weight_decay > 0 and (
        (shrunk is not None and shrunk < 0.6) or cured(evidence, "unregularised")
    ):
        what = f"a weight decay of {optimizer.weight_decay:g}"
        what += f" shrinks the weights to {100 * shrunk:.0f} %" if shrunk is not None else ""
        fix = "lower the weight decay (1e-4 to 1e-2 are usual)"
    elif dropout >= 0.7 and cured(evidence, "unregularised"):
        what, fix = f"dropout leaves {100 * (1 - dropout):.0f} % of the units", "use dropout ≤ 0.5"
    else:
        return
    yield Finding(
        "over_regularised",
        _severity(evidence),
        f"{what}: even the training samples are not learnt",
        fix,
        evidence={
            "penalty_share": penalty,
            "weight_decay": optimizer.weight_decay,
            "dropout": dropout,
            "shrinkage": shrunk,
            **_fork_numbers(evidence, "unregularised"),
        },
        override="reg=none",
    )


def lr_too_high(evidence: Evidence) -> Iterator[Finding]:
    update, name, step = largest_update(evidence)
    if not short(evidence):
        return
    fork = cured(evidence, "lr/10", "lr/100")
    large = update > LARGE_UPDATE or diverged(evidence)
    if not large or (fork is None and not (update > 4 * LARGE_UPDATE and at_chance(evidence))):
        return
    lower = f"{(evidence.optimizer.lr or 0) / (100 if fork == 'lr/100' else 10):.3g}"
    yield Finding(
        "lr_too_high",
        _severity(evidence),
        f"a step changes a weight tensor by up to {100 * update:.3g} %"
        + (f"; at a rate of {lower} a copy learns" if fork else ""),
        f"lower the learning rate, to {lower} say",
        layer=name.rpartition(".")[0] or None,
        step=step,
        evidence={
            "lr": evidence.optimizer.lr,
            "largest_update": update,
            **_fork_numbers(evidence, "lr/10", "lr/100"),
        },
        override=f"optim.lr={lower}",
    )


def lr_too_low(evidence: Evidence) -> Iterator[Finding]:
    movement = evidence.outcome.movement
    if not short(evidence) or diverged(evidence) or movement is None:
        return
    fork = cured(evidence, *_FASTER)
    if movement > STILL or (fork is None and movement > STILL / 10):
        return
    factor = float(fork.removeprefix("lr*")) if fork else 1000.0
    higher = f"{(evidence.optimizer.lr or 0) * factor:.3g}"
    yield Finding(
        "lr_too_low",
        _severity(evidence),
        f"after {evidence.loop.steps} steps the weights have moved by {100 * movement:.2g} % of "
        "their size" + (f"; at a rate of {higher} a copy learns" if fork else ""),
        f"raise the learning rate, to {higher} say",
        evidence={
            "lr": evidence.optimizer.lr,
            "movement": movement,
            **_fork_numbers(evidence, *_FASTER),
        },
        override=f"optim.lr={higher}",
    )


def exploding_gradient(evidence: Evidence) -> Iterator[Finding]:
    if not short(evidence):
        return
    data = evidence.data
    ratios = gradient_ratios(evidence)
    time = evidence.network.time_gradient
    growth = activation_growth(evidence)
    if ratios and ratios[0][0] > EXPLODED:
        ratio, first, last = ratios[0]
        what = f"the gradient at {first} is {ratio:.3g} times that at {last}"
    elif growth is not None and growth[0] > EXPLODED:
        ratio, first = growth[0], f"{growth[1]}.weight"
        what = f"activations, and gradients with them, grow {ratio:.3g}-fold from layer to layer"
    elif time is not None and time > EXPLODED:
        ratio, first = time, None
        what = f"the gradient grows {time:.3g}-fold from the last time steps to the first"
    elif (
        evidence.task == "values"
        and (data.target_rms or 0) > FAR_SCALE
        and (cured(evidence, "targets") or diverged(evidence))
    ):
        ratio, first = data.target_rms, None
        what = f"targets of size {data.target_rms:.3g} make gradients that outweigh the weights"
    else:
        return
    yield Finding(
        "exploding_gradient",
        _severity(evidence),
        what,
        "clip the gradient's norm, standardise the targets, or initialise by Kaiming's rule",
        layer=first.rpartition(".")[0] if first else None,
        step=0,
        evidence={"ratio": ratio, **_fork_numbers(evidence, "targets")},
        override="clip=4.0",
    )


def vanishing_gradient(evidence: Evidence) -> Iterator[Finding]:
    late = learns_late(evidence)
    if not (short(evidence) or late) or any(exploding_gradient(evidence)):
        return
    ratios = gradient_ratios(evidence)
    time = evidence.network.time_gradient
    if ratios and ratios[0][0] < VANISHED:
        ratio, first, last = ratios[0]
        what = f"the gradient at {first} is {ratio:.2g} of that at {last}"
        if late:
            what += f", and the first {evidence.outcome.plateau} steps taught nothing"
    elif time is not None and time < 1e-3 and findable(evidence):
        ratio, first = time, None
        what = f"of the gradient at the last time steps {time:.2g} reaches the first"
    else:
        return
    yield Finding(
        "vanishing_gradient",
        _severity(evidence),
        what,
        "use ReLU with Kaiming's initialisation, batch norm or residual connections (in recurrent "
        "networks LSTM or GRU)",
        layer=first.rpartition(".")[0] if first else None,
        step=0,
        evidence={"ratio": ratio},
        override=_relu(evidence),
    )


# --- rules: generalisation ----------------------------------------------------------------------


def overfitting(evidence: Evidence) -> Iterator[Finding]:
    outcome = evidence.outcome
    scores = [v for v in outcome.validations if v.score.skill is not None]
    if not scores or not judged(evidence) or overflowed(evidence):
        return
    last, reached = scores[-1].score, outcome.train.skill
    if reached is None or last.samples < 20:
        return
    gap = reached - last.skill
    losses = [v.loss for v in scores if v.loss is not None and math.isfinite(v.loss)]
    risen = losses[-1] / min(losses) if len(losses) >= 3 and min(losses) > 0 else None
    turned = risen is not None and risen > 1.1
    if gap > 2 * GAP or (gap > GAP and turned) or (gap > GAP / 2 and (risen or 0) > 1.4):
        best = min(scores, key=lambda v: math.inf if v.loss is None else v.loss)
        yield Finding(
            "overfitting",
            "warning",
            f"the skill is {reached:.2f} on training and {last.skill:.2f} on validation samples"
            + (f", whose loss has risen to {risen:.2f} times its lowest" if turned else ""),
            "stop earlier, regularise (dropout, weight decay, augmentation), or get more data",
            step=best.step if turned else None,
            evidence={
                "train_skill": reached,
                "validation_skill": last.skill,
                "validation_loss_over_lowest": risen,
            },
            override="reg=bn_dropout",
        )


# --- order --------------------------------------------------------------------------------------

# Certain from what was seen, whatever the outcome.
CERTAIN: tuple[Rule, ...] = (
    constant_input, label_leak, wrong_loss, optimizer_mismatch, batch_mixing, train_eval_mode,
    missing_zero_grad, no_nonlinearity, wrong_hidden_activation,
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    *CERTAIN, non_finite, bad_labels, frozen_parameters, input_scale, loss_reduction,
    symmetric_init, init_scale_too_large, init_scale_too_small, dead_relu, saturated_activation,
    over_regularised, lr_too_high, lr_too_low, exploding_gradient, vanishing_gradient,
    train_test_mismatch, class_imbalance, overfitting,
)  # fmt: skip
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
