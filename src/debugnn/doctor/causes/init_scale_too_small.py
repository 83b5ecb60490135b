"""Initial weights that are too small."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.init_scale_too_large import KAIMING_GAIN
from debugnn.doctor.causes.signals.network import SMALL_GAIN, extreme_gain, flat_activations
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import module_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.trials import RECTIFIED, REINITIALISED, Trial

# Gain, over SMALL_GAIN, at which a failing net needs no trial: a deep net that starts so small may
# need longer than a trial lasts from any initialisation.
WITHOUT_TRIAL = 0.5


def small_weights(evidence: Evidence) -> Iterator[Sign]:
    """A hidden weight starts far below the usual gains, and a copy learns from another start."""
    worst = extreme_gain(evidence, large=False)
    if worst is None or not short(evidence):
        return
    obvious = failing(evidence) and worst.gain < SMALL_GAIN * WITHOUT_TRIAL
    cure = cured(evidence, *_redrawn(evidence))
    if cure is None and not obvious:
        return
    yield Sign(
        severity(evidence),
        f"the weights start at {worst.gain / KAIMING_GAIN:.2g} of the size that Kaiming's rule "
        "gives them: signals and gradients fade from layer to layer",
        layer=module_of(worst.name),
        step=0,
        evidence={"gain": worst.gain, **trial_numbers(evidence, REINITIALISED, RECTIFIED)},
        confidence=shown_by(evidence, cure),
    )


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Draw the weights anew where some start too small."""
    if extreme_gain(evidence, large=False):
        yield from _redrawn(evidence)


def _redrawn(evidence: Evidence) -> tuple[Trial, ...]:
    """The trials that draw the weights anew, by the modules' own rules and by Kaiming's, and leave
    the activations as they are."""
    return (REINITIALISED,) if flat_activations(evidence) else (REINITIALISED, RECTIFIED)


CAUSE = Cause(
    name="init_scale_too_small",
    meaning="initial weights that are too small",
    kind=Kind.RIVAL,
    rules=(small_weights,),
    fix="initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
    harm="signals and gradients shrink from layer to layer, so that the first layers hardly move",
    source="Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852",
    override="init=kaiming",
    trials=trials,
)
