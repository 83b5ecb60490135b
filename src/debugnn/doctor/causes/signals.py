"""What the evidence shows, as several causes ask for it. Needs no torch.

The thresholds that more than one cause uses stand here; a threshold of a single cause stands in
that cause's file. All of them compare ratios or shares, never absolute sizes: the size of a
gradient changes with the batch, the width and the loss. "Sound" and "faulty" programs are
those of the half of `debugnn.faults` that thresholds were set on, with seed 0; how far each
threshold can be moved before a diagnosis of that half changes is measured by
`scripts/evaluate_doctor.py --sensitivity` and stands in the doctor's README.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

from debugnn.doctor.evidence import (
    ActivationFacts,
    Evidence,
    Probe,
    Score,
    TrialOutcome,
    WeightFacts,
)
from debugnn.doctor.trials import UNCHANGED, Trial

# --- how well the training went -------------------------------------------------------------------

# Steps before which nothing is said about how well a training goes: two probes of 20 steps.
JUDGED_AFTER = 40
# Skill below which a training is looked into: half of the way from guessing to perfect. Sound
# programs reach 0.83 and more.
FAILING = 0.5
# Skill that no learning needs: the standard error of an accuracy over 64 samples is up to 0.06.
AT_CHANCE = 0.12
# Loss over that of guessing above which it is that of guessing. A network that predicts what can be
# predicted of a language gets few symbols right and has a loss far below.
LOSS_AT_CHANCE = 0.9
# Skill of a simple model above which the training is compared with it: beyond AT_CHANCE.
SIMPLE_FINDS = 0.15
# Skill that a training may stay behind a simple model. Sound programs do by up to 0.14 (the
# autoencoder), so that staying behind accuses nobody without a sign of a cause.
BEHIND = 0.1
# The same where a simple model finds little: a training far behind is failing at any skill.
FAR_BEHIND = 0.25
# Skill above which a likelihood worse than guessing comes from few samples that the net is sure of.
NEARLY_PERFECT = 0.9
# A loss this many times its first value has diverged. Single losses of sound programs stay below
# 1.6 times the first; the median of the last tenth scatters less than single losses.
DIVERGED = 3.0
STILL_DIVERGED = 1.5
# A loss this many times its first value explains a NaN: numbers had grown before they overflowed.
OVERFLOWING = 1e3
OVERFLOWING_FROM = 1e-3  # the least first loss that this is measured from
# Level below which a mean of ten losses has left the plateau of guessing.
LEFT_PLATEAU = 0.93
# A plateau counts where it takes this share of the training, and at least so many steps. Sound
# programs leave it within 0.1 of their steps.
PLATEAU_SHARE = 0.15
PLATEAU_STEPS = 30
# Initial loss over that of guessing above which a start is rough. Sound programs start at 0.9 to
# 2.0.
ROUGH = 5.0

# --- trials ---------------------------------------------------------------------------------------

# Gain (1 − relative loss) by which a trial has learnt something at all.
LEARNT = 0.02
# A changed trial cures where its gain is this many times the unchanged one's and LEARNT more, or
# BETTER above it: twice as fast from little, clearly better from much.
CURED = 2.0
BETTER = 0.1
# Relative loss of the unchanged trial above which it does far worse than guessing; a change of
# anything but the rate then cures where it brings the loss down to CALM.
FAR_WORSE = 1.5
CALM = 1.05

# Gradients that reach the outputs over the loss function's own, by which a loss counts as not
# divided; rounding is far below.
UNDIVIDED = 0.02

# --- the learning rate ----------------------------------------------------------------------------

# Rate over its highest value below which hardly anything moves: two tenfold decays.
NOTHING = 0.01
# Share of the updates at such a rate, at the end of the training. A cosine or linear decay to zero
# spends 6 % and 1 % there, an exponential one over four orders of magnitude a half.
MOST = 0.8

# --- the loss function ----------------------------------------------------------------------------

# The loss of a doubled batch over that of the batch is 2 for a sum and 1 for a mean.
SUM_TOLERANCE = 0.02
# Loss of perfect outputs over that of the best constant ones above which they are out of
# reach: 0.63 for a softmax applied twice to ten classes, 0 for a sound loss.
UNREACHABLE = 0.2
# Relative change of a loss that ignores a shift of all logits; an L2 term on logits adds < 1 %.
SHIFT_TOLERANCE = 0.01
# Where more confidence in right outputs costs again, labels are smoothed: the loss at the most
# confident outputs over the lowest.
SMOOTHED = 1.5
SMOOTHED_BY = 1e-3

# --- layers ---------------------------------------------------------------------------------------

# Probes up to this step are early: gradients still show the initialisation.
EARLY = 8
# Probes whose updates are compared: the rate shows in the first of them.
UPDATE_PROBES = 6
# ‖Δw‖ / ‖w‖ of one step; TheDeepChecker (Ben Braiek & Khomh 2023) warns above 0.1. Sound programs
# have 0.03 to 0.45 in their first steps, so that a large update alone accuses nobody; rates that
# are 100 times too high have 1.5 and more.
LARGE_UPDATE = 0.05
# ‖w − w₀‖ / ‖w₀‖ after the whole training below which the weights have stayed where they were:
# sound programs have 0.5 and more, rates that are 1,000 times too low 0.016 and less.
STILL = 0.03
# Share of a layer's units that are zero for every sample. SageMaker Debugger warns at half of a
# layer; sound programs have up to 0.42, dead layers 1.
DEAD = 0.75
# Share of a layer's values at their bounds. TheDeepChecker warns at ρ > 0.85, SageMaker at half;
# sound programs have up to 0.45, saturated layers 1.
SATURATED = 0.6
# RMS · √fan_in: 1.41 by Kaiming's rule (He et al. 2015), 0.58 by PyTorch's default. Sound programs
# have 0.55 to 0.69, outsized ones 4.7 and more, too small ones 0.006 and less.
LARGE_GAIN = 4.0
SMALL_GAIN = 0.1
# Gain of constant weights whose size strikes before their symmetry does (the article's weight 100
# has 300 and more).
OUTSIZED = 100.0
# Share of the weight tensors with equal rows above which symmetry is the whole initialisation.
ALL_SYMMETRIC = 0.9
# Change of a sample's output by other samples' inputs, over the samples' spread; also the relative
# difference of two evaluations above which they differ. Rounding is below 1e-5; faulty programs
# have 0.39 and more.
MIXED = 0.01

_FLAT = ("sigmoid", "tanh", "hardsigmoid", "hardtanh")

# --- data -----------------------------------------------------------------------------------------

# Root mean square of inputs or targets far from 1 (LeCun et al. 1998, "Efficient BackProp", ask for
# mean 0 and variance 1); faulty programs have 100 and more.
FAR_SCALE = 8.0
NEAR_SCALE = 0.05
# |mean| over the standard deviation.
OFFSET = 5.0
# The widest feature's deviation over the tenth percentile. Sound programs have up to 30.
SPREAD = 100.0
# Deviations below this share of the root mean square are rounding: the samples are equal.
ROUNDING = 1e-6
# A class's samples over the commonest one's. Buda et al. 2018 (arXiv:1710.05381) find little harm
# above 0.1.
RARE = 0.1
# Median shift of the features' scale, in standard deviations or octaves. Random splits of sound
# programs differ by up to 0.14.
SHIFTED = 0.7
# Skill of a simple classifier at telling validation from training inputs (Lopez-Paz & Oquab 2017,
# arXiv:1610.06545): 0 for one distribution (up to 0.08 for random splits), 1 for two that do not
# overlap.
TOLD_APART = 0.8
# Share of validation samples that were trained on, or of training samples found in the validation
# set, above which both are one set; the validation set must then be as large as the training set.
SAME_SET = 0.95
SAME_SIZE = 0.9


def skill(evidence: Evidence) -> float | None:
    """Return how well the training samples are fitted: 0 as by guessing, 1 perfectly.

    The better of evaluation mode and batch statistics counts, because early running averages are
    far off. −∞ after a loss that was not finite. None where the task is unknown.
    """
    outcome = evidence.outcome
    if outcome.nonfinite_step is not None:
        return -math.inf
    scores = [fitted(score, evidence) for score in (outcome.train, outcome.train_mode)]
    known = [value for value in scores if value is not None]
    if known:
        return max(known)
    return None


def fitted(score: Score, evidence: Evidence) -> float | None:
    """Return a score's skill by accuracy, or by the classes' mean recall where that is higher.

    A loss that weights rare classes gives up accuracy for recall.
    """
    classes = evidence.classes
    if score.skill is None or score.balanced is None or not classes:
        return score.skill
    return max(score.skill, (score.balanced - 1 / classes) / (1 - 1 / classes))


def reached(evidence: Evidence) -> float:
    """Return the skill of a training that is `judged`, and so has one."""
    found = skill(evidence)
    return -math.inf if found is None else found


def judged(evidence: Evidence) -> bool:
    """Return whether the training was long enough to say how well it went."""
    enough = evidence.loop.steps >= JUDGED_AFTER
    return (enough or evidence.outcome.nonfinite_step is not None) and skill(evidence) is not None


def learns(evidence: Evidence) -> bool | None:
    """Return whether it learns its training samples at all; None where that cannot be told.

    That is so too where it seems to guess, but there are more classes than labels to measure by. It
    does not learn where its skill and its loss are those of guessing, where its loss diverged or is
    worse than that of guessing, and where it stays far behind a simple model.
    """
    if not judged(evidence):
        return None
    if evidence.outcome.nonfinite_step is not None:
        return False
    if ran_off(evidence) or behind(evidence):
        return False
    if at_chance(evidence) and not guessing_known(evidence):
        return None
    return not (at_chance(evidence) or worse_than_guessing(evidence))


def guessing_known(evidence: Evidence) -> bool:
    """Return whether the loss of guessing can be measured: there are as many labels as classes.

    Of fewer labels, as of a text whose words are the classes, most classes never come, and
    frequencies that are counted on them fit them better than any guess can.
    """
    labels = max(evidence.outcome.train.samples, evidence.outcome.train_mode.samples)
    return not labels or evidence.classes is None or evidence.classes <= labels


def at_chance(evidence: Evidence) -> bool:
    """Return whether it does no better than guessing, by its skill and by its loss."""
    if not judged(evidence):
        return False
    losses = [evidence.outcome.train.relative_loss, evidence.outcome.train_mode.relative_loss]
    lowest = min((loss for loss in losses if loss is not None), default=math.inf)
    return reached(evidence) < AT_CHANCE and lowest > LOSS_AT_CHANCE


def worse_than_guessing(evidence: Evidence) -> bool:
    """Return whether a likelihood is worse than that of guessing at a fair accuracy: the network is
    sure of what it gets wrong."""
    if not judged(evidence):
        return False
    trained = [evidence.outcome.train.relative_loss, evidence.outcome.train_mode.relative_loss]
    floor = loss_floor(evidence)
    likelihood = shift_invariant(evidence) or (
        evidence.task == "binary" and floor is not None and floor < UNREACHABLE
    )
    worse = all(loss is not None and loss > 1 for loss in trained)
    return bool(likelihood) and worse and reached(evidence) < NEARLY_PERFECT


def ran_off(evidence: Evidence) -> bool:
    """Return whether the loss diverged, and the training did not come back to fit half."""
    return judged(evidence) and diverged(evidence) and reached(evidence) < FAILING


def behind(evidence: Evidence) -> bool:
    """Return whether it learns far less than a simple model does."""
    simple = evidence.data.simple_skill
    if not judged(evidence) or simple is None or simple <= SIMPLE_FINDS:
        return False
    # As much as nearest neighbours find on samples left out: the data has no more to give.
    found = reached(evidence)
    return found < simple - FAR_BEHIND or (found < FAILING and found < simple - BEHIND)


def failing(evidence: Evidence) -> bool:
    """Return whether it is known not to learn."""
    return learns(evidence) is False


def short(evidence: Evidence) -> bool:
    """Return whether it fails, or stays visibly behind a simple model."""
    if not judged(evidence):
        return False
    simple = evidence.data.simple_skill
    return failing(evidence) or (simple is not None and reached(evidence) < simple - BEHIND)


def severity(evidence: Evidence) -> str:
    """Return `error` for a failing training, else `warning`."""
    return "error" if failing(evidence) else "warning"


def findable(evidence: Evidence) -> bool:
    """Return whether a simple model finds what the training does not."""
    simple = evidence.data.simple_skill
    return short(evidence) and (simple is None or simple > reached(evidence) + BEHIND)


def plateau(evidence: Evidence) -> int | None:
    """Return the steps before the loss left the level of guessing; None where not measured."""
    return evidence.outcome.first_below.get(LEFT_PLATEAU)


def learns_late(evidence: Evidence) -> bool:
    """Return whether it learnt only after a plateau that took a good part of the training."""
    steps = plateau(evidence)
    least = max(PLATEAU_STEPS, PLATEAU_SHARE * evidence.loop.steps)
    return steps is not None and steps >= least


def diverged(evidence: Evidence) -> bool:
    """Return whether the loss has grown far above its first value."""
    outcome = evidence.outcome
    if outcome.nonfinite_step is not None:
        return True
    first, highest, last = outcome.first_loss, outcome.highest_loss, outcome.last_loss
    if first is None or highest is None or last is None:
        return False
    return highest > DIVERGED * abs(first) + 1e-9 or last > STILL_DIVERGED * abs(first)


def overflowed(evidence: Evidence) -> bool:
    """Return whether a non-finite number ended a divergence, and no operation was invalid."""
    found = evidence.nonfinite
    if found is None:
        return evidence.outcome.nonfinite_step is not None and not evidence.data.nonfinite_samples
    if found.where in ("input", "target"):
        return False
    if found.where in ("parameter", "buffer", "update"):
        return found.step > 0 and (found.overflow or _diverged_before(evidence, found.step))
    return found.overflow or found.where == "unknown" or _diverged_before(evidence, found.step)


def _diverged_before(evidence: Evidence, step: int) -> bool:
    first, highest = evidence.outcome.first_loss, evidence.outcome.highest_loss
    if first is None or highest is None or not math.isfinite(first):
        return False
    return step > 0 and highest > OVERFLOWING * max(abs(first), OVERFLOWING_FROM)


def rough_start(evidence: Evidence) -> bool:
    """Return whether it began with outsized weights and a high loss, and did not learn fully."""
    initial = evidence.outcome.initial.relative_loss
    return (
        judged(evidence)
        and initial is not None
        and initial > ROUGH
        and reached(evidence) < NEARLY_PERFECT
        and extreme_gain(evidence, large=True) is not None
    )


# --- trials ---------------------------------------------------------------------------------------


def cured(evidence: Evidence, *trials: Trial) -> Trial | None:
    """Return the trial, the best of those given, that learns where the unchanged one does not.

    On the first set of batches. `shown_by` asks the second one too.
    """
    run = {trial: evidence.trials[trial.name] for trial in trials if trial.name in evidence.trials}
    unchanged = evidence.trials.get(UNCHANGED.name)
    if unchanged is None or unchanged.steps == 0:
        return None
    scores = {t: _cure(t, o.end, unchanged.end) for t, o in run.items() if o.steps}
    return max((t for t in scores if scores[t] > 0), key=scores.__getitem__, default=None)


def shown_by(evidence: Evidence, cure: Trial | None) -> str:
    """Return the confidence that a cure gives: shown where a second set of batches confirms it."""
    unchanged = evidence.trials.get(UNCHANGED.name)
    changed = None if cure is None else evidence.trials.get(cure.name)
    if cure is None or changed is None or unchanged is None:
        return "suspected"
    if changed.end_again is None or unchanged.end_again is None:
        return "suspected"
    return "shown" if _cure(cure, changed.end_again, unchanged.end_again) > 0 else "suspected"


def _cure(trial: Trial, end: float, unchanged: float) -> float:
    """Return how well a trial cures, 0 where it does not.

    Args:
        end: its relative loss at the end.
        unchanged: the same of the unchanged trial.
    """
    if (not math.isfinite(unchanged) or unchanged > FAR_WORSE) and trial.lr == 1.0 and end < CALM:
        # Far worse than guessing: a change that leaves the rate alone tells enough where it brings
        # the loss to that of guessing. A lower rate does so without curing anything.
        return 2.0 - end
    gain, base = _gain(end), _gain(unchanged)
    return gain if gain >= min(CURED * base + LEARNT, base + BETTER) else 0.0


def _gain(end: float) -> float:
    """How much of the way from the best constant predictor to a perfect one was gone."""
    return max(0.0, 1 - end) if math.isfinite(end) else 0.0


def trial_numbers(evidence: Evidence, *trials: Trial) -> dict[str, float]:
    """Return the relative losses at the end of trials: 1 is the best constant predictor."""
    run = (trial for trial in (UNCHANGED, *trials) if trial.name in evidence.trials)
    return {f"trial: {trial.name}": evidence.trials[trial.name].end for trial in run}


# --- the learning rate ----------------------------------------------------------------------------


class Fall(NamedTuple):
    """A learning rate that is next to nothing from the update `start` on.

    Rates of the group that has the highest.
    """

    start: int
    updates: int
    highest: float
    lowest: float


def vanished_rate(evidence: Evidence) -> Fall | None:
    """Return how a schedule takes all rates to nothing early in a training that has not learnt
    all by then; None where none does."""
    points = evidence.optimizer.rates
    if not judged(evidence) or len(points) < 2 or reached(evidence) > NEARLY_PERFECT:
        return None
    if len({len(point) for point in points}) > 1:
        return None  # groups were added
    updates = int(points[-1][0]) + 1
    highest = [max(rates) for rates in list(zip(*points, strict=True))[1:]]
    above = [
        index
        for index, (_, *rates) in enumerate(points)
        if any(r > NOTHING * h for r, h in zip(rates, highest, strict=True))
    ]
    if not above or above[-1] + 1 == len(points):
        return None
    start = int(points[above[-1] + 1][0])
    if updates - start < MOST * updates:
        return None
    group = max(range(len(highest)), key=highest.__getitem__)
    return Fall(start, updates, highest[group], points[-1][1 + group])


def constant_rate_learns_more(evidence: Evidence) -> TrialOutcome | None:
    """Return the trial at the constant highest rate, where it gets farther in its few steps than
    the whole training did, on two sets of batches."""
    constant = evidence.trials.get(UNCHANGED.name)
    own = evidence.outcome.train.relative_loss
    if constant is None or own is None or constant.end_again is None or not math.isfinite(own):
        return None
    gains = _gain(constant.end), _gain(constant.end_again)
    return constant if min(gains) > _gain(own) + LEARNT else None


# --- the loss function ----------------------------------------------------------------------------


def summed(evidence: Evidence) -> bool:
    """Return whether the loss adds up over the batch."""
    doubling = evidence.loss.doubling
    return evidence.loss.scalar and doubling is not None and abs(doubling - 2) < SUM_TOLERANCE


def better_when_right(evidence: Evidence) -> bool | None:
    """Return whether the loss is lower where the outputs are right; None where it cannot be told.

    A loss whose sign was flipped goes below zero. A loss that does not (of a distance, say) may
    have another idea of what is right, so that a higher value proves nothing.
    """
    pairs = evidence.loss.rewards
    values = [value for pair in pairs for value in pair]
    if not values or not all(map(math.isfinite, values)):
        return None
    if any(right < wrong for right, wrong in pairs):
        return True
    return False if evidence.task == "classes" or min(values) < 0 else None


def loss_floor(evidence: Evidence) -> float | None:
    """Return the loss of perfect outputs over that of the best constant ones.

    None where it means nothing: the constant's loss is not positive, labels are smoothed, or it
    cannot be told what the loss rewards.
    """
    loss = evidence.loss
    if loss.best is None or loss.constant is None or not loss.constant > 0:
        return None
    if evidence.task == "binary" and better_when_right(evidence) is None:
        return None
    if loss.confident is not None and loss.confident > SMOOTHED * loss.best + SMOOTHED_BY:
        return None
    return loss.best / loss.constant


def shift_invariant(evidence: Evidence) -> bool | None:
    """Return whether adding a constant to all outputs of a sample leaves the loss as it is."""
    if evidence.task == "binary":
        return False if evidence.loss.squared else None
    change = evidence.loss.shift_change
    return None if change is None else change <= SHIFT_TOLERANCE


def undivided_passes(evidence: Evidence) -> int | None:
    """Return how many backward passes are added up for an update, where their loss is not divided
    by that number; None where it is, or where there is one pass."""
    counts, scale = evidence.loop.passes_per_update, evidence.loop.gradient_scale
    passes = statistics.mode(counts) if counts else 1
    if passes < 2 or scale is None or abs(scale - 1) > UNDIVIDED:
        return None
    return passes


# --- layers ---------------------------------------------------------------------------------------


def _early(evidence: Evidence) -> list[Probe]:
    return [probe for probe in evidence.probes if probe.step <= EARLY]


def largest_update(evidence: Evidence) -> tuple[float, str, int]:
    """Return the largest ‖Δw‖ / ‖w‖ of the first probes, the weight's name and the step."""
    found = (0.0, "", 0)
    for probe in evidence.probes[:UPDATE_PROBES]:
        for name, layer in probe.layers.items():
            if layer.update is not None and layer.weight > 0:
                ratio = layer.update / layer.weight
                if ratio > found[0]:
                    found = (ratio, name, probe.step)
    return found


