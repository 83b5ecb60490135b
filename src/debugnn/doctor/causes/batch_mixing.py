"""A sample's output depends on other samples of its batch."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.network import MIXED, evaluations_differ
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.evidence import Evidence

# Sizes of batches beyond which each may be a set, or a sequence, of its own length. A loader makes
# two: full batches and a smaller last one.
SIZES = 2


def mixed_samples(evidence: Evidence) -> Iterator[Sign]:
    """In evaluation mode, outputs change as other samples' inputs do."""
    network, data = evidence.network, evidence.data
    if network.mixing is None or network.mixing <= MIXED:
        return
    if network.batch_softmax or evaluations_differ(evidence):
        return
    # The entries of one graph, or of a set, may be meant to depend on each other.
    one_set = data.same_batch is not False or data.batch_sizes > SIZES
    certain = network.sample_axis_told or not one_set
    layers = (name for name, change in network.mixing_layers.items() if name and change > MIXED)
    yield Sign(
        severity(evidence) if certain else "note",
        f"a sample's output changes by {100 * network.mixing:.2g} % when only other samples of the "
        "batch change, in evaluation mode",
        layer=next(layers, None),
        confidence="certain" if certain else "suspected",
        evidence={"relative_change": network.mixing},
    )


CAUSE = Cause(
    name="batch_mixing",
    meaning="a sample's output depends on other samples",
    kind=Kind.CERTAIN,
    rules=(mixed_samples,),
    fix="keep the batch axis apart: look for view or reshape where permute is meant, batch_first, "
    "and statistics or attention over axis 0. If samples lie along another axis, or depend on each "
    "other on purpose, say so: Doctor(..., sample_axis=1) or Doctor(..., sample_axis=None)",
    harm="a prediction depends on which other samples happen to be in the batch",
    source="Lightning issue 1237",
)
