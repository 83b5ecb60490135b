"""Classes that are too rare to be learnt."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import RARE, judged, last_validation
from debugnn.doctor.evidence import Evidence, Score

# Training samples over the commonest class's, of the classes whose recall is looked at.
LOOKED_AT = 0.2
# Recall of a rare class above which it is learnt well enough.
RECOGNISED = 0.6


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


CAUSE = Cause(
    name="class_imbalance",
    meaning="classes that are too rare to be learnt",
    kind=Kind.SYMPTOM,
    rules=(unrecognised_class,),
    fix="weight the loss by class, or sample the rare classes more often",
    harm="the common classes alone bring the loss almost as far down",
    source="Buda et al. 2018, arXiv:1710.05381; the article's claim 14",
    override="data.imbalance=1.0",
)
