"""Images that are moved or mirrored, whose targets are not, or not wholly."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Sign
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.preparations import TURNED, moved_apart
from debugnn.doctor.causes.signals.skill import NEARLY_PERFECT, judged, reached
from debugnn.doctor.evidence import Evidence


def moved_without_its_target(evidence: Evidence) -> Iterator[Sign]:
    """Training images that are flipped, turned or shifted, and their targets are not."""
    change, facts = moved_apart(evidence), evidence.data.alignment
    if change is None or facts is None:
        return
    fits = facts.turned if change == TURNED else facts.shifted
    yield Sign(
        "error",
        f"training images are {change} and their targets are not: what pixels tell of validation "
        f"targets (correlation {facts.validation:.2f}) holds for training targets "
        f"({facts.training:.2f}) only where these are {change} too ({fits:.2f})",
        "flip, shift or turn an image and its target together, by the same draw",
        evidence={
            "validation_correlation": facts.validation,
            "training_correlation": facts.training,
            "correlation_of_moved_targets": fits,
        },
        override=None,
        confidence="shown",
    )


def named_by_the_other_side(evidence: Evidence) -> Iterator[Sign]:
    """Points of mirrored images that keep their names: the left eye is the one on the right."""
    found = evidence.data.column_order
    if found is None or not judged(evidence) or reached(evidence) > NEARLY_PERFECT:
        return
    first, second = found.pair
    yield Sign(
        severity(evidence),
        f"of target values {first} and {second}, one is the larger in all validation samples, and "
        f"in {100 * found.reversed:.0f} % of the training samples it is the other one, by as much "
        f"({found.mixed} such pairs); {found.kept} pairs have one order in both: some training "
        "samples are mirrored, and their left and right targets are not exchanged",
        "where an image is mirrored, exchange the targets of left and right too: points = "
        "points[:, swapped], with the indices that each one has on the other side",
        evidence={"pair": list(found.pair), "reversed": found.reversed, "pairs": found.mixed},
        confidence="shown",
        override=None,
        harm="one look of a sample has two targets, between which the network can only take the "
        "middle",
    )
