"""How well outputs fit their targets: 0 as by guessing, 1 perfectly."""

import math

from debugnn.doctor.evidence import Evidence, Score

# Steps before which nothing is said about how well a training goes: two probes of 20 steps.
JUDGED_AFTER = 40
# Skill below which a training is looked into: half of the way from guessing to perfect. Sound
# programs reach 0.83 and more.
FAILING = 0.5
# How far below that of outputs which equal the targets a loss is, as a share of it, and of the way
# up to that of constant outputs, where the outputs are meant otherwise.
BETTER_THAN_RIGHT = 0.5
OF_THE_WAY = 0.25
# Skill above which a likelihood worse than guessing comes from few samples that the net is sure of.
NEARLY_PERFECT = 0.9


def skill(evidence: Evidence) -> float | None:
    """Return how well the training samples are fitted: 0 as by guessing, 1 perfectly.

    The better of evaluation mode and batch statistics counts, because early running averages are
    far off. −∞ after a loss that was not finite. None where the task is unknown, or was misread.
    """
    outcome = evidence.outcome
    if outcome.nonfinite_step is not None:
        return -math.inf
    if misread(evidence):
        return None
    scores = [fitted(score, evidence) for score in (outcome.train, outcome.train_mode)]
    known = [value for value in scores if value is not None]
    if known:
        return max(known)
    return None


def misread(evidence: Evidence) -> bool:
    """Return whether the outputs are no values that are to equal the targets, as it had seemed: the
    training has a far lower loss than outputs that do. A detector's logits are compared with 0 and
    1, say, and its boxes only where there is one."""
    best, constant, own = evidence.loss.best, evidence.loss.constant, evidence.outcome.own_loss
    if evidence.task != "values" or best is None or constant is None or own.train.own is None:
        return False
    if best <= 0:  # the share of it says nothing
        return False
    return own.train.own < best - max(BETTER_THAN_RIGHT * best, OF_THE_WAY * abs(constant - best))


def fitted(score: Score, evidence: Evidence) -> float | None:
    """Return a score's skill by accuracy, or by the classes' mean recall where that is higher.

    A loss that weights rare classes gives up accuracy for recall.
    """
    classes = evidence.classes
    if score.skill is None or score.balanced is None or not classes:
        return score.skill
    return max(score.skill, (score.balanced - 1 / classes) / (1 - 1 / classes))


def held_out(evidence: Evidence) -> float | None:
    """Return how well the latest validation's samples are told apart, whatever their shares are.

    The best of accuracy, the classes' mean recall, and the mean recall after each class's output
    was shifted by a number of its own. Shares of the classes that differ from the training's, a
    loss that weighs classes and a sampler that draws them evenly cost accuracy, and lead to such
    shifts alone. None without a validation whose outcome is known.
    """
    last, adjusted = last_validation(evidence), evidence.outcome.adjusted
    found = None if last is None else fitted(last, evidence)
    if found is None or adjusted is None or adjusted.skill is None:
        return found
    return max(found, adjusted.skill)


def scaled_otherwise(evidence: Evidence) -> float | None:
    """Return the R² of validation outputs after a linear map; None unless they need the map.

    They need it where they are worse than the mean of the targets without it, and follow the
    targets with it: inputs or targets of the two sets were scaled by other numbers.
    """
    last, rescaled = last_validation(evidence), evidence.outcome.rescaled
    if last is None or last.skill is None or rescaled is None:
        return None
    return rescaled if last.skill < 0 and rescaled > FAILING else None


def reached(evidence: Evidence) -> float:
    """Return the skill of a training that is `judged`, and so has one."""
    found = skill(evidence)
    return -math.inf if found is None else found


def judged(evidence: Evidence) -> bool:
    """Return whether the training was long enough to say how well it went."""
    enough = evidence.loop.steps >= JUDGED_AFTER
    return (enough or evidence.outcome.nonfinite_step is not None) and skill(evidence) is not None


def guessing_known(evidence: Evidence) -> bool:
    """Return whether the loss of guessing can be measured: there are as many labels as classes.

    With fewer labels, as in a text whose words are the classes, most classes never occur, and
    frequencies that are counted on these labels fit them better than any guess can.
    """
    labels = max(evidence.outcome.train.samples, evidence.outcome.train_mode.samples)
    return not labels or evidence.classes is None or evidence.classes <= labels


def not_all_learnt(evidence: Evidence) -> bool:
    """Return whether a training that is judged has not learnt all of its training samples."""
    return judged(evidence) and reached(evidence) < NEARLY_PERFECT


def last_validation(evidence: Evidence) -> Score | None:
    """Return the score of the latest validation, None without one."""
    validations = evidence.outcome.validations
    return validations[-1].score if validations else None
