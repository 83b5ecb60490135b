"""A sample's output depends on other samples of its batch."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import MIXED, evaluations_differ, severity, short
from debugnn.doctor.evidence import Evidence

# How often the same samples came, over the number of steps, above which every step saw all of
# them: one graph or set, whose samples may be meant to depend on each other.
WHOLE = 0.9


def mixed_samples(evidence: Evidence) -> Iterator[Sign]:
    """In evaluation mode, outputs change as other samples' inputs do."""
    network = evidence.network
    if network.mixing is None or network.mixing <= MIXED:
        return
    if network.batch_softmax or evaluations_differ(evidence):
        return
    whole = (evidence.outcome.epochs or 0) >= WHOLE * evidence.loop.steps > 0
    layers = (name for name, change in network.mixing_layers.items() if name and change > MIXED)
    yield Sign(
        "note" if whole and not short(evidence) else severity(evidence),
        f"a sample's output changes by {100 * network.mixing:.2g} % when only other samples of the "
        "batch change, in evaluation mode",
        layer=next(layers, None),
        evidence={"relative_change": network.mixing},
    )


CAUSE = Cause(
    name="batch_mixing",
    meaning="a sample's output depends on other samples",
    kind=Kind.CERTAIN,
    rules=(mixed_samples,),
    fix="keep the batch axis apart: look for view or reshape where permute is meant, batch_first, "
    "and statistics or attention over axis 0",
    harm="a prediction depends on which other samples happen to be in the batch",
    source="Lightning issue 1237",
)
