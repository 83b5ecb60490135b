"""What is done to outputs before a loss that expects them otherwise."""

import math

from debugnn.doctor.causes.signals.loss_function import (
    UNREACHABLE,
    loss_floor,
)
from debugnn.doctor.causes.signals.skill import not_all_learnt
from debugnn.doctor.evidence import Evidence

# Share of the gradient on other classes' outputs that is rounding.
TARGET_ENTRY = 1e-6
# How far a loss of probabilities is from linear, relatively, where it takes no logarithm of them:
# rounding. A logarithm bends by 0.1 and more.
NO_LOGARITHM = 1e-4
# Share of the loss of guessing that perfect outputs leave, of two classes: labels smoothed by 0.2
# leave 0.47, a second sigmoid 0.73.
UNREACHABLE_OF_TWO = 0.6
# Share of the targets' range by which they may leave the outputs' range.
MARGIN = 0.05
# Cosine from which the gradient by the outputs is that of a squared error beside the targets.
SQUARED_ERROR = 0.999
_NO_LOGARITHMS = ("linear", "convolution", "softmax", "sigmoid")  # what gives no logarithms
_SQUASHED = {
    "cross_entropy": ("softmax", "softmax"),
    "binary_cross_entropy_with_logits": ("sigmoid", "sigmoid"),
    "logsumexp": ("softmax", "softmax, as Categorical(logits=…) does"),
}  # loss → what it must not be fed with, and what it applies itself
_RANGES = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "lstm": (-1.0, 1.0),
    "gru": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "clamp_min": (0.0, math.inf),
    "softplus": (0.0, math.inf),
}
_NAMED_LINKS = {"sigmoid": "a sigmoid", "exp": "an exponential"}
_CUTTING = ("relu", "tanh", "hardtanh", "clamp_min", "lstm", "gru")  # what no logit should pass
_STATES = {"lstm": "an LSTM", "gru": "a GRU"}  # layers whose hidden state is no activation's output


def no_logarithm(evidence: Evidence) -> str | None:
    """A likelihood that is given probabilities, and takes them for their logarithms."""
    loss = evidence.loss
    linear = loss.linear is not None and loss.linear < NO_LOGARITHM
    below_zero = any(right < 0 for right, _ in loss.rewards)
    target_alone = loss.other_entries is None or loss.other_entries <= TARGET_ENTRY
    if loss.confirmed and linear and below_zero and target_alone:
        return (
            "the loss takes probabilities for their logarithms: it is the negative probability "
            "itself, which falls below zero and hardly punishes what is wrong"
        )
    return None


def no_log_probabilities(evidence: Evidence) -> str | None:
    """A likelihood that is fed with scores or probabilities, and takes them for logarithms."""
    loss, lowest = evidence.loss, evidence.outcome.lowest_loss
    below_zero = lowest is not None and lowest < 0
    for name in ("ctc_loss", "nll_loss"):
        source = loss.sources.get(name)
        # The sum of a negative score and a logarithm of its own is a likelihood, and stays above 0.
        if source in _NO_LOGARITHMS and (name == "ctc_loss" or below_zero):
            seen = f": the loss has been {lowest:.3g}, and no likelihood is below zero"
            return (
                f"{name} takes logarithms of probabilities, and is given the output of a {source} "
                f"operation{seen if below_zero else ''}"
            )
    return None


def squashed_before_own(evidence: Evidence) -> str | None:
    """A softmax or sigmoid that the loop applies before a loss that applies its own."""
    for name, (squashing, own) in _SQUASHED.items():
        if evidence.loss.sources.get(name) == squashing:
            return f"a {squashing} is applied before {name}, which makes its own {own}"
    return None


def squashed_twice(evidence: Evidence) -> str | None:
    """A softmax or sigmoid before a loss that applies its own."""
    floor = loss_floor(evidence)
    least = UNREACHABLE_OF_TWO if evidence.task == "binary" else UNREACHABLE
    if evidence.task not in ("classes", "binary") or floor is None or floor <= least:
        return None
    space = evidence.loss.output_space
    again = {"simplex": "a softmax", "unit": "a sigmoid"}.get(space, "a squashing")
    return (
        f"even perfect outputs leave {100 * floor:.0f} % of the loss of guessing: {again} is "
        "applied before a loss that applies its own"
    )


def linked_twice(evidence: Evidence) -> str | None:
    """A sigmoid or exponential at the end of the network, and the same one again in the loss."""
    link, operation = evidence.loss.link, evidence.network.last_op
    if evidence.task != "values" or link not in _NAMED_LINKS or operation != link:
        return None
    return (
        f"the network ends with {_NAMED_LINKS[link]}, and the loss applies it to the outputs once "
        "more"
    )


def cut_logits(evidence: Evidence) -> str | None:
    """An activation at the output cuts the range of the logits, and not all is learnt."""
    operation = evidence.network.last_op
    if evidence.task == "classes" and operation in _CUTTING and not_all_learnt(evidence):
        if operation in _STATES:
            return f"the logits are the hidden state of {_STATES[operation]}, within -1 and 1"
        return f"the logits pass a {operation}, which cuts their range"
    return None


def cut_values(evidence: Evidence) -> str | None:
    """An activation at the output cannot reach the targets: values, or inputs to be rebuilt."""
    data, loss = evidence.data, evidence.loss
    low, high = data.target_low, data.target_high
    operation = evidence.network.last_op
    rebuilt = evidence.reconstruction and loss.confirmed and len(loss.shapes) > 1
    squared = loss.towards_targets is not None and loss.towards_targets > SQUARED_ERROR
    compared = evidence.task == "values" or (rebuilt and loss.shapes[0] == loss.shapes[1])
    compared = compared or squared
    if not compared or operation not in _RANGES or low is None or high is None:
        return None
    # A few that are outside, by noise or as outliers, may be left where they are.
    lower = low if data.target_tenth is None else data.target_tenth
    higher = high if data.target_nine_tenths is None else data.target_nine_tenths
    if not _leave(_RANGES[operation], lower, higher, MARGIN * (high - low)):
        return None
    made = f"pass a {operation}"
    if operation in _STATES:
        made = f"are the hidden state of {_STATES[operation]}"
    return _cut("the outputs", made, operation, f"from {low:.3g} to {high:.3g}")


def cut_part(evidence: Evidence) -> str | None:
    """The same of one output among several, which is compared with values of its own."""
    for part in evidence.outcome.parts:
        operation, low, high = part.made_by, part.tenth, part.nine_tenths
        if operation not in _RANGES or low is None or high is None:
            continue
        if _leave(_RANGES[operation], low, high, MARGIN * (high - low)):
            reach = f"from {low:.3g} to {high:.3g}, but for a tenth on either side"
            return _cut(f"the output '{part.name}'", f"passes a {operation}", operation, reach)
    return None


def _leave(bounds: tuple[float, float], low: float, high: float, margin: float) -> bool:
    """Return whether targets between `low` and `high` lie outside of an activation's range."""
    return low < bounds[0] - margin or high > bounds[1] + margin


def _cut(what: str, made: str, operation: str, reach: str) -> str:
    bottom, top = _RANGES[operation]
    return f"{what} {made} and cannot leave [{bottom:g}, {top:g}]; the targets reach {reach}"
