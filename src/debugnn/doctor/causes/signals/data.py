"""The inputs and the labels."""

from collections.abc import Callable, Iterable

from debugnn.doctor.evidence import Evidence

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
# Share of the scored positions whose target is the symbol of the input there, or some positions on;
# the shares of other shifts must be lower, or all symbols are alike.
MATCH = 0.99
OTHER_MATCH = 0.9
# Share of pairs of nodes whose label says whether the graph has their edge: about one half where
# their edges were left out of the graph.
TOLD_BY_EDGES = 0.95


def constant_inputs(evidence: Evidence) -> bool:
    """Return whether all kept samples have one input, up to rounding."""
    data = evidence.data
    if data.distinct == 1:
        return True
    if data.largest_std is None or data.rms is None:
        return False
    return data.largest_std <= ROUNDING * max(data.rms, 1e-30)


def targets_differ(evidence: Evidence) -> bool:
    """Return whether the targets are known and are not all the same."""
    return (evidence.data.distinct_targets or 0) > 1


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


def shift(evidence: Evidence) -> float | None:
    """Return the skill of simple models at telling validation from training inputs.

    The lower one of that of all samples and that of samples with the same class shares: more
    samples of a class are no other kind of inputs.
    """
    return _of_same_shares(evidence, "shift", min)


def scale_shift(evidence: Evidence) -> float | None:
    """Return how far the inputs' scale has moved, in the same way."""
    return _of_same_shares(evidence, "scale_shift", min)


def transfer_skill(evidence: Evidence) -> float | None:
    """Return the skill of a simple model of training samples on validation samples.

    The higher one of that of all samples and that of samples with the same class shares.
    """
    return _of_same_shares(evidence, "transfer_skill", max)


def _of_same_shares(
    evidence: Evidence, name: str, better: Callable[[Iterable[float]], float]
) -> float | None:
    found = (getattr(facts, name, None) for facts in (evidence.data, evidence.data.same_shares))
    known = [value for value in found if value is not None]
    return better(known) if known else None


def inputs_differ(evidence: Evidence) -> bool:
    """Return whether validation inputs are of another kind or scale than the training's."""
    return (shift(evidence) or 0) > TOLD_APART or (scale_shift(evidence) or 0) > SHIFTED


def rarest_share(evidence: Evidence) -> float:
    """Return the rarest class's training samples over the commonest one's; 1 without classes."""
    counts = [n for n in evidence.data.class_counts.values() if n > 0]
    return min(counts) / max(counts) if len(counts) > 1 else 1.0
