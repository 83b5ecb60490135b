"""Parameters that no gradient reaches."""

from collections.abc import Iterable, Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.exploding_gradient import overflows_at_start
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.own_samples import UNKNOWN_JUDGED_AFTER
from debugnn.doctor.causes.signals.skill import FAILING, NEARLY_PERFECT, judged, reached
from debugnn.doctor.causes.signals.trials import cured, shown_by, trial_numbers
from debugnn.doctor.causes.signals.without_skill import LEFT_TO_TELL, code_ignored
from debugnn.doctor.causes.signals.wording import listed, module_of
from debugnn.doctor.evidence import BrokenPathFacts, Evidence
from debugnn.doctor.trials import UNCHANGED, UNFROZEN, Trial

# Updates that found no gradient of those that had arrived, at least and as a share of those looked
# at. A loop that clears a bad batch's gradients and steps nevertheless does so now and then.
CLEARED_STEPS = 3
CLEARED_SHARE = 0.5
# Share of the outputs' values that stay as they are under a small change of the inputs, above which
# a choice lies between them. Smooth functions keep none, choices all but few in a hundred.
CHOICE = 0.5
# Probes at which no gradient came to most values that the optimiser holds, though outputs depend on
# them: heads that a loss leaves out are fewer.
PROBES = 5
MOST = 0.4
# Optimiser steps without any gradient: one may be a loop's first call.
EMPTY_STEPS = 2


def cut_off(evidence: Evidence) -> Iterator[Sign]:
    """Parameters that the outputs depend on and that backward() does not reach."""
    unreached = evidence.network.unreached
    if unreached:
        yield Sign(
            "error",
            f"no gradient reaches {len(unreached)} parameters that the outputs depend on: "
            f"{listed(unreached)}",
            layer=module_of(unreached[0]),
            evidence={"parameters": unreached[:32]},
            confidence="certain",
        )


def broken_path(evidence: Evidence) -> Iterator[Sign]:
    """Parameters that a loss reaches besides, but not by the output that is made of them.

    A note unless the training fails: a coder may be meant to learn by another term alone. Of a
    detach(), with which layers learn each by a loss of its own, and of a random choice, whose
    gradient can be estimated by the score function, nothing is said unless the outputs tell nothing
    of the inputs any more.
    """
    found = evidence.network.broken_path
    if found is None:
        return
    choice, ignored = found.steady > CHOICE and not found.drawn, code_ignored(evidence)
    if not choice and not ignored:
        return
    poor = _rebuilds_badly(evidence, found)
    learns_little = failing(evidence) or short(evidence) or poor
    by = (
        "comes from a choice, such as argmin or argmax, which has no derivative"
        if choice
        else "is drawn or detached, and has no path back to them"
    )
    left = f" (outputs leave {100 * (found.left or 0):.0f} % of the inputs' variance)" * poor
    yield Sign(
        severity(evidence) if learns_little else "note",
        f"the output depends on {len(found.parameters)} parameters to which its own gradient does "
        f"not go back: {listed(found.parameters)}; all that it knows of the inputs {by}{left}",
        "pass the gradient on past the choice with a straight-through estimator, "
        "z + (q - z).detach() for a code q of z"
        if choice
        else "hand the code on without detach(), and draw it by rsample(), as mean + deviation * "
        "noise",
        layer=module_of(found.parameters[0]),
        evidence={
            "parameters": found.parameters[:32],
            "outputs_kept": found.steady,
            "variance_left": found.left,
        },
        confidence="certain",
        harm="these layers never learn what makes the output better",
    )


def _rebuilds_badly(evidence: Evidence, found: BrokenPathFacts) -> bool:
    """Return whether outputs that are to be like the inputs leave much of them after many steps."""
    long = evidence.loop.steps >= UNKNOWN_JUDGED_AFTER
    return evidence.reconstruction and long and (found.left or 0.0) > LEFT_TO_TELL


