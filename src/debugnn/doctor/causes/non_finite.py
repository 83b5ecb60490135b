"""A NaN or an infinite number, and where it came from."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals import overflowed
from debugnn.doctor.evidence import Evidence, NonFinite
from debugnn.doctor.report import Finding

OVERRIDE = "clip=4.0"

_NUMBERS = {"nan": "NaN", "inf": "an infinite number"}
_PLACES = {
    "input": "the input {name} holds it",
    "target": "the targets hold it",
    "parameter": "the parameter {name} holds it before the step",
    "buffer": "the buffer {name} holds it before the step",
    "forward": "the operation {name} of the forward pass produced it",
    "loss": "the operation {name} of the loss function produced it",
    "backward": "the backward pass of {name} produced it",
    "update": "the optimiser's update of {name} produced it",
}
_FIXES = {
    "input": "remove or fill these samples before training",
    "target": "remove or fill these targets before training",
    "parameter": "look at how this parameter is initialised or loaded",
    "backward": "keep the argument away from where the derivative is infinite (sqrt(x + eps))",
}
# Operation of the forward pass or the loss → what makes it return NaN or infinity.
_OPERATIONS = {
    "div": "look for what it divides by zero (the deviation of a constant column, an empty sum), "
    "and add a small number or leave that out",
    "softmax": "a row whose positions are all masked has nothing to share: leave one position "
    "unmasked, or take such rows out of the batch",
    "safe_softmax": "a row whose positions are all masked has nothing to share: leave one position "
    "unmasked, or take such rows out of the batch",
    "nll_loss_forward": "a mean over no target: all targets of this batch are ignored "
    "(ignore_index); skip such batches",
    "nll_loss2d_forward": "a mean over no target: all targets of this batch are ignored "
    "(ignore_index); skip such batches",
    "mean": "a mean over nothing: skip what is empty",
    "log": "keep the argument above 0 (clamp, log1p, or a loss that takes logits)",
    "sqrt": "keep the argument from going below 0 (clamp)",
    "exp": "keep the argument small (clamp, or subtract the largest)",
}
# In half precision a number below 6e-8 is 0.
_HALF_UPDATE = (
    "in half precision Adam's eps of 1e-8 is 0, and the update is divided by 0: use eps=1e-4, or "
    "keep the weights in float32 and compute under autocast"
)
_UPDATE = (
    "the optimiser's update, or code between two steps, made it: lower the learning rate, clip the "
    "gradient, and look at the optimiser's eps and betas"
)
_GROWN = "the numbers had grown beyond bounds before: mend what made them grow"


def first_number(evidence: Evidence) -> Iterator[Sign]:
    """The first non-finite number of the training, traced to what made it."""
    found = evidence.nonfinite
    if found is None:
        return
    grown = overflowed(evidence)
    yield Sign(
        "error",
        _seen(found),
        _GROWN if grown else _remedy(found),
        layer=found.layer,
        step=found.step,
        samples=found.samples,
        evidence={
            "where": found.where,
            "operation": found.name,
            "count": found.count,
            "largest_finite_argument": found.magnitude,
            "inputs": found.inputs,
            "outputs": found.outputs,
        },
        override=OVERRIDE if grown else None,
        confidence="certain",
        line=found.line,
    )


def told(found: NonFinite) -> str:
    """Return what is said at once, at the step of the first non-finite number, in one line."""
    parts = [f"step {found.step}: {_seen(found)}"]
    if found.layer:
        parts.append(f"in the module {found.layer}")
    if found.line:
        parts.append(f"called at {found.line}")
    if found.inputs:
        parts.append(f"which took {', '.join(found.inputs)}")
    if found.outputs:
        parts.append(f"{'and gave' if found.inputs else 'of'} {', '.join(found.outputs)}")
    if found.samples:
        parts.append(f"samples {', '.join(map(str, found.samples))} of the batch")
    remedy = _GROWN if found.overflow and found.where != "unknown" else _remedy(found)
    return f"{'; '.join(parts)}{f'. {remedy}' if remedy else ''}"


def _seen(found: NonFinite) -> str:
    return f"{_NUMBERS.get(found.kind, found.kind)} first appeared here: {_place(found)}"


def _remedy(found: NonFinite) -> str | None:
    """Return what to change, None where the operation says nothing in particular."""
    if found.where == "update" or (found.where == "parameter" and found.step > 0):
        half = any(shape.startswith("float16") for shape in found.outputs)
        return _HALF_UPDATE if half else _UPDATE
    if found.where in ("forward", "loss"):
        return _OPERATIONS.get(found.name)
    return _FIXES.get(found.where)


def _place(found: NonFinite) -> str:
    place = _PLACES.get(found.where, "where it came from could not be replayed")
    replay = f"; batch and weights are in {found.replay}" if found.replay else ""
    return place.format(name=found.name) + replay


def bad_samples(evidence: Evidence) -> Iterator[Sign]:
    """Samples that hold NaN or infinity, where none has reached the loss yet."""
    data = evidence.data
    if data.nonfinite_samples:
        yield Sign(
            "error",
            f"{data.nonfinite_samples} of {data.samples} kept samples hold NaN or infinity",
            _FIXES["input"],
            evidence={"samples": data.nonfinite_samples},
            override=None,
            confidence="certain",
        )


def bad_loss(evidence: Evidence) -> Iterator[Sign]:
    """A loss that was not finite, of which nothing else is known."""
    if evidence.outcome.nonfinite_step is not None:
        yield Sign(
            "error",
            "the loss is not finite",
            "look at what came before: the first finding's cause",
            step=evidence.outcome.nonfinite_step,
            override=None,
            confidence="certain",
        )


def after_its_divergence(evidence: Evidence, finding: Finding) -> int:
    """A number that overflowed at the end of a divergence comes after what made it diverge."""
    return 2 if overflowed(evidence) else 0


CAUSE = Cause(
    name="non_finite",
    meaning="a NaN or infinite number",
    kind=Kind.SYMPTOM,
    rules=(first_of(first_number, bad_samples, bad_loss),),
    fix="keep the operation's argument in its domain (clamp, + eps)",
    harm="with the next update it spreads into every weight, and nothing is learnt any more",
    source="the article's NaN experiment; pytorch issue 160016 asks for the operation's name",
    override=OVERRIDE,
    lateness=after_its_divergence,
)
