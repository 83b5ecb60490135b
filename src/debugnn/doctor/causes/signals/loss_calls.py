"""Calls of a loss's functions with arguments that these functions are not made for."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from debugnn.doctor.causes.signals.outcome import short
from debugnn.doctor.evidence import Evidence, LossCall

# Share of the targets, or of the labels, from which on others than the documented ones are no slip
# of a few samples.
UNEXPECTED = 0.02
# Logarithm of a sum of probabilities above which they are none, whatever is rounded: 0 of
# probabilities, that of the number of classes, about, of scores at the start.
NO_PROBABILITIES = 0.1
# Outputs none of which is below zero, at least, from which they are so by construction.
INPUTS = 200
# Share of the rows that name a class twice from which on they are no lists of classes: all of 0 and
# 1 for each class, none of a list.
REPEATING = 0.5

# What targets other than 1 and -1 do.
_UNSIGNED = {
    "cosine_embedding_loss": "such a pair has no loss",
    "hinge_embedding_loss": "such a target asks for both sides at once",
    "margin_ranking_loss": "a pair of target 0 has no gradient",
    "soft_margin_loss": "an output of target 0 has no gradient",
}


_ABOVE_ZERO = {"softplus": "a softplus", "exp": "an exponential"}


class Breach(NamedTuple):
    """A call with other arguments than the function is documented to expect."""

    call: LossCall
    summary: str
    fix: str
    numbers: dict[str, Any]
    may_serve: bool = False  # the arguments may be meant


def breaches(evidence: Evidence) -> list[Breach]:
    """Return the calls that do not fit their function.

    Not of losses that are returned for each sample: the loop may leave some of them out.
    """
    calls = [call for call in evidence.loss.calls if call.reduction != "none"]
    found = [kind(call) for call in calls for kind in _KINDS]
    found += [_rates(call, evidence) for call in calls]
    return sorted((b for b in found if b is not None), key=lambda breach: breach.may_serve)


def _unsigned(call: LossCall) -> Breach | None:
    """Targets of 0 and 1, say, where 1 and -1 tell two cases apart.

    Where some targets are below zero, 0 may mark pairs that are to be left out. Pairs that are to
    be ranked may stand in order already, with 0 where both are equal.
    """
    effect = _UNSIGNED.get(call.function)
    if effect is None or call.negative or call.unsigned < max(1, UNEXPECTED * call.targets):
        return None
    share = call.unsigned / call.targets
    others = ", ".join(f"{value:g}" for value in call.others)
    return Breach(
        call,
        f"{call.function} expects targets of 1 and -1: {100 * share:.0f} % of {call.targets} "
        f"targets are neither ({others}), and none is below zero; {effect}",
        "give it 1 and -1, as 2 * labels - 1 of labels 0 and 1",
        {"targets": call.targets, "neither_1_nor_-1": call.unsigned, "values": call.others},
        may_serve=call.function == "margin_ranking_loss",
    )


def _blank_among_labels(call: LossCall) -> Breach | None:
    if not call.labels or call.blanks < max(1, UNEXPECTED * call.labels):
        return None
    return Breach(
        call,
        f"{100 * call.blanks / call.labels:.0f} % of the labels that {call.function} is given are "
        f"{call.blank}, which is the index of the blank: no symbol that is asked for may have it",
        "number the symbols from 1, leave 0 to the blank, and give the model one output more; and "
        "leave padding out of target_lengths",
        {"labels": call.labels, "blanks": call.blanks, "blank": call.blank},
    )


def _labels_that_do_not_fit(call: LossCall) -> Breach | None:
    if not call.sequences or call.too_long < call.sequences:
        return None
    return Breach(
        call,
        f"none of {call.sequences} sequences has as many frames as labels (and blanks between "
        f"equal ones): {call.function} is infinite, or 0 with zero_infinity, whatever the outputs "
        "are",
        "shorten the inputs less within the model, and give input_lengths in its outputs' frames",
        {"sequences": call.sequences, "too_long": call.too_long},
    )


def _no_logarithms(call: LossCall) -> Breach | None:
    if call.log_mass is None or call.log_mass <= NO_PROBABILITIES:
        return None
    mass = math.exp(min(call.log_mass, math.log(1e30)))
    sums = (
        f"those of a frame sum up to {mass:.3g} or {1 / mass:.3g}, at the median, and not to 1"
        if call.sequences
        else f"those of a row sum up to {mass:.3g} and not to 1, as the targets do"
    )
    return Breach(
        call,
        f"{call.function} takes logarithms of probabilities as its first argument: {sums}",
        "give it scores.log_softmax(dim=-1), over the axis of the classes",
        {"log_of_sum": call.log_mass},
    )


def _no_list_of_classes(call: LossCall) -> Breach | None:
    if not call.repeating or call.repeating <= REPEATING * call.targets:
        return None
    return Breach(
        call,
        f"{call.function} expects the indices of a sample's classes, closed by -1: "
        f"{100 * call.repeating / call.targets:.0f} % of the rows name a class twice, as where "
        "they say 0 or 1 for each class",
        "use multilabel_soft_margin_loss, or binary_cross_entropy_with_logits, for 0 and 1",
        {"rows": call.targets, "repeating": call.repeating},
    )


def _rates(call: LossCall, evidence: Evidence) -> Breach | None:
    """Rates above 0 that are taken for logarithms, so that no rate below 1 can be said.

    Where the rates are above 1, the outputs may be meant as logarithms all the same.
    """
    last = _ABOVE_ZERO.get(evidence.network.last_op or "")
    positive = call.inputs >= INPUTS and not call.not_above_zero
    if not (call.logarithms and call.of_outputs and (last or positive) and call.targets):
        return None
    mean = call.target_sum / call.targets
    if not last and mean >= 1:
        return None  # logarithms of such rates are above zero
    why = f"pass {last}" if last else f"are above zero, all {call.inputs} that were looked at"
    return Breach(
        call,
        f"{call.function} takes the network's outputs for logarithms of rates, and they {why}: as "
        f"logarithms above zero they stand for rates above 1; the targets' mean is {mean:.3g}",
        "tell the loss that it is given rates (log_input=False), or leave the last layer without "
        f"{last or 'what makes them positive'}",
        {"last_operation": evidence.network.last_op, "mean_target": mean},
        may_serve=mean >= 1 and not short(evidence),
    )


def _no_rates(call: LossCall) -> Breach | None:
    if call.logarithms or call.below_zero < max(1, UNEXPECTED * call.inputs):
        return None
    return Breach(
        call,
        f"{call.function} with log_input=False takes its first argument for rates: "
        f"{100 * call.below_zero / call.inputs:.0f} % of them are below 0, and have no logarithm",
        "leave log_input out, so that outputs are taken for logarithms of rates, or let the last "
        "layer end with a softplus",
        {"inputs": call.inputs, "below_0": call.below_zero},
    )


_KINDS: tuple[Callable[[LossCall], Breach | None], ...] = (
    _unsigned,
    _blank_among_labels,
    _labels_that_do_not_fit,
    _no_logarithms,
    _no_list_of_classes,
    _no_rates,
)