def gradient_ratios(evidence: Evidence) -> list[tuple[float, str, str]]:
    """Return ‖g_first‖ / ‖g_last‖ and both weights' names, for each early probe that has it."""
    ratios = [_gradient_ratio(evidence, probe) for probe in _early(evidence)]
    return [ratio for ratio in ratios if ratio is not None]


def _gradient_ratio(evidence: Evidence, probe: Probe) -> tuple[float, str, str] | None:
    known = {n: f.gradient for n, f in probe.layers.items() if f.gradient is not None}
    layers = [(w.name, known[w.name]) for w in evidence.weights if w.name in known]
    if len(layers) < 2 or not all(math.isfinite(g) for _, g in layers) or layers[-1][1] == 0:
        return None
    first, last = layers[0], layers[-1]
    return first[1] / last[1], first[0], last[0]


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


Stuck = tuple[float, str, int, bool]


def _stuck(
    evidence: Evidence, share: Callable[[ActivationFacts], float | None], limit: float
) -> Stuck | None:
    """The first share of any layer that reaches `limit` (the largest of that step), the layer, the
    step, and whether that was the first step of all."""
    worst: Stuck | None = None
    for probe in evidence.probes:
        for activation in probe.activations:
            value = share(activation)
            if value is None or value < limit:
                continue
            if worst is None or (probe.step == worst[2] and value > worst[0]):
                worst = (value, activation.layer, probe.step, probe.step == 0)
    return worst


