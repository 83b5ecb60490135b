"""What evidence shows: how well a training went, and what is unusual about its layers and data.

The rules are made from these. Needs no torch.
"""

import itertools
import math
from collections.abc import Callable

from debugnn.doctor.evidence import (
    ActivationFacts,
    Evidence,
    Probe,
    Score,
    TrialOutcome,
    WeightFacts,
)

# --- thresholds ---------------------------------------------------------------------------------
# Ratios, never absolute sizes. Set on the suite's tuning half; reported on the other.

JUDGED_AFTER = 40  # steps before which nothing is said about how well a training goes
FAILING = 0.5  # skill below which a training is looked into: half of the way to perfect
AT_CHANCE = 0.12  # skill that no learning needs
LEARNT = 0.02  # gain (1 − relative loss) by which a fork has learnt something
CURED = 2.0  # a fork's gain over the unchanged fork's, at least; or
BETTER = 0.1  # a fork's gain above the unchanged fork's, at least

VANISHED = 0.02  # gradient per weight at the first layers over that at the last
EXPLODED = 30.0
DEAD = 0.75  # share of a layer's units
SATURATED = 0.6  # share of a layer's values
FAR_SCALE = 8.0  # root mean square of the inputs
NEAR_SCALE = 0.05
OFFSET = 5.0  # |mean| over standard deviation
SPREAD = 100.0  # widest over narrow feature
LARGE_GAIN = 4.0  # RMS · √fan_in: Kaiming's is 1.4
SMALL_GAIN = 0.1
LARGE_UPDATE = 0.05  # ‖Δw‖ / ‖w‖ in one step
STILL = 0.03  # ‖w − w₀‖ / ‖w₀‖ after the whole training
UNREACHABLE = 0.2  # loss of perfect outputs over that of the best constant
GAP = 0.2  # skill on training samples above that on validation samples
SHIFTED = 0.7
TOLD_APART = 0.8
LEAKED = 0.99
MIXED = 0.01  # change of a sample's output by other samples, over the samples' spread
RARE = 0.1  # a class's samples over the commonest one's
MOSTLY_PENALTY = 0.5

FASTER = ("lr*10", "lr*100", "lr*1000", "lr*10000")  # forks at higher learning rates


# --- how well it went ---------------------------------------------------------------------------


def skill(evidence: Evidence) -> float | None:
    """0 for the best constant predictor, 1 for perfect, on training samples; None if unknown.

    The better of evaluation mode and batch statistics: early running averages are far off.
    """
    outcome = evidence.outcome
    if outcome.nonfinite_step is not None:
        return -math.inf
    known = [fitted(s, evidence) for s in (outcome.train, outcome.train_mode)]
    known = [value for value in known if value is not None]
    if known:
        return max(known)
    if outcome.first_loss is not None and outcome.last_loss is not None:
        # Of a loss that nothing is known of, only that it falls can be said.
        fallen = outcome.first_loss - outcome.last_loss
        return 1.0 if fallen > 0.05 * abs(outcome.first_loss) else 0.0
    return None


def fitted(score: Score, evidence: Evidence) -> float | None:
    """A score's skill; by the classes' mean recall where that is higher.

    A loss that is weighted for rare classes gives up accuracy for recall.
    """
    classes = evidence.classes
    if score.skill is None or score.balanced is None or not classes:
        return score.skill
    return max(score.skill, (score.balanced - 1 / classes) / (1 - 1 / classes))


def judged(evidence: Evidence) -> bool:
    """Whether the training was long enough for a word on its outcome."""
    enough = evidence.loop.steps >= JUDGED_AFTER
    return (enough or evidence.outcome.nonfinite_step is not None) and skill(evidence) is not None


def failing(evidence: Evidence) -> bool:
    """It hardly learns its training samples, or far less well than a simple model does."""
    if not judged(evidence):
        return False
    reached, simple = skill(evidence), evidence.data.simple_skill
    trained = [evidence.outcome.train.relative_loss, evidence.outcome.train_mode.relative_loss]
    likelihood = evidence.loss.shift_invariant or (
        evidence.task == "binary"
        and evidence.loss.floor is not None
        and evidence.loss.floor < UNREACHABLE
    )
    if likelihood and reached < 0.9 and all(loss is not None and loss > 1 for loss in trained):
        return True  # so sure of what it gets wrong that guessing would be better
    if simple is not None and simple > 0.15:
        # As much as nearest neighbours find on held-out samples: the data has no more to give.
        return reached < simple - 0.25 or (reached < FAILING and reached < simple - 0.1)
    return reached < FAILING


