"""Inputs far from zero mean and unit scale."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.data import FAR_SCALE, odd_inputs
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.skill import not_all_learnt
from debugnn.doctor.causes.signals.trials import (
    FAR_WORSE,
    cured,
    overtakes,
    shown_by,
    trial_numbers,
)
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import SCALED_LAYERS, STANDARDISED_INPUTS, UNCHANGED, Trial

# A copy's loss over the unchanged copy's below which the inputs' scale made nearly all of the loss.
# Weights of usual size take inputs of unit scale to outputs of about unit scale: ten times as large
# inputs give a squared error that is a hundred times as large.
CALMED = 0.01
# Samples that come back changed, which no chance makes.
RETURNED = 8
# Their deviation, or the shift of their mean over it, as a factor. An augmentation changes contrast
# and brightness by less than a factor of two, and by none in the median.
TRANSFORMED = 10.0
# Root mean square of late inputs over early ones of which a training that fails may be the result.
# Batches of one set differ by far less than a factor of two.
DRIFTED = 100.0
# Root mean square of inputs, or one over it, that a failing training is suspected of first: raw
# pixels have 80 to 130, and such that were divided by 255 twice 0.002. A trial may be too short to
# show it, for a deep net learns nothing in its steps.
RAW = 30.0

_SCALE_AT_LAYER = (
    "bring what this layer takes to unit scale: a time or a position divided by its largest value, "
    "or encoded by sines; counts and amounts standardised"
)


def transformed_again(evidence: Evidence) -> Iterator[Sign]:
    """The same samples come back at another scale, or with another zero."""
    drift = evidence.data.drift
    if drift is None or drift.returned < RETURNED or drift.scale is None or drift.offset is None:
        return
    scaled = not 1 / TRANSFORMED < drift.scale < TRANSFORMED
    if not scaled and abs(drift.offset) < TRANSFORMED * max(drift.scale, 1.0):
        return
    how = (
        f"{drift.scale:.3g} times as large"
        if scaled
        else f"shifted by {drift.offset:.3g} times their deviation"
    )
    yield Sign(
        "error",
        f"samples that the training has seen come back {how} in later epochs: they are "
        "transformed again each time that they are read",
        "do not change in place what the data set keeps (x = x / std, not x /= std or x.div_(std)),"
        " or prepare the data once, before the first epoch",
        evidence=_drift(evidence),
        confidence="certain",
        harm="the network is trained on data of a new scale in each epoch",
    )


def drifting(evidence: Evidence) -> Iterator[Sign]:
    """The inputs' scale changes by orders of magnitude in a training that does not learn."""
    drift = evidence.data.drift
    if drift is None or not failing(evidence) or not min(drift.early, drift.late) > 0:
        return
    change = drift.late / drift.early
    if not math.isfinite(change) or 1 / DRIFTED < change < DRIFTED:
        return
    yield Sign(
        severity(evidence),
        f"the inputs' root mean square goes from {drift.early:.3g} in the first batches to "
        f"{drift.late:.3g} in the latest ones",
        "see that each sample is prepared once: a data set that changes in place what it keeps "
        "does so again in each epoch",
        evidence=_drift(evidence),
        harm="the network is trained on data of a new scale in each epoch",
    )


def _drift(evidence: Evidence) -> dict[str, Any]:
    drift = evidence.data.drift
    return {} if drift is None else {f"drift: {k}": v for k, v in asdict(drift).items()}


def unscaled_inputs(evidence: Evidence) -> Iterator[Sign]:
    """The inputs' scale is unusual, and a copy learns once they are standardised."""
    odd = odd_inputs(evidence)
    if odd is None or not short(evidence) or cured(evidence, STANDARDISED_INPUTS) is None:
        return
    data = evidence.data
    yield Sign(
        severity(evidence),
        f"the inputs are not standardised, {odd}; standardised, a copy learns",
        evidence={
            "rms": data.rms,
            "mean": data.mean,
            "std": data.std,
            **trial_numbers(evidence, STANDARDISED_INPUTS),
        },
        confidence="shown",
    )


