"""A loss that does not fit the task or the model's output."""

import math
from collections.abc import Callable, Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Rule, Sign, first_of
from debugnn.doctor.causes.signals.flows import another_volume, volume_punished
from debugnn.doctor.causes.signals.loss_calls import Breach, breaches
from debugnn.doctor.causes.signals.loss_course import always_zero, runs_away
from debugnn.doctor.causes.signals.loss_function import (
    better_when_right,
    loss_floor,
)
from debugnn.doctor.causes.signals.outcome import severity, short
from debugnn.doctor.causes.signals.output_links import (
    cut_logits,
    cut_part,
    cut_values,
    linked_twice,
    no_log_probabilities,
    no_logarithm,
    squashed_before_own,
    squashed_twice,
)
from debugnn.doctor.causes.signals.padding import padding_counted, trials_without_padding
from debugnn.doctor.causes.signals.task_fit import (
    class_numbers_as_values,
    classes_not_compared,
    labels_compete,
    overlap_of_scores,
    regression_of_probabilities,
    squared_error_of_two_classes,
)
from debugnn.doctor.causes.signals.wrong_aim import (
    deaf_to_actions,
    generator_wants_to_be_told,
    labels_pulled_apart,
    policy_clipped_on_wrong_side,
    policy_of_costs,
    rewards_made_rarer,
    values_lowered,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import Trial

# The loss handed over / the loss function's own value at every probe, within which the loop turned
# its sign: −1 for a sign alone. A penalty that is added to a loss near 0 gives any ratio, and
# another one at each probe.
FLIPPED = -0.9
FLIPPED_AT_MOST = -1.1
# Relative change of a sample's gradient by other samples' outputs that is no rounding.
CROSS_GRADIENT = 1e-3
# Relative change of a loss where the outputs of samples change places below which it does not
# matter whose output it is, and of a gradient by others' outputs below which there is none.
UNPAIRED = 1e-5
# A loss is not bounded below where outputs of size 1,000 bring it below this: a likelihood whose
# targets are probabilities stays above 0.
UNBOUNDED = -10.0
IN_RANGE = (
    "end with a linear layer, without an activation behind it, or scale the targets into this range"
)
# How far below zero, in sizes of the loss, a loss falls where an output of the autoencoder is 1,000
# times as large: a divergence or a penalty grows there.
FALLS = 10.0
# Loss of outputs that are sure of the wrong class, over that of undecided ones, below which it does
# not grow with the error: bounded losses have two and more.
FORGIVEN = 0.5
# Share of the labels tried that are compared with scores of several positions: all of them.
EVERY_LABEL = 1.0

_POSITION_BY_POSITION = ("conv", "upsample")  # operations that know nothing of a position's number
_PROPER = {
    "classes": "give cross_entropy the logits and the class indices",
    "binary": "give binary_cross_entropy_with_logits the logit",
    "values": "compare outputs with targets of the same shape, by the squared error",
}
_OVER_CLASSES = "take the softmax over the classes: dim=1 (or leave it to cross_entropy)"
_OVERRIDES = {"classes": "loss=cross_entropy", "values": "loss=mse"}


def unexpected_arguments(evidence: Evidence) -> Iterator[Sign]:
    """A function of the loss is given what it is documented not to expect."""
    yield from _told([b for b in breaches(evidence) if not b.may_serve][:1], severity(evidence))


def unusual_arguments(evidence: Evidence) -> Iterator[Sign]:
    """The same of what may be meant: a note."""
    yield from _told([b for b in breaches(evidence) if b.may_serve][:1], "note")


def _told(found: list[Breach], severity: str) -> Iterator[Sign]:
    for breach in found:
        yield Sign(
            severity,
            breach.summary,
            breach.fix,
            evidence={"function": breach.call.function, **breach.numbers},
            override=None,
            harm="the loss asks for something else than was meant",
            line=breach.call.line,
        )


def constant_output(evidence: Evidence) -> Iterator[Sign]:
    """A softmax over a single output, which is 1 for every input and has no derivative."""
    if evidence.network.softmax_over_one:
        yield Sign(
            "error",
            "the last softmax runs over an axis of one entry, so that every output is 1 (its "
            "logarithm 0) for every input: the loss is a constant, and no gradient reaches a "
            "parameter",
            "use a sigmoid for a single output, or give the last layer one output for each class "
            "(two of them); where it has several, take the softmax over their axis, dim=1",
            override=None,
            harm="the loss does not depend on the weights, and nothing is learnt",
        )


def changes_its_targets(evidence: Evidence) -> Iterator[Sign]:
    """A loss that writes to its targets, which a slice of a data set shares with the data set."""
    if evidence.loss.changes_targets:
        part = evidence.loss.targets_are_a_part
        yield Sign(
            severity(evidence) if part else "note",
            "the loss function changes its targets in place"
            + (
                ", and they share their memory with a larger tensor, such as the data set: they "
                "are changed once more each time that they come"
                if part
                else ""
            ),
            "compute new targets, targets = targets * (1 - s) + s / 2, in place of *=, +=, mul_() "
            "or an assignment to a part of them",
            evidence={"targets_are_a_part_of_a_larger_tensor": part},
            override=None,
            harm="what is asked for changes from epoch to epoch",
        )


def unbounded(evidence: Evidence) -> bool:
    """Return whether the loss falls without end as outputs grow."""
    loss = evidence.loss
    return loss.far is not None and loss.best is not None and loss.far < min(loss.best, UNBOUNDED)


def flipped_sign(evidence: Evidence) -> str | None:
    """The loss rises as the outputs get better."""
    low, high = evidence.loop.loss_ratio_low, evidence.loop.loss_ratio_high
    turned = low is not None and high is not None and FLIPPED_AT_MOST < low <= high < FLIPPED
    # Two signs cancel: a likelihood that the loop maximises, or the optimiser.
    right = better_when_right(evidence)
    if evidence.optimizer.maximizes:
        if right is None or right is turned:
            return None
        return "the optimiser goes up a loss that falls as the outputs get better (maximize=True)"
    if (right is False) is not turned:
        return "the loss rises as the outputs get better: its sign is flipped"
    return None


def forgives_what_is_sure(evidence: Evidence) -> str | None:
    """Outputs that are sure of the wrong one of two classes cost less than undecided ones."""
    loss = evidence.loss
    if loss.undecided is None or loss.best is None or not loss.rewards or loss.ignores_targets:
        return None
    wrong = loss.rewards[0][1]
    # Errors beyond a bound may be left out, as those of wrong labels; up to it they cost more.
    falls = loss.unsure is not None and loss.unsure < loss.undecided
    if min(loss.best, wrong) >= 0 and wrong < FORGIVEN * loss.undecided and falls:
        return (
            f"outputs that are sure of the wrong class have a loss of {wrong:.2g}, and undecided "
            f"ones {loss.undecided:.2g}: the loss forgives what is wrong the surer it is"
        )
    return None


def no_gradient(evidence: Evidence) -> str | None:
    """The loss does not depend on the outputs."""
    loss = evidence.loss
    if not (loss.gradient or loss.parameters or loss.other_outputs):
        return "the loss has no gradient: it does not depend on the outputs, or on detached ones"
    return None


def classes_are_places(evidence: Evidence) -> bool:
    """Return whether a sample's class is its place in the batch, as in contrastive learning.

    The outputs (B, B) compare each sample with the partners of all, and every batch has each class
    once: all of them came equally often.
    """
    shape = next(iter(evidence.loss.shapes), [])
    counts = set(evidence.data.class_counts.values())
    return len(shape) == 2 and shape[0] == shape[1] and len(counts) == 1


def softmax_over_batch(evidence: Evidence) -> str | None:
    """Samples compete instead of classes."""
    cross = evidence.loss.cross_gradient or 0.0
    # Where the net compares each sample with the others of its batch, they compete by right.
    apart = evidence.network.sample_axis is not None and not classes_are_places(evidence)
    mixes = apart and evidence.task == "classes" and cross > CROSS_GRADIENT
    if evidence.network.batch_softmax or mixes:
        return "a softmax runs over the batch axis, so that samples compete instead of classes"
    return None


def samples_compete(evidence: Evidence) -> str | None:
    """The loss reads likelihoods of classes that a softmax over the samples has made."""
    if evidence.loss.samples_compete:
        return (
            "the loss takes the logarithms of a softmax over the samples for those of class "
            "probabilities: samples compete instead of classes"
        )
    return None


def broadcast_shapes(evidence: Evidence) -> str | None:
    """Outputs (B, 1) and targets (B,): every output is compared with every target."""
    loss = evidence.loss
    unpaired = loss.permuted is not None and loss.permuted < UNPAIRED
    apart = loss.cross_gradient is not None and loss.cross_gradient < UNPAIRED
    told = unpaired and apart and not loss.ignores_targets and len(loss.shapes) > 1
    if told and math.prod(loss.shapes[0]) == math.prod(loss.shapes[1]):
        outputs, targets = loss.shapes
        where = "" if outputs != targets else "within the loss "
        return (
            f"outputs {tuple(outputs)} and targets {tuple(targets)} are broadcast {where}against "
            "each other: every output is compared with every target"
        )
    if loss.crossed is not None:
        return (
            f"outputs and targets of {loss.crossed[0]} samples are broadcast against each other, "
            f"to {tuple(loss.crossed)}: every output is compared with every target"
        )
    if loss.multiplied is not None:
        return (
            f"a number of each of {loss.multiplied[0]} samples, as the ratio of its action's "
            "probabilities, is multiplied with the factors of all samples, as their advantages, "
            f"for they are broadcast to {tuple(loss.multiplied)}"
        )
    return None


def other_entries_read(evidence: Evidence) -> str | None:
    """The loss reads outputs that have nothing to do with a sample's class."""
    if evidence.loss.fixed_entries and not evidence.loss.confirmed:
        return (
            "the loss reads the same outputs whatever the labels are, and not those of the "
            "labels' classes"
        )
    return None


def positions_mixed(evidence: Evidence) -> Iterator[Sign]:
    """The scores that a label is compared with belong to several positions.

    A network whose last weights are shared by all positions cannot mean it so. Another one may
    learn to give each score where the loss looks for it.
    """
    loss = evidence.loss
    if loss.error is not None or (loss.across_positions or 0.0) < EVERY_LABEL:
        return
    operation = evidence.network.last_op or ""
    shared = any(word in operation for word in _POSITION_BY_POSITION) or _is_linear_on_each(
        evidence
    )
    yield Sign(
        severity(evidence) if shared or short(evidence) else "note",
        f"each label is compared with scores of {evidence.classes or 'several'} positions, and not "
        f"with those of its own (outputs {tuple(loss.shapes[0])}, targets "
        f"{tuple(loss.shapes[1])}): a view mixes classes and positions",
        "bring the classes to the axis where the loss expects them by permute or transpose, and "
        "not by view or reshape: outputs.permute(0, 2, 3, 1).reshape(-1, classes); or leave the "
        "outputs as they are, as cross_entropy takes (B, classes, H, W) and labels (B, H, W)",
        evidence={"labels_across_positions": loss.across_positions, "shapes": loss.shapes},
        override=None,
        harm="what a position's scores are is not learnt from its own label",
    )


def _is_linear_on_each(evidence: Evidence) -> bool:
    """Return whether the scores are made by a linear layer that is applied to each position."""
    shape, source = evidence.loss.shapes[0], evidence.loss.sources.get("cross_entropy")
    last = evidence.weights[-1] if evidence.weights else None
    return source == "linear" and len(shape) > 2 and last is not None and last.outputs == shape[-1]


def reversed_risk_sets(evidence: Evidence) -> Iterator[Sign]:
    """A Cox partial likelihood that compares an event with samples that were gone before it."""
    if evidence.loss.error is None and evidence.loss.risk_sets == "earlier":
        yield Sign(
            "warning",
            "the loss is a Cox partial likelihood with reversed risk sets: the output of a sample "
            "with an event is compared with those of samples whose time is shorter, and not with "
            "those of samples whose time is at least as long",
            "sort by falling time before the cumulative sum, order = "
            "time.argsort(descending=True), or flip outputs and events where they are sorted by "
            "rising time; a mask of risk sets, a row for each event, is time[None] >= "
            "time[:, None]",
            evidence={"risk_sets": evidence.loss.risk_sets},
            override=None,
            harm="samples that were gone before an event are not at risk any more, and what the "
            "outputs learn from them does not rank times",
        )


def falls_without_end(evidence: Evidence) -> str | None:
    """A term of an autoencoder's loss whose sign is flipped: it falls as an output grows."""
    loss = evidence.loss
    falls = loss.far_others is not None and loss.far_others < -FALLS
    # A flow's density, which its volume lets grow, is no error of rebuilt inputs.
    if evidence.reconstruction and loss.confirmed and falls:
        return (
            "a term of the loss falls without end as one of the model's other outputs grows: its "
            "sign is flipped"
        )
    return None


def _rule(
    reason: Callable[[Evidence], str | None],
    fix: str | None = None,
    any_task: bool = False,
    may_serve: bool = False,
) -> Rule:
    """A rule from what is wrong with the loss, for a loss that can be called.

    Args:
        any_task: it holds whatever the task is; else for a known task alone.
        may_serve: the loss is lowest at right outputs, so that it is a note where it is no
            hindrance.
    """

    def rule(evidence: Evidence) -> Iterator[Sign]:
        loss, task = evidence.loss, evidence.task
        if loss.error is not None or (task == "unknown" and not any_task):
            return
        summary = reason(evidence)
        if summary is not None:
            yield Sign(
                "note" if may_serve and not short(evidence) else severity(evidence),
                summary,
                fix or _PROPER.get(task),
                evidence={
                    "loss_at_perfect_outputs_over_constant": loss_floor(evidence),
                    "outputs": loss.output_space,
                    "last_operation": evidence.network.last_op,
                    "shapes": loss.shapes,
                },
                override=_OVERRIDES.get(task),
            )

    rule.__name__ = reason.__name__
    rule.__doc__ = reason.__doc__
    return rule


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Go on with and without padding, where it is most of what the loss counts."""
    return trials_without_padding(evidence)


CAUSE = Cause(
    name="wrong_loss",
    meaning="a loss that does not fit the task or the model's output",
    kind=Kind.CERTAIN,
    rules=(
        first_of(
            constant_output,
            unexpected_arguments,
            changes_its_targets,
            deaf_to_actions,
            _rule(flipped_sign),
            _rule(no_gradient, any_task=True),
            _rule(
                forgives_what_is_sure,
                "let a sample weigh the less, the surer its output is of the right class: a focal "
                "loss weighs by (1 - p) ** gamma, p the probability of the sample's own class",
                any_task=True,
            ),
            _rule(
                always_zero,
                "look at what is left of the loss before it is clipped at 0 or averaged: a mask "
                "that leaves out all, a diagonal of inf that is picked as the hardest negative",
                any_task=True,
            ),
            _rule(softmax_over_batch, _OVER_CLASSES),
            _rule(samples_compete, _OVER_CLASSES, any_task=True),
            _rule(
                broadcast_shapes,
                "bring both to one shape, (B, 1) or (B,): by squeeze(1) or unsqueeze(1)",
                any_task=True,
            ),
            _rule(
                falls_without_end,
                "add the divergence to the error of the rebuilt inputs, as KL = -0.5 * sum(1 + "
                "log_variance - mean**2 - exp(log_variance))",
                any_task=True,
            ),
            _rule(
                other_entries_read,
                "give cross_entropy all outputs of a sample, and the class indices",
                any_task=True,
            ),
            positions_mixed,
            _rule(
                no_logarithm,
                "give nll_loss log_softmax(outputs, dim=1), or cross_entropy the logits",
            ),
            _rule(
                no_log_probabilities,
                "give it scores.log_softmax(dim=-1), over the axis of the classes",
                any_task=True,
            ),
            _rule(squashed_twice),
            _rule(
                squashed_before_own,
                "give the loss the scores as they are",
                any_task=True,
            ),
            _rule(
                volume_punished,
                "add the logarithm of the determinant to the logarithm of the codes' density, and "
                "minimise the negative sum",
                any_task=True,
            ),
            reversed_risk_sets,
            _rule(
                runs_away,
                "turn the sign of the term that falls, or bound what it rewards (a gradient "
                "penalty or clipped weights of a critic, for example)",
                any_task=True,
            ),
            generator_wants_to_be_told,
            labels_pulled_apart,
            policy_clipped_on_wrong_side,
            rewards_made_rarer,
            values_lowered,
            _rule(linked_twice, "leave it out of the network's last layer"),
            _rule(
                overlap_of_scores,
                "give it outputs.sigmoid(), or outputs.softmax(dim=1) of several classes",
                any_task=True,
            ),
            _rule(
                labels_compete,
                "give binary_cross_entropy_with_logits the scores, without a softmax: each label "
                "is a question of its own",
            ),
            _rule(squared_error_of_two_classes, may_serve=True),
            _rule(classes_not_compared, may_serve=True),
            _rule(regression_of_probabilities, may_serve=True),
            _rule(cut_logits),
            _rule(cut_values, IN_RANGE, any_task=True),
            _rule(cut_part, IN_RANGE, any_task=True),
            _rule(
                class_numbers_as_values,
                "give the model an output for each class, and cross_entropy the class indices",
            ),
        ),
        another_volume,
        unusual_arguments,
        policy_of_costs,
        padding_counted,
    ),
    fix="use a loss that falls as the outputs come nearer to the targets",
    harm="the lowest value of this loss is not where the outputs are right",
    source="the article's claims 1 and 2; Bishop 2006, Pattern Recognition, section 4.3",
    override="loss=cross_entropy",
    trials=trials,
    trials_if_learning=trials_without_padding,
)
