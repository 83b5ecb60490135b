"""Labels that do not follow from the inputs."""

from collections.abc import Iterable, Iterator
from statistics import fmean

from debugnn.doctor.causes.cause import Cause, Kind, Rule, Sign, first_of
from debugnn.doctor.causes.signals.carried_over import (
    RENAMED,
    SAMPLES,
    follows_another_code,
    lost_on_validation,
)
from debugnn.doctor.causes.signals.data import (
    MATCH,
    OTHER_MATCH,
    RARE,
    constant_inputs,
    rarest_share,
    shift,
    transfer_skill,
)
from debugnn.doctor.causes.signals.learning_rate import LEFT_OVER, STILL
from debugnn.doctor.causes.signals.loss_course import diverged, overflowed
from debugnn.doctor.causes.signals.loss_spike import loss_spike
from debugnn.doctor.causes.signals.moved_targets import (
    moved_without_its_target,
    named_by_the_other_side,
)
from debugnn.doctor.causes.signals.network import MIXED
from debugnn.doctor.causes.signals.outcome import (
    AT_CHANCE,
    SIMPLE_FINDS,
    at_chance,
    learns_by_heart_alone,
)
from debugnn.doctor.causes.signals.own_samples import outputs_belong_to_new_samples
from debugnn.doctor.causes.signals.preparations import other_preparation
from debugnn.doctor.causes.signals.skill import (
    JUDGED_AFTER,
    held_out,
    judged,
    last_validation,
    reached,
)
from debugnn.doctor.causes.signals.trials import cured, learns_better, trial_numbers
from debugnn.doctor.causes.wrong_loss import unbounded
from debugnn.doctor.evidence import Evidence, PairFacts
from debugnn.doctor.trials import EXCHANGED_LABELS, LOWER_RATES, REINITIALISED, UNCHANGED, Trial

# Share of the repeated samples that came with several labels: some noise is natural.
CONFLICTING = 0.3
# Repeated samples that the share is taken of, at least; and the share of batches with repeats
# within them above which samples come again by nature, in a small domain.
REPEATED = 20
SMALL_DOMAIN = 0.2
# Times that a sample came, on average, below which those that came again are the same by chance: a
# text that has lost most of its words, say.
BY_COINCIDENCE = 1.1
# The same, below which most samples never came again as they were, as where they are cropped at
# random: they may be harder than the validation's.
CHANGED_EACH_TIME = 2.0
# Values of targets that are two classes; classes that a comparison is made of, at least.
TWO = 2
# The larger one of two targets of a cross-entropy, the other one being 0, below which it is no
# label of a class: a mask of 0 and 1 that was divided by 255 has 0.004. Smoothed labels have one
# near 1; a label divided by the number of a sample's labels has 0.1 of ten.
SCALED_DOWN = 0.05
# Skill on training samples that validation is compared with.
LEARNT_WELL = 0.4
# Skill at telling validation from training inputs below which the inputs are alike.
ALIKE = 0.3
# Axes of the inputs beyond which nearest neighbours and linear models prove little: what a pattern
# in a sequence or an image means does not hang on its place.
TABLE_AXES = 2
# Correlation of what pixels tell with a sample's own target, over that with another sample's, in
# standard errors, from which images and targets belong together: by chance in one of 700.
ALIGNED = 3.0
# Validation samples, and how much better they are met than training samples (mean recall), for
# wrong training labels; and the skill that validation then has.
VALIDATED = 50
BETTER_THAN_TRAINING = 0.2
VALIDATION_SKILL = 0.4
# Skill on validation labels above which wrong training labels do no harm to speak of.
IN_SPITE = 0.9
# The rarest class's share, over RARE, above which accuracy is no sign of balance.
BALANCED = 2.5
# How much nearer pairs that the loss pushes apart are, in standard errors, than in the half of
# comparisons that chance gives.
CERTAINLY = 4.0
BY_CHANCE = 0.5
# Distinct maps of labels, each of many, from which one class alone is no accident.
MAPS = 20

# Parts of the names of operations that multiply by weights.
WEIGHTED = ("conv", "addmm", "linear", "mm")

PAIRED = "data.labels=paired"


def out_of_range(evidence: Evidence) -> Iterator[Sign]:
    """Labels that no output stands for. One void value that the loss takes may be meant."""
    data = evidence.data
    if not data.out_of_range or (data.void_labels and evidence.loss.error is None):
        return
    yield Sign(
        "error",
        f"{data.out_of_range} of {data.samples} labels lie outside of 0 to "
        f"{(evidence.classes or 1) - 1}, the classes that the outputs stand for",
        "number the classes from 0, or give the model as many outputs as there are classes",
        evidence={"out_of_range": data.out_of_range, "classes": evidence.classes},
        override=None,
        confidence="certain",
    )


