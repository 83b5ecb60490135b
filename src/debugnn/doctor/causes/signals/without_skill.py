"""Signs that a training learns, or that it does not, where its skill cannot be measured."""

import math

from debugnn.doctor.causes.signals.own_samples import UNKNOWN_JUDGED_AFTER
from debugnn.doctor.causes.signals.skill import skill
from debugnn.doctor.evidence import Evidence

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
# Change of the outputs, over their size, below which they are the same for all inputs, and the
# share of the inputs' variance that outputs leave then, with some room for a part of a batch.
SAME = 0.001
MEAN_LEAVES = 0.9


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
    """Return whether outputs that are made from a code of the inputs, and are to be like these,
    have lost all that they told of them, or never told anything: a posterior collapse
    (arXiv:1511.06349)."""
    before, now = evidence.outcome.initial_latent, evidence.outcome.latent
    if before is None or now is None or before.by_input is None or now.by_input is None:
        return False
    if evidence.adversarial or evidence.loop.steps_before:
        return False
    rebuilds = evidence.reconstruction or now.loss_reads_input
    lost = now.by_input < min(TELLS_NOTHING, LOST_SINCE_START * before.by_input)
    long = evidence.loop.steps >= UNKNOWN_JUDGED_AFTER
    needed = now.left is not None and now.left > LEFT_TO_TELL
    if rebuilds and long and lost and needed and before.by_input >= TOLD_SOMETHING:
        return True
    # The best output that is the same for all inputs leaves their whole variance.
    same = now.by_input < SAME and now.left is not None and now.left > MEAN_LEAVES
    bound = evidence.reconstruction and evidence.loss.other_outputs
    # Where the model makes the loss, outputs may be drawn given a condition alone.
    told = before.by_input >= SAME and now.loss_reads_input
    return long and same and (bound or told)


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