def short(evidence: Evidence) -> bool:
    """It fails, or stays visibly behind a simple model."""
    if not judged(evidence):
        return False
    simple = evidence.data.simple_skill
    return failing(evidence) or (simple is not None and skill(evidence) < simple - 0.1)


def at_chance(evidence: Evidence) -> bool:
    return judged(evidence) and skill(evidence) < AT_CHANCE


def cured(evidence: Evidence, *names: str) -> str | None:
    """The fork among `names` that learns where the unchanged one does not; the best of them."""
    same = evidence.forks.get("same")
    if same is None or same.steps == 0:
        return None
    gains = {name: _gain(fork) for name, fork in evidence.forks.items() if name in names}
    if not math.isfinite(same.end) or same.end > 1.5:
        # Far worse than guessing: to come to where guessing is tells enough of what is at fault,
        # for a change that leaves the rate alone.
        calmed = {
            name: -fork.end
            for name, fork in evidence.forks.items()
            if name in names and not name.startswith("lr") and fork.steps and fork.end < 1.05
        }
        if calmed:
            return max(calmed, key=calmed.__getitem__)
    least = min(CURED * _gain(same) + LEARNT, _gain(same) + BETTER)
    better = {name: gain for name, gain in gains.items() if gain >= least}
    return max(better, key=better.__getitem__) if better else None


def _gain(fork: TrialOutcome) -> float:
    """How much of the way from the best constant predictor to a perfect one was gone."""
    return max(0.0, 1 - fork.end) if fork.steps and math.isfinite(fork.end) else 0.0


def learns_late(evidence: Evidence) -> bool:
    """It learns in the end, after a plateau that took a good part of the training."""
    plateau = evidence.outcome.plateau
    return plateau is not None and plateau >= max(30, 0.15 * evidence.loop.steps)


def diverged(evidence: Evidence) -> bool:
    outcome = evidence.outcome
    if outcome.nonfinite_step is not None:
        return True
    first, highest, last = outcome.first_loss, outcome.highest_loss, outcome.last_loss
    if first is None or highest is None or last is None:
        return False
    return highest > 3 * abs(first) + 1e-9 or last > 1.5 * abs(first)


# --- signals of the layers ----------------------------------------------------------------------


def _early(evidence: Evidence) -> list[Probe]:
    return [probe for probe in evidence.probes if probe.step <= 8]


def largest_update(evidence: Evidence) -> tuple[float, str, int]:
    """The largest ‖Δw‖ / ‖w‖ of the early probes, its layer and step."""
    found = (0.0, "", 0)
    for probe in evidence.probes[:6]:
        for name, layer in probe.layers.items():
            if layer.update is not None and layer.weight > 0:
                found = max(found, (layer.update / layer.weight, name, probe.step))
    return found


def _gradient_ratio(evidence: Evidence, probe: Probe) -> tuple[float, str, str] | None:
    """Norm of the first layer's gradient over the last layer's, and their names."""
    known = {n: f.gradient for n, f in probe.layers.items() if f.gradient is not None}
    layers = [(w.name, known[w.name]) for w in evidence.weights if w.name in known]
    if len(layers) < 2 or not all(math.isfinite(g) for _, g in layers) or layers[-1][1] == 0:
        return None
    first, last = layers[0], layers[-1]
    return first[1] / last[1], first[0], last[0]


def gradient_ratios(evidence: Evidence) -> list[tuple[float, str, str]]:
    ratios = [_gradient_ratio(evidence, probe) for probe in _early(evidence)]
    return [ratio for ratio in ratios if ratio is not None]


def activation_growth(evidence: Evidence) -> tuple[float, str] | None:
    """Size of the largest layer's input over the first one's, before the first update; where."""
    if not evidence.probes:
        return None
    sizes = [(layer, rms) for layer, rms in evidence.probes[0].inputs.items() if rms > 0]
    if len(sizes) < 2:
        return None
    largest, rms = max(sizes, key=lambda s: s[1] if math.isfinite(s[1]) else math.inf)
    return rms / sizes[0][1], largest


