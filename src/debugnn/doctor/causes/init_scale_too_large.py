"""Initial weights that are too large."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.network import extreme_gain, outsized_constant
from debugnn.doctor.causes.signals.outcome import ROUGH, rough_start, severity, short
from debugnn.doctor.causes.signals.skill import not_all_learnt
from debugnn.doctor.causes.signals.trials import cured, overtakes, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import module_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import REINITIALISED, SMALL_TABLES, UNCHANGED, Trial

# RMS · √fan_in under Kaiming's rule for ReLU, √2 (He et al. 2015, eq. 10).
KAIMING_GAIN = 1.41
# Initial loss over that of guessing, and RMS of the embeddings' weights, above which these may be
# too large. Sound programs start at 0.9 to 2.0; nn.Embedding draws weights with an RMS of 1.
HIGH = 3.0
LARGE_TABLE = 0.5


def large_weights(evidence: Evidence) -> Iterator[Sign]:
    """A weight starts far above the usual gains, and a copy learns from another initialisation."""
    worst = extreme_gain(evidence, large=True)
    if worst is None or not (short(evidence) or rough_start(evidence)):
        return
    cure = cured(evidence, REINITIALISED)
    if cure is None and not outsized_constant(evidence):
        return
    initial = evidence.outcome.initial.relative_loss
    loss = f", the loss at {initial:.3g} times that of guessing" if initial else ""
    yield Sign(
        severity(evidence),
        f"the weights start {worst.gain / KAIMING_GAIN:.3g} times as large as Kaiming's rule has "
        f"them{loss}",
        layer=module_of(worst.name),
        step=0,
        evidence={
            "gain": worst.gain,
            "initial_relative_loss": initial,
            **trial_numbers(evidence, REINITIALISED),
        },
        confidence=shown_by(evidence, cure),
    )


def large_and_overtaken(evidence: Evidence) -> Iterator[Sign]:
    """A weight starts far above the usual gains, and a copy that starts from another initialisation
    gets a lower loss in its few steps than the whole training did, whatever the task is."""
    worst, first = extreme_gain(evidence, large=True), evidence.outcome.first_loss
    if worst is None or first is None or not overtakes(evidence, REINITIALISED):
        return
    outcome = evidence.trials[REINITIALISED.name]
    if first < ROUGH * abs(outcome.start):
        return
    yield Sign(
        "warning",
        f"the weights start {worst.gain / KAIMING_GAIN:.3g} times as large as Kaiming's rule has "
        f"them, and the loss at {first:.3g}; drawn anew, a copy starts at {outcome.start:.3g} and "
        f"gets to {outcome.end:.3g} in {outcome.steps} steps, the training to "
        f"{evidence.outcome.last_loss:.3g} in {evidence.loop.steps}",
        layer=module_of(worst.name),
        step=0,
        evidence={
            "gain": worst.gain,
            "first_loss": first,
            "last_loss": evidence.outcome.last_loss,
            "start: reinitialised": outcome.start,
            **trial_numbers(evidence, REINITIALISED),
        },
        confidence="shown",
    )


def large_tables(evidence: Evidence) -> Iterator[Sign]:
    """A loss that starts far above that of guessing, and a copy learns better from embeddings of a
    tenth of the weights."""
    cure, rms = cured(evidence, SMALL_TABLES), evidence.network.table_rms
    if not tables_start_rough(evidence) or cure is None or rms is None:
        return
    initial = evidence.outcome.initial.relative_loss or 0.0
    unchanged, small = (evidence.trials[t.name].end for t in (UNCHANGED, SMALL_TABLES))
    yield Sign(
        severity(evidence),
        f"the weights of the embeddings start with a root mean square of {rms:.2g}, and the loss "
        f"at {initial:.3g} times that of guessing; with a tenth of them a copy learns better "
        f"(relative loss {small:.2f} in place of {unchanged:.2f})",
        "draw the embeddings smaller, by torch.nn.init.normal_(weight, std=0.02 to 0.1): "
        "nn.Embedding draws them from N(0, 1), whatever their products are used for",
        step=0,
        evidence={
            "rms_of_embeddings": rms,
            "initial_relative_loss": initial,
            **trial_numbers(evidence, SMALL_TABLES),
        },
        confidence=shown_by(evidence, cure),
        override=None,
    )


def tables_start_rough(evidence: Evidence) -> bool:
    """Return whether large embeddings may be why the loss began high and not all was learnt."""
    initial, rms = evidence.outcome.initial.relative_loss, evidence.network.table_rms
    if initial is None or rms is None:
        return False
    return initial > HIGH and rms > LARGE_TABLE and not_all_learnt(evidence)


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Draw weights anew where no task is known and some are large; shrink large embeddings."""
    if evidence.task == "unknown" and extreme_gain(evidence, large=True):
        yield UNCHANGED
        yield REINITIALISED
    if tables_start_rough(evidence):
        yield UNCHANGED
        yield SMALL_TABLES


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Draw the weights anew where some start too large; shrink large embeddings."""
    if extreme_gain(evidence, large=True):
        yield REINITIALISED
    if tables_start_rough(evidence) and not cured(evidence, REINITIALISED):
        yield SMALL_TABLES


CAUSE = Cause(
    name="init_scale_too_large",
    meaning="initial weights that are too large",
    kind=Kind.RIVAL,
    rules=(first_of(large_weights, large_and_overtaken, large_tables),),
    fix="initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
    harm="signals grow from layer to layer, so that outputs start confident and wrong",
    source="He et al. 2015, arXiv:1502.01852; the article's claim 7",
    override="init=kaiming",
    trials=trials,
    trials_if_learning=trials_if_learning,
)
