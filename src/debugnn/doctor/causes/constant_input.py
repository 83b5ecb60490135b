"""Every sample has the same input."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.data import constant_inputs, targets_differ
from debugnn.doctor.evidence import Evidence

# Samples that must have been seen: fewer may be equal by chance in a small domain.
SAMPLES = 8
# Share of the batches whose samples are all equal: a loader that repeats one sample a batch.
BATCHES = 0.9


def equal_inputs(evidence: Evidence) -> Iterator[Sign]:
    """All samples are equal, or all samples of nearly every batch are.

    With batches of one sample, a network that is made for a single input is sound, unless targets
    differ.
    """
    data = evidence.data
    if data.constant_batches > BATCHES:
        share = 100 * data.constant_batches
        alike = f"in {share:.0f} % of the batches all inputs are the same"
    elif constant_inputs(evidence) and data.samples >= SAMPLES and targets_differ(evidence):
        alike = f"all {data.samples} kept samples have the same input"
    else:
        return
    yield Sign("error", alike, evidence={"samples": data.samples, "std": data.std})


CAUSE = Cause(
    name="constant_input",
    meaning="every sample has the same input",
    kind=Kind.CERTAIN,
    rules=(equal_inputs,),
    fix="look at what the data loader returns: the inputs are overwritten or never filled",
    harm="equal inputs tell nothing about targets that differ",
    source="identity: nothing can be learnt about targets from equal inputs",
)
