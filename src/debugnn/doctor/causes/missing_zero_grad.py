"""Gradients that are added to those of earlier steps."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
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
# Updates of which all gradients but the last pass's were cleared, at least, and as a share of those
# looked at.
UPDATES = 3
MOST = 0.5


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


def cleared_too_often(evidence: Evidence) -> Iterator[Sign]:
    """Updates by the gradient of the last of several passes, which were to be added up."""
    loop = evidence.loop
    if loop.last_pass_updates >= max(UPDATES, MOST * loop.looked_for_erased):
        passes = loop.passes_per_update[-1] if loop.passes_per_update else None
        yield Sign(
            severity(evidence),
            f"{passes or 'several'} backward passes over different samples run before each update, "
            "and all gradients are cleared before each of them: the update knows the last one's "
            f"alone, in {loop.last_pass_updates} of {loop.looked_for_erased} updates that were "
            "looked at",
            "call optimizer.zero_grad() once for each update, before its first backward pass or "
            "after optimizer.step()",
            evidence={
                "passes": passes,
                "updates": loop.last_pass_updates,
                "updates_looked_at": loop.looked_for_erased,
            },
            line=loop.update_line,
            harm="most of the samples are computed for nothing, and steps are as noisy as those of "
            "a small batch",
        )


CAUSE = Cause(
    name="missing_zero_grad",
    meaning="gradients that are cleared too seldom, or too often",
    kind=Kind.CERTAIN,
    rules=(first_of(added_gradients, cleared_too_often),),
    fix="call optimizer.zero_grad() in every step",
    harm="steps grow, and old gradients point to where the loss was lowered already",
    source="pytorch issue 47175",
)
