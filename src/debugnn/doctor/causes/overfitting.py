"""A network that learns its training samples by heart."""

import math
from collections.abc import Iterator, Sequence
from statistics import median

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.data import TOLD_BY_EDGES
from debugnn.doctor.causes.signals.loss_course import overflowed
from debugnn.doctor.causes.signals.loss_function import summed
from debugnn.doctor.causes.signals.skill import fitted, held_out, judged
from debugnn.doctor.evidence import Evidence

# Skill on training samples below which nothing was learnt by heart.
LEARNT = 0.2
# Skill on training samples above that on validation samples, where the validation loss turned.
GAP = 0.2
# The same, over GAP, that needs no turn of the loss; and that needs a steep one.
WITHOUT_TURN = 2.0
WITH_STEEP_TURN = 0.5
# The validation loss over its lowest value: it has turned, and steeply. UMLAUT (Schoop et al. 2021)
# asks for a rise beside a falling training loss, SageMaker Debugger for 10 %.
TURNED = 1.1
TURNED_STEEPLY = 1.4
# Skill of a simple model, fitted to training samples, above the network's on validation samples.
BEATEN = 0.1
# How many times as frequent a class is in one set as in the other where their losses differ by it.
OTHER_SHARES = 3.0
# How many times as many samples the validation holds as the one batch of all steps.
MANY_TIMES = 4
# Validations that a turn is seen in, and samples that a skill is taken of.
VALIDATIONS = 3
SAMPLES = 20


def falls_behind(evidence: Evidence) -> Iterator[Sign]:
    """The skill on validation samples is far below that on training samples."""
    outcome = evidence.outcome
    validations = [v for v in outcome.validations if v.score.skill is not None]
    if not validations or not judged(evidence) or overflowed(evidence):
        return
    last = validations[-1].score
    trained, kept = fitted(outcome.train, evidence), held_out(evidence)
    if trained is None or trained < LEARNT or kept is None or last.samples < SAMPLES:
        return
    # A summed loss grows with the number of samples, which may differ between validations.
    values = {
        v.step: v.loss / (v.score.samples if summed(evidence) else 1)
        for v in validations
        if v.loss is not None and math.isfinite(v.loss)
    }
    losses = [] if drawn_otherwise(evidence) else list(values.values())
    risen, steadily = _rise(losses), _rise(_without_outliers(losses))
    gap = trained - kept - 0.5 / math.sqrt(last.samples)  # less what chance makes of so few
    turned = risen is not None and risen > TURNED
    transfer = evidence.data.transfer_skill
    beaten = transfer is not None and transfer > kept + BEATEN
    steeply = steadily is not None and steadily > TURNED_STEEPLY
    again = _same_few_samples(evidence)
    if not (
        gap > (WITHOUT_TURN if again is None else 1) * GAP
        or (gap > GAP and turned)
        or (gap > WITH_STEEP_TURN * GAP and steeply)
    ):
        return
    # Where samples compete with the others of their batch, as in contrastive learning, the skill is
    # that of telling the batch's samples apart, among which may be several that fit.
    compete = evidence.network.sample_axis is None and evidence.data.same_batch is False
    # The positive pairs of a graph's training are edges that it is given, and others' are not.
    told = (evidence.data.told_by_edges or 0) >= TOLD_BY_EDGES and not steeply
    seen = f"every step had the same {again} samples, and " if again else ""
    yield Sign(
        "note" if compete or told else "warning",
        f"{seen}the skill is {trained:.2f} on training and {kept:.2f} on validation samples"
        + (f", whose loss has risen to {risen:.2f} times its lowest" if turned else ""),
        "take another batch in each step: next(iter(loader)) inside the loop begins anew each time"
        if again
        else None,
        step=min(values, key=values.__getitem__) if turned else None,
        evidence={
            "train_skill": trained,
            "validation_skill": kept,
            "validation_loss_over_lowest": risen,
            "simple_model_skill": transfer,
        },
        # The counterfactuals: the weights of an earlier step had the lower loss; a simpler model of
        # the same training samples does better.
        confidence="certain" if again else "shown" if turned or beaten else "suspected",
    )


def _rise(losses: Sequence[float]) -> float | None:
    """Return the last loss over the lowest; None of too few, or where that is not positive."""
    if len(losses) < VALIDATIONS or not min(losses) > 0:
        return None
    return losses[-1] / min(losses)


def _without_outliers(losses: Sequence[float]) -> list[float]:
    """Return the medians of three losses that follow each other, but for the first and the last."""
    inner = [median(losses[place - 1 : place + 2]) for place in range(1, len(losses) - 1)]
    return [*losses[:1], *inner, *losses[-1:]]


def _same_few_samples(evidence: Evidence) -> int | None:
    """Return how many samples every step had, where these are few beside the validation's; None
    where steps differ, or the set is as large as a validation set lets expect."""
    data = evidence.data
    few = MANY_TIMES * data.distinct <= (data.validation_size or 0)
    loaded = data.same_batch and not data.same_tensor  # again and again, as from a loader
    return data.distinct if loaded and few and data.distinct else None


def drawn_otherwise(evidence: Evidence) -> bool:
    """Return whether a class is far rarer or more frequent in the validation than in the training.

    A sampler that draws all classes alike makes outputs that expect them so. Of the natural shares
    their loss rises as they get surer, while samples are told apart better.
    """
    held = evidence.outcome.adjusted
    counts, drawn = evidence.data.class_counts, sum(evidence.data.class_counts.values())
    if held is None or not held.samples or not drawn:
        return False
    shares = [
        (number / held.samples, counts.get(label, 0) / drawn)
        for label, number in held.counts.items()
    ]
    return any(max(pair) > OTHER_SHARES * min(pair) for pair in shares)


CAUSE = Cause(
    name="overfitting",
    meaning="a network that learns its training samples by heart",
    kind=Kind.SYMPTOM,
    rules=(falls_behind,),
    fix="stop earlier, regularise (dropout, weight decay, augmentation), or get more data",
    harm="what is learnt by heart does not help on new data",
    source="Prechelt 1998, Early stopping, but when?; the article's claims 10 to 12",
    override="reg=bn_dropout",
)
