"""Gradients that grow from layer to layer or from step to step."""

import math
from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.data import FAR_SCALE
from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.network import gradient_ratios
from debugnn.doctor.causes.signals.outcome import severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import module_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import CLIPPED, STANDARDISED_TARGETS, Trial

# Gradient at the first layer over that at the last, and growth of activations or of gradients in
# time. AUTOTRAINER (Zhang et al. 2021) warns above 70; sound programs have up to 1.8.
EXPLODED = 30.0
# Growth of signals, or first loss, above which squares of gradients may leave the range of float32,
# which ends at 3e38.
OVERFLOWING = 1e15

_CURES = (STANDARDISED_TARGETS, CLIPPED)


def layers(evidence: Evidence) -> Iterator[Sign]:
    """The first layers' gradient exceeds the last one's."""
    ratios = gradient_ratios(evidence)
    if ratios and ratios[0][0] > EXPLODED:
        ratio, first, last = ratios[0]
        what = f"the gradient at {first} is {ratio:.3g} times that at {last}"
        yield _sign(evidence, what, ratio, module_of(first))


def activation_growth(evidence: Evidence) -> tuple[float, str] | None:
    """Return the largest input of a layer over the first layer's, before the first update, and
    that layer's name."""
    if not evidence.probes:
        return None
    sizes = [(layer, rms) for layer, rms in evidence.probes[0].inputs.items() if rms > 0]
    if len(sizes) < 2:
        return None
    largest, rms = max(sizes, key=lambda s: s[1] if math.isfinite(s[1]) else math.inf)
    return rms / sizes[0][1], largest


def overflows_at_start(evidence: Evidence) -> bool:
    """Return whether signals grow so far on their way that squares of gradients are infinite."""
    growth, first = activation_growth(evidence), evidence.outcome.first_loss
    far = first is not None and not abs(first) < OVERFLOWING
    return far or (growth is not None and not growth[0] < OVERFLOWING)


def activations(evidence: Evidence) -> Iterator[Sign]:
    """Signals grow on their way through the layers."""
    growth = activation_growth(evidence)
    if growth is not None and growth[0] > EXPLODED:
        ratio, layer = growth
        what = f"activations, and gradients with them, grow {ratio:.3g}-fold from layer to layer"
        yield _sign(evidence, what, ratio, layer or None)


def time_steps(evidence: Evidence) -> Iterator[Sign]:
    """A recurrent net's gradient grows backwards in time."""
    ratio = evidence.network.time_gradient
    if ratio is not None and ratio > EXPLODED:
        what = f"the gradient grows {ratio:.3g}-fold from the last time steps to the first"
        yield _sign(evidence, what, ratio, None)


def far_targets(evidence: Evidence) -> Iterator[Sign]:
    """Regression targets so large that their gradients outweigh the weights."""
    size = evidence.data.target_rms
    if evidence.task != "values" or size is None or size <= FAR_SCALE:
        return
    if cured(evidence, STANDARDISED_TARGETS) or diverged(evidence):
        what = f"targets of size {size:.3g} make gradients that outweigh the weights"
        yield _sign(evidence, what, size, None)


def _sign(evidence: Evidence, what: str, ratio: float, layer: str | None) -> Sign:
    return Sign(
        severity(evidence),
        what,
        layer=layer,
        step=0,
        evidence={"ratio": ratio, **trial_numbers(evidence, *_CURES)},
        confidence=shown_by(evidence, cured(evidence, *_CURES)),
    )


def growing_gradients(evidence: Evidence) -> Iterator[Sign]:
    """Any of these growths, in a training that does not learn as it should."""
    if short(evidence):
        yield from first_of(layers, activations, time_steps, far_targets)(evidence)


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Standardise large regression targets; clip gradients that grow, or whose loss diverged."""
    if evidence.task == "values" and (evidence.data.target_rms or 0) > FAR_SCALE:
        yield STANDARDISED_TARGETS
    if diverged(evidence) or any(first_of(layers, activations, time_steps)(evidence)):
        yield CLIPPED


CAUSE = Cause(
    name="exploding_gradient",
    meaning="gradients that grow from layer to layer or step to step",
    kind=Kind.SYMPTOM,
    rules=(growing_gradients,),
    fix="clip the gradient's norm, standardise the targets, or initialise by Kaiming's rule",
    harm="a single step throws the weights far off",
    source="Pascanu et al. 2013, arXiv:1211.5063; the article's claims 7 and 8",
    override="clip=4.0",
    trials=trials,
)
