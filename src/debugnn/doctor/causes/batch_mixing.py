"""A sample's output depends on other samples of its batch."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import MIXED, evaluations_differ, severity
from debugnn.doctor.evidence import Evidence

# Share of the batches that are the first one again above which each step saw one graph or one set,
# whose entries may be meant to depend on each other. At a probe a batch is the first one, or not.
WHOLE = 0.9
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
    whole = data.same_batch is None or data.same_batch >= WHOLE
    one_set = (whole or data.batch_sizes > SIZES) and not network.sample_axis_told
    layers = (name for name, change in network.mixing_layers.items() if name and change > MIXED)
    yield Sign(
        "note" if one_set else severity(evidence),
        f"a sample's output changes by {100 * network.mixing:.2g} % when only other samples of the "
        "batch change, in evaluation mode",
        layer=next(layers, None),
        confidence="suspected" if one_set else "certain",
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
    source="Lightning issue 1237",
)