def _stuck(
    evidence: Evidence, share: Callable[[ActivationFacts], float | None], limit: float
) -> tuple[float, str, int, bool] | None:
    """Largest share over `limit` of any layer, where, when first, and whether from the start."""
    worst = None
    for probe in evidence.probes:
        for activation in probe.activations:
            value = share(activation)
            if value is not None and value >= limit:
                candidate = (value, activation.layer, probe.step, probe.step == 0)
                if worst is None or (probe.step == worst[2] and value > worst[0]):
                    worst = candidate
    return worst


def dead_units(evidence: Evidence) -> tuple[float, str, int, bool] | None:
    return _stuck(evidence, lambda a: a.dead, DEAD)


def saturated_values(evidence: Evidence) -> tuple[float, str, int, bool] | None:
    return _stuck(evidence, lambda a: a.saturated, SATURATED)


def odd_inputs(evidence: Evidence) -> str | None:
    """What is unusual about the inputs' scale, as a phrase."""
    data = evidence.data
    if not data.floating or data.rms is None:
        return None
    if data.rms > FAR_SCALE:
        return f"their root mean square is {data.rms:.3g}"
    if data.rms < NEAR_SCALE:
        return f"their root mean square is only {data.rms:.3g}"
    if data.std and abs(data.mean) > OFFSET * data.std:
        return f"their mean is {data.mean:.3g}, {abs(data.mean) / data.std:.3g} deviations off zero"
    if data.feature_spread is not None and data.feature_spread > SPREAD:
        return f"some features vary {data.feature_spread:.3g} times as much as others"
    return None


def extreme_gain(evidence: Evidence, large: bool) -> WeightFacts | None:
    weights = [w for w in evidence.weights if w.gain > 0 or not large]
    if not weights:
        return None
    if large:
        worst = max(weights, key=lambda w: w.gain)
        return worst if worst.gain > LARGE_GAIN else None
    hidden = [w for w in weights if w.hidden] or weights
    worst = min(hidden, key=lambda w: w.gain)
    return worst if 0 < worst.gain < SMALL_GAIN else None


def rough_start(evidence: Evidence) -> bool:
    """It learns, but from outsized weights and a loss far above guessing, and not to the end."""
    initial = evidence.outcome.initial.relative_loss
    return (
        judged(evidence)
        and initial is not None
        and initial > 5
        and skill(evidence) < 0.9
        and extreme_gain(evidence, large=True) is not None
    )


def symmetric_layer(evidence: Evidence) -> WeightFacts | None:
    """The first hidden layer whose units start equal, where nothing after it tells them apart."""
    weights = evidence.weights
    if len(weights) < 2:
        return None
    constant = sum(w.identical_rows for w in weights) / len(weights)
    for layer, following in itertools.pairwise(weights):
        if not layer.identical_rows:
            continue
        if following.identical_columns and (constant >= 0.9 or short(evidence)):
            return layer
        if failing(evidence):
            return layer
    return None


def outsized_constant(evidence: Evidence) -> bool:
    """Constant weights so large that their size strikes before their symmetry does."""
    weights = evidence.weights
    return bool(weights) and min(w.gain for w in weights) > 100


def overflowed(evidence: Evidence) -> bool:
    """Whether a non-finite number is the end of a divergence rather than an invalid operation."""
    found = evidence.nonfinite
    if found is None:
        return evidence.outcome.nonfinite_step is not None and not evidence.data.nonfinite_samples
    if found.where in ("input", "target"):
        return False
    if found.where in ("parameter", "buffer"):
        return found.step > 0 and (found.overflow or _diverged_before(evidence, found.step))
    return found.overflow or found.where == "unknown" or _diverged_before(evidence, found.step)


def _diverged_before(evidence: Evidence, step: int) -> bool:
    first, highest = evidence.outcome.first_loss, evidence.outcome.highest_loss
    if first is None or highest is None or not math.isfinite(first):
        return False
    return step > 0 and highest > 1e3 * max(abs(first), 1e-3)


def findable(evidence: Evidence) -> bool:
    """A simple model finds what the training does not."""
    simple = evidence.data.simple_skill
    return short(evidence) and (simple is None or simple > skill(evidence) + 0.1)


# --- signals of the data -----------------------------------------------------------------------


def rarest_share(evidence: Evidence) -> float:
    """The rarest class's training samples over the commonest one's; 1 without classes."""
    counts = [n for n in evidence.data.class_counts.values() if n > 0]
    return min(counts) / max(counts) if len(counts) > 1 else 1.0
