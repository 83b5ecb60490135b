"""Initial weights that are too small."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.dead_relu import dead_units
from debugnn.doctor.causes.init_scale_too_large import KAIMING_GAIN
from debugnn.doctor.causes.signals.learning_rate import schedule_is_stuck
from debugnn.doctor.causes.signals.network import (
    FADED,
    SMALL_GAIN,
    extreme_gain,
    flat_activations,
    signal_left,
)
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import listed, module_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding
from debugnn.doctor.trials import RECTIFIED, REINITIALISED, UNIT_SIGNALS, Trial

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


def fading_signals(evidence: Evidence) -> Iterator[Sign]:
    """Signals fade from layer to layer, and a copy whose signals are evened out learns."""
    left = _faded(evidence)
    cure = cured(evidence, UNIT_SIGNALS)
    if left is None or cure is None:
        return
    share, first = left
    yield Sign(
        severity(evidence),
        f"the outputs differ among samples by {share:.2g} of what those of {module_of(first)} do: "
        "signals fade from layer to layer",
        "initialise so that signals keep their size (Kaiming's rule for ReLU), use batch or layer "
        "norm, or look for a factor between the layers that is too small",
        step=0,
        evidence={"signal_left": share, **trial_numbers(evidence, UNIT_SIGNALS)},
        confidence=shown_by(evidence, cure),
    )


def scales_of_zero(evidence: Evidence) -> Iterator[Sign]:
    """Scales of a normalisation that begin at 0 and never move: no gradient comes past an
    activation that is flat there."""
    names = evidence.network.zero_scales
    if names and failing(evidence):
        yield Sign(
            "error",
            f"the scales of {len(names)} normalisations are 0 from start to end: {listed(names)}; "
            "what they normalise is thrown away, and no gradient reaches them",
            "begin with scales of 1 and shifts of 0: nn.init.ones_(norm.weight), "
            "nn.init.zeros_(norm.bias)",
            layer=module_of(names[0]),
            step=0,
            evidence={"scales": names[:32]},
            override=None,
            confidence="certain",
        )


def _faded(evidence: Evidence) -> tuple[float, str] | None:
    """Return what is left of the signals where weights alone explain that it is little.

    Biases that keep units at zero stop signals too, and sigmoids and tanhs that are flat there.
    """
    left, dead = signal_left(evidence), dead_units(evidence)
    if left is None or left[0] >= FADED or not short(evidence) or flat_activations(evidence):
        return None
    return None if dead is not None and dead[3] else left


def after_its_schedule(evidence: Evidence, finding: Finding) -> int:
    """At the beginning of a warm-up all along, any weights learn slowly."""
    return 1 if schedule_is_stuck(evidence) else 0


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Draw the weights anew where some start too small; even signals out where they fade."""
    if _faded(evidence):
        yield UNIT_SIGNALS
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
    rules=(first_of(scales_of_zero, small_weights, fading_signals),),
    fix="initialise by the layers' fan-in (torch.nn.init.kaiming_uniform_)",
    harm="signals and gradients shrink from layer to layer, so that the first layers hardly move",
    source="Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852",
    override="init=kaiming",
    trials=trials,
    lateness=after_its_schedule,
)
