"""Features of a table that give the target away."""

from collections.abc import Iterator
from itertools import pairwise

from debugnn.doctor.causes.cause import Sign
from debugnn.doctor.causes.signals.skill import held_out, judged, reached
from debugnn.doctor.evidence import Evidence

# Different samples below which a share is too uncertain to accuse anybody.
SAMPLES = 50
# Share of a feature's variance that the target explains: 1 for a copy of the label; sound programs
# have up to 0.78, the petals of scikit-learn's iris 0.93 to 0.95.
LEAKED = 0.99
# Squared rank correlation of a feature with a target of many values, from which both have one
# order.
LEAKED_RANKS = 0.99999
RANKED_KINDS = 20
# A feature of this share stands out where the next one's is lower by DROP.
STANDS_OUT = 0.8
DROP = 0.2
# Features below which none can stand out from the others.
FEATURES = 8
# Classes that lie apart in most features: no single feature gives them away.
ALL_TELL = 0.8
# Share that a feature has in the training, and how much of it is left on validation samples, where
# it was made from the training targets; and the difference of the two correlations in standard
# errors. Random splits of sound programs have up to 3.5 errors.
TELLS_TRAINING = 0.2
LEFT = 0.3
ERRORS = 8.0
# Share of the listed features that are lost, above which the whole validation set is another.
MOST_LOST = 0.5
# Skill by which the training is ahead of the validation then.
AHEAD = 0.1
# What the targets explain of all other features together, from which these tell something; where
# they lose it too, it is the validation targets that belong to other samples.
OTHERS_TELL = 0.1
# Pairs of equal values that as many values would hold on average, were they drawn from as many
# steps as a feature's: where it holds none, its values are no measurements, but numbers that are
# given out one by one.
EQUAL_PAIRS = 20.0
# Skill of such a feature alone, and the share of what all others leave that it explains: the file
# was sorted by class, or written class by class.
COUNTER_TELLS = 0.85
COUNTER_EXPLAINS = 0.5
# Share of another feature's variance that it explains, above which others are made of it: points on
# an axis, beside their squares. What goes with the class alone is less, where all others together
# leave much of the class.
COORDINATE = 0.9


def feature_is_target(evidence: Evidence) -> Iterator[Sign]:
    """A feature that says the target outright."""
    data = evidence.data
    share = _share(evidence)
    if share is not None and share > LEAKED:
        telling = sum(s > LEAKED for s in data.feature_shares)
        yield _sign("error", evidence, share, max(telling, 1), "alone gives the target away")


def feature_rises_with_target(evidence: Evidence) -> Iterator[Sign]:
    """A feature that is a function of the target, as its logarithm: it rises with it, or falls, all
    along."""
    data = evidence.data
    share = data.rank_share
    if share is None or _are_few(evidence):
        return
    # A value may be a function of one of few features by right; a survival time is of none.
    if data.features < FEATURES and evidence.loss.time_column is None:
        return
    if share > LEAKED_RANKS and (data.target_kinds or 0) > RANKED_KINDS:
        yield Sign(
            "error",
            f"input feature {data.rank_feature} and the target put the samples in the same order "
            f"(squared rank correlation {share:.6f}): one is a function of the other, such as its "
            "logarithm",
            "leave this feature out if it is made from the target, or is known only after it",
            evidence={"squared_rank_correlation": share, "features": [data.rank_feature]},
        )


def feature_stands_out(evidence: Evidence) -> Iterator[Sign]:
    """A few features that tell far more than all others. Tables have informative features, so
    this is a note."""
    shares = evidence.data.feature_shares
    share = _share(evidence)
    if share is None or share > LEAKED or evidence.data.features < FEATURES or len(shares) < 2:
        return
    drops = [high - low for high, low in pairwise(shares)]
    largest = max(range(len(drops)), key=drops.__getitem__)
    if drops[largest] > DROP and shares[largest] > STANDS_OUT:
        yield _sign("note", evidence, share, largest + 1, "tells more than all others together")


