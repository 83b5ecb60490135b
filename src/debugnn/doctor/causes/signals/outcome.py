"""How well the training went."""

import math

from debugnn.doctor.causes.signals.data import RARE, rarest_share
from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.loss_function import UNREACHABLE, loss_floor, shift_invariant
from debugnn.doctor.causes.signals.network import extreme_gain
from debugnn.doctor.causes.signals.own_samples import (
    below_constant,
    inputs_unused,
    outputs_belong_to_new_samples,
    tells_apart,
    unused_by_new_samples,
)
from debugnn.doctor.causes.signals.skill import (
    FAILING,
    NEARLY_PERFECT,
    guessing_known,
    judged,
    last_validation,
    not_all_learnt,
    reached,
)
from debugnn.doctor.causes.signals.without_skill import (
    code_ignored,
    collapsed,
    stays_where_it_began,
    worse_than_constant,
)
from debugnn.doctor.evidence import Evidence

# Skill that no learning needs: the standard error of an accuracy over 64 samples is up to 0.06.
AT_CHANCE = 0.12
# A loss above this share of the loss of guessing counts as guessing. A language model that predicts
# what can be predicted gets few symbols right, and yet its loss is far below.
LOSS_AT_CHANCE = 0.9
# Skill by the classes' mean recall, on new samples and after an adjustment to even shares, from
# which outputs tell rare classes: its standard error is 0.07 of 60 samples of one of two classes.
TELLS_RARE = 0.2
# Skill of a simple model above which the training is compared with it: beyond AT_CHANCE.
SIMPLE_FINDS = 0.15
# A training that reaches this share of a simple model's small skill finds as much as the model.
LITTLE = 0.5
# Skill that a training may stay behind a simple model. Sound programs do by up to 0.14 (the
# autoencoder), so that staying behind accuses nobody without a sign of a cause.
BEHIND = 0.1
# The same where a simple model finds little: a training far behind is failing at any skill.
FAR_BEHIND = 0.25
# Validations that tell whether anything is learnt that holds for new samples, and the skill there
# that is none: the standard error of an accuracy over 1,000 samples is 0.015.
VALIDATIONS = 2
KNOWS_NOTHING = 0.02
# The least loss of validation samples over that of guessing, of which chance may make a little less
# than 1; and the skill on training samples below which it is no overfitting by its gap.
NO_BETTER = 0.99
HALF_LEARNT = 0.5
# Initial loss over that of guessing above which a start is rough. Sound programs start at 0.9 to
# 2.0.
ROUGH = 5.0


def little_to_learn(evidence: Evidence) -> bool:
    """Return whether outputs tell of new samples about what a simple model finds, which is little.

    How much more there is to be learnt is not known: of returns of shares, or of a patient's
    outcome, a few hundredths of the variance may be all.
    """
    simple = evidence.data.simple_skill
    if simple is None or simple > SIMPLE_FINDS or not outputs_belong_to_new_samples(evidence):
        return False
    return reached(evidence) > LITTLE * simple


def learns(evidence: Evidence) -> bool | None:
    """Return whether it learns its training samples at all; None where that cannot be told.

    That is so too where it seems to guess, but there are more classes than labels to measure by, or
    there is little to be learnt; and where it runs after targets that move. It does not learn where
    its skill and its loss are those of guessing, where it makes no use of its inputs, where its
    loss diverged or is worse than that of guessing, and where it stays far behind a simple model.
    """
    if not judged(evidence):
        ways = (
            inputs_unused,
            code_ignored,
            collapsed,
            stays_where_it_began,
            unused_by_new_samples,
            worse_than_constant,
        )
        return False if any(way(evidence) for way in ways) else None
    if evidence.outcome.nonfinite_step is not None:
        return False
    if ran_off(evidence):
        return False
    if runs_after_targets(evidence):
        return None
    if behind(evidence) or learns_by_heart_alone(evidence):
        return False
    if at_chance(evidence) and (not guessing_known(evidence) or little_to_learn(evidence)):
        return None
    return not (at_chance(evidence) or worse_than_guessing(evidence) or inputs_unused(evidence))


def runs_after_targets(evidence: Evidence) -> bool:
    """Return whether the targets have moved, and the outputs fit those of the training badly.

    A critic learns how far its actor has come, batch after batch, before it can learn what tells
    one state from another; and it forgets what earlier targets were.
    """
    return evidence.data.targets_moved and judged(evidence) and reached(evidence) < FAILING


def learns_by_heart_alone(evidence: Evidence) -> bool:
    """Return whether the little that it learns of its training samples holds for no others: their
    loss is above that of guessing at every validation."""
    scores = [validation.score for validation in evidence.outcome.validations]
    known = [s.relative_loss for s in scores if s.relative_loss is not None]
    last, matched = last_validation(evidence), evidence.data.matched_skill
    if len(known) < VALIDATIONS or len(known) < len(scores) or last is None or last.skill is None:
        return False
    if evidence.classes is not None and 0 < last.samples < evidence.classes:
        return False  # what guessing costs cannot be measured on fewer labels than classes
    nothing = max(last.skill, matched or 0.0) < KNOWS_NOTHING
    if not nothing:
        return False
    if reached(evidence) < AT_CHANCE:
        return min(known) > 1
    # A loss that weights rare events is above that of guessing by right, and new samples show it.
    labels = evidence.task in ("classes", "binary")
    if not labels or outputs_belong_to_new_samples(evidence):
        return False
    return min(known) > NO_BETTER and reached(evidence) < HALF_LEARNT


