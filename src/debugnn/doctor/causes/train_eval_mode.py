"""A model in the wrong mode: trained in evaluation mode, or evaluated in training mode."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.network import evaluations_differ
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.skill import last_validation
from debugnn.doctor.causes.signals.wording import listed
from debugnn.doctor.evidence import Evidence

# Training steps in evaluation mode that may be looks in passing: two, or this share of the steps.
LOOKS = 2
LOOKS_SHARE = 0.05
# Steps after which running averages have followed the batches (0.9^100 of their start is left);
# skill by batch statistics that can be lost, and how much of it is: ten times as much as the 0.02
# that sound programs with batch norm lose.
SETTLED = 100
LEARNT_BY_BATCH = 0.5
GAP = 0.2
# The same where new averages alone bring it back.
GAP_OF_AVERAGES = 0.1


def random_evaluation(evidence: Evidence) -> Iterator[Sign]:
    """Dropout that evaluation mode does not turn off."""
    if evidence.network.drops_in_evaluation and evaluations_differ(evidence):
        yield Sign(
            "note" if evidence.network.dropout_meant else severity(evidence),
            "two evaluations of one batch differ: something stays random in evaluation mode",
            "use nn.Dropout, or F.dropout(x, p, training=self.training)",
        )


def trained_in_evaluation_mode(evidence: Evidence) -> Iterator[Sign]:
    """Training steps with dropout off and batch norm fixed."""
    loop = evidence.loop
    looks = max(LOOKS, LOOKS_SHARE * loop.training_forwards)
    if evidence.network.mode_sensitive and loop.eval_mode_forwards > looks:
        yield Sign(
            severity(evidence),
            f"{loop.eval_mode_forwards} of {loop.training_forwards} training steps ran in "
            "evaluation mode: dropout was off, batch norm did not follow the batches",
            "call model.train() before each epoch's training",
            step=loop.first_eval_mode,
            evidence={"steps": loop.eval_mode_forwards},
            line=loop.eval_mode_line,
        )


def evaluated_in_training_mode(evidence: Evidence) -> Iterator[Sign]:
    """Evaluations with dropout on and batch norm moving."""
    loop = evidence.loop
    count = max(loop.train_mode_evaluations, loop.validated_in_train_mode)
    if evidence.network.mode_sensitive and count:
        yield Sign(
            "warning",
            f"{count} evaluations ran in training mode: dropout was on, batch norm used (and "
            "updated) batch statistics",
            evidence={"evaluations": count},
            line=loop.evaluation_line,
        )


def _lost_in_evaluation(evidence: Evidence, skill: float | None, gap: float) -> float | None:
    """Return the skill on training samples in evaluation mode, where it is lower than another one
    by a gap, and that of the validation too; None where not.

    Args:
        skill: on the same samples, under other statistics; None where it is not known.
    """
    running, last = evidence.outcome.train.skill, last_validation(evidence)
    if evidence.loop.steps < SETTLED or skill is None or running is None:
        return None
    held = [running] if last is None or last.skill is None else [running, last.skill]
    return running if skill > LEARNT_BY_BATCH and max(held) < skill - gap else None


def averages_of_few_batches(evidence: Evidence) -> Iterator[Sign]:
    """A network that fits its samples in evaluation mode once batch norm's averages are those of
    several batches, and does worse with the averages that its training left."""
    averaged = evidence.outcome.train_averaged.skill
    running = _lost_in_evaluation(evidence, averaged, GAP_OF_AVERAGES)
    if running is not None:
        yield Sign(
            "warning",
            f"on the same training samples its skill in evaluation mode is {running:.2f} with the "
            f"running averages of batch norm, and {averaged:.2f} with averages taken of several "
            "batches alike",
            "look at batch norm's momentum: in PyTorch it is the weight of the new batch, 0.1, and "
            "other libraries' 0.9 or 0.99 is the weight of the old ones; or use nn.GroupNorm",
            evidence={"skill_of_averages_taken_anew": averaged, "skill_in_evaluation": running},
            confidence="shown",
            harm="running averages that are not those of the batches spoil every evaluation",
        )


def averages_of_several_places(evidence: Evidence) -> Iterator[Sign]:
    """One batch norm that is run at several places, whose averages are those of none of them."""
    by_batch, shared = evidence.outcome.train_mode.skill, evidence.network.shared_norms
    running = _lost_in_evaluation(evidence, by_batch, GAP_OF_AVERAGES)
    if shared and running is not None:
        yield Sign(
            "warning",
            f"batch norm {listed(shared)} is run several times in a pass, and has one running "
            f"average for all of them; on the same training samples the skill is {by_batch:.2f} in "
            f"training mode, with the statistics of each place, and {running:.2f} in evaluation "
            "mode, with this average",
            "give each place a batch norm of its own: make one for each layer in __init__",
            layer=shared[0],
            evidence={
                "layers": shared[:32],
                "skill_by_batch_statistics": by_batch,
                "skill_in_evaluation": running,
            },
            harm="running averages that are those of no place spoil every evaluation",
        )


def running_statistics_differ(evidence: Evidence) -> Iterator[Sign]:
    """A network that fits its samples with their batch's statistics, and not with running ones."""
    by_batch = evidence.outcome.train_mode.skill
    running = _lost_in_evaluation(evidence, by_batch, GAP)
    if running is not None:
        yield Sign(
            "warning",
            f"on the same training samples its skill is {by_batch:.2f} in training mode, with each "
            f"batch's own statistics, and {running:.2f} in evaluation mode, with running averages: "
            "batch norm's averages are not those of the batches",
            "look at batch norm's momentum (in PyTorch it is the weight of the new batch, 0.1), at "
            "batches that are too small or of one kind, or use nn.GroupNorm",
            evidence={"skill_by_batch_statistics": by_batch, "skill_in_evaluation": running},
        )


CAUSE = Cause(
    name="train_eval_mode",
    meaning="a model in the wrong mode",
    kind=Kind.CERTAIN,
    rules=(
        first_of(
            random_evaluation,
            trained_in_evaluation_mode,
            evaluated_in_training_mode,
            averages_of_several_places,
            averages_of_few_batches,
            running_statistics_differ,
        ),
    ),
    fix="call model.eval() before evaluating, and model.train() after",
    harm="dropout and batch norm compute another function in the other mode",
    source="pytorch issue 76383",
)