def conflicting(evidence: Evidence) -> Iterator[Sign]:
    """Samples that came again with another label."""
    data = evidence.data
    if evidence.task not in ("classes", "binary") or constant_inputs(evidence):
        return
    enough = data.repeated >= REPEATED and data.repeats_within <= SMALL_DOMAIN
    if not enough or (evidence.outcome.epochs or 1.0) < BY_COINCIDENCE:
        return
    if data.conflicting > CONFLICTING:
        yield Sign(
            "error",
            f"of the samples that came again, {100 * data.conflicting:.0f} % came with another "
            "label",
            "look at where inputs and labels are shuffled: they must be shuffled together",
            evidence={"conflicting": data.conflicting},
            confidence="certain",
        )


def shifted_twice(evidence: Evidence) -> Iterator[Sign]:
    """Each position is asked for the symbol after the next one, by an output that sees no later
    one: labels were shifted, and the model or the loss has shifted them again."""
    facts = evidence.data.sequence
    if facts is None or not facts.sees_past or facts.sees_future:
        return
    if facts.second > MATCH and max(facts.same, facts.following) < OTHER_MATCH:
        yield Sign(
            "error",
            f"the target at position t is `{facts.argument}` at t + 2: the labels are shifted by "
            "one position twice",
            "shift them once: a model that computes its own loss mostly shifts its labels itself "
            "and takes labels = inputs",
            evidence={
                "target_is_input_at_t": facts.same,
                "target_is_input_at_t+1": facts.following,
                "target_is_input_at_t+2": facts.second,
            },
            override=None,
            confidence="certain",
            harm="the symbol that follows is never learnt",
        )


def coded_as_numbers(evidence: Evidence) -> Iterator[Sign]:
    """Two classes coded as numbers that a likelihood of 0 and 1 has no bound for."""
    data = evidence.data
    few = data.target_kinds is not None and data.target_kinds <= TWO
    if unbounded(evidence) and few and evidence.task == "values":
        yield Sign(
            "error",
            f"two classes are coded as {data.target_low:g} and {data.target_high:g}, for a loss "
            "that expects 0 and 1 and falls without end beyond",
            "code the classes as 0 and 1",
            evidence={"low": data.target_low, "high": data.target_high},
            override=None,
            confidence="certain",
        )


def scaled_down(evidence: Evidence) -> Iterator[Sign]:
    """Two classes, coded as 0 and a small number, for a loss that takes them for probabilities."""
    data = evidence.data
    low, high = data.target_low, data.target_high
    if evidence.task != "values" or data.target_kinds != TWO or low is None or high is None:
        return
    if evidence.loss.bernoulli and low == 0 and high < SCALED_DOWN:
        yield Sign(
            "error",
            f"the targets are 0 and {high:.3g}, which the loss takes for probabilities: it asks "
            f"for outputs that say no everywhere, {100 * high:.2g} % at most",
            f"code the classes as 0 and 1: the targets seem to be divided once too often, by "
            f"{1 / high:.4g}",
            evidence={"low": low, "high": high},
            override=None,
            confidence="certain",
        )


def one_class_alone(evidence: Evidence) -> Iterator[Sign]:
    """Maps of labels that all name one class, in training and in validation.

    The outputs have weights of their own for each class. Where they are similarities, as in
    contrastive learning, the first one may be the right one by design.
    """
    last, train = last_validation(evidence), evidence.outcome.train
    named = [c for c, count in evidence.data.class_counts.items() if count]
    maps = evidence.task == "classes" and evidence.positions
    if not maps or last is None or len(named) != 1 or evidence.data.out_of_range:
        return
    weighed = any(word in (evidence.network.last_op or "") for word in WEIGHTED)
    measured = min(last.samples, train.samples) > 0
    one = measured and last.skill is None and train.skill is None  # no other class to be told
    many = evidence.data.distinct >= MAPS and evidence.data.same_batch is False
    if one and many and weighed:
        yield Sign(
            "error",
            f"every label is class {named[0]}, in training ({evidence.data.distinct} samples) and "
            f"in validation, and the outputs stand for {evidence.classes} classes: there is "
            "nothing to tell apart",
            "look at the labels where they are read: scaled to [0, 1] and cast to integers, all "
            "become 0",
            evidence={
                "class": named[0],
                "classes": evidence.classes,
                "samples": evidence.data.distinct,
            },
            override=None,
            confidence="certain",
        )


