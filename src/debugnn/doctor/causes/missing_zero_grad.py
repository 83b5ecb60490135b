"""Gradients that are added to those of earlier steps."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.evidence import Evidence

# Distance of the used gradient's direction from that of the old and new gradient's sum: rounding.
# Its distance from the new gradient alone is larger, or the two cannot be told apart: a layer may
# get a gradient of one direction in all steps.
NEAR = 1e-3
# The first distance over the second.
NEARER = 0.1
# Steps in which it was so, and their share of those compared: a single step may be a coincidence.
STEPS = 2
SHARE = 0.3


def added_gradients(evidence: Evidence) -> Iterator[Sign]:
    """Steps taken with gradients that an earlier step had used already."""
    loop = evidence.loop
    compared = {step for step, _, _ in loop.residues}
    added = sorted(
        {s for s, near, far in loop.residues if near < NEAR < far and near < NEARER * far}
    )
    if len(added) >= STEPS and len(added) >= SHARE * len(compared):
        yield Sign(
            severity(evidence),
            f"in {len(added)} of {len(compared)} steps that were compared the gradient was added "
            "to that of earlier steps, which had been used already",
            step=int(added[0]),
            evidence={"steps": len(added), "compared": len(compared)},
            line=loop.update_line,
        )


CAUSE = Cause(
    name="missing_zero_grad",
    meaning="gradients that are added to the previous step's",
    kind=Kind.CERTAIN,
    rules=(added_gradients,),
    fix="call optimizer.zero_grad() in every step",
    harm="steps grow, and old gradients point to where the loss was lowered already",
    source="pytorch issue 47175",
)
