"""What a training yields, and how it is written as strict JSON.

A record is a plain dataclass. Its JSON line carries `kind`, so that one file can hold several
kinds. Epochs and steps count from 0: the loss of step 0 is the loss at initialisation.

Needs the standard library only: records can be read where torch is not installed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step, seen before its update."""

    kind: ClassVar[str] = "step"
    epoch: int
    step: int
    loss: float  # mean over the batch
    accuracy: float | None  # of the batch, in %; None for a regression
    lr: float
    grad_norm: float  # global L2 norm, before clipping


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, with the evaluation that ends it."""

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int  # index of the epoch's last step
    train_loss: float  # mean over the epoch's samples, each at the weights of its own step
    last_batch_loss: float  # what the article's notebooks call the train loss
    train_accuracy: float | None  # in %, running over the epoch
    test_loss: float | None  # mean over the test set; None in an epoch that is not evaluated
    test_accuracy: float | None  # in %; None in a regression too
    seconds: float  # training and evaluation


@dataclass(frozen=True, slots=True)
class LrPoint:
    """One iteration of a learning-rate range test (Smith 2017, arXiv:1506.01186)."""

    kind: ClassVar[str] = "lr_point"
    test: int  # which of the repeated range tests
    iteration: int
    lr: float  # the rate that this loss was stepped with
    lr_as_logged: float  # the notebook's pairing: the rate of the step after
    loss: float
    smoothed_loss: float


@dataclass(frozen=True, slots=True)
class LrSuggestion:
    """A learning rate read off a range test's curve."""

    kind: ClassVar[str] = "lr_suggestion"
    test: int
    rule: str  # minimum, steepest or valley
    lr: float


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Summary of one tensor. Moments and histogram are over its finite values."""

    size: int
    nonfinite: int  # how many values are NaN or infinite; never dropped in silence
    norm: float  # L2
    mean: float
    std: float
    low: float  # smallest finite value, the histogram's left edge
    high: float  # largest finite value, the histogram's right edge
    zeros: float  # share of exact zeros, 0 to 1
    histogram: list[int]  # counts in equal bins from low to high
    dead_units: float | None = None  # activations: share of units that are 0 for the whole batch


@dataclass(frozen=True, slots=True)
class Layers:
    """Per-layer statistics at one step: keys are parameter names, or layer names (activations)."""

    kind: ClassVar[str] = "layers"
    epoch: int
    step: int
    gradients: dict[str, TensorStats]  # before clipping
    parameters: dict[str, TensorStats]  # before the update
    activations: dict[str, TensorStats]


Record = Step | Epoch | LrPoint | LrSuggestion | Layers


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor says about a run, as plain values: files of their own, no JSON line.

    Attributes:
        cause: the main cause, `healthy` without one.
        healthy: None if the doctor cannot tell.
        text: the report as the console shows it.
        report: what findings.json holds.
        evidence: what evidence.json holds.
    """

    cause: str
    healthy: bool | None
    text: str
    report: dict[str, Any]
    evidence: dict[str, Any]


def encode(record: Record) -> str:
    """The record as one line of strict JSON."""
    return dump({"kind": record.kind, **_fields(record)})


def _fields(record: Any) -> dict[str, Any]:
    """The fields by name, one level deep: `asdict` copies each number of each histogram."""
    return {name: getattr(record, name) for name in record.__slots__}


def dump(value: Any, *, indent: int | None = None) -> str:
    """`value` as strict JSON: NaN and the infinities become strings, as in protobuf's mapping."""
    encode = json.JSONEncoder(
        allow_nan=False, indent=indent, ensure_ascii=False, default=_stats
    ).encode
    try:
        return encode(value)
    except ValueError:  # a number that is none: few records hold one, and the search takes longest
        return encode(_finite(value))


def _stats(value: object) -> dict[str, Any]:
    if isinstance(value, TensorStats):
        return _fields(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def load(text: str | bytes) -> Any:
    """The inverse of `dump`."""
    return _revive(json.loads(text))


def read_jsonl(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file, in order; only those of one kind where it is given.

    A last line without its newline is a write that was cut off, and is left out.
    """
    with path.open("rb") as lines:  # bytes: a write can be cut off inside a character
        for line in lines:
            if not line.endswith(b"\n"):
                return
            row = load(line)
            if kind is None or row["kind"] == kind:
                yield row


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, TensorStats):
        return _finite(_fields(value))
    return value


def _revive(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _revive(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_revive(item) for item in value]
    return value
