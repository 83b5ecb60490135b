"""A loss that does not fit the task or the model's output."""

import math
from collections.abc import Callable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Rule, Sign, first_of
from debugnn.doctor.causes.signals import (
    UNREACHABLE,
    better_when_right,
    failing,
    loss_floor,
    severity,
    shift_invariant,
    short,
    skill,
)
from debugnn.doctor.evidence import Evidence

# The loss handed over / the loss function's own value below which the loop turned its sign: half
# of the whole way from 1 to −1 beyond 0.
FLIPPED = -0.5
# Share of the gradient on other classes' outputs that is rounding.
TARGET_ENTRY = 1e-6
# Relative change of a sample's gradient by other samples' outputs that is no rounding.
CROSS_GRADIENT = 1e-3
# Loss of perfect outputs over that of guessing above which a fit means nothing at all.
WORSE_THAN_GUESSING = 1.0
# A loss is not bounded below where outputs of size 1,000 bring it below this: a likelihood whose
# targets are probabilities stays above 0.
UNBOUNDED = -10.0
# Share of the targets' range by which they may leave the outputs' range.
MARGIN = 0.05
# Whole numbers 0 … K−1 are class numbers for so many values, each of which has its share.
FEWEST_CLASSES = 3
MOST_CLASSES = 20
CLASS_SHARE = 0.02
# Skill below which class numbers that are fitted as quantities do harm.
FITTED = 0.9

_RANGES = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "clamp_min": (0.0, math.inf),
    "softplus": (0.0, math.inf),
}
_CUTTING = ("relu", "tanh", "hardtanh", "clamp_min")  # what no logit should pass
_PROPER = {
    "classes": "give cross_entropy the logits and the class indices",
    "binary": "give binary_cross_entropy_with_logits the logit",
    "values": "compare outputs with targets of the same shape, by the squared error",
}
_OVERRIDES = {"classes": "loss=cross_entropy", "values": "loss=mse"}


def unbounded(evidence: Evidence) -> bool:
    """Return whether the loss falls without end as outputs grow."""
    loss = evidence.loss
    return loss.far is not None and loss.best is not None and loss.far < min(loss.best, UNBOUNDED)


def flipped_sign(evidence: Evidence) -> str | None:
    """The loss rises as the outputs get better."""
    ratio = evidence.loop.loss_ratio
    if better_when_right(evidence) is False or (ratio is not None and ratio < FLIPPED):
        return "the loss rises as the outputs get better: its sign is flipped"
    return None


def no_gradient(evidence: Evidence) -> str | None:
    """The loss does not depend on the outputs."""
    if not evidence.loss.gradient:
        return "the loss has no gradient: it does not depend on the outputs, or on detached ones"
    return None


def softmax_over_batch(evidence: Evidence) -> str | None:
    """Samples compete instead of classes."""
    cross = evidence.loss.cross_gradient or 0.0
    mixes = evidence.task == "classes" and cross > CROSS_GRADIENT
    if evidence.network.batch_softmax or mixes:
        return "a softmax runs over the batch axis, so that samples compete instead of classes"
    return None


def broadcast_shapes(evidence: Evidence) -> str | None:
    """Outputs (B, 1) and targets (B,): every output is compared with every target."""
    shapes = evidence.loss.shapes
    if _values_out_of_reach(evidence) and len(shapes) == 2 and shapes[0] != shapes[1]:
        return (
            f"outputs {tuple(shapes[0])} and targets {tuple(shapes[1])} are broadcast: every "
            "output is compared with every target"
        )
    return None


def values_out_of_reach(evidence: Evidence) -> str | None:
    """Outputs equal to the targets would not lower the loss."""
    floor = loss_floor(evidence)
    hopeless = floor is not None and floor > WORSE_THAN_GUESSING
    if _values_out_of_reach(evidence) and (failing(evidence) or hopeless):
        return "perfect outputs would hardly lower the loss"
    return None


def _values_out_of_reach(evidence: Evidence) -> bool:
    floor = loss_floor(evidence)
    return evidence.task == "values" and floor is not None and floor > UNREACHABLE


def squashed_twice(evidence: Evidence) -> str | None:
    """A softmax or sigmoid before a loss that applies its own."""
    floor = loss_floor(evidence)
    if evidence.task not in ("classes", "binary") or floor is None or floor <= UNREACHABLE:
        return None
    space = evidence.loss.output_space
    again = {"simplex": "a softmax", "unit": "a sigmoid"}.get(space, "a squashing")
    return (
        f"even perfect outputs leave {100 * floor:.0f} % of the loss of guessing: {again} is "
        "applied before a loss that applies its own"
    )