def dead_units(evidence: Evidence) -> Stuck | None:
    """Return the share of dead units, layer, step, and whether they were dead from the start."""
    return _stuck(evidence, lambda a: a.dead, DEAD)


def saturated_values(evidence: Evidence) -> Stuck | None:
    """Return the share of saturated values, layer, step, and whether from the start."""
    return _stuck(evidence, lambda a: a.saturated, SATURATED)


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


def symmetric_layer(evidence: Evidence) -> WeightFacts | None:
    """Return the first hidden layer whose units start equal and are told apart by nothing after."""
    weights = evidence.weights
    if len(weights) < 2:
        return None
    constant = sum(w.identical_rows for w in weights) / len(weights)
    for layer, following in itertools.pairwise(weights):
        if not layer.identical_rows:
            continue
        if following.identical_columns and (constant >= ALL_SYMMETRIC or short(evidence)):
            return layer
        if failing(evidence):
            return layer
    return None


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


# --- data -----------------------------------------------------------------------------------------


def constant_inputs(evidence: Evidence) -> bool:
    """Return whether all kept samples have one input, up to rounding."""
    data = evidence.data
    if data.distinct == 1:
        return True
    if data.largest_std is None or data.rms is None:
        return False
    return data.largest_std <= ROUNDING * max(data.rms, 1e-30)


