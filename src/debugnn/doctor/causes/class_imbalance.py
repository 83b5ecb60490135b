"""Classes that are too rare to be learnt."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals import (
    NEARLY_PERFECT,
    RARE,
    judged,
    last_validation,
    reached,
    severity,
)
from debugnn.doctor.evidence import Evidence, Score

# Training samples over the commonest class's, of the classes whose recall is looked at.
LOOKED_AT = 0.2
# Recall of a rare class above which it is learnt well enough.
RECOGNISED = 0.6
# Share of batches that hold one class alone, of data that are sorted: all but those in which one
# class ends and the next begins. The share of shuffled batches above which it may be chance.
ONE_CLASS = 0.5
BY_CHANCE = 0.1
# Batches of the same class in a row. Real and made-up batches of a discriminator take turns.
IN_A_ROW = 2.0


def worst_recall(evidence: Evidence, score: Score) -> float | None:
    """Return the lowest recall of a rare class in a score, None where none was measured."""
    counts = evidence.data.class_counts
    most = max(counts.values(), default=0)
    rare = [c for c in score.recalls if counts.get(c, 0) < LOOKED_AT * most]
    return min((score.recalls[c] for c in rare), default=None)


def unrecognised_class(evidence: Evidence) -> Iterator[Sign]:
    """A class with few training samples, and a rare class that is not recognised."""
    counts = {c: n for c, n in evidence.data.class_counts.items() if n > 0}
    if evidence.task not in ("classes", "binary") or len(counts) < 2 or not judged(evidence):
        return
    rarest, commonest = min(counts, key=counts.__getitem__), max(counts.values())
    train = evidence.outcome.train
    score = last_validation(evidence) or train
    recall = worst_recall(evidence, score)
    if recall is None:
        recall = worst_recall(evidence, train)
    if counts[rarest] / commonest > RARE or recall is None or recall > RECOGNISED:
        return
    yield Sign(
        "warning",
        f"class {rarest} has {counts[rarest]} training samples where the commonest has "
        f"{commonest}, and only {100 * recall:.0f} % of a rare class's samples are recognised",
        evidence={"counts": counts, "worst_recall": recall, "balanced_accuracy": score.balanced},
    )


def sorted_batches(evidence: Evidence) -> Iterator[Sign]:
    """Batches of one class each, one class after the other: the data are not shuffled."""
    data = evidence.data
    if evidence.task not in ("classes", "binary") or not judged(evidence):
        return
    share, by_chance, run = data.one_class_batches, data.one_class_by_chance, data.one_class_run
    if share < ONE_CLASS or by_chance > BY_CHANCE or run < IN_A_ROW:
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
    rules=(first_of(sorted_batches, unrecognised_class),),
    fix="weight the loss by class, or sample the rare classes more often",
    source="Buda et al. 2018, arXiv:1710.05381; the article's claim 14",
    override="data.imbalance=1.0",
)
