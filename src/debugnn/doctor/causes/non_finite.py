"""A NaN or an infinite number, and where it came from."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.loss_course import overflowed
from debugnn.doctor.causes.signals.wording import listed, module_of
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
    "gradient": "the step's loss is finite and its gradients are not, as the backward pass of "
    "{name} in the loss makes them where a derivative is infinite",
    "update": "the optimiser's update of {name} produced it",
}
_DERIVATIVE = "keep the argument away from where the derivative is infinite (sqrt(x + eps))"
_FIXES = {
    "input": "remove or fill these samples before training",
    "target": "remove or fill these targets before training",
    "parameter": "look at how this parameter is initialised or loaded",
    "backward": _DERIVATIVE,
    "gradient": f"{_DERIVATIVE}; the branch that `where` does not take has a gradient too: give it "
    "an argument that does no harm",
}
_DIVISIONS = "the divisor is 0: clamp it, or leave out what is divided by nothing"
_MASKED = (
    "no entry of a row is left by the mask, and attention over nothing is NaN: drop samples that "
    "are padding throughout, or let each row see one position at least"
)
# What mends a NaN of an operation, by a part of the operation's name.
_OF_OPERATIONS = {
    "softmax": _MASKED,
    "attention": _MASKED,
    "nll_loss": "every target of the batch is left out (ignore_index), or has weight 0, and the "
    "mean over nothing is 0 / 0: skip such a batch, or divide the sum by max(count, 1)",
    "div": _DIVISIONS,
    "reciprocal": _DIVISIONS,
    "log": "keep the argument above 0 (clamp, log1p, or a loss that takes logits)",
    "sqrt": "keep the argument from going below 0 (clamp)",
    "exp": "keep the argument small (clamp, or subtract the largest)",
    "std": "values that do not differ have a deviation of 0, whose derivative is infinite: use "
    "sqrt(var + eps)",
}
_CONSTANT_COLUMNS = (
    "a feature that never varies has a standard deviation of 0, and (x - mean) / std is 0 / 0 "
    "there: set std[std == 0] = 1 before the division, or drop these features"
)
_EPS_THAT_HOLDS = (
    "keep the weights in float32 and run under torch.autocast, or set eps=1e-4, which half "
    "precision can hold"
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
    lost = _lost_eps(evidence, found)
    if lost is not None:
        facts = evidence.optimizer
        yield Sign(
            "error",
            f"{_NUMBERS.get(found.kind, found.kind)} first appeared in {found.name or 'a weight'} "
            f"after an update: {lost}",
            _EPS_THAT_HOLDS,
            layer=found.layer or module_of(found.name),
            step=found.step,
            evidence={"where": found.where, "eps": facts.lost_eps, "dtype": facts.dtype},
            override=None,
            confidence="certain",
        )
        return
    grown = overflowed(evidence)
    yield Sign(
        "error",
        _seen(evidence, found),
        _GROWN if grown else _mend(evidence, found),
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


def _mend(evidence: Evidence, found: NonFinite) -> str | None:
    """What mends the number's origin; None where the cause's general remedy is all there is."""
    if found.where == "input" and evidence.data.nonfinite_features:
        return _CONSTANT_COLUMNS
    if found.where in ("forward", "loss"):
        if found.name == "mean" and found.magnitude == 0:
            return "the mean of an empty tensor is 0 / 0: leave out what selects nothing"
        return next((fix for part, fix in _OF_OPERATIONS.items() if part in found.name), None)
    if found.where == "backward" and "std" in found.name:
        return _OF_OPERATIONS["std"]
    if found.where == "update":
        lost = _lost_eps(evidence, found)
        return _UPDATE if lost is None else f"{lost}: {_EPS_THAT_HOLDS}"
    return _FIXES.get(found.where)


def _lost_eps(evidence: Evidence, found: NonFinite) -> str | None:
    """How an update became 0 / 0 because its eps is 0 in the weights' type; None where it did not.

    At the step itself the optimiser has not been looked at yet, and its eps is taken to be Adam's.
    """
    facts, updated = evidence.optimizer, found.where == "update"
    later = found.step > 0 and found.where in ("parameter", "unknown")
    if facts.lost_eps is not None and (updated or later):
        eps = f"{facts.name}'s eps of {facts.lost_eps:g} is 0 in {facts.dtype}"
    elif not facts.name and updated and any(s.startswith("float16") for s in found.outputs):
        eps = "Adam's eps of 1e-8 is 0 in float16"
    else:
        return None
    return f"{eps}, and its step is 0 / 0 for a weight whose gradient is 0"


def told(evidence: Evidence, found: NonFinite) -> str:
    """Return what is said at once, at the step of the first non-finite number, in one line."""
    parts = [f"step {found.step}: {_seen(evidence, found)}"]
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
    remedy = _GROWN if found.overflow and found.where != "unknown" else _mend(evidence, found)
    return f"{'; '.join(parts)}{f'. {remedy}' if remedy else ''}"


def _seen(evidence: Evidence, found: NonFinite) -> str:
    number = _NUMBERS.get(found.kind, found.kind)
    return f"{number} first appeared here: {_place(evidence, found)}"


def _place(evidence: Evidence, found: NonFinite) -> str:
    place = _PLACES.get(found.where, "where it came from could not be replayed")
    replay = f"; batch and weights are in {found.replay}" if found.replay else ""
    features = evidence.data.nonfinite_features
    columns = ""
    if found.where == "input" and features:
        columns = f", in every sample at the features {listed(map(str, features), most=8)}"
    return place.format(name=found.name) + columns + replay


def bad_samples(evidence: Evidence) -> Iterator[Sign]:
    """Samples that hold NaN or infinity, where none has reached the loss yet."""
    data = evidence.data
    if data.nonfinite_samples:
        yield Sign(
            "error",
            f"{data.nonfinite_samples} of {data.samples} kept samples hold NaN or infinity",
            _CONSTANT_COLUMNS if data.nonfinite_features else _FIXES["input"],
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
    if evidence.optimizer.lost_eps is not None:
        return 0
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