def squared_error_of_two_classes(evidence: Evidence) -> str | None:
    """A regression's loss for a 0 or 1."""
    regression = shift_invariant(evidence) is False and better_when_right(evidence)
    if evidence.task == "binary" and regression:
        return "a squared error is used for two classes"
    return None


def classes_not_compared(evidence: Evidence) -> str | None:
    """Logits are taken one by one, where the classes of a sample exclude each other."""
    real = evidence.loss.output_space == "real"
    if evidence.task == "classes" and real and shift_invariant(evidence) is False:
        return (
            "the loss does not compare the classes of a sample with each other: it is none for "
            "choosing one of many (a regression's, a binary one, or one that expects "
            "probabilities and gets logits)"
        )
    return None


def regression_of_probabilities(evidence: Evidence) -> str | None:
    """The loss asks all entries of a distribution, where the likelihood asks the target's alone."""
    others = evidence.loss.other_entries
    squashed = evidence.loss.output_space in ("simplex", "unit")
    if evidence.task == "classes" and squashed and others is not None and others > TARGET_ENTRY:
        return "the loss is a regression's or a binary one, and the task has classes"
    return None


def cut_logits(evidence: Evidence) -> str | None:
    """An activation at the output cuts the range of the logits."""
    operation = evidence.network.last_op
    if evidence.task == "classes" and operation in _CUTTING and short(evidence):
        return f"the logits pass a {operation}, which cuts their range"
    return None


def cut_values(evidence: Evidence) -> str | None:
    """An activation at the output cannot reach the targets."""
    low, high = evidence.data.target_low, evidence.data.target_high
    operation = evidence.network.last_op
    if evidence.task != "values" or operation not in _RANGES or low is None or high is None:
        return None
    bottom, top = _RANGES[operation]
    margin = MARGIN * (high - low)
    if low >= bottom - margin and high <= top + margin:
        return None
    return (
        f"the outputs pass a {operation} and cannot leave [{bottom:g}, {top:g}]; the targets reach "
        f"from {low:.3g} to {high:.3g}"
    )


def class_numbers_as_values(evidence: Evidence) -> str | None:
    """Class numbers are fitted as if they were quantities."""
    data = evidence.data
    if evidence.task != "values" or not data.target_consecutive or data.target_rarest is None:
        return None
    kinds = data.target_kinds or 0
    numbers = FEWEST_CLASSES <= kinds <= MOST_CLASSES and data.target_rarest >= CLASS_SHARE
    if numbers and (skill(evidence) or 0) < FITTED:
        return "class numbers are fitted as if they were quantities"
    return None


def _rule(reason: Callable[[Evidence], str | None], fix: str | None = None) -> Rule:
    """A rule from what is wrong with the loss, for a loss that can be called on a known task."""

    def rule(evidence: Evidence) -> Iterator[Sign]:
        loss, task = evidence.loss, evidence.task
        if loss.error is not None or task == "unknown":
            return
        summary = reason(evidence)
        if summary is not None:
            yield Sign(
                severity(evidence),
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


CAUSE = Cause(
    name="wrong_loss",
    meaning="a loss that does not fit the task or the model's output",
    kind=Kind.CERTAIN,
    rules=(
        first_of(
            _rule(flipped_sign),
            _rule(no_gradient),
            _rule(
                softmax_over_batch,
                "take the softmax over the classes: dim=1 (or leave it to cross_entropy)",
            ),
            _rule(
                broadcast_shapes,
                "bring both to one shape (outputs.squeeze(1), or targets.unsqueeze(1))",
            ),
            _rule(values_out_of_reach),
            _rule(squashed_twice),
            _rule(squared_error_of_two_classes),
            _rule(classes_not_compared),
            _rule(regression_of_probabilities),
            _rule(cut_logits),
            _rule(cut_values, "leave the last layer without an activation"),
            _rule(
                class_numbers_as_values,
                "give the model an output for each class, and cross_entropy the class indices",
            ),
        ),
    ),
    fix="use a loss that falls as the outputs come nearer to the targets",
    harm="the lowest value of this loss is not where the outputs are right",
    source="the article's claims 1 and 2; Bishop 2006, Pattern Recognition, section 4.3",
    override="loss=cross_entropy",
)
