"""What shows while it trains: dead and saturated units, rates, gradients, the gap to new data."""

import math
from collections.abc import Iterator

from debugnn.doctor.causes.signals import (
    EXPLODED,
    FAR_SCALE,
    FASTER,
    GAP,
    LARGE_UPDATE,
    MOSTLY_PENALTY,
    STILL,
    VANISHED,
    activation_growth,
    at_chance,
    cured,
    dead_units,
    diverged,
    findable,
    gradient_ratios,
    judged,
    largest_update,
    learns_late,
    overflowed,
    saturated_values,
    short,
)
from debugnn.doctor.causes.wording import fork_numbers, relu_override, severity
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding


def dead_relu(evidence: Evidence) -> Iterator[Finding]:
    found = dead_units(evidence)
    if found is None or not short(evidence):
        return
    share, layer, step, from_start = found
    yield Finding(
        "dead_relu",
        severity(evidence),
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
        severity(evidence),
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
        severity(evidence),
        f"{what}: even the training samples are not learnt",
        fix,
        evidence={
            "penalty_share": penalty,
            "weight_decay": optimizer.weight_decay,
            "dropout": dropout,
            "shrinkage": shrunk,
            **fork_numbers(evidence, "unregularised"),
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
        severity(evidence),
        f"a step changes a weight tensor by up to {100 * update:.3g} %"
        + (f"; at a rate of {lower} a copy learns" if fork else ""),
        f"lower the learning rate, to {lower} say",
        layer=name.rpartition(".")[0] or None,
        step=step,
        evidence={
            "lr": evidence.optimizer.lr,
            "largest_update": update,
            **fork_numbers(evidence, "lr/10", "lr/100"),
        },
        override=f"optim.lr={lower}",
    )


def lr_too_low(evidence: Evidence) -> Iterator[Finding]:
    movement = evidence.outcome.movement
    if not short(evidence) or diverged(evidence) or movement is None:
        return
    fork = cured(evidence, *FASTER)
    if movement > STILL or (fork is None and movement > STILL / 10):
        return
    factor = float(fork.removeprefix("lr*")) if fork else 1000.0
    higher = f"{(evidence.optimizer.lr or 0) * factor:.3g}"
    yield Finding(
        "lr_too_low",
        severity(evidence),
        f"after {evidence.loop.steps} steps the weights have moved by {100 * movement:.2g} % of "
        "their size" + (f"; at a rate of {higher} a copy learns" if fork else ""),
        f"raise the learning rate, to {higher} say",
        evidence={
            "lr": evidence.optimizer.lr,
            "movement": movement,
            **fork_numbers(evidence, *FASTER),
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
        severity(evidence),
        what,
        "clip the gradient's norm, standardise the targets, or initialise by Kaiming's rule",
        layer=first.rpartition(".")[0] if first else None,
        step=0,
        evidence={"ratio": ratio, **fork_numbers(evidence, "targets")},
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
        severity(evidence),
        what,
        "use ReLU with Kaiming's initialisation, batch norm or residual connections (in recurrent "
        "networks LSTM or GRU)",
        layer=first.rpartition(".")[0] if first else None,
        step=0,
        evidence={"ratio": ratio},
        override=relu_override(evidence),
    )


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
