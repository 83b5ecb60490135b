"""How well the training went."""

import math

from debugnn.doctor.causes.signals.data import RARE, rarest_share
from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.loss_function import UNREACHABLE, loss_floor, shift_invariant
from debugnn.doctor.causes.signals.network import extreme_gain
from debugnn.doctor.evidence import Evidence, Pairing, Score

# Steps before which nothing is said about how well a training goes: two probes of 20 steps.
JUDGED_AFTER = 40
# Skill below which a training is looked into: half of the way from guessing to perfect. Sound
# programs reach 0.83 and more.
FAILING = 0.5
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
# Groups of samples whose targets changed places, at least, for a word about whether outputs belong
# to their samples; of one group the scatter is not known.
GROUPS = 8
# The gap between the losses beside the own target and beside another's, in its standard errors,
# from which outputs belong to their samples: by chance in one of 700 trainings.
CERTAIN_GAP = 3.0
# Share of the own loss that the gap is below, with two standard errors, where outputs do not belong
# to their samples: as much as a relation with an R² of 0.01 gives.
NO_GAP = 0.02
NO_GAP_ERRORS = 2.0
# Share of exchanges in which the own output is better, at most, where that is so: it is one half by
# chance, with a standard error of 0.18 over 8 groups.
NOT_BETTER = 0.75
# Share of the own loss that it is higher by beside another sample's targets, from which a network
# whose samples have many labels each has learnt something of them: one that has the same weights at
# each place may know less of a place than its frequencies tell, and still see what is where. Masks
# of other images, learnt by heart in part, give some hundredths.
APART = 0.1
# Steps of an unknown task after which it is said to make no use of its inputs: what a slow start
# looks like is not known of it.
UNKNOWN_JUDGED_AFTER = 200
# ‖w − w₀‖ / ‖w₀‖ of a long training of an unknown task below which its weights are still the first
# ones, and the share of its first loss by which that has changed, at most, where nothing is learnt:
# sound programs have 0.3 and more. Fine-tuning moves weights as little, and lowers its loss.
UNMOVED = 0.01
UNCHANGED_LOSS = 0.03
# What outputs differ by among samples, over the same at the start, below which they are the same
# for all inputs: embeddings that collapse to one point leave 0.005 and less.
COLLAPSED = 1e-2
BOUNDED = ("tanh", "sigmoid", "hardtanh", "clamp", "softmax")  # what ends in the highest value
# Loss on training samples over that of the best constant outputs, from which it is known to be
# worse: the constant is fitted to the same samples, and has no more than a number for each output.
ABOVE_CONSTANT = 1.05
# The loss of the best constant outputs over the first loss, below which it is no loss of guessing.
LEFT_OF_FIRST = 0.1
# How far below that of outputs which equal the targets a loss is, as a share of it, and of the way
# up to that of constant outputs, where the outputs are meant otherwise.
BETTER_THAN_RIGHT = 0.5
OF_THE_WAY = 0.25
# Fewest candidates of a cross-entropy of an unknown kind whose value is judged. With two, it may be
# that of a discriminator that its generator deceives.
CANDIDATES = 4
# Its last value over the logarithm of their number, that of guessing, where it guesses: of four
# contrastive and pointing tasks, those with a fault that hides the right candidate ended at 0.998
# to 1.002.
GUESSED = (0.97, 1.1)
# The same, below which it has learnt to choose: those tasks without the fault reached 0.02 to 0.37.
CHOSEN = 0.7
# Change of outputs, over their size, as inputs change places, below which outputs that are made
# from a code tell nothing of the inputs; over the same change at the start; and the least change at
# the start that can be lost. Variational autoencoders that learn reach 0.4 to 0.7, collapsed ones
# 0.002.
TELLS_NOTHING = 0.01
LOST_SINCE_START = 0.2
TOLD_SOMETHING = 0.005
# Share of the inputs' variance that a code could have told of: less is left where a condition, as
# the class, tells what an input is.
LEFT_TO_TELL = 0.25
# Skill above which a likelihood worse than guessing comes from few samples that the net is sure of.
NEARLY_PERFECT = 0.9
# Initial loss over that of guessing above which a start is rough. Sound programs start at 0.9 to
# 2.0.
ROUGH = 5.0


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


def little_to_learn(evidence: Evidence) -> bool:
    """Return whether outputs tell of new samples about what a simple model finds, which is little.

    How much more there is to be learnt is not known: of returns of shares, or of a patient's
    outcome, a few hundredths of the variance may be all.
    """
    simple = evidence.data.simple_skill
    if simple is None or simple > SIMPLE_FINDS or not outputs_belong_to_new_samples(evidence):
        return False
    return reached(evidence) > LITTLE * simple


def reached(evidence: Evidence) -> float:
    """Return the skill of a training that is `judged`, and so has one."""
    found = skill(evidence)
    return -math.inf if found is None else found


