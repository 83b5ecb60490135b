"""Whether outputs belong to their own samples, by the training's own loss."""

from debugnn.doctor.causes.signals.skill import FAILING, guessing_known, judged, reached
from debugnn.doctor.evidence import Evidence, Pairing

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
