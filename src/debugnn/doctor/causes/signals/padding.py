"""Padding at the ends of sequences that a loss counts as data."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Sign
from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.skill import judged
from debugnn.doctor.causes.signals.trials import goes_on_better
from debugnn.doctor.evidence import Evidence, TailFacts
from debugnn.doctor.trials import PADDED_ON, UNPADDED_ON, Trial

# Share of the scored positions above which padding is worth a word, the share of its symbol that
# must lie at the ends, and the share of the sequences that must end with it: a symbol that stands
# elsewhere too, or ends few sequences, has a meaning.
PADDING = 0.1
ONLY_THERE = 0.99
MOST = 0.5
# Lengths of runs at the ends, fewer than which may be a fixed form of the answer.
LENGTHS = 3
# Share of the scored positions from which padding is tried without: as many as all others.
LARGE_SHARE = 0.5
# Skill on the other symbols from which they are learnt in spite of the padding: sound programs
# reach 0.83 and more of all that they learn.
LEARNT_ALL_THE_SAME = 0.8


def padding_counted(evidence: Evidence) -> Iterator[Sign]:
    """Padding at the ends of sequences that the loss counts as data.

    It is easily learnt, makes the loss look better than it is, and often does no harm. It does
    where the trained weights learn clearly more of the other symbols if it is left out.
    """
    tail = _padding(evidence)
    if tail is None:
        return
    without = goes_on_better(evidence, UNPADDED_ON, PADDED_ON)
    beside = evidence.trials.get(PADDED_ON.name)
    numbers: dict[str, float | None] = {"padding_share": tail.share, "symbol": tail.symbol}
    shown = ""
    if without is not None and beside is not None:
        shown = (
            "; a copy that goes on without them learns more of the other symbols (their relative "
            f"loss in other batches falls from {without.start:.2f} to {without.end:.2f} in "
            f"{without.steps} steps, and to {beside.end:.2f} with the padding)"
        )
        numbers |= {
            "skill_of_others": tail.others.skill,
            "loss_before": without.start,
            f"trial: {UNPADDED_ON.name}": without.end,
            f"trial: {PADDED_ON.name}": beside.end,
        }
    yield Sign(
        severity(evidence) if shown else "note",
        f"{100 * tail.share:.0f} % of the positions that the loss averages over are padding: "
        f"symbol {tail.symbol}, at the ends of the sequences alone{shown}",
        f"leave it out: ignore_index={tail.symbol}, or a mask",
        evidence=numbers,
        override=None,
        confidence="shown" if shown else "suspected",
        harm="most of what the loss asks for is padding, and little of its gradient comes from the "
        "data"
        if shown
        else "the loss and the accuracy of the padding hide those of the data",
    )


def trials_without_padding(evidence: Evidence) -> Iterable[Trial]:
    """Go on with and without padding, where most of what the loss counts is padding and the other
    symbols are not learnt well."""
    tail = _padding(evidence)
    if tail is None or tail.share < LARGE_SHARE or not tail.can_be_left_out:
        return
    skill = tail.others.skill
    not_learnt = skill is not None and skill < LEARNT_ALL_THE_SAME
    if not_learnt and judged(evidence) and not diverged(evidence):
        yield from (PADDED_ON, UNPADDED_ON)


def promises_without_padding(evidence: Evidence) -> bool:
    """Return whether the trials without and with padding are worth a second set of batches."""
    return goes_on_better(evidence, UNPADDED_ON, PADDED_ON, confirmed=False) is not None


def _padding(evidence: Evidence) -> TailFacts | None:
    tail = evidence.data.tail
    if tail is None or tail.share < PADDING or tail.only_there < ONLY_THERE:
        return None
    return None if tail.sequences < MOST or tail.lengths < LENGTHS else tail