def odd_inputs(evidence: Evidence) -> str | None:
    """Return what is unusual about the inputs' scale, as a phrase; None if nothing is."""
    data = evidence.data
    if not data.floating or data.rms is None or data.mean is None:
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


def rarest_share(evidence: Evidence) -> float:
    """Return the rarest class's training samples over the commonest one's; 1 without classes."""
    counts = [n for n in evidence.data.class_counts.values() if n > 0]
    return min(counts) / max(counts) if len(counts) > 1 else 1.0


def same_set(evidence: Evidence) -> bool:
    """Return whether validation is the training set itself."""
    data = evidence.data
    if (data.covered or 0.0) > SAME_SET:
        return True
    if data.overlap is None or data.validation_size is None or data.trained_on is None:
        return False
    return data.overlap > SAME_SET and data.validation_size >= SAME_SIZE * data.trained_on


def last_validation(evidence: Evidence) -> Score | None:
    """Return the score of the latest validation, None without one."""
    validations = evidence.outcome.validations
    return validations[-1].score if validations else None


# --- words ----------------------------------------------------------------------------------------


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return names in one phrase: the first ones, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def module_of(parameter: str) -> str | None:
    """Return the name of the module that holds a parameter, None for the model itself."""
    return parameter.rpartition(".")[0] or None


_IMAGE_AXES = 4  # (B, C, H, W)


def relu_override(evidence: Evidence) -> str:
    """Return the override that puts ReLUs in: the article's net is for images alone."""
    images = evidence.data.axes == _IMAGE_AXES
    return "model=relu_net" if images else "model.activation._target_=torch.nn.ReLU"