def cleared_before_step(evidence: Evidence) -> Iterator[Sign]:
    """Gradients that backward() computed, and that were cleared before the update."""
    loop = evidence.loop
    if overflows_at_start(evidence):
        return  # clipped at any norm, gradients of an infinite one are 0 too
    if loop.cleared_steps >= max(CLEARED_STEPS, CLEARED_SHARE * loop.looked_for_cleared):
        became = "gone (None)" if loop.cleared_to_none else "zero"
        yield Sign(
            "error",
            f"backward() computed gradients, and all of them were {became} when optimizer.step() "
            f"ran, in {loop.cleared_steps} of {loop.looked_for_cleared} updates that were looked "
            "at: zero_grad() is called between the two, so that nothing is learnt",
            "call optimizer.zero_grad() before loss.backward() or after optimizer.step(), not "
            "between them",
            evidence={
                "cleared_updates": loop.cleared_steps,
                "updates_looked_at": loop.looked_for_cleared,
            },
            confidence="certain",
        )


def erased_between_passes(evidence: Evidence) -> Iterator[Sign]:
    """Gradients of a first loss that are cleared before the backward pass of the second one."""
    loop = evidence.loop
    if loop.erased_updates >= max(CLEARED_STEPS, CLEARED_SHARE * loop.looked_for_erased):
        yield Sign(
            "error",
            f"{len(loop.erased)} parameters get a gradient from a first backward() and have none "
            f"when optimizer.step() runs, in {loop.erased_updates} of {loop.looked_for_erased} "
            f"updates that were looked at: {listed(loop.erased)}; zero_grad() is called between "
            "two backward passes, so that the first loss is not learnt",
            "call optimizer.zero_grad() once for each update, before the first backward()",
            layer=module_of(loop.erased[0]),
            evidence={
                "parameters": loop.erased,
                "updates": loop.erased_updates,
                "updates_looked_at": loop.looked_for_erased,
            },
            confidence="certain",
            harm="what the first loss asks for is never learnt",
        )


def detached_output(evidence: Evidence) -> Iterator[Sign]:
    """An output that the loss compares with a target, after it was taken out of the graph."""
    outputs, parameters = evidence.loss.detached, evidence.network.unused
    if outputs and parameters:
        yield Sign(
            "error",
            f"the loss compares {listed(outputs)} of the outputs with a target, and has no "
            f"gradient with respect to it; {len(parameters)} parameters get none at all: "
            f"{listed(parameters)}",
            "compare the output itself with its target, not output.detach(), .data or what numpy "
            "makes of it",
            layer=module_of(parameters[0]),
            evidence={"outputs": outputs, "parameters": parameters[:32]},
            confidence="certain",
        )


def never_arrives(evidence: Evidence) -> Iterator[Sign]:
    """Most values that the optimiser holds get no gradient in the loop, though outputs depend on
    them: what the loop does with the outputs cuts them off."""
    network = evidence.network
    # Where gradients are added up over several steps, a probe may lie between two updates.
    probes = [probe for probe in evidence.probes if probe.layers]
    known = network.parameters > 0 and len(probes) >= PROBES
    if not known or not network.never_arrived or network.never_arrived_share < MOST:
        return
    yield Sign(
        "error",
        f"no gradient comes to {len(network.never_arrived)} parameters of the optimiser, "
        f"{100 * network.never_arrived_share:.0f} % of the values that it holds, at any of "
        f"{len(probes)} steps that were looked at, though the outputs depend on them: "
        f"{listed(network.never_arrived)}",
        "compute the loss from the outputs themselves, not from output.detach(), .data, .item() or "
        "what numpy makes of them, nor from outputs of a pass under no_grad()",
        layer=module_of(network.never_arrived[0]),
        evidence={
            "parameters": network.never_arrived[:32],
            "share_of_values": network.never_arrived_share,
        },
        confidence="certain",
    )


def steps_without_gradient(evidence: Evidence) -> Iterator[Sign]:
    """Updates that found no gradient at all."""
    loop = evidence.loop
    if loop.empty_steps >= EMPTY_STEPS and evidence.optimizer.held:
        yield Sign(
            "error",
            f"{loop.empty_steps} optimiser steps found no gradient at all",
            "call loss.backward() before optimizer.step(), on a loss that is not detached",
            evidence={"steps_without_gradient": loop.empty_steps},
            confidence="certain",
        )


