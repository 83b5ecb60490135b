"""An optimiser that does not hold the model's parameters, or never steps."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals import listed, module_of
from debugnn.doctor.evidence import Evidence

# Steps after which an optimiser that never stepped is no start that is still to come.
STEPS = 2


def no_parameters(evidence: Evidence) -> Iterator[Sign]:
    """A model without anything to train."""
    if evidence.network.parameters == 0 and evidence.optimizer.trainable == 0:
        yield Sign(
            "error",
            "the model has no trainable parameters",
            "give the doctor the module that is trained, and register its layers on it",
        )


def never_steps(evidence: Evidence) -> Iterator[Sign]:
    """optimizer.step() was never called."""
    loop = evidence.loop
    if loop.steps >= STEPS and loop.optimizer_steps == 0:
        yield Sign(
            "error",
            f"in {loop.steps} steps this optimiser's step() was never called",
            "call optimizer.step() after loss.backward(), and give the doctor that optimiser",
        )


def holds_none(evidence: Evidence) -> Iterator[Sign]:
    """None of the trainable parameters is in the optimiser."""
    facts = evidence.optimizer
    if facts.trainable and facts.held == 0:
        yield Sign(
            "error",
            f"the optimiser holds none of the model's {facts.trainable} trainable parameters",
            evidence={"foreign": facts.foreign},
            line=evidence.loop.update_line,
        )


def lacks_some(evidence: Evidence) -> Iterator[Sign]:
    """Some parameters that gradients reach are in no optimiser, and have not moved."""
    facts, network = evidence.optimizer, evidence.network
    unreached = {*network.unreached, *network.unused}
    missing = [name for name in facts.missing if name not in unreached]
    if missing and facts.held and evidence.loop.optimizer_steps > 0:
        yield Sign(
            "error",
            f"the optimiser does not hold {len(missing)} of {facts.trainable} trainable "
            f"parameters, and they never change: {listed(missing)}",
            "hand them to the optimiser, or freeze them with requires_grad_(False)",
            layer=module_of(missing[0]),
            evidence={"missing": missing[:32], "foreign": facts.foreign},
            line=evidence.loop.update_line,
        )


CAUSE = Cause(
    name="optimizer_mismatch",
    meaning="an optimiser that does not hold the model's parameters",
    kind=Kind.CERTAIN,
    rules=(first_of(no_parameters, never_steps, holds_none, lacks_some),),
    fix="make the optimiser from model.parameters(), after the model is complete and on its device",
    harm="a parameter that the optimiser does not hold keeps its random initial value",
    source="PyTorch's documentation of torch.optim, Constructing it",
)