def at_chance(evidence: Evidence) -> bool:
    """Return whether it does no better than guessing, by its skill and by its loss."""
    if not judged(evidence):
        return False
    losses = [evidence.outcome.train.relative_loss, evidence.outcome.train_mode.relative_loss]
    lowest = min((loss for loss in losses if loss is not None), default=math.inf)
    guesses = reached(evidence) < AT_CHANCE and lowest > LOSS_AT_CHANCE
    better = below_constant(evidence, LOSS_AT_CHANCE)
    known = tells_rare_classes(evidence) or tells_apart(evidence)
    return guesses and not (better or known)


def tells_rare_classes(evidence: Evidence) -> bool:
    """Return whether outputs tell classes apart, none of which but the commonest is ever likely.

    As of clicks or frauds: neither the network nor a simple model has a better accuracy than always
    to say the commonest class, and the outputs know well which samples are likelier than others.
    """
    adjusted, simple = evidence.outcome.adjusted, evidence.data.simple_skill
    if adjusted is None or adjusted.skill is None or simple is None:
        return False
    rare = rarest_share(evidence) <= RARE and simple < AT_CHANCE
    return rare and adjusted.skill > TELLS_RARE


def worse_than_guessing(evidence: Evidence) -> bool:
    """Return whether a likelihood is worse than that of guessing at a fair accuracy: the network is
    sure of what it gets wrong.

    A loss that weights classes asks for another likelihood than the plain one.
    """
    if not judged(evidence):
        return False
    trained = [evidence.outcome.train.relative_loss, evidence.outcome.train_mode.relative_loss]
    floor = loss_floor(evidence)
    likelihood = shift_invariant(evidence) or (
        evidence.task == "binary" and floor is not None and floor < UNREACHABLE
    )
    worse = all(loss is not None and loss > 1 for loss in trained)
    worse = worse and not (below_constant(evidence, LOSS_AT_CHANCE) or tells_apart(evidence))
    return bool(likelihood) and worse and reached(evidence) < NEARLY_PERFECT


def ran_off(evidence: Evidence) -> bool:
    """Return whether the loss diverged, and the training did not come back to fit half.

    Where targets move, a loss that is high on the way tells of them, as long as it ends lower than
    it began.
    """
    first, last = evidence.outcome.first_loss, evidence.outcome.last_loss
    moved = evidence.data.targets_moved and first is not None and last is not None and last < first
    back = reached(evidence) >= FAILING or below_constant(evidence, FAILING) or moved
    return judged(evidence) and diverged(evidence) and not back


def behind(evidence: Evidence) -> bool:
    """Return whether it learns far less than a simple model does.

    Of values only where the training's own loss says so too: it may ask for less than a small
    squared error, as the divergence of two softmaxes does. Of targets that are the inputs it is
    not asked: a simple model copies them, past any narrow code.
    """
    simple, own_inputs = evidence.data.simple_skill, evidence.data.own_inputs
    if own_inputs is not None and own_inputs.same:
        return False
    if not judged(evidence) or simple is None or simple <= SIMPLE_FINDS:
        return False
    own, simples = evidence.outcome.own_loss.relative, evidence.outcome.own_loss.simple
    values = evidence.task == "values"
    if values and own is not None and simples is not None and own < simples + BEHIND:
        return False
    # As much as nearest neighbours find on samples left out: the data has no more to give.
    found = reached(evidence)
    return found < simple - FAR_BEHIND or (found < FAILING and found < simple - BEHIND)


def failing(evidence: Evidence) -> bool:
    """Return whether it is known not to learn."""
    return learns(evidence) is False


def short(evidence: Evidence) -> bool:
    """Return whether it fails, or stays visibly behind a simple model.

    Inputs that are to be rebuilt from fewer numbers are copied by a simple model, which says
    nothing.
    """
    if failing(evidence):
        return True
    if not judged(evidence) or evidence.reconstruction or runs_after_targets(evidence):
        return False
    simple = evidence.data.simple_skill
    return simple is not None and reached(evidence) < simple - BEHIND


def doubtful(evidence: Evidence) -> bool:
    """Return whether it does no better than guessing, and it is not known if more can be learnt."""
    return learns(evidence) is None and at_chance(evidence)


def severity(evidence: Evidence) -> str:
    """Return `error` for a failing training, else `warning`."""
    return "error" if failing(evidence) else "warning"


def rough_start(evidence: Evidence) -> bool:
    """Return whether it began with outsized weights and a high loss, and did not learn fully."""
    initial = evidence.outcome.initial.relative_loss
    return (
        not_all_learnt(evidence)
        and initial is not None
        and initial > ROUGH
        and extreme_gain(evidence, large=True) is not None
    )