def coded_otherwise(evidence: Evidence) -> Iterator[Sign]:
    """Validation labels that are coded or ordered otherwise than the training's.

    Where they are only of other shares, the outputs tell them apart after a shift of each class.
    """
    data, kept = evidence.data, held_out(evidence)
    if kept is None:
        return
    found, transfer = reached(evidence), transfer_skill(evidence)
    renamed = (data.relabelled_skill or 0) > RENAMED and kept < AT_CHANCE
    alike = (shift(evidence) or 0) < ALIKE
    misplaced = alike and lost_on_validation(evidence) and not follows_another_code(evidence)
    if found > LEARNT_WELL and (renamed or misplaced) and other_preparation(evidence) is None:
        values = evidence.task == "values"
        shares = "" if values else ", whatever the classes' shares are"
        yield Sign(
            "error",
            f"what is learnt on training labels (skill {found:.2f}) does not hold for the "
            f"validation labels ({kept:.2f}){shares}, though the inputs are alike",
            "look whether inputs and targets of the validation set belong to the same samples"
            if values
            else "compare how the labels of the two sets are coded and ordered",
            evidence={
                "train_skill": found,
                "validation_skill": kept,
                "skill_after_renaming": data.relabelled_skill,
                "simple_model_train_to_validation": transfer,
            },
            override=None,
            confidence="shown",
        )


def wrong_training_labels(evidence: Evidence) -> Iterator[Sign]:
    """Validation labels that are met far better than training labels, class by class.

    A validation without the classes that are hard to learn is met better too.
    """
    last, trained = last_validation(evidence), evidence.outcome.train.recalls
    if evidence.task != "classes" or last is None or last.skill is None:
        return
    both = trained.keys() & last.recalls.keys()
    if len(both) < TWO or last.samples < VALIDATED:
        return
    better = fmean(last.recalls[c] - trained[c] for c in both)
    if better > BETTER_THAN_TRAINING and last.skill > VALIDATION_SKILL:
        found = reached(evidence)
        # What holds for others all the same was learnt in spite of them, as it may be meant to.
        changed = (evidence.outcome.epochs or 1.0) < CHANGED_EACH_TIME
        harmless = last.skill > IN_SPITE or changed
        yield Sign(
            "note" if harmless else "error",
            f"validation labels are met far better (skill {last.skill:.2f}) than training labels "
            f"({found:.2f}): part of the training labels are wrong",
            "look through the training samples with the largest loss",
            evidence={"train_skill": found, "validation_skill": last.skill},
            override=None,
            confidence="shown",
        )


def no_relation(evidence: Evidence) -> Iterator[Sign]:
    """Neither the network nor a simple model finds anything, and no other cause keeps them.

    A simple model of single samples proves nothing about samples that depend on each other, as the
    nodes of a graph do, and little about sequences and images.
    """
    data, kept = evidence.data, held_out(evidence)
    found = reached(evidence)
    learnt = found if kept is None else kept
    table = data.floating and data.axes <= TABLE_AXES
    proves = kept is not None and table
    if (
        data.simple_skill is not None
        and data.distinct >= SAMPLES
        and data.simple_skill < AT_CHANCE
        and learnt < AT_CHANCE
        and found > -AT_CHANCE  # wrong labels make nothing worse than guessing on themselves
        and (evidence.network.mixing or 0) <= MIXED
        and (evidence.outcome.movement or 0) > STILL
        and rarest_share(evidence) > BALANCED * RARE
        and not cured(evidence, *LOWER_RATES, REINITIALISED)
        and not diverged(evidence)
        and not outputs_belong_to_new_samples(evidence)
    ):
        yield Sign(
            "error",
            "neither the network nor nearest neighbours or a linear model find a relation between "
            "inputs and labels that holds for other samples",
            evidence={
                "simple_model_skill": data.simple_skill,
                "train_skill": found,
                "validation_skill": kept,
            },
            # Two kinds of simple models, and the network on other samples, find nothing.
            confidence="shown" if proves else "suspected",
        )


def no_relation_of_maps(evidence: Evidence) -> Iterator[Sign]:
    """Neither the network nor a simple model finds anything in samples of many labels each.

    The simple models are those of whole images, and one of single pixels and what is around them.
    """
    data, facts = evidence.data, evidence.data.alignment
    finds_nothing = at_chance(evidence) or learns_by_heart_alone(evidence)
    if data.skill_of_maps is None or data.distinct < SAMPLES or not finds_nothing:
        return
    local = facts is not None and (facts.training_gap or 0.0) > ALIGNED
    if (
        data.skill_of_maps < AT_CHANCE
        and not local
        and (evidence.network.mixing or 0) <= MIXED
        and (evidence.outcome.movement or 0) > STILL
        and not cured(evidence, *LOWER_RATES, REINITIALISED)
        and not diverged(evidence)
        and not outputs_belong_to_new_samples(evidence)
    ):
        yield Sign(
            "error",
            "neither the network nor nearest neighbours or a linear model tell more of the targets "
            "of a sample than the mean target at each place does",
            "look at inputs beside their targets: are they paired by name, and lists sorted alike?",
            evidence={
                "simple_model_skill": data.skill_of_maps,
                "pixels_to_own_targets_in_errors": None if facts is None else facts.training_gap,
                "train_skill": reached(evidence),
            },
        )