def outsized_by_inputs(evidence: Evidence) -> Iterator[Sign]:
    """The loss is far above that of guessing, from the first step on, and standardised inputs take
    nearly all of it away, though a trial is too short to learn the rest."""
    odd, calmed = odd_inputs(evidence), _calmed(evidence, STANDARDISED_INPUTS)
    if odd is None or calmed is None:
        return
    yield Sign(
        "error",
        f"the inputs are not standardised, {odd}, and {calmed}",
        evidence={
            "rms": evidence.data.rms,
            **_starts(evidence, STANDARDISED_INPUTS),
            **trial_numbers(evidence, STANDARDISED_INPUTS),
        },
        confidence="shown",
    )


def outsized_at_layer(evidence: Evidence) -> Iterator[Sign]:
    """The same of data that a layer takes, alone or beside what was learnt."""
    large, calmed = large_at_layer(evidence), _calmed(evidence, SCALED_LAYERS)
    if large is None or calmed is None:
        return
    name, rms = large
    yield Sign(
        "error",
        f"{name} takes data whose root mean square is {rms:.3g}, and {calmed}",
        _SCALE_AT_LAYER,
        layer=name,
        evidence={
            "rms_at_layer": rms,
            **_starts(evidence, SCALED_LAYERS),
            **trial_numbers(evidence, SCALED_LAYERS),
        },
        confidence="shown",
    )


def _calmed(evidence: Evidence, trial: Trial) -> str | None:
    """Return, as a clause, that a trial takes away nearly all of a loss far above that of guessing,
    which there is from the first step on; None where it does not."""
    unchanged, changed = (evidence.trials.get(each.name) for each in (UNCHANGED, trial))
    if not failing(evidence) or unchanged is None or changed is None:
        return None
    if not unchanged.steps or not changed.steps or not unchanged.end > FAR_WORSE:
        return None
    # Two runs that diverge differ by any factor in the end, but not at the start.
    if not (changed.start < CALMED * unchanged.start and changed.end < CALMED * unchanged.end):
        return None
    return (
        f"the loss starts at {unchanged.start:.2g} times that of guessing; with {trial.name} a "
        f"copy starts at {changed.start:.2g} times, and after {changed.steps} steps it has "
        f"{changed.end:.2g} in place of {unchanged.end:.2g} times"
    )


def _starts(evidence: Evidence, trial: Trial) -> dict[str, float]:
    return {f"start: {each.name}": evidence.trials[each.name].start for each in (UNCHANGED, trial)}


def overtaken_with_standardised_inputs(evidence: Evidence) -> Iterator[Sign]:
    """The inputs' scale is unusual, the task unknown, and the loss of a copy with standardised ones
    falls below that which the whole training came to."""
    odd = odd_inputs(evidence)
    if odd is None or evidence.task != "unknown" or not overtakes(evidence, STANDARDISED_INPUTS):
        return
    outcome, last = evidence.trials[STANDARDISED_INPUTS.name], evidence.outcome.last_loss
    yield Sign(
        "warning",
        f"the inputs are not standardised, {odd}, and after {evidence.loop.steps} steps the loss "
        f"is {last:.3g}; with standardised inputs a copy gets to {outcome.end:.3g} in "
        f"{outcome.steps} steps",
        evidence={
            "rms": evidence.data.rms,
            "mean": evidence.data.mean,
            "std": evidence.data.std,
            "last_loss": last,
            **trial_numbers(evidence, STANDARDISED_INPUTS),
        },
        confidence="shown",
    )