def named_on_module(evidence: Evidence) -> Iterator[Sign]:
    """`module.requires_grad = True`, which makes an attribute and unfreezes nothing.

    Only where the training falls short: a module may keep an option of its own by that name.
    """
    frozen = evidence.optimizer.frozen_in_named
    if not frozen or not (short(evidence) or failing(evidence)):
        return
    yield Sign(
        severity(evidence),
        f"requires_grad = True was set on a module, which means nothing to PyTorch: "
        f"{len(frozen)} of its parameters are frozen: {listed(frozen)}",
        "set it on the parameters: module.requires_grad_(True), before the optimiser is made, "
        "which is to hold them",
        layer=module_of(frozen[0]),
        evidence={"parameters": frozen[:32]},
        confidence="certain",
        harm="a frozen layer keeps the weights that it starts with",
    )


def held_but_frozen(evidence: Evidence) -> Iterator[Sign]:
    """Parameters in the optimiser with requires_grad=False: a note, unless little is learnt."""
    frozen = evidence.optimizer.frozen_held
    if not frozen:
        return
    cure = cured(evidence, UNFROZEN)
    mended = "; with all of them learning, a copy learns" if cure else ""
    # A head on trained features does well where these serve its task.
    lacks_them = cure is not None and judged(evidence) and reached(evidence) < FAILING
    yield Sign(
        severity(evidence) if short(evidence) or lacks_them else "note",
        f"{len(frozen)} parameters of the optimiser have requires_grad=False: {listed(frozen)}"
        + mended,
        "set requires_grad_(True), or leave them out of the optimiser if they are meant to be "
        "frozen",
        layer=module_of(frozen[0]),
        evidence={"parameters": frozen[:32], **trial_numbers(evidence, UNFROZEN)},
        confidence=shown_by(evidence, cure),
    )


def frozen_as_drawn(evidence: Evidence) -> Iterator[Sign]:
    """Layers that are frozen with the random weights of a new layer, and a copy that trains them
    too learns more.

    What is frozen on purpose holds trained weights: these were not loaded.
    """
    frozen, cure = random_and_frozen(evidence), cured(evidence, UNFROZEN)
    if not frozen or cure is None:
        return
    yield Sign(
        severity(evidence),
        f"{len(frozen)} frozen layers have the random weights of new ones: {listed(frozen)}; with "
        "all of them learning, a copy learns more",
        "load the trained weights before freezing them: load_state_dict(..., strict=False) leaves "
        "out what has another name, and returns its keys",
        layer=module_of(frozen[0]),
        step=0,
        evidence={"parameters": frozen[:32], **trial_numbers(evidence, UNFROZEN)},
        confidence=shown_by(evidence, cure),
        harm="a frozen layer keeps its random weights, and what they throw away is lost",
    )


def random_and_frozen(evidence: Evidence) -> list[str]:
    """Return the weights that are frozen as PyTorch draws them, of a training that could learn
    more."""
    if not judged(evidence) or reached(evidence) > NEARLY_PERFECT:
        return []
    return [weight.name for weight in evidence.weights if weight.frozen and weight.as_drawn]


def trials(evidence: Evidence) -> Iterable[Trial]:
    """Train the frozen parameters too, where the optimiser holds some or they are random."""
    if evidence.optimizer.frozen_held or random_and_frozen(evidence):
        yield UNFROZEN


def trials_if_learning(evidence: Evidence) -> Iterable[Trial]:
    """Train random frozen layers too."""
    if random_and_frozen(evidence):
        yield from (UNCHANGED, UNFROZEN)


CAUSE = Cause(
    name="frozen_parameters",
    meaning="parameters that no gradient reaches",
    kind=Kind.INDEPENDENT,
    rules=(
        first_of(
            cleared_before_step,
            erased_between_passes,
            cut_off,
            detached_output,
            broken_path,
            never_arrives,
            steps_without_gradient,
            named_on_module,
            held_but_frozen,
            frozen_as_drawn,
        ),
    ),
    fix="remove detach(), .data, no_grad() or a step without derivative (argmax, round) between "
    "them and the loss",
    harm="a layer without a gradient keeps its random initial weights",
    source="PyTorch's notes on autograd, Locally disabling gradient computation",
    trials=trials,
    trials_if_learning=trials_if_learning,
)
