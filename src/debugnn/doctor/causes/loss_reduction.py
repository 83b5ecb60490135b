"""A loss that is summed over the batch, or gradients summed over batches."""

import math
from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.loss_function import summed, undivided_passes
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.parts import outweighed_part, part_skill
from debugnn.doctor.causes.signals.trials import cured, overtakes, shown_by, trial_numbers
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import AVERAGED_LOSS, DIVIDED, LOWER_RATES, Trial

# Passes whose undivided sum is worth a note where it does no harm: two may be the parts of one
# loss, as of a discriminator's real and made-up batch.
SEVERAL = 4


def summed_loss(evidence: Evidence) -> Iterator[Sign]:
    """A sum does harm where its average, or a lower rate, cures: it multiplies the rate by the
    batch size. Elsewhere it is a note."""
    if not summed(evidence) or _is_a_bound(evidence):
        return
    averaged, slower = cured(evidence, AVERAGED_LOSS), cured(evidence, *LOWER_RATES)
    ran_off = failing(evidence) and diverged(evidence)
    harmful = (short(evidence) and (averaged or slower or ran_off)) or overtakes(evidence, averaged)
    yield Sign(
        severity(evidence) if harmful else "note",
        "the loss is summed over the batch, so that its gradient grows with the batch size"
        + ("; averaged, a copy learns" if averaged else ""),
        evidence=trial_numbers(evidence, AVERAGED_LOSS),
        confidence=shown_by(evidence, averaged or slower),
    )


def _is_a_bound(evidence: Evidence) -> bool:
    """True of a variational autoencoder's evidence bound, which is a sum by its definition."""
    return evidence.reconstruction and evidence.loss.other_outputs


def undivided_accumulation(evidence: Evidence) -> Iterator[Sign]:
    """Gradients of several passes that are added up and not divided by the number of passes.

    This multiplies the learning rate by that number, except with an optimiser like Adam, whose
    updates do not depend on the gradients' scale.
    """
    passes = undivided_passes(evidence)
    if passes is None:
        return
    divided = cured(evidence, DIVIDED)
    ran_off = failing(evidence) and diverged(evidence)
    harmful = (short(evidence) and (divided or ran_off)) or overtakes(evidence, divided)
    if not harmful and passes < SEVERAL:
        return
    yield Sign(
        severity(evidence) if harmful else "note",
        f"the gradients of {passes} backward passes are added up for each update and the loss is "
        f"not divided by {passes}: the step is that of a {passes} times higher learning rate"
        + ("; divided, a copy learns" if divided else ""),
        f"divide each loss before its backward pass: (loss / {passes}).backward()",
        evidence={
            "passes": passes,
            "gradient_scale": evidence.loop.gradient_scale,
            **trial_numbers(evidence, DIVIDED),
        },
        confidence=shown_by(evidence, divided),
        override=None,
    )


def outweighed(evidence: Evidence) -> Iterator[Sign]:
    """A term of the loss that is so much larger than another that this one is not learnt."""
    found = outweighed_part(evidence)
    if found is None:
        return
    idle, larger, (own, other) = found
    yield Sign(
        "error",
        f"one term of the loss outweighs another: by guessing, that of output {larger.name} is "
        f"{other:.3g} and that of output {idle.name} {own:.2g}; the one is learnt (skill "
        f"{part_skill(larger):.2f}), the other not ({part_skill(idle):.2f}), of which a simple "
        f"model learns {idle.simple_skill:.2f}",
        f"bring the terms to one scale: standardise the targets of output {larger.name}, or "
        f"multiply its term by some {own / other:.1g}",
        evidence={"loss_of_guessing": [other, own], "simple_model_skill": idle.simple_skill},
        override=None,
        harm="the weights that both share go where the larger term pulls them",
    )


def summed_term(evidence: Evidence) -> Iterator[Sign]:
    """One term of the loss is a sum over the samples of the batch, and another one a mean.

    Where every step is given one batch, this is a weight like any other; where the mean has a
    factor that is not known, it may make up for the sum.
    """
    shape, sure = evidence.loss.summed_term, evidence.loss.summed_term_is_sure
    if shape is None:
        return
    values, harmful = math.prod(shape), (sure or short(evidence)) and not evidence.data.same_batch
    yield Sign(
        severity(evidence) if harmful else "note",
        f"one term of the loss is the sum of {values:,} errors, of shape {tuple(shape)}, and "
        "another one is a mean: the sum weighs more the larger the batch is",
        "take the mean over the samples in both, or the sum over all and divide it by their number",
        evidence={"values_summed": values},
        confidence="certain" if sure else "suspected",
        override=None,
        harm="the weights go where the summed term pulls them",
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Average a loss that is summed; divide gradients that are added up."""
    if summed(evidence) and not _is_a_bound(evidence):
        yield AVERAGED_LOSS
    if undivided_passes(evidence) is not None:
        yield DIVIDED


CAUSE = Cause(
    name="loss_reduction",
    meaning="a loss or gradients summed where a mean is meant, or terms of other scales",
    kind=Kind.RIVAL,
    rules=(summed_term, summed_loss, undivided_accumulation, outweighed),
    fix='average the loss over the batch (reduction="mean")',
    harm="gradients grow with the batch size, and with them every step",
    source="TheDeepChecker (Ben Braiek & Khomh 2023): the loss doubles with the batch",
    trials=trials,
)