def judged(evidence: Evidence) -> bool:
    """Return whether the training was long enough to say how well it went."""
    enough = evidence.loop.steps >= JUDGED_AFTER
    return (enough or evidence.outcome.nonfinite_step is not None) and skill(evidence) is not None


def learns(evidence: Evidence) -> bool | None:
    """Return whether it learns its training samples at all; None where that cannot be told.

    That is so too where it seems to guess, but there are more classes than labels to measure by, or
    there is little to be learnt. It does not learn where its skill and its loss are those of
    guessing, where it makes no use of its inputs, where its loss diverged or is worse than that of
    guessing, and where it stays far behind a simple model.
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
    if ran_off(evidence) or behind(evidence) or learns_by_heart_alone(evidence):
        return False
    if at_chance(evidence) and (not guessing_known(evidence) or little_to_learn(evidence)):
        return None
    return not (at_chance(evidence) or worse_than_guessing(evidence) or inputs_unused(evidence))


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
    # A loss that weights rare events is above that of guessing by right.
    if evidence.task != "classes" or outputs_belong_to_new_samples(evidence):
        return False
    return min(known) > NO_BETTER and reached(evidence) < HALF_LEARNT


def outputs_belong(evidence: Evidence) -> bool:
    """Return whether outputs were seen to fit their own samples' targets better than others'."""
    own = evidence.outcome.own_loss
    return any(_belongs(pairing) for pairing in (own.train, own.train_mode))


def outputs_belong_to_new_samples(evidence: Evidence) -> bool:
    """Return the same of validation samples, by the training's own loss: a relation was found that
    holds for samples that were not trained on."""
    return _belongs(evidence.outcome.own_loss.validation)


def _belongs(pairing: Pairing) -> bool:
    if pairing.gap is None or pairing.error is None or pairing.groups < GROUPS:
        return False
    return pairing.gap > CERTAIN_GAP * pairing.error


def inputs_unused(evidence: Evidence) -> bool:
    """Return whether outputs were seen to fit other samples' targets as well as their own.

    By the training's own loss in either mode, on batches of late steps too, and on validation
    samples. Of an unknown task only where the loss is no reward, which is as often positive as
    negative whatever is learnt, and where no other network is trained against this one.
    """
    own = evidence.outcome.own_loss
    if evidence.loss.opposed or evidence.adversarial or evidence.loop.steps_before:
        return False
    if evidence.task == "unknown":
        if evidence.loop.steps < UNKNOWN_JUDGED_AFTER:
            return False
    elif not judged(evidence) or reached(evidence) >= FAILING or not guessing_known(evidence):
        return False
    known = [p for p in (own.late, own.validation) if p.groups >= GROUPS]
    return all(_exchangeable(pairing) for pairing in (own.train, own.train_mode, *known))


def collapsed(evidence: Evidence) -> bool:
    """Return whether outputs of an unknown task have become the same for all inputs.

    A generator or an actor, whose loss reads another network, has to tell inputs apart. A
    discriminator may come to say the same of all.
    """
    before, now = evidence.network.output_signal, evidence.outcome.output_signal
    if evidence.task != "unknown" or evidence.loop.steps < UNKNOWN_JUDGED_AFTER:
        return False
    # An actor may come to do the most that it can, whatever the state is.
    bounded = evidence.network.last_op in BOUNDED
    if evidence.adversarial and (bounded or not evidence.loss.parameters):
        return False
    if evidence.loop.steps_before or not before or now is None:
        return False
    return now < COLLAPSED * before


def worse_than_constant(evidence: Evidence) -> bool:
    """Return whether the best constant outputs have a lower loss than the network's own on its
    training samples, where its skill cannot be measured, as of targets that are shares."""
    relative = evidence.outcome.own_loss.relative
    if skill(evidence) is not None or evidence.loop.steps < UNKNOWN_JUDGED_AFTER:
        return False
    known = evidence.loss.confirmed and not evidence.adversarial and not evidence.loop.steps_before
    # Where all samples have one target, nothing is left of the loss of the best constant outputs.
    constant, first = evidence.outcome.own_loss.constant, evidence.outcome.first_loss
    if constant is None or first is None or constant < LEFT_OF_FIRST * first:
        return False
    return known and relative is not None and relative > ABOVE_CONSTANT


def unused_by_new_samples(evidence: Evidence) -> bool:
    """Return whether outputs of an unknown task fit other validation samples' targets as well as
    their own, or better, and those of training samples do not: these were learnt by heart."""
    if evidence.task != "unknown" or evidence.loop.steps < UNKNOWN_JUDGED_AFTER:
        return False
    if evidence.loss.opposed or evidence.adversarial or evidence.loop.steps_before:
        return False
    validation = evidence.outcome.own_loss.validation
    by_heart = outputs_belong(evidence) and validation.groups >= GROUPS
    return by_heart and _exchangeable(validation)


def _exchangeable(pairing: Pairing) -> bool:
    gap, error, own, better = pairing.gap, pairing.error, pairing.own, pairing.better
    if gap is None or error is None or own is None or better is None:
        return False
    enough = pairing.groups >= GROUPS and own > 0
    small = gap + NO_GAP_ERRORS * error < NO_GAP * own
    return enough and small and better <= NOT_BETTER


def stays_where_it_began(evidence: Evidence) -> bool:
    """Return whether neither weights nor loss have changed to speak of, of an unknown task."""
    movement, course = evidence.outcome.movement, evidence.outcome.tenths
    if evidence.task != "unknown" or evidence.loop.steps < UNKNOWN_JUDGED_AFTER:
        return False
    if movement is None or not course or evidence.loop.steps_before:
        return False
    unmoved = 0 < movement < UNMOVED
    return unmoved and abs(course[-1] - course[0]) < UNCHANGED_LOSS * abs(course[0])


def code_ignored(evidence: Evidence) -> bool:
    """Return whether outputs that were made from a random code of the inputs, and are to be like
    these, have lost all that they told of them: a posterior collapse (arXiv:1511.06349)."""
    before, now = evidence.outcome.initial_latent, evidence.outcome.latent
    if before is None or now is None or before.by_input is None or now.by_input is None:
        return False
    if evidence.adversarial or evidence.loop.steps_before:
        return False
    rebuilds = evidence.reconstruction or now.loss_reads_input
    lost = now.by_input < min(TELLS_NOTHING, LOST_SINCE_START * before.by_input)
    long = evidence.loop.steps >= UNKNOWN_JUDGED_AFTER
    needed = now.left is not None and now.left > LEFT_TO_TELL
    return rebuilds and long and lost and needed and before.by_input >= TOLD_SOMETHING


def below_constant(evidence: Evidence, level: float) -> bool:
    """Return whether it learns by its own loss: this is below a share of that of the best constant
    outputs, and outputs belong to their samples.

    False where the loss was not seen to be lower at right outputs.
    """
    relative = evidence.outcome.own_loss.relative
    sound = evidence.loss.confirmed and not evidence.loss.opposed
    return sound and relative is not None and relative < level and outputs_belong(evidence)


def tells_apart(evidence: Evidence) -> bool:
    """Return whether outputs of many labels each fit their own samples' far better than others'."""
    if not evidence.positions:
        return False
    own = evidence.outcome.own_loss
    return any(
        _belongs(each) and (each.gap or 0.0) > APART * (each.own or 0.0)
        for each in (own.train, own.train_mode)
    )


def guessing_known(evidence: Evidence) -> bool:
    """Return whether the loss of guessing can be measured: there are as many labels as classes.

    With fewer labels, as in a text whose words are the classes, most classes never occur, and
    frequencies that are counted on these labels fit them better than any guess can.
    """
    labels = max(evidence.outcome.train.samples, evidence.outcome.train_mode.samples)
    return not labels or evidence.classes is None or evidence.classes <= labels


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


def chooses_candidate(evidence: Evidence) -> bool | None:
    """Return whether a cross-entropy of which no more is known ends below that of guessing.

    None where the loss is no such thing, or is neither there nor clearly below.
    """
    count, last = evidence.loss.candidates, evidence.outcome.last_loss
    if count is None or count < CANDIDATES or last is None:
        return None
    share, (low, high) = last / math.log(count), GUESSED
    if low <= share <= high and evidence.loop.steps >= UNKNOWN_JUDGED_AFTER:
        return False
    return True if share < CHOSEN else None


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
    """Return whether the loss diverged, and the training did not come back to fit half."""
    back = reached(evidence) >= FAILING or below_constant(evidence, FAILING)
    return judged(evidence) and diverged(evidence) and not back


def behind(evidence: Evidence) -> bool:
    """Return whether it learns far less than a simple model does.

    Of values only where the training's own loss says so too: it may ask for less than a small
    squared error, as the divergence of two softmaxes does.
    """
    simple = evidence.data.simple_skill
    if not judged(evidence) or simple is None or simple <= SIMPLE_FINDS:
        return False
    own, simples = evidence.outcome.own_loss.relative, evidence.outcome.own_loss.simple
    values = evidence.task == "values"
    if values and own is not None and simples is not None and own < simples + BEHIND:
        return False
    # As much as nearest neighbours find on samples left out: the data has no more to give.
    found = reached(evidence)
    return found < simple - FAR_BEHIND or (found < FAILING and found < simple - BEHIND)


def not_all_learnt(evidence: Evidence) -> bool:
    """Return whether a training that is judged has not learnt all of its training samples."""
    return judged(evidence) and reached(evidence) < NEARLY_PERFECT


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
    if not judged(evidence) or evidence.reconstruction:
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


def last_validation(evidence: Evidence) -> Score | None:
    """Return the score of the latest validation, None without one."""
    validations = evidence.outcome.validations
    return validations[-1].score if validations else None
