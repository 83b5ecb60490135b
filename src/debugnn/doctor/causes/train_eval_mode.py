"""A model in the wrong mode: trained in evaluation mode, or evaluated in training mode."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals import evaluations_differ, severity
from debugnn.doctor.evidence import Evidence

# Training steps in evaluation mode that may be looks in passing: two, or this share of the steps.
LOOKS = 2
LOOKS_SHARE = 0.05


def random_evaluation(evidence: Evidence) -> Iterator[Sign]:
    """Dropout that evaluation mode does not turn off."""
    if evidence.network.drops_in_evaluation and evaluations_differ(evidence):
        yield Sign(
            severity(evidence),
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


CAUSE = Cause(
    name="train_eval_mode",
    meaning="a model in the wrong mode",
    kind=Kind.CERTAIN,
    rules=(first_of(random_evaluation, trained_in_evaluation_mode, evaluated_in_training_mode),),
    fix="call model.eval() before evaluating, and model.train() after",
    harm="dropout and batch norm compute another function in the other mode",
    source="pytorch issue 76383",
)
