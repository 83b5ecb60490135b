"""Validation data unlike the training data."""

from collections.abc import Iterator
from statistics import fmean

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.carried_over import (
    SIMPLE_LEARNS,
    classes_renamed,
    follows_another_code,
    lost_on_validation,
)
from debugnn.doctor.causes.signals.data import (
    inputs_differ,
    scale_shift,
    shift,
    transfer_skill,
)
from debugnn.doctor.causes.signals.own_samples import outputs_belong
from debugnn.doctor.causes.signals.preparations import other_preparation, renumbered
from debugnn.doctor.causes.signals.skill import (
    held_out,
    judged,
    last_validation,
    reached,
    scaled_otherwise,
)
from debugnn.doctor.causes.signals.wording import listed
from debugnn.doctor.evidence import Evidence

# Skill on training samples below which there is nothing to lose on validation.
LEARNT = 0.3
# Loss of skill that the difference of the inputs must have led to.
BEHIND = 0.15
# Scale shift beyond any sampling: another preparation, whatever it led to.
ELSEWHERE = 1.5
# Share of a simple model's skill that is left on the other set, where inputs differ somewhat.
HALF_LEFT = 0.5
# Validation samples that are of one class alone by no chance, and the share of that class in the
# training above which it may be.
OF_ONE_CLASS = 50
SEVERAL = 3
USUAL = 0.8
DIFFERS = 0.3


def prepared_otherwise(evidence: Evidence) -> Iterator[Sign]:
    """The loss on validation inputs comes back as they are changed in one way."""
    found = other_preparation(evidence)
    if found is None:
        return
    yield Sign(
        "error",
        f"the loss is {found.validation:.3g} on validation and {found.training:.3g} on training "
        f"samples; with the validation inputs changed ({found.change}) it is {found.changed:.3g}",
        fix="read and prepare both by the same code: to be like the training inputs, the "
        f"validation inputs would have to be changed ({found.change})",
        evidence={
            "training_loss": found.training,
            "validation_loss": found.validation,
            "loss_after_change": found.changed,
        },
        confidence="shown",
    )


def one_class_alone(evidence: Evidence) -> Iterator[Sign]:
    """Validations that hold one class alone, of a training that has several.

    Of two classes one may be validated alone, for the rate of false alarms.
    """
    scores = [validation.score for validation in evidence.outcome.validations]
    counts = {c: count for c, count in evidence.data.class_counts.items() if count}
    seen = {c for score in scores for c in score.recalls}
    if evidence.task != "classes" or len(seen) != 1 or len(counts) < SEVERAL:
        return
    (only,), samples = seen, min(score.samples for score in scores)
    share = counts.get(only, 0) / sum(counts.values())
    if samples < OF_ONE_CLASS or share > USUAL or evidence.positions:
        return
    yield Sign(
        "warning",
        f"all {samples} samples of each validation are of class {only}, and "
        f"{100 * (1 - share):.0f} % of the training samples are of other classes: the validation "
        "says nothing of these, and the training may have seen few of its own",
        "shuffle before the split, or split each class by the same shares (stratify=labels)",
        evidence={"class": only, "validation_samples": samples, "training_share": share},
        confidence="certain",
        override=None,
        harm="a set that was cut off the end of a sorted file is no sample of the data",
    )


def unlike_inputs(evidence: Evidence) -> Iterator[Sign]:
    """Validation inputs are of another scale or kind, and the skill falls on them."""
    data, kept, told = evidence.data, held_out(evidence), shift(evidence)
    if kept is None or told is None or not judged(evidence):
        return
    found = reached(evidence)
    if found < LEARNT:
        return
    differ = inputs_differ(evidence)
    transfer, scale = transfer_skill(evidence), scale_shift(evidence)
    lost = (
        transfer is not None
        and data.simple_skill is not None
        and data.simple_skill > SIMPLE_LEARNS
        and transfer < HALF_LEFT * data.simple_skill
        and told >= DIFFERS
    )
    elsewhere = (scale or 0) > ELSEWHERE
    if not elsewhere and not (found - kept > BEHIND and (differ or lost)):
        return
    yield Sign(
        "error",
        f"validation inputs are unlike training inputs (a simple model tells them apart with skill "
        f"{told:.2f}), and the skill falls from {found:.2f} to {kept:.2f}",
        evidence={
            "told_apart": told,
            "scale_shift": scale,
            "train_skill": found,
            "validation_skill": kept,
            "skill_at_training_scale": data.matched_skill,
        },
        confidence="certain" if differ or elsewhere else "suspected",
    )


def standardised_alone(evidence: Evidence) -> Iterator[Sign]:
    """The scaler was fitted to the validation samples too, and what it took away is missed."""
    if not evidence.data.standardised_alone:
        return
    lost, numbers = _skill_lost(evidence) or _loss_risen(evidence) or (None, {})
    yield Sign(
        "warning" if lost else "note",
        "features of the validation samples have mean 0 and deviation 1 by these samples' own "
        "numbers: they were standardised apart from the training samples"
        + (f", and {lost}" if lost else ""),
        fix="scale both sets by the numbers of the training set: scaler.fit on it alone, and "
        "scaler.transform for both",
        evidence=numbers,
        confidence="certain",
        harm="one value of a feature is given to the network as another number than in training",
    )