def tells_training_alone(evidence: Evidence) -> Iterator[Sign]:
    """A feature that goes with the training targets, and hardly with those of validation samples:
    a mean of targets that holds the sample's own one, as a target encoding may."""
    data = evidence.data
    lost = [
        each
        for each in data.lost_shares
        if each.errors > ERRORS
        and each.training > TELLS_TRAINING
        and each.validation < LEFT * each.training
    ]
    if not lost or len(lost) > MOST_LOST * len(data.lost_shares) or not judged(evidence):
        return
    rest = [each for each in data.lost_shares if each not in lost]
    told, tell = sum(each.training for each in rest), sum(each.validation for each in rest)
    if told > OTHERS_TELL and tell < LEFT * told:
        return
    kept = held_out(evidence)
    if kept is None or not reached(evidence) - kept >= AHEAD:
        return
    first, count = lost[0], len(lost)
    others = "" if count == 1 else f" ({count - 1} more alike)"
    yield Sign(
        "error",
        f"input feature {first.feature}{others}: the targets explain {100 * first.training:.0f} % "
        f"of its variance among training samples and {100 * first.validation:.0f} % among "
        f"validation samples, {first.errors:.0f} standard errors apart; the skill falls from "
        f"{reached(evidence):.2f} to {kept:.2f}",
        "compute what is made of targets (a category's mean target, say) without the sample's own "
        "target: out of fold, as for new samples; or leave it out",
        evidence={
            "features": [each.feature for each in lost],
            "share_in_training": first.training,
            "share_in_validation": first.validation,
            "standard_errors": first.errors,
            "train_skill": reached(evidence),
            "validation_skill": kept,
        },
        confidence="shown",
        override=None,
        harm="the network relies on what the training targets put into this feature, which new "
        "samples do not have",
    )


def counter_tells_class(evidence: Evidence) -> Iterator[Sign]:
    """A feature that numbers the samples, in a file where their order tells the class.

    Where several features number the samples they are ranks, which measurements are turned into;
    where others are functions of it, it is a coordinate, as of points that are evenly spaced.
    """
    facts = evidence.data.counter
    if facts is None or facts.counting > 1 or facts.told > COORDINATE:
        return
    if _are_few(evidence):
        return
    pairs = facts.values * (facts.values - 1) / (2 * (facts.steps + 1))
    explained = facts.skill - facts.skill_of_others
    if pairs < EQUAL_PAIRS or facts.skill < COUNTER_TELLS:
        return
    if explained < COUNTER_EXPLAINS * (1 - facts.skill_of_others):
        return
    yield Sign(
        "error",
        f"input feature {facts.feature} only counts: {facts.values} samples have {facts.values} "
        f"different values, all of them whole numbers of steps apart, as row numbers have; it "
        f"alone tells the class with skill {facts.skill:.2f}, all other features with "
        f"{facts.skill_of_others:.2f}",
        "leave the row number or identifier out of the features (index_col=0 in pandas.read_csv)",
        evidence={
            "feature": facts.feature,
            "values": facts.values,
            "steps": facts.steps,
            "skill_of_feature": facts.skill,
            "skill_of_others": facts.skill_of_others,
        },
        override=None,
    )


def _are_few(evidence: Evidence) -> bool:
    """Return whether there are too few samples, or the same few come again and again."""
    data = evidence.data
    return data.samples < SAMPLES or 0 < data.distinct < SAMPLES


def _share(evidence: Evidence) -> float | None:
    """The largest share of a feature's variance that the target explains; None where it proves
    nothing."""
    data = evidence.data
    if not data.feature_shares or _are_few(evidence):
        return None
    median = data.feature_share_median
    apart = data.features >= FEATURES and median is not None and median > ALL_TELL
    return None if apart else data.feature_shares[0]


def _sign(severity: str, evidence: Evidence, share: float, count: int, what: str) -> Sign:
    features = evidence.data.feature_order[:count]
    shown = ", ".join(map(str, features[:5]))
    return Sign(
        severity,
        f"input feature {shown} {what} ({100 * share:.1f} % of its variance)",
        "leave this feature out if it is made from the target",
        evidence={"share": share, "features": features[:32]},
    )
