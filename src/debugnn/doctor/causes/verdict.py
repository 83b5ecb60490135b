"""Whether a training is healthy as far as its outcome tells. Needs no torch."""

import math
from typing import NamedTuple

from debugnn.doctor.causes.signals.loss_course import diverged
from debugnn.doctor.causes.signals.outcome import (
    AT_CHANCE,
    at_chance,
    behind,
    learns,
    learns_by_heart_alone,
    runs_after_targets,
)
from debugnn.doctor.causes.signals.own_samples import (
    inputs_unused,
    outputs_belong,
    unused_by_new_samples,
)
from debugnn.doctor.causes.signals.parts import fell, idle_part, part_skill, parts_learn
from debugnn.doctor.causes.signals.skill import JUDGED_AFTER, guessing_known, reached, skill
from debugnn.doctor.causes.signals.without_skill import (
    chooses_candidate,
    code_ignored,
    collapsed,
    stays_where_it_began,
    worse_than_constant,
)
from debugnn.doctor.evidence import Evidence


class Verdict(NamedTuple):
    """`healthy` as in `Report`, and the reason in one sentence."""

    healthy: bool | None
    reason: str


def verdict(evidence: Evidence) -> Verdict:
    """Judge a training of which no cause is proven."""
    before, steps = evidence.loop.steps_before, evidence.loop.steps
    if before:
        return Verdict(
            None,
            f"the first {before} steps were taken before the doctor began to watch: what it saw "
            "of the rest cannot tell whether the whole training is healthy",
        )
    if steps < JUDGED_AFTER:
        return Verdict(None, f"{steps} steps are too few to judge; nothing is wrong so far")
    if evidence.task == "unknown" and learns(evidence) is None:
        return _of_unknown_task(evidence)
    learning = learns(evidence)
    if learning is None and runs_after_targets(evidence):
        return Verdict(
            None,
            "the targets have moved in the course of the training, as those of a critic do whose "
            f"actor gets better: its skill on all of them is {reached(evidence):.2f} (0 is "
            "guessing, 1 is perfect), which says little of how well it follows them",
        )
    if learning is None and at_chance(evidence) and guessing_known(evidence):
        return Verdict(
            None,
            f"its skill is only {reached(evidence):.2f} (0 is guessing, 1 is perfect), and yet its "
            "outputs fit new samples better than other samples', and a simple model does no "
            "better: whether there is more to be learnt is not known",
        )
    if learning is None and at_chance(evidence):
        return Verdict(
            None,
            f"so far it predicts little more than how often each of the {evidence.classes} classes "
            "comes: there are too few labels to tell whether it learns more",
        )
    if learning is None:
        return Verdict(None, "how well the outputs fit the targets could not be measured")
    if not learning:
        return Verdict(False, _why_it_does_not_learn(evidence))
    own = evidence.outcome.own_loss.relative
    if reached(evidence) < AT_CHANCE and own is not None:
        return Verdict(
            True,
            f"it learns: its loss on training samples is {own:.2g} times that of the best constant "
            "outputs",
        )
    return Verdict(True, f"it learns: its skill on training samples is {reached(evidence):.2f}")


def _of_unknown_task(evidence: Evidence) -> Verdict:
    """Judge by the outputs that have a target each, and by the training's own loss."""
    idle = idle_part(evidence)
    if idle is not None:
        return Verdict(
            False,
            f"it does not learn what the loss asks of its output {idle.name}: the skill there is "
            f"{part_skill(idle):.2f} (0 is guessing, 1 is perfect), that of a simple model "
            f"{idle.simple_skill:.2f}",
        )
    if parts_learn(evidence):
        parts = [part for part in evidence.outcome.parts if not part.against]
        skills = ", ".join(f"{part_skill(part):.2f} at its output {part.name}" for part in parts)
        return Verdict(True, f"it learns: its skill on training samples is {skills}")
    first, last = evidence.outcome.first_loss, evidence.outcome.last_loss
    # A policy that makes rewarded actions rarer lowers its loss all the same.
    policy = evidence.loss.policy
    lowered = fell(evidence) and not (policy is not None and policy.rises)
    if lowered and outputs_belong(evidence):
        return Verdict(
            True,
            f"it learns by its own loss, which fell from {first:.3g} to {last:.3g} and is lower "
            "beside a sample's own targets than beside another's",
        )
    chosen, count = chooses_candidate(evidence), evidence.loss.candidates or 1
    if chosen is not None:
        told = (
            f"its cross-entropy among {count} candidates ends at {last:.3g}, and guessing gives "
            f"{math.log(count):.3g}"
        )
        return Verdict(chosen, f"it {'learns' if chosen else 'does not learn'}: {told}")
    return Verdict(
        None,
        "it is not known what the loss compares, so that a good outcome cannot be told from a "
        "bad one; nothing is wrong with the program as far as can be seen",
    )


def _why_it_does_not_learn(evidence: Evidence) -> str:
    latent = evidence.outcome.latent
    if code_ignored(evidence) and latent is not None:
        return (
            "it does not learn, for its outputs tell nothing of its inputs: they change by "
            f"{100 * (latent.by_input or 0.0):.1g} % of their size where inputs change places"
        )
    if inputs_unused(evidence):
        own = evidence.outcome.own_loss.train
        return (
            "it does not learn, for it makes no use of its inputs: its loss is the same where "
            "outputs stand beside other samples' targets (better beside their own in "
            f"{100 * (own.better or 0):.0f} % of {own.groups} groups of samples, where guessing "
            "gives 50 %)"
        )
    if collapsed(evidence):
        return (
            "its outputs have become the same for all inputs: among samples they differ by "
            f"{evidence.outcome.output_signal or 0:.2g}, and by "
            f"{evidence.network.output_signal or 0:.2g} at the start"
        )
    if unused_by_new_samples(evidence):
        seen = evidence.outcome.own_loss.validation
        return (
            "it learns nothing that holds for new samples: the loss of the validation is the same "
            "where outputs stand beside other samples' targets (better beside their own in "
            f"{100 * (seen.better or 0):.0f} % of {seen.groups} groups of samples)"
        )
    if stays_where_it_began(evidence):
        return (
            f"it does not learn: in {evidence.loop.steps} steps its weights have moved by "
            f"{100 * (evidence.outcome.movement or 0):.2g} % of their size, and its loss has gone "
            f"from {evidence.outcome.first_loss:.3g} to {evidence.outcome.last_loss:.3g}"
        )
    if worse_than_constant(evidence):
        return (
            "it does not learn: its loss on training samples is "
            f"{evidence.outcome.own_loss.relative or 0:.2g} times that of the best constant outputs"
        )
    known = skill(evidence)
    measured = f"its skill on training samples is {known:.2f} (0 is guessing, 1 is perfect)"
    if at_chance(evidence):
        return f"it does not learn: {measured}"
    if learns_by_heart_alone(evidence):
        return (
            "it learns training samples by heart and nothing that holds for others: the loss of "
            f"the validation samples is above that of guessing each time, and {measured}"
        )
    if diverged(evidence):
        return f"its loss diverged, and {measured}"
    simple = evidence.data.simple_skill
    if behind(evidence) and simple is not None:
        return f"it learns far less than a simple model, whose skill is {simple:.2f}: {measured}"
    return f"it is worse than guessing, for it is sure of what it gets wrong: {measured}"