def _skill_lost(evidence: Evidence) -> tuple[str, dict[str, float]] | None:
    """Return in a clause by how much the skill falls on validation samples, and its numbers.

    None if it does not fall.
    """
    last = last_validation(evidence)
    if last is None or last.skill is None or not judged(evidence):
        return None
    kept = last.skill  # as it is: a shift of the classes' outputs would undo the offset
    found = reached(evidence)
    if found < LEARNT or found - kept <= BEHIND:
        return None
    numbers = {"train_skill": found, "validation_skill": kept}
    return f"the skill falls from {found:.2f} to {kept:.2f}", numbers


def _loss_risen(evidence: Evidence) -> tuple[str, dict[str, float]] | None:
    """Return the same by the training's own loss, of an unknown task.

    What a loss may lose is how much higher it is beside another sample's targets.
    """
    own = evidence.outcome.own_loss
    if evidence.task != "unknown" or not outputs_belong(evidence):
        return None
    if own.train.own is None or own.train.gap is None or own.validation.own is None:
        return None
    risen = own.validation.own - own.train.own
    if risen <= BEHIND * own.train.gap:
        return None
    numbers = {"train_loss": own.train.own, "validation_loss": own.validation.own}
    return f"the loss rises from {own.train.own:.3g} to {own.validation.own:.3g} on them", numbers


def values_at_another_scale(evidence: Evidence) -> Iterator[Sign]:
    """Validation outputs follow their targets, and are far off: a linear map brings them there."""
    rescaled, last = scaled_otherwise(evidence), last_validation(evidence)
    if rescaled is None or last is None or last.skill is None or not judged(evidence):
        return
    if evidence.data.column_order is not None:
        return  # targets between which outputs take the middle, so that a linear map helps
    found = reached(evidence)
    if found < LEARNT:
        return
    yield Sign(
        "error",
        f"the skill is {found:.2f} on training and {last.skill:.2f} on validation samples, where "
        f"one linear map of the outputs makes it {rescaled:.2f}: inputs or targets of the two sets "
        "have another scale or offset",
        fix="scale both sets by the numbers of the training set: scaler.fit on it alone, and "
        "scaler.transform for both",
        evidence={
            "train_skill": found,
            "validation_skill": last.skill,
            "validation_skill_after_a_linear_map": rescaled,
        },
        confidence="shown",
    )


def inputs_of_another_code(evidence: Evidence) -> Iterator[Sign]:
    """Validation labels follow from validation inputs alone, and not as in the training."""
    if not judged(evidence) or other_preparation(evidence) is not None:
        return
    if not lost_on_validation(evidence) or not follows_another_code(evidence):
        return
    kept, within = held_out(evidence) or 0.0, evidence.data.within_validation or 0.0
    order = "" if evidence.task == "values" else ", and no other order of the classes helps"
    yield Sign(
        "error",
        f"what is learnt on training samples (skill {reached(evidence):.2f}) does not hold for "
        f"validation samples ({kept:.2f}), though a simple model of some of these knows the others "
        f"({within:.2f}){order}: the inputs of both sets are coded by different tables",
        fix="number tokens and categories by the training set's table alone, and read both sets "
        "with it",
        evidence={
            "train_skill": reached(evidence),
            "validation_skill": kept,
            "simple_model_within_validation": within,
            "simple_model_train_to_validation": transfer_skill(evidence),
        },
        confidence="shown",
        harm="the network is given other inputs than those that it was trained on",
    )


def categories_of_another_code(evidence: Evidence) -> Iterator[Sign]:
    """The loss on validation samples comes back as their categories get other numbers."""
    found = renumbered(evidence)
    # Labels in another order are made good by other categories too, where these tell the label.
    if found is None or classes_renamed(evidence):
        return
    before, after = fmean(found.validation), fmean(found.renumbered)
    yield Sign(
        "error",
        f"the loss is {before:.3g} on validation and {found.training:.3g} on training samples; "
        f"with other numbers for the validation's categories ({listed(map(str, found.categories))} "
        f"of them), chosen on half of its samples, it is {after:.3g} on the other half: the "
        "categories of both sets are numbered by different tables",
        fix="number categories by the training set's table alone (fit the encoder on it, and "
        "transform both sets with it)",
        evidence={
            "training_loss": found.training,
            "validation_loss": before,
            "loss_with_other_numbers": after,
            "categories": found.categories,
        },
        confidence="shown",
        harm="the network is given other inputs than those that it was trained on",
    )


CAUSE = Cause(
    name="train_test_mismatch",
    meaning="validation data unlike the training data",
    kind=Kind.INDEPENDENT,
    rules=(
        first_of(
            prepared_otherwise,
            one_class_alone,
            inputs_of_another_code,
            unlike_inputs,
            categories_of_another_code,
            standardised_alone,
            values_at_another_scale,
        ),
    ),
    fix="prepare validation inputs exactly as training inputs, with the training statistics",
    harm="the network is asked about inputs unlike those that it has learnt from",
    source="Lopez-Paz & Oquab 2017, arXiv:1610.06545; Rabanser et al. 2019, arXiv:1810.11953",
)
