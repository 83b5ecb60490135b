"""What the doctor has seen of a training, as plain numbers.

Everything that a rule reads stands here, so that a saved file can be judged again, under other
thresholds and without torch. Observers fill these fields in and decide nothing: they compare no
number with a threshold. `None` stands for what was not, or could not be, observed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from debugnn.doctor.evidence.data import (
    AlignmentFacts,
    ColumnOrderFacts,
    CounterFacts,
    DataFacts,
    DriftFacts,
    GraphBatchFacts,
    LostShare,
    NeighbourFacts,
    OwnInputFacts,
    PairFacts,
    PreparationFacts,
    RecodedFacts,
    SameShares,
    TargetCopyFacts,
)
from debugnn.doctor.evidence.loss import (
    JudgedFacts,
    LabelPull,
    LossCall,
    LossFacts,
    PolicyFacts,
    VolumeFacts,
)
from debugnn.doctor.evidence.network import (
    BrokenPathFacts,
    LeafFacts,
    NetworkFacts,
    RecurrenceFacts,
    StateFacts,
    WeightFacts,
)
from debugnn.doctor.evidence.outcome import (
    AdjustedFacts,
    Jump,
    LatentFacts,
    OutcomeFacts,
    OwnLoss,
    Pairing,
    PartFacts,
    Score,
    Validation,
)
from debugnn.doctor.evidence.sequences import (
    SequenceFacts,
    TailFacts,
    WindowFacts,
)
from debugnn.doctor.evidence.training import (
    ActivationFacts,
    LayerFacts,
    LoopFacts,
    NonFinite,
    OptimizerFacts,
    Probe,
    TrialOutcome,
)

__all__ = [
    "ActivationFacts",
    "AdjustedFacts",
    "AlignmentFacts",
    "BrokenPathFacts",
    "ColumnOrderFacts",
    "CounterFacts",
    "DataFacts",
    "DriftFacts",
    "Evidence",
    "GraphBatchFacts",
    "JudgedFacts",
    "Jump",
    "LabelPull",
    "LatentFacts",
    "LayerFacts",
    "LeafFacts",
    "LoopFacts",
    "LossCall",
    "LossFacts",
    "LostShare",
    "NeighbourFacts",
    "NetworkFacts",
    "NonFinite",
    "OptimizerFacts",
    "OutcomeFacts",
    "OwnInputFacts",
    "OwnLoss",
    "PairFacts",
    "Pairing",
    "PartFacts",
    "PolicyFacts",
    "PreparationFacts",
    "Probe",
    "RecodedFacts",
    "RecurrenceFacts",
    "SameShares",
    "Score",
    "SequenceFacts",
    "StateFacts",
    "TailFacts",
    "TargetCopyFacts",
    "TrialOutcome",
    "Validation",
    "VolumeFacts",
    "WeightFacts",
    "WindowFacts",
    "load",
]


@dataclass
class Evidence:
    """All facts about one training from which causes are judged, as plain values."""

    task: str = "unknown"  # classes, binary, values, unknown
    classes: int | None = None
    positions: bool = False  # a sample has several labels: tokens, pixels, attributes
    reconstruction: bool = False  # the targets are the inputs
    adversarial: bool = False  # another network is trained against this one
    loss: LossFacts = field(default_factory=LossFacts)
    data: DataFacts = field(default_factory=DataFacts)
    network: NetworkFacts = field(default_factory=NetworkFacts)
    weights: list[WeightFacts] = field(default_factory=list)
    optimizer: OptimizerFacts = field(default_factory=OptimizerFacts)
    loop: LoopFacts = field(default_factory=LoopFacts)
    probes: list[Probe] = field(default_factory=list)
    outcome: OutcomeFacts = field(default_factory=OutcomeFacts)
    trials: dict[str, TrialOutcome] = field(default_factory=dict)  # name of the trial → outcome
    trial_steps: int = 0
    nonfinite: NonFinite | None = None
    troubles: list[str] = field(default_factory=list)  # what the doctor could not do, and why


def load(data: Mapping[str, Any]) -> Evidence:
    """Evidence from what `dataclasses.asdict` and JSON made of it.

    Raises:
        TypeError: a field that there is not.
    """
    return _revived(Evidence, data)


def _revived(kind: Any, value: Any) -> Any:
    """`value` as the type that a field is declared with: JSON has neither classes nor int keys."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = [k for k in get_args(kind) if k is not NoneType]
        return None if value is None else _revived(kind, value)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [_revived(item, v) for v in value]
    if get_origin(kind) is dict:
        key, item = get_args(kind)
        return {key(k): _revived(item, v) for k, v in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        types = get_type_hints(kind)
        if unknown := set(value) - set(types):
            raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
        return kind(**{name: _revived(types[name], v) for name, v in value.items()})
    return value
