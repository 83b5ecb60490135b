"""Classes that are too rare to be learnt."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.data import RARE
from debugnn.doctor.causes.signals.outcome import AT_CHANCE, severity, short
from debugnn.doctor.causes.signals.skill import (
    JUDGED_AFTER,
    NEARLY_PERFECT,
    judged,
    last_validation,
    reached,
)
from debugnn.doctor.causes.signals.wording import IMAGE_AXES, listed
from debugnn.doctor.evidence import Evidence, Score

# A class is rare if its training samples are at most this share of the commonest class's.
LOOKED_AT = 0.2
# Recall of a rare class above which it is learnt well enough.
RECOGNISED = 0.6
# Recall and precision of a simple model above which a class can be told from the others, and how
# much better than the network's recall they are: twice the standard error of a recall of ten
# samples. Where a class is only likelier than another one, no model has such a precision.
TOLD = 0.5
CLEARLY = 0.3
# Recall on either half of the validation samples up to which a class is never recognised; and
# samples of it in both halves, at least. Of six in either a network that is right about three in
# ten recognises none at all in one of 70 cases.
NEVER = 0.1
OF_CLASS = 12
# How many times as frequent a class is in the validation as in the training, or as the outputs say
# on average. Outputs that were trained on the same shares are right on average; the share of 12
# samples scatters by 29 %.
MORE_FREQUENT = 3.0
# Recall minus false alarms of a simple model, half of the way from guessing to perfect; and the
# share of right answers that may be given up for a class.
INFORMED = 0.5
GIVEN_UP = 0.1
# Weight of a class over the mean one, below which its samples count for nothing.
COUNTS_FOR_NOTHING = 1e-3
# Different symbols of a batch that a class is the label of, from which it fills up no sequence: one
# symbol does, beside a few with a meaning of their own, as the end of a sentence.
SYMBOLS = 5
# Weight of the rarest class's samples over the commonest one's, and their numbers, below which the
# weights make classes rarer still; and what a rarer one of two classes may weigh more all the same.
WEIGHED_LESS = 0.6
NO_ORDER = 0.1
# Samples of a class that as many labels would hold on average, by its share in the validation, from
# which none at all is no chance: e^-20.
EXPECTED = 20.0
# Share of the validation's targets that are others than the only one that was trained on; and how
# far the loss may be from the loss function's value, where that is all of it.
OTHERS = 0.05
WHOLE_LOSS = 0.01
# Share of batches that hold one class alone, of data that are sorted: all but those in which one
# class ends and the next begins. The share of shuffled batches above which it may be chance.
ONE_CLASS = 0.5
BY_CHANCE = 0.1
# Batches of the same class in a row, over those that follow each other by chance where each batch
# holds one class. Real and made-up batches of a discriminator take turns.
IN_A_ROW = 1.4


def rare_classes(evidence: Evidence, score: Score) -> dict[int, float]:
    """Return the recalls of the rare classes in a score, of those that were measured."""
    counts = evidence.data.class_counts
    most = max(counts.values(), default=0)
    return {c: r for c, r in score.recalls.items() if counts.get(c, 0) < LOOKED_AT * most}


def unrecognised_class(evidence: Evidence) -> Iterator[Sign]:
    """A rare class that the network does not recognise, and that a comparison shows to be one
    that could be recognised.

    Of tokens and other positions many are rare by nature, and some of them cannot be predicted. The
    pixels of an image are of few classes.
    """
    counts = {c: n for c, n in evidence.data.class_counts.items() if n > 0}
    pixels = evidence.data.axes == IMAGE_AXES and evidence.data.floating
    known = evidence.task in ("classes", "binary") and (pixels or not evidence.positions)
    if not known or len(counts) < 2 or not judged(evidence):
        return
    rarest, commonest = min(counts, key=counts.__getitem__), max(counts.values())
    score = last_validation(evidence) or evidence.outcome.train
    recalls = rare_classes(evidence, score) or rare_classes(evidence, evidence.outcome.train)
    if counts[rarest] / commonest > RARE or not recalls:
        return
    worst = min(recalls, key=recalls.__getitem__)
    if recalls[worst] > RECOGNISED:
        return
    simple = evidence.data.simple_recognition
    told = {
        c: simple[c]
        for c, recall in recalls.items()
        if simple.get(c, 0.0) >= TOLD and simple[c] > recall + CLEARLY and recall <= RECOGNISED
    }
    better = max(told, key=lambda c: told[c] - recalls[c], default=None)
    what = "" if better is None else (
        f"; a simple model that weighs all classes alike finds {100 * told[better]:.0f} % of class "
        f"{better}"
    )  # fmt: skip
    could = None if better is not None else could_be_recognised(evidence, recalls)
    if could is not None:
        what = f"; {could.how}"
    yield Sign(
        "warning",
        f"class {rarest} has {counts[rarest]} training samples where the commonest has "
        f"{commonest}, and only {100 * recalls[worst]:.0f} % of a rare class's samples are "
        f"recognised{what}",
        evidence={
            "counts": counts,
            "worst_recall": recalls[worst],
            "balanced_accuracy": score.balanced,
            "simple_model": told,
            **({} if could is None else could.numbers),
        },
        confidence="suspected" if better is None and could is None else "shown",
    )


class Comparison(NamedTuple):
    """What does better at a rare class, and its numbers."""

    how: str
    numbers: dict[str, Any]


def could_be_recognised(evidence: Evidence, rare: Mapping[int, float]) -> Comparison | None:
    """Return what shows that a rare class is not recognised because of the classes' shares alone.

    Each half of the validation samples is judged by what was fitted to the other half. One of two
    things shows it:

    - The network itself, if its outputs tell the class from the others once they are adjusted to
      the classes' shares in the validation. The adjustment does not change outputs whose
      probabilities are right already.
    - A simple model, if the network never predicts the class, and the class was much rarer in the
      training or the outputs give it a much lower probability than its share.

    Args:
        evidence: of the training.
        rare: rare classes and their recall.
    """
    facts = evidence.outcome.adjusted
    if facts is None:
        return None
    missed = [c for c, r in rare.items() if r <= RECOGNISED and facts.counts.get(c, 0) >= OF_CLASS]
    for c in missed:
        before, recall, precision = (
            found[c] for found in (facts.recalls, facts.recalls_after, facts.precisions_after)
        )
        gained = min(after - was for was, after in zip(before, recall, strict=True))
        if gained >= CLEARLY and min(precision) >= TOLD and max(facts.lost) <= GIVEN_UP:
            return Comparison(
                f"the same outputs, with a number added to each class's, recognise "
                f"{100 * min(recall):.0f} % of class {c}",
                {"recall_after_shift": recall, "precision_after_shift": precision},
            )
    counts, told = evidence.data.class_counts, facts.told
    for c in missed:
        share, trained = facts.counts[c] / facts.samples, counts[c] / sum(counts.values())
        expected = facts.expected[c]
        never = max(facts.recalls[c]) <= NEVER and share > MORE_FREQUENT * min(expected, trained)
        if never and c in told and min(told[c]) >= INFORMED:
            return Comparison(
                f"class {c} is {100 * share:.2g} % of the validation and {100 * trained:.2g} % of "
                f"what was trained on, the outputs give it {100 * expected:.2g} %, and a simple "
                "model that is fitted to half of the validation, and weighs all classes alike, "
                "tells it from the others in the other half (recall less false alarms: "
                f"{100 * min(told[c]):.0f} %)",
                {
                    "share": share,
                    "training_share": trained,
                    "expected_share": expected,
                    "simple_model_told": told[c],
                },
            )
    return None


def weighed_the_wrong_way(evidence: Evidence) -> Iterator[Sign]:
    """A loss that weighs classes the less, the rarer they are."""
    weights, counts = evidence.loss.class_weights, evidence.data.class_counts
    known = sorted((c for c in weights if counts.get(c)), key=counts.__getitem__)
    if len(known) < 2 or evidence.positions or not judged(evidence):
        return
    rarest, commonest = known[0], known[-1]
    if weights[commonest] == 0:
        return
    share, weight = counts[rarest] / counts[commonest], weights[rarest] / weights[commonest]
    if max(share, weight) > WEIGHED_LESS:
        return
    pairs = itertools.pairwise(known)
    if any(weights[fewer] > weights[more] * (1 + NO_ORDER) for fewer, more in pairs):
        return
    yield Sign(
        "note" if reached(evidence) > NEARLY_PERFECT else severity(evidence),
        f"the loss weighs a sample of class {rarest} {weight:.2g} times as much as one of class "
        f"{commonest}, and there are {share:.2g} times as many of them: the rarer a class is, the "
        "less it counts",
        "weight each class by the inverse of its share (total / (classes * count)), or "
        "pos_weight = negatives / positives",
        evidence={"weights": weights, "counts": {c: counts[c] for c in known}},
        confidence="certain",
        override=None,
        harm="a rare class counts for even less than its few samples do",
    )


def weighs_nothing(evidence: Evidence) -> Iterator[Sign]:
    """A class whose samples the loss does not count, and which is not recognised for it.

    Labels of many positions may have one that means nothing, as padding does: of one symbol alone.
    """
    weights, counts = evidence.loss.class_weights, evidence.data.class_counts
    left_out = {c for c in weights if weights[c] < COUNTS_FOR_NOTHING} | {*evidence.loss.ignored}
    left_out = {c for c in left_out if counts.get(c)}
    if not left_out or not judged(evidence) or not _missed(left_out, evidence):
        return
    share = sum(counts[c] for c in left_out) / sum(counts.values())
    named = listed(map(str, sorted(left_out)))
    yield Sign(
        severity(evidence),
        f"the loss leaves out labels of class {named}: {100 * share:.0f} % of those that were "
        "trained on count for nothing",
        "leave ignore_index out, or give what is to be ignored a number that is no class (-100); "
        "weight each class by the inverse of its share (total / (classes * count)): a logarithm "
        "of shares is 0 for the commonest class",
        evidence={"classes": sorted(left_out), "weights": weights, "share": share},
        confidence="certain",
        override=None,
        harm="nothing keeps the network from giving these samples another class",
    )


def _missed(classes: set[int], evidence: Evidence) -> bool:
    """Return whether none of some classes is recognised, or all suffers; of positions, whether they
    are labels of several symbols."""
    if evidence.positions:
        return all(evidence.loss.ignored.get(c, 0) >= SYMBOLS for c in classes)
    train = evidence.outcome.train
    if short(evidence) or (train.skill is not None and train.skill < AT_CHANCE):
        return True
    return all(train.recalls.get(c, 1.0) <= NEVER for c in classes)


def one_target_alone(evidence: Evidence) -> Iterator[Sign]:
    """All training targets are one number, and validation has others.

    A discriminator may be handed the labels of real samples alone: its loss has another part too.
    """
    data, loop = evidence.data, evidence.loop
    ratios = loop.loss_ratio_low, loop.loss_ratio_high
    if data.one_target is None or data.other_targets < OTHERS or loop.steps < JUDGED_AFTER:
        return
    if any(ratio is None or abs(ratio - 1) > WHOLE_LOSS for ratio in ratios):
        return
    yield Sign(
        "error",
        f"every target that was trained on is {data.one_target:g}, while "
        f"{100 * data.other_targets:.0f} % of the validation's are others: one constant output is "
        "right for all of them",
        "train on samples of the other kind too: draw negative samples beside those that were "
        "seen, and see how the targets are made",
        evidence={"target": data.one_target, "others_in_validation": data.other_targets},
        confidence="certain",
        override=None,
        harm="nothing of the inputs has to be learnt",
    )


def never_trained_on(evidence: Evidence) -> Iterator[Sign]:
    """A class of the validation that no training sample has had, of so many that it is no chance.

    Samples of a batch that were drawn with copies count as often as they came.
    """
    held, counts = evidence.outcome.adjusted, evidence.data.class_counts
    drawn = sum(counts.values())
    if held is None or not held.samples or not drawn or evidence.positions:
        return
    shares = {c: number / held.samples for c, number in held.counts.items()}
    never = [c for c, share in shares.items() if not counts.get(c) and share * drawn > EXPECTED]
    if never:
        named, share = listed(map(str, never)), 100 * sum(shares[c] for c in never)
        what = f"class {named} has" if len(never) == 1 else f"classes {named} have"
        yield Sign(
            "warning",
            f"{what} not come once among {drawn} training labels, and "
            f"{'is' if len(never) == 1 else 'are'} {share:.2g} % of the validation",
            "look at the sampler and the split: weights of a WeightedRandomSampler are one for "
            "each sample, not one for each class; a file that is sorted by class is shuffled first",
            evidence={"classes": never, "training_labels": drawn, "validation_shares": shares},
            confidence="certain",
            override=None,
            harm="a class that is never seen is never learnt",
        )


def sorted_batches(evidence: Evidence) -> Iterator[Sign]:
    """Batches of one class each, one class after the other: the data are not shuffled."""
    data = evidence.data
    if evidence.task not in ("classes", "binary") or not judged(evidence):
        return
    share, by_chance, run = data.one_class_batches, data.one_class_by_chance, data.one_class_run
    drawn = max(sum(data.class_counts.values()), 1)
    again = sum((count / drawn) ** 2 for count in data.class_counts.values())
    # Of one class, all batches follow each other.
    if share < ONE_CLASS or by_chance > BY_CHANCE or run * (1 - again) < IN_A_ROW:
        return
    yield Sign(
        "note" if reached(evidence) > NEARLY_PERFECT else severity(evidence),
        f"{100 * share:.0f} % of the batches hold one class alone ({100 * by_chance:.2g} % would "
        f"by chance), {run:.3g} batches of the same class in a row: the training data are sorted "
        "by class, and each class is learnt at the others' expense",
        "shuffle the training data: DataLoader(..., shuffle=True), or a permutation of the samples "
        "before they are cut into batches",
        evidence={"one_class_batches": share, "by_chance": by_chance, "in_a_row": run},
        confidence="certain",
        override=None,
    )


CAUSE = Cause(
    name="class_imbalance",
    meaning="classes that are too rare to be learnt",
    kind=Kind.SYMPTOM,
    rules=(
        first_of(
            weighs_nothing,
            weighed_the_wrong_way,
            one_target_alone,
            never_trained_on,
            sorted_batches,
            unrecognised_class,
        ),
    ),
    fix="weight the loss by class, or sample the rare classes more often",
    harm="the common classes alone bring the loss almost as far down",
    source="Buda et al. 2018, arXiv:1710.05381; the article's claim 14",
    override="data.imbalance=1.0",
)
