"""Gradients that shrink on their way to the first layers."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.exploding_gradient import growing_gradients, overflows_at_start
from debugnn.doctor.causes.saturated_activation import saturated_values
from debugnn.doctor.causes.signals.loss_course import learns_late, plateau
from debugnn.doctor.causes.signals.network import flat_activations, gradient_ratios
from debugnn.doctor.causes.signals.outcome import BEHIND, FAR_BEHIND, severity, short
from debugnn.doctor.causes.signals.skill import judged, reached
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.wording import module_of, relu_override
from debugnn.doctor.evidence import Evidence, RecurrenceFacts
from debugnn.doctor.trials import RECTIFIED, Trial

# Gradient at the first layer over that at the last. AUTOTRAINER (Zhang et al. 2021) warns below
# 1e-3 where the gradient is small besides. Sound programs have 0.18 and more, faulty ones 3e-4 and
# less; the article's sigmoid net has 1.7e-3 at step 0, its ReLU net 0.3.
VANISHED = 0.02
# The same for a recurrent net in time: ‖∂L/∂x‖ at the first tenth of a sequence over the last.
FORGOTTEN = 1e-3
# Steps that a gradient may come back to where a recurrence is cut at each: the last one, and the
# first one too where it runs both ways. Who truncates on purpose keeps more.
CUT_TO = 2
# Change of the outputs beyond an even growth, as a share: a smooth dependence has a tenth at most.
# A hard choice, which has no gradient by right, jumps by all of it.
JUMP = 0.3


def cut_at_each_step(evidence: Evidence) -> Iterator[Sign]:
    """A recurrence hands its state on without its graph, so that the gradient ends at each step."""
    found = evidence.network.recurrence
    if found is None or found.uneven > JUMP or found.reached > CUT_TO or not found.idle:
        return
    # With outputs at each step all weights learn, and a net may be meant to learn from each step
    # alone, as online methods do.
    forgets = _forgets(evidence, found)
    meant = found.each_step and not short(evidence) and not forgets
    by = "" if found.cut_by is None else f" ({found.cut_by} takes it out of the graph)"
    yield Sign(
        "note" if meant else severity(evidence),
        f"the output depends on earlier steps of the sequence, and the gradient comes back to "
        f"{found.reached} of {found.steps} steps: the graph is cut from one step to the next{by}; "
        f"{found.idle} of {found.calls} calls of {found.layer} get no gradient"
        + (
            f"; at the {'last' if found.end else 'first'} step the skill is {found.end_skill:.2f}, "
            f"that of a simple model of all steps {found.end_by_all:.2f}, of that step alone "
            f"{found.end_by_itself:.2f}"
            if forgets
            else ""
        ),
        "hand the state on as it is, or with .clone(): without .data, .detach() or numpy "
        "between two steps of a sequence",
        layer=found.layer,
        step=0,
        evidence={
            "steps": found.steps,
            "steps_reached": found.reached,
            "calls_without_gradient": found.idle,
        },
        override=None,
        confidence="certain",
        harm="what has to be remembered from earlier steps cannot be learnt",
        line=found.line,
    )


def reads_the_first_half(evidence: Evidence) -> Iterator[Sign]:
    """Outputs for whole sequences that follow the first half of the positions alone, of a training
    that falls short: those of a recurrence at its first position, say, and not at its last."""
    if evidence.network.halves_used != [True, False] or not short(evidence):
        return
    # The differences that tell what is used are no numbers, or none is left beyond a bound.
    if overflows_at_start(evidence) or saturated_values(evidence):
        return
    yield Sign(
        severity(evidence),
        "the outputs depend on the first half of a sequence's positions and not on the second, "
        "whatever stands there: no gradient comes back from it",
        "read the state after the last position, outputs[:, -1] of (batch, time, ...) or "
        "outputs[-1] of (time, batch, ...), or a mean over all positions",
        step=0,
        evidence={"halves_used": evidence.network.halves_used},
        override=None,
        confidence="certain",
        harm="what stands later in a sequence cannot be learnt from",
    )


def _forgets(evidence: Evidence, found: RecurrenceFacts) -> bool:
    """Return whether outputs of a step miss what a simple model finds in the other steps."""
    skill, by_all, by_itself = found.end_skill, found.end_by_all, found.end_by_itself
    if not judged(evidence) or skill is None or by_all is None or by_itself is None:
        return False
    return by_all > max(skill, by_itself) + FAR_BEHIND


def layers(evidence: Evidence) -> Iterator[Sign]:
    """The first layers' gradient is a small part of the last one's."""
    ratios = gradient_ratios(evidence)
    if not ratios or ratios[0][0] >= VANISHED:
        return
    ratio, first, last = ratios[0]
    what = f"the gradient at {first} is {ratio:.2g} of that at {last}"
    if learns_late(evidence):
        what += f", and the first {plateau(evidence)} steps taught nothing"
    yield _sign(evidence, what, ratio, module_of(first))


def findable(evidence: Evidence) -> bool:
    """Return whether a simple model finds what the training does not."""
    simple = evidence.data.simple_skill
    return short(evidence) and (simple is None or simple > reached(evidence) + BEHIND)


def time_steps(evidence: Evidence) -> Iterator[Sign]:
    """A recurrent net's gradient does not reach the first time steps, and they matter."""
    ratio = evidence.network.time_gradient
    if ratio is not None and ratio < FORGOTTEN and findable(evidence):
        what = f"of the gradient at the last time steps {ratio:.2g} reaches the first"
        yield _sign(evidence, what, ratio, None)


def _sign(evidence: Evidence, what: str, ratio: float, layer: str | None) -> Sign:
    return Sign(
        severity(evidence),
        what,
        layer=layer,
        step=0,
        evidence={"ratio": ratio, **trial_numbers(evidence, RECTIFIED)},
        override=relu_override(evidence),
        confidence=shown_by(
            evidence, cured(evidence, RECTIFIED) if flat_activations(evidence) else None
        ),
    )


def fading_gradients(evidence: Evidence) -> Iterator[Sign]:
    """Either of both, in a training that does not learn or learns late; growth rules it out."""
    concerned = short(evidence) or learns_late(evidence)
    if concerned and not any(growing_gradients(evidence)):
        yield from first_of(layers, time_steps)(evidence)


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Put ReLUs for sigmoids and tanhs where the first layers' gradient fades."""
    if flat_activations(evidence) and any(layers(evidence)):
        yield RECTIFIED


CAUSE = Cause(
    name="vanishing_gradient",
    meaning="gradients that shrink on their way to the first layers",
    kind=Kind.SYMPTOM,
    rules=(first_of(cut_at_each_step, reads_the_first_half, fading_gradients),),
    fix="use ReLU with Kaiming's initialisation, batch norm or residual connections (in recurrent "
    "networks LSTM or GRU)",
    harm="the first layers hardly leave their random initial weights",
    source="Hochreiter 1991; Glorot & Bengio 2010; the article's claim 5",
    override="model=relu_net",
    trials=trials,
)
