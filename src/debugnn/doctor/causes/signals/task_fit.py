"""A loss of another kind of task: what it asks is not what the targets say.

A squared error of class numbers or of two classes, a softmax over labels that do not exclude each
other, and the like.
"""

from debugnn.doctor.causes.signals.loss_function import better_when_right, shift_invariant
from debugnn.doctor.causes.signals.output_links import TARGET_ENTRY
from debugnn.doctor.causes.signals.skill import skill
from debugnn.doctor.evidence import Evidence

# Targets that are whole numbers 0 … K−1 are class numbers if K is between the first two, and each
# value has at least this share of the targets.
FEWEST_CLASSES = 3
MOST_CLASSES = 20
CLASS_SHARE = 0.02
# Skill below which class numbers that are fitted as quantities do harm.
FITTED = 0.9
# Share of the samples with several labels or none from which labels do not exclude each other, and
# the number of labels above which a softmax may tell a choice among many things.
SEVERAL = 0.2
MOST_LABELS = 50


def squared_error_of_two_classes(evidence: Evidence) -> str | None:
    """A regression's loss for a 0 or 1."""
    regression = shift_invariant(evidence) is False and better_when_right(evidence)
    if evidence.task == "binary" and regression:
        return "a squared error is used for two classes"
    return None


def classes_not_compared(evidence: Evidence) -> str | None:
    """Logits are taken one by one, where the classes of a sample exclude each other."""
    real = evidence.loss.output_space == "real"
    if evidence.task == "classes" and real and shift_invariant(evidence) is False:
        return (
            "the loss does not compare the classes of a sample with each other: it is none for "
            "choosing one of many (a regression's, a binary one, or one that expects "
            "probabilities and gets logits)"
        )
    return None


def overlap_of_scores(evidence: Evidence) -> str | None:
    """A Dice or Jaccard loss of real outputs, which it takes for probabilities."""
    if not evidence.loss.overlap:
        return None
    return (
        "the loss is the overlap of two areas, of outputs between 0 and 1, and is given real "
        "outputs: it falls below 0, its least value for probabilities, as outputs grow"
    )


def labels_compete(evidence: Evidence) -> str | None:
    """A softmax over labels of which a sample may have several, or none."""
    loss, share = evidence.loss, evidence.loss.competing
    if share is None or share < SEVERAL or loss.ignores_targets:
        return None
    # Of what a person chose among many things, a softmax tells the likelihood of each choice.
    if evidence.reconstruction or loss.shapes[0][1] > MOST_LABELS:
        return None
    return (
        f"{100 * share:.0f} % of the samples have several labels, or none, and a softmax lets the "
        f"{loss.shapes[0][1]} labels of a sample compete: each can get only what the others leave"
    )


def regression_of_probabilities(evidence: Evidence) -> str | None:
    """The loss asks all entries of a distribution, where the likelihood asks the target's alone."""
    others = evidence.loss.other_entries
    squashed = evidence.loss.output_space in ("simplex", "unit")
    if evidence.task == "classes" and squashed and others is not None and others > TARGET_ENTRY:
        return "the loss is a regression's or a binary one, and the task has classes"
    return None


def class_numbers_as_values(evidence: Evidence) -> str | None:
    """Class numbers are fitted as if they were quantities."""
    data = evidence.data
    if evidence.task != "values" or not data.target_consecutive or data.target_rarest is None:
        return None
    kinds = data.target_kinds or 0
    numbers = FEWEST_CLASSES <= kinds <= MOST_CLASSES and data.target_rarest >= CLASS_SHARE
    if numbers and (skill(evidence) or 0) < FITTED:
        return "class numbers are fitted as if they were quantities"
    return None
