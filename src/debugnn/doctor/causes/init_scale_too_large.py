"""Initial weights that are too large."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.network import extreme_gain, outsized_constant
from debugnn.doctor.causes.signals.outcome import rough_start, severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import module_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import REINITIALISED, Trial

# RMS · √fan_in under Kaiming's rule for ReLU, √2 (He et al. 2015, eq. 10).
KAIMING_GAIN = 1.41


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


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Draw the weights anew where some start too large."""
    if extreme_gain(evidence, large=True):
        yield REINITIALISED


CAUSE = Cause(
    name="init_scale_too_large",
    meaning="initial weights that are too large",
    kind=Kind.RIVAL,
    rules=(large_weights,),
    fix="initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
    harm="signals grow from layer to layer, so that outputs start confident and wrong",
    source="He et al. 2015, arXiv:1502.01852; the article's claim 7",
    override="init=kaiming",
    trials=trials,
)
