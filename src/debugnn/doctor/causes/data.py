"""What the data do to a training: broken numbers and labels, leaks, scales, and the test set."""

from collections.abc import Iterator

from debugnn.doctor.causes.signals import (
    AT_CHANCE,
    LEAKED,
    RARE,
    SHIFTED,
    STILL,
    TOLD_APART,
    cured,
    diverged,
    judged,
    odd_inputs,
    overflowed,
    rarest_share,
    short,
    skill,
)
from debugnn.doctor.causes.wording import fork_numbers, severity
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding


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
        severity(evidence),
        f"the inputs are not standardised, {odd}; standardised, a copy learns",
        "subtract the training inputs' mean and divide by their standard deviation",
        evidence={
            "rms": evidence.data.rms,
            "mean": evidence.data.mean,
            "std": evidence.data.std,
            **fork_numbers(evidence, fork),
        },
        override="data.scale=normalised",
    )


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
