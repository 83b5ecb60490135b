"""A loss function that does not ask for what is wanted."""

import math
from collections.abc import Iterator

from debugnn.doctor.causes.signals import (
    UNREACHABLE,
    cured,
    diverged,
    failing,
    short,
    skill,
)
from debugnn.doctor.causes.wording import fork_numbers, severity
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding


def wrong_loss(evidence: Evidence) -> Iterator[Finding]:
    reason = _wrong_loss(evidence)
    if reason is None:
        return
    summary, fix = reason
    loss = evidence.loss
    override = {"classes": "loss=cross_entropy", "values": "loss=mse"}.get(evidence.task)
    yield Finding(
        "wrong_loss",
        severity(evidence),
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
        severity(evidence) if harmful else "note",
        "the loss is summed over the batch, so that its gradient grows with the batch size"
        + ("; averaged, a copy learns" if mended else ""),
        'average the loss over the batch (reduction="mean")',
        evidence=fork_numbers(evidence, "mean"),
    )