def raw_inputs(evidence: Evidence) -> Iterator[Sign]:
    """The inputs are as large as raw pixels are, or as small as such that were divided too often,
    and the training fails."""
    odd, rms = odd_inputs(evidence), evidence.data.rms
    if odd is None or not rms or not _is_raw(rms) or not failing(evidence):
        return
    # The model may bring them to unit scale itself.
    if not any(map(_is_raw, evidence.network.data_inputs.values())):
        return
    yield Sign(
        "error",
        f"the inputs are not standardised, {odd}",
        evidence={"rms": rms},
        confidence="suspected",
    )


def _is_raw(rms: float) -> bool:
    return rms >= RAW or rms * RAW <= 1


def likeliest(evidence: Evidence) -> Iterator[Sign]:
    """The inputs' scale is unusual in a training that nothing else seems to be wrong with."""
    odd = odd_inputs(evidence)
    if odd is not None:
        yield Sign("note", f"the inputs are not standardised, {odd}", evidence={"odd_inputs": odd})


def large_at_layer(evidence: Evidence) -> tuple[str, float] | None:
    """Return the layer that takes the largest data, and their root mean square; None where none of
    them are large."""
    found = evidence.network.data_inputs.items()
    name, rms = max(found, key=lambda each: each[1], default=("", 0.0))
    return (name, rms) if rms > FAR_SCALE else None


def unscaled_at_layer(evidence: Evidence) -> Iterator[Sign]:
    """A layer takes data that are large: beside others, in an argument of their own, or as the
    model prepares them; and a copy learns better where it divides them."""
    large, cure = large_at_layer(evidence), cured(evidence, SCALED_LAYERS)
    if large is None or cure is None or not (short(evidence) or overtakes(evidence, cure)):
        return
    name, rms = large
    usual = evidence.data.floating and odd_inputs(evidence) is None
    beside = ", while the model's first inputs are of unit scale" if usual else ""
    yield Sign(
        severity(evidence),
        f"{name} takes data whose root mean square is {rms:.3g}{beside}; with each feature divided "
        "by its own, a copy learns better (relative loss "
        f"{evidence.trials[SCALED_LAYERS.name].end:.2f} in place of "
        f"{evidence.trials[UNCHANGED.name].end:.2f})",
        _SCALE_AT_LAYER,
        layer=name,
        evidence={
            "rms_at_layer": rms,
            **({"rms": evidence.data.rms} if evidence.data.floating else {}),
            **trial_numbers(evidence, SCALED_LAYERS),
        },
        confidence=shown_by(evidence, cure),
    )


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Scale what a layer takes where that alone is large; standardise where no task is known."""
    if evidence.task == "unknown" and odd_inputs(evidence):
        yield UNCHANGED
        yield STANDARDISED_INPUTS
    large = large_at_layer(evidence) and odd_inputs(evidence) is None
    if large and not_all_learnt(evidence):
        yield UNCHANGED
        yield SCALED_LAYERS


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Standardise inputs whose scale is unusual, or what a layer takes of them."""
    if odd_inputs(evidence):
        yield STANDARDISED_INPUTS
    tried = STANDARDISED_INPUTS.name in evidence.trials and not cured(evidence, STANDARDISED_INPUTS)
    if large_at_layer(evidence) and (tried or odd_inputs(evidence) is None):
        yield SCALED_LAYERS


CAUSE = Cause(
    name="input_scale",
    meaning="inputs far from zero mean and unit scale",
    kind=Kind.RIVAL,
    rules=(
        first_of(
            transformed_again,
            drifting,
            unscaled_inputs,
            outsized_by_inputs,
            overtaken_with_standardised_inputs,
            unscaled_at_layer,
            outsized_at_layer,
            raw_inputs,
        ),
    ),
    fix="subtract the training inputs' mean and divide by their standard deviation",
    harm="no single learning rate suits weights whose inputs differ so much in size",
    source="LeCun et al. 1998, Efficient BackProp, section 4.3",
    override="data.scale=normalised",
    last_resort=likeliest,
    trials=trials,
    trials_if_learning=trials_if_learning,
)
