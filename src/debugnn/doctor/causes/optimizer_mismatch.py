"""An optimiser that does not hold the model's parameters, or never steps."""

import math
from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.wording import listed, module_of
from debugnn.doctor.evidence import Evidence, LeafFacts

# Steps after which an optimiser that never stepped is no start that is still to come.
STEPS = 2
# The same of one that may begin to train some parameters later.
SEVERAL_STEPS = 40

# The module that registers what a plain container holds.
_REGISTERED = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}


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
        other = ""
        if facts.frozen_held:
            other = f"; it holds frozen ones (requires_grad=False): {listed(facts.frozen_held)}"
        elif facts.foreign:
            other = f"; it holds {facts.foreign} parameters that are not the model's"
        named = f" ({listed(facts.missing)})" if facts.missing else ""
        yield Sign(
            "error",
            f"the optimiser holds none of the model's {facts.trainable} trainable parameters"
            f"{named}{other}",
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


def lacks_those_of_the_loss(evidence: Evidence) -> Iterator[Sign]:
    """Parameters of the loss itself, such as class centres, that no optimiser has moved."""
    names = evidence.optimizer.of_loss
    if names and evidence.loop.optimizer_steps >= SEVERAL_STEPS:
        yield Sign(
            severity(evidence),
            f"the loss function has parameters of its own, and no optimiser holds them: "
            f"{listed(names)} got gradients and are as they began after "
            f"{evidence.loop.optimizer_steps} updates",
            "hand them to the optimiser too: [*model.parameters(), *loss_fn.parameters()]; or "
            "freeze them with requires_grad_(False)",
            evidence={"parameters": names, "updates": evidence.loop.optimizer_steps},
            line=evidence.loop.update_line,
            harm="what the loss is to learn, as the centre of each class, stays random",
        )


def never_listed(evidence: Evidence) -> list[LeafFacts]:
    """Return the tensors that are learnt through, stay as they began, and are in no list.

    Tensors that are no parameters count where their values differ: a state that begins at zero may
    require a gradient by carelessness.
    """
    return [
        leaf
        for leaf in evidence.network.unregistered
        if leaf.graded
        and not leaf.anew
        and not leaf.moved
        and (leaf.parameter or not leaf.constant)
    ]


def unregistered(evidence: Evidence) -> Iterator[Sign]:
    """Layers in a plain list or dict: `model.parameters()` does not find them."""
    leaves = never_listed(evidence)
    if not leaves:
        return
    named = [leaf for leaf in leaves if leaf.attribute is not None]
    values = sum(math.prod(leaf.shape) for leaf in leaves)
    what = f"{len(leaves)} tensors ({values} values)"
    if named:
        paths = (leaf.attribute or "" for leaf in named)
        attributes = dict.fromkeys(f"self.{path.rpartition('.')[2]}" for path in paths)
        what += f" in {listed(attributes)}"
    shapes = listed(f"{leaf.name or 'unnamed'} {_shape(leaf)}" for leaf in leaves)
    yield Sign(
        "error",
        f"the model learns through {what} that model.parameters() does not list, so that no "
        f"optimiser made from it holds them and they never change: {shapes}",
        _registration(named[0] if named else leaves[0])
        + "; freeze what is meant to stay as it is by requires_grad_(False)",
        layer=module_of(named[0].attribute or "") if named else None,
        evidence={
            "unregistered": [leaf.name or _shape(leaf) for leaf in leaves[:32]],
            "values": values,
            "listed_parameters": evidence.optimizer.trainable,
        },
    )


def _shape(leaf: LeafFacts) -> str:
    return f"({', '.join(map(str, leaf.shape))})"


def _registration(leaf: LeafFacts) -> str:
    """How a leaf is registered, by the attribute that holds it."""
    if leaf.attribute is None:
        return "make these layers in the model's __init__ and keep them as its attributes"
    attribute = f"self.{leaf.attribute.rpartition('.')[2]}"
    kind = _REGISTERED.get(leaf.holder or "")
    if kind is not None:
        # A path of two parts, as weights.0, leads to a tensor without a module around it.
        bare = (leaf.name or "").count(".") == leaf.attribute.count(".") + 1
        wanted = kind.replace("Module", "Parameter") if bare else kind
        return f"register them: {attribute} = nn.{wanted}(...) in place of a plain {leaf.holder}"
    if leaf.holder in ("Tensor", "Parameter"):
        return f"register it: {attribute} = nn.Parameter(...) in place of a plain tensor"
    return f"register it: assign the layer to {attribute} as a module of its own"


def made_in_forward(evidence: Evidence) -> Iterator[Sign]:
    """Layers that the forward pass makes anew, with other random weights each time."""
    leaves = [
        leaf
        for leaf in evidence.network.unregistered
        if leaf.graded and leaf.anew and leaf.parameter
    ]
    if all(leaf.constant for leaf in leaves):
        return
    shapes = listed(_shape(leaf) for leaf in leaves)
    yield Sign(
        "error",
        f"forward() makes {len(leaves)} parameters anew in each pass, with other random values "
        f"each time, so that no optimiser can train them: shapes {shapes}",
        "make the layer once, in __init__, as an attribute of the module, and call it in forward()",
        evidence={"shapes": [leaf.shape for leaf in leaves[:32]]},
    )


CAUSE = Cause(
    name="optimizer_mismatch",
    meaning="an optimiser that does not hold the model's parameters",
    kind=Kind.CERTAIN,
    rules=(
        first_of(
            unregistered,
            made_in_forward,
            no_parameters,
            never_steps,
            holds_none,
            lacks_some,
            lacks_those_of_the_loss,
        ),
    ),
    fix="make the optimiser from model.parameters(), after the model is complete and on its device",
    harm="a parameter that the optimiser does not hold keeps its random initial value",
    source="PyTorch's documentation of torch.optim, Constructing it",
)
