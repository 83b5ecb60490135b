"""Units that start equal and stay equal."""

import itertools
from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.network import outsized_constant
from debugnn.doctor.causes.signals.outcome import failing, severity, short
from debugnn.doctor.causes.signals.skill import JUDGED_AFTER, not_all_learnt
from debugnn.doctor.causes.signals.wording import listed, module_of
from debugnn.doctor.evidence import Evidence, WeightFacts
from debugnn.doctor.report import Finding

# Share of the weight tensors with equal rows above which symmetry is the whole initialisation.
ALL_SYMMETRIC = 0.9
# Probes at which weights and gradients are zero: at the first one alone, a layer before a last
# layer of zeros has no gradient by right.
PROBES = 3
FACTORS = 2  # of a product
# Share of a layer's units that have stayed equal to another one from start to end, from which it
# does less than it has units for: all components of a mixture; two outputs that have the same
# target are few of many.
MOST_UNITS = 0.5


def symmetric_layer(evidence: Evidence) -> WeightFacts | None:
    """Return the first hidden layer whose units start equal and are told apart by nothing after."""
    weights = evidence.weights
    if len(weights) < 2:
        return None
    constant = sum(w.identical_rows for w in weights) / len(weights)
    for layer, following in itertools.pairwise(weights):
        if not layer.identical_rows:
            continue
        if following.identical_columns and (constant >= ALL_SYMMETRIC or short(evidence)):
            return layer
        if failing(evidence):
            return layer
    return None


def equal_units(evidence: Evidence) -> Iterator[Sign]:
    """A hidden layer whose units have equal weights, which nothing after it tells apart."""
    layer = symmetric_layer(evidence)
    if layer is None:
        return
    yield Sign(
        severity(evidence),
        "all weights of the layer start equal, so that its units stay equal"
        if layer.constant
        else "all units of the layer start with equal weights, get equal gradients, and stay equal",
        layer=module_of(layer.name),
        step=0,
        evidence={"gain": layer.gain},
        confidence="certain",
    )


def zero_factors(evidence: Evidence) -> list[str]:
    """Return the weights that are zero, and whose gradient is zero, at every probe."""
    probes = evidence.probes
    if len(probes) < PROBES:
        return []
    names = probes[0].layers
    return [
        name
        for name in names
        if all(
            (facts := probe.layers.get(name)) is not None and facts.weight == facts.gradient == 0
            for probe in probes
        )
    ]


def product_of_zeros(evidence: Evidence) -> Iterator[Sign]:
    """Weights that are multiplied with each other, all of which start at zero."""
    zeros = zero_factors(evidence)
    if len(zeros) < FACTORS or not (failing(evidence) or not_all_learnt(evidence)):
        return
    yield Sign(
        "error",
        f"{len(zeros)} weights start at zero and get a gradient of exactly zero at every step: "
        f"{listed(zeros)}. If weights are multiplied with each other, as the two factors of a "
        "low-rank update are, at least one of them has to start elsewhere",
        "start one factor of each product at random and the other one at zero",
        layer=module_of(zeros[0]),
        step=0,
        evidence={"weights": zeros[:32], "probes": len(evidence.probes)},
        confidence="certain",
        harm="the gradient of each factor is a multiple of the other one, so that both stay zero",
        override=None,
    )


def moves_together(evidence: Evidence) -> Iterator[Sign]:
    """Units of a layer that began equal, and have stayed so to the end.

    As the components of a mixture whose last layer is zero at first. The outputs of a known task
    are told apart by their targets, but for classes that never come, and targets that are equal.
    """
    if evidence.loop.steps < JUDGED_AFTER or evidence.task != "unknown":
        return
    for weight in evidence.weights:
        if weight.still_equal >= MOST_UNITS:
            yield Sign(
                severity(evidence),
                f"{round(weight.still_equal * weight.outputs)} of the layer's {weight.outputs} "
                "units begin with the same weights as another one, get the same gradients, and are "
                "still equal at the end",
                "draw these weights at random, if small: nn.init.normal_(weight, std=0.01); or "
                "give each unit a bias of its own",
                layer=module_of(weight.name),
                step=0,
                evidence={"share_of_equal_units": weight.still_equal, "units": weight.outputs},
                confidence="certain",
                override=None,
            )
            return


def after_its_size(evidence: Evidence, finding: Finding) -> int:
    """Constant weights that are outsized fail by their size first."""
    return 1 if outsized_constant(evidence) else 0


CAUSE = Cause(
    name="symmetric_init",
    meaning="units that start equal and stay equal",
    kind=Kind.SYMPTOM,
    rules=(first_of(product_of_zeros, equal_units, moves_together),),
    fix="initialise at random (torch.nn.init.kaiming_uniform_)",
    harm="equal units get equal gradients, and together do no more than one unit",
    source="Goodfellow et al. 2016, Deep Learning, section 8.4: breaking symmetry",
    override="init=kaiming",
    lateness=after_its_size,
)
