"""The records of a training, and their encoding as strict JSON.

A record is a plain dataclass. Its JSON line has a field `kind`, so that one file can hold several
kinds; `debugnn.json_lines` reads it. Epochs and steps count from 0: the loss of step 0 is the loss
at initialisation.

Needs the standard library only, so that records can be read without torch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step; all values are from before its update."""

    kind: ClassVar[str] = "step"
    epoch: int
    step: int
    loss: float  # mean over the batch
    accuracy: float | None  # of the batch, in %; None for a regression
    lr: float
    grad_norm: float  # global L2 norm, before clipping


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, with the evaluation at its end."""

    kind: ClassVar[str] = "epoch"
    epoch: int
    step: int  # index of the epoch's last step
    train_loss: float  # mean over the epoch's samples, at the weights of their steps
    last_batch_loss: float  # called the train loss in the article's notebooks
    train_accuracy: float | None  # in %, running over the epoch
    test_loss: float | None  # mean over the test set; None if the epoch was not evaluated
    test_accuracy: float | None  # in %; None for a regression too
    seconds: float  # training and evaluation


@dataclass(frozen=True, slots=True)
class LrPoint:
    """One iteration of a learning-rate range test (Smith 2017, arXiv:1506.01186)."""

    kind: ClassVar[str] = "lr_point"
    test: int  # number of the repetition
    iteration: int
    lr: float  # the rate of the step with this loss
    lr_as_logged: float  # the notebook's pairing: the rate of the next step
    loss: float
    smoothed_loss: float


@dataclass(frozen=True, slots=True)
class LrSuggestion:
    """A learning rate suggested by the curve of a range test."""

    kind: ClassVar[str] = "lr_suggestion"
    test: int
    rule: str  # minimum, steepest or valley
    lr: float


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of one tensor.

    Moments, zeros and histogram are those of its finite values; of more than 4,096 values, those of
    an evenly spaced sample.
    """

    size: int
    nonfinite: int  # number of values that are NaN or infinite
    norm: float  # L2
    mean: float
    std: float
    low: float  # smallest finite value, the histogram's left edge
    high: float  # largest finite value, the histogram's right edge
    zeros: float  # share of exact zeros, 0 to 1
    histogram: list[int]  # counts in equal bins from low to high
    dead_units: float | None = None  # of activations: share of units that are 0 for the whole batch
    saturated: float | None = None  # of bounded activations: share of values next to a bound


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
class Pause:
    """Between two steps: no row, but a moment at which a training can be saved and stopped."""

    epoch: int
    step: int  # that comes next


@dataclass(frozen=True, slots=True)
class Evaluating:
    """The evaluation at an epoch's end begins: no row.

    Until the next record the training may be ended, and goes on from the state that it has now.
    """

    epoch: int
    step: int  # that comes next


@dataclass(frozen=True, slots=True)
class Pruned:
    """The training ends here, because the rest of it would be of no use: no row."""

    step: int  # that would have come next
    reason: str  # in a clause


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor says about a run, as plain values: files of their own, no JSON line.

    Attributes:
        cause: the main cause; `healthy` or `cannot tell` without one.
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


# Settings of where and how a run is kept, not of what it computes: they may differ between a
# finished run and a request for the same one.
BOOKKEEPING = ("overwrite", "only_failed", "prune_on", "output_dir", "wandb", "report", "data.root",
               "data.cache", "data.download", "trainer.checkpoint_every",
               "trainer.checkpoint_seconds", "trainer.checkpoint_minutes",
               "trainer.read_every")  # fmt: skip


def encode(record: Record) -> str:
    """Return the record as one line of strict JSON."""
    return dump({"kind": record.kind, **_fields(record)})


def _fields(record: Any) -> dict[str, Any]:
    """Return the fields by name. `dataclasses.asdict` would copy every histogram."""
    return {name: getattr(record, name) for name in record.__slots__}


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return a value as strict JSON.

    NaN and the infinities become the strings "NaN", "Infinity" and "-Infinity", as in the JSON
    mapping of protocol buffers.
    """
    encode = _LINE.encode if indent is None else _encoder(indent).encode
    try:
        return encode(value)
    except ValueError:  # a non-finite number; few records hold one, and replacing it is slow
        return encode(_finite(value))


def _stats(value: object) -> dict[str, Any]:
    if isinstance(value, TensorStats):
        return _fields(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _encoder(indent: int | None) -> json.JSONEncoder:
    return json.JSONEncoder(allow_nan=False, indent=indent, ensure_ascii=False, default=_stats)


_LINE = _encoder(None)


def load(text: str | bytes) -> Any:
    """Decode strict JSON: the inverse of `dump`."""
    return _revive(json.loads(text))


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
