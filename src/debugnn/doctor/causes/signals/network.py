"""The network: its initial weights, its activations and gradients, and its evaluation."""

import math
from collections.abc import Callable

from debugnn.doctor.evidence import ActivationFacts, Evidence, Probe, WeightFacts

# Probes up to this step are early: gradients still show the initialisation.
EARLY = 8
# RMS · √fan_in: 1.41 by Kaiming's rule (He et al. 2015), 0.58 by PyTorch's default. Sound programs
# have 0.55 to 0.69, outsized ones 4.7 and more, too small ones 0.006 and less.
LARGE_GAIN = 4.0
SMALL_GAIN = 0.1
# Gain of constant weights whose size strikes before their symmetry does (the article's weight 100
# has 300 and more).
OUTSIZED = 100.0
# What the outputs differ by among samples, over the same of the first layer's, where signals have
# faded. Ten layers of PyTorch's default weights, with a ReLU each, leave 0.02; twenty
# of LeCun's 0.001.
FADED = 0.02
# Change of a sample's output by other samples' inputs, over the samples' spread; also the relative
# difference of two evaluations above which they differ. Measured at the start and after 150 steps:
# exactly 0 of nets of all kinds, whose products and convolutions round each row by itself, and 1e-5
# where the batch's maximum is taken off for stability. A softmax over the batch axis has 0.005 to
# 0.3 at the start, where its scores are near zero, and 0.3 to 0.5 once it is trained.
MIXED = 0.01

_FLAT = ("sigmoid", "tanh", "hardsigmoid", "hardtanh")


def gradient_ratios(evidence: Evidence) -> list[tuple[float, str, str]]:
    """Return ‖g_first‖ / ‖g_last‖ and both weights' names, for each early probe that has it.

    None where a weight starts at zero, as last layers and residual branches often do: it lets no
    gradient through at first, and little as long as it is small.
    """
    if any(weight.norm == 0 for weight in evidence.weights):
        return []
    early = (probe for probe in evidence.probes if probe.step <= EARLY)
    ratios = [_gradient_ratio(evidence, probe) for probe in early]
    return [ratio for ratio in ratios if ratio is not None]


def _gradient_ratio(evidence: Evidence, probe: Probe) -> tuple[float, str, str] | None:
    known = {n: f.gradient for n, f in probe.layers.items() if f.gradient is not None}
    layers = [(w.name, known[w.name]) for w in evidence.weights if w.name in known]
    if len(layers) < 2 or not all(math.isfinite(g) for _, g in layers) or layers[-1][1] == 0:
        return None
    first, last = layers[0], layers[-1]
    return first[1] / last[1], first[0], last[0]


Stuck = tuple[float, str, int, bool]


def stuck_layer(
    evidence: Evidence, share: Callable[[ActivationFacts], float | None], limit: float
) -> Stuck | None:
    """Return the layer of which a share of units or values is first stuck where no gradient passes.

    Args:
        share: gives the share of a layer's activations.
        limit: the least share that counts.

    Returns:
        The share (the largest of that step), the layer, the step, and whether that was the first
        step of all; None where no layer reaches the limit.
    """
    worst: Stuck | None = None
    for probe in evidence.probes:
        for activation in probe.activations:
            value = share(activation)
            if value is None or value < limit:
                continue
            if worst is None or (probe.step == worst[2] and value > worst[0]):
                worst = (value, activation.layer, probe.step, probe.step == 0)
    return worst


def extreme_gain(evidence: Evidence, large: bool) -> WeightFacts | None:
    """Return the weight that starts farthest above (or below) the usual gains, if one does."""
    weights = [w for w in evidence.weights if w.gain > 0 or not large]
    if not weights:
        return None
    if large:
        worst = max(weights, key=lambda w: w.gain)
        return worst if worst.gain > LARGE_GAIN else None
    hidden = [w for w in weights if w.hidden] or weights
    worst = min(hidden, key=lambda w: w.gain)
    return worst if 0 < worst.gain < SMALL_GAIN else None


def signal_left(evidence: Evidence) -> tuple[float, str] | None:
    """Return the outputs' signal over the first layer's, and that layer's weight.

    None where a weight starts at zero, as a last layer does on purpose, and of less than two layers
    whose signals are known.
    """
    known = [weight for weight in evidence.weights if weight.signal is not None]
    left = evidence.network.output_signal
    if left is None or len(known) < 2 or any(weight.norm == 0 for weight in evidence.weights):
        return None
    first = known[0].signal
    return (left / first, known[0].name) if first and math.isfinite(left / first) else None


def outsized_constant(evidence: Evidence) -> bool:
    """Return whether all weights are so large that their size strikes before their symmetry."""
    weights = evidence.weights
    return bool(weights) and min(w.gain for w in weights) > OUTSIZED


def flat_activations(evidence: Evidence) -> bool:
    """Return whether the network has activations that flatten out on both sides."""
    return any(a.op in _FLAT for probe in evidence.probes for a in probe.activations)


def evaluations_differ(evidence: Evidence) -> bool:
    """Return whether two evaluations of one batch differed."""
    return (evidence.network.evaluation_change or 0.0) > MIXED
