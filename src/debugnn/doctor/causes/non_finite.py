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
}
_FIXES = {
    "input": "remove or fill these samples before training",
    "target": "remove or fill these targets before training",
    "parameter": "look at how this parameter is initialised or loaded",
    "backward": "keep the argument away from where the derivative is infinite (sqrt(x + eps))",
}
_GROWN = "the numbers had grown beyond bounds before: mend what made them grow"


def first_number(evidence: Evidence) -> Iterator[Sign]:
    """The first non-finite number of the training, traced to what made it."""
    found = evidence.nonfinite
    if found is None:
        return
    grown = overflowed(evidence)
    yield Sign(
        "error",
        f"{_NUMBERS.get(found.kind, found.kind)} first appeared here: {_place(found)}",
        _GROWN if grown else _FIXES.get(found.where),
        layer=found.layer,
        step=found.step,
        samples=found.samples,
        evidence={
            "where": found.where,
            "operation": found.name,
            "count": found.count,
            "largest_finite_argument": found.magnitude,
        },
        override=OVERRIDE if grown else None,
        confidence="certain",
    )


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
    source="the article's NaN experiment; pytorch issue 160016 asks for the operation's name",
    override=OVERRIDE,
    lateness=after_its_divergence,
)
