"""What is learnt on training samples, and does not hold for validation samples."""

from debugnn.doctor.causes.signals.data import SHIFTED, scale_shift, transfer_skill
from debugnn.doctor.causes.signals.skill import held_out, reached, scaled_otherwise
from debugnn.doctor.evidence import Evidence

# Share of a simple model's skill, or of the network's, that is left on validation labels.
LOST = 0.3
# Skill of a simple model on training samples that can be lost.
SIMPLE_LEARNS = 0.4
# Skill under the best renaming of the classes, where it is at chance without one.
RENAMED = 0.5
# Distinct samples below which a simple model's skill is too uncertain.
SAMPLES = 150
# Share of a simple model's skill that one of some validation samples has on the others, where their
# labels follow from them: it is fitted to fewer samples.
KEPT = 0.6


def lost_on_validation(evidence: Evidence) -> bool:
    """Return whether neither the network nor a simple model brings its skill to validation samples
    of the same scale."""
    data, kept, transfer = evidence.data, held_out(evidence), transfer_skill(evidence)
    return (
        kept is not None
        and transfer is not None
        and data.simple_skill is not None
        and data.distinct >= SAMPLES
        and data.simple_skill > SIMPLE_LEARNS
        and transfer < LOST * data.simple_skill
        and kept < LOST * reached(evidence)
        and (scale_shift(evidence) or 0) < SHIFTED
        and scaled_otherwise(evidence) is None
    )


def classes_renamed(evidence: Evidence) -> bool:
    """Return whether the network knows the validation's classes by other names."""
    return (evidence.data.relabelled_skill or 0) > RENAMED


def follows_another_code(evidence: Evidence) -> bool:
    """Return whether validation labels follow from the tokens or categories of validation inputs,
    by another rule than in the training: these are numbered otherwise.

    Where another order of the classes brings the skill back, it is the labels that are coded
    otherwise. Measurements tell nothing: those of one person or place are alike, and say the label
    of their neighbours, where validation is of other persons.
    """
    data = evidence.data
    if classes_renamed(evidence):
        return False
    if data.within_validation is None or data.simple_skill is None:
        return False
    return data.within_validation > max(SIMPLE_LEARNS, KEPT * data.simple_skill)