def pairs_labelled_otherwise(evidence: Evidence) -> Iterator[Sign]:
    """Pairs of the label that the loss draws together lie farther apart than those of the other, by
    their inputs; and a copy learns better with the labels exchanged."""
    facts = reversed_pairs(evidence)
    if facts is None:
        return
    shown = learns_better(evidence, EXCHANGED_LABELS)
    mended = "; with the labels exchanged, a copy learns better" if shown else ""
    yield Sign(
        "error",
        f"the loss draws together the pairs with label {facts.together:g}, and their inputs lie "
        f"farther apart than those of the other label (nearer in {100 * facts.nearer:.0f} % of "
        f"comparisons){mended}",
        "look up which label the loss takes for a pair that is alike, and which one the data set "
        "gives it; exchange them in one place (label = 1 - label)",
        evidence={
            "label_drawn_together": facts.together,
            "nearer": facts.nearer,
            "pairs": facts.pairs,
            **trial_numbers(evidence, EXCHANGED_LABELS),
        },
        override=None,
        confidence="shown" if shown else "suspected",
        harm="what is alike is pushed apart, and what is not is drawn together",
    )


def nothing_else_seen(evidence: Evidence) -> Iterator[Sign]:
    """No relation is found in a training that nothing else seems to be wrong with.

    Not where anything else finds one, nor where there are too few samples for it to show or of a
    class, where the weights have hardly moved, or the loss diverged.
    """
    data, facts = evidence.data, evidence.data.alignment
    simple = max((s for s in (data.simple_skill, data.skill_of_maps) if s is not None), default=0)
    local = facts is not None and (facts.training_gap or 0.0) > ALIGNED
    if simple > SIMPLE_FINDS or local or 0 < data.distinct < SAMPLES or diverged(evidence):
        return
    if (evidence.outcome.movement or 0) <= STILL or rarest_share(evidence) <= RARE:
        return
    yield Sign(
        "note",
        "nothing is seen to be wrong with the program, and it finds nothing in its inputs that "
        "tells of its targets: they may not belong together",
        "look at some samples beside their targets as the loss gets them: both must be shuffled, "
        "sorted, cut and filtered alike",
        evidence={"simple_model_skill": simple},
        override=None,
        harm="what does not follow from the inputs can only be learnt by heart",
    )


def reversed_pairs(evidence: Evidence) -> PairFacts | None:
    """Return what is known of labelled pairs where the inputs say that the labels are exchanged, in
    a training whose loss has not fallen far."""
    facts, outcome = evidence.data.pairs, evidence.outcome
    first, last = outcome.first_loss, outcome.last_loss
    if facts is None or first is None or last is None or evidence.loop.steps < JUDGED_AFTER:
        return None
    farther = facts.nearer + CERTAINLY * facts.error < BY_CHANCE
    return facts if farther and last > LEFT_OVER * first > 0 else None


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Exchange the labels of pairs where the inputs tell the contrary."""
    if reversed_pairs(evidence):
        yield from (UNCHANGED, EXCHANGED_LABELS)


def _where_it_can_be_judged(rule: Rule) -> Rule:
    """The rule, for a training that was long enough, did not overflow, and has a known task."""

    def judged_rule(evidence: Evidence) -> Iterator[Sign]:
        if judged(evidence) and not overflowed(evidence) and evidence.task != "unknown":
            yield from rule(evidence)

    judged_rule.__name__ = rule.__name__
    judged_rule.__doc__ = rule.__doc__
    return judged_rule


CAUSE = Cause(
    name="bad_labels",
    meaning="the labels do not follow from the inputs",
    kind=Kind.RIVAL,
    rules=(
        first_of(
            out_of_range,
            conflicting,
            shifted_twice,
            coded_as_numbers,
            scaled_down,
            one_class_alone,
            moved_without_its_target,
            named_by_the_other_side,
            pairs_labelled_otherwise,
            _where_it_can_be_judged(coded_otherwise),
            _where_it_can_be_judged(wrong_training_labels),
            _where_it_can_be_judged(no_relation),
            _where_it_can_be_judged(no_relation_of_maps),
        ),
        loss_spike,
    ),
    fix="look at samples beside their labels: are they shuffled or shifted against each other?",
    harm="what is learnt from wrong labels is wrong, or learnt by heart",
    source="Zhang et al. 2017, arXiv:1611.03530; Northcutt et al. 2021, arXiv:1911.00068",
    override=PAIRED,
    last_resort=nothing_else_seen,
    trials=trials_if_learning,
    trials_if_learning=trials_if_learning,
)
