"""What the doctor has seen of a training, as plain numbers.

Everything a rule reads stands here, so that findings can be made again from a file, on a machine
without torch. `None` is what was not, or could not be, observed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass
class LossFacts:
    """How the loss function answers to outputs that are made up for the test."""

    error: str | None = None  # why it could not be called as loss_fn(outputs, targets)
    scalar: bool = True
    reduction: str = "mean"  # mean, sum, none
    output_space: str = "real"  # real, unit (each in [0, 1]), simplex, log_simplex
    better_when_right: bool | None = None  # its value falls from wrong outputs to right ones
    floor: float | None = None  # at perfect outputs in the model's range / best constant predictor
    shift_invariant: bool | None = None  # adding a constant to all of a sample's outputs: no change
    target_entry_only: bool | None = None  # only the target class's output has a gradient
    mixes_samples: bool | None = None  # a sample's gradient depends on another sample's output
    pairwise: bool = False  # labels count only by being equal or not
    gradient: bool = True  # it has one
    unbounded: bool = False  # it falls without end as outputs grow
    shapes: list[list[int]] = field(default_factory=list)  # of outputs and targets
    tried: bool = True  # False: not on made-up outputs, which could end a GPU's context


@dataclass
class DataFacts:
    """The samples that the doctor kept."""

    samples: int = 0
    axes: int = 0  # of the inputs: 2 for tables, 3 for sequences, 4 for images
    floating: bool = True  # False: tokens
    rms: float | None = None
    mean: float | None = None
    std: float | None = None
    feature_spread: float | None = None  # largest / smallest standard deviation of a feature
    distinct: int = 0  # samples that differ
    constant: bool = False  # all samples are the same
    constant_batches: float = 0.0  # share of batches of which that holds
    target_kinds: int | None = None  # how many values regression targets take
    nonfinite_samples: int = 0
    class_counts: dict[int, int] = field(default_factory=dict)
    conflicting: float = 0.0  # share of repeated samples that came with several labels
    out_of_range: int = 0  # labels that no output stands for
    void_labels: bool = False  # all of them are one value
    target_std: float | None = None
    target_rms: float | None = None
    target_low: float | None = None
    target_high: float | None = None
    integer_values: bool = False  # regression targets that are 0, 1, …, K−1
    leak: float | None = None  # share of the target's variance that single features give away
    leak_features: list[int] = field(default_factory=list)
    simple_skill: float | None = None  # of a simple model, on samples it was not fitted on
    overlap: float | None = None  # share of validation samples that were trained on
    natural_repeats: float = 0.0  # share of validation samples that repeat another of them
    same_set: bool = False  # validation is the training set itself
    shift: float | None = None  # how well validation inputs are told from training inputs, 0 to 1
    scale_shift: float | None = None  # median over features of |Δmean|/std and |log σ ratio|
    transfer_skill: float | None = None  # of a simple model from training to validation samples
    matched_skill: float | None = None  # on validation inputs that were brought to training scale
    relabelled_skill: float | None = None  # on validation labels under the best renaming


@dataclass
class NetworkFacts:
    """What the network is, tried out on a batch."""

    parameters: int = 0
    weight_layers: int = 0
    depth: int = 0  # weight layers that follow each other
    nonlinear: bool | None = None  # some operation of the forward pass is a nonlinearity
    last_op: str | None = None  # what makes the outputs: sigmoid, softmax, relu, linear, …
    batch_softmax: bool = False  # a softmax over the batch axis
    mixing: float | None = None  # relative change of a sample's output by other samples' inputs
    mixing_layer: str | None = None
    random_evaluation: bool = False  # two evaluations of one batch differ
    softmax_inputs: list[str] = field(default_factory=list)  # layers fed with (log-)probabilities
    unreached: list[str] = field(default_factory=list)  # used, trainable, without a gradient
    unused: list[str] = field(default_factory=list)
    time_gradient: float | None = None  # at a sequence's first tenth over that at its last
    mode_sensitive: bool = False  # dropout or batch norm
    dropout: float = 0.0  # largest rate


@dataclass
class WeightFacts:
    """A weight tensor at initialisation, in the order of the forward pass."""

    name: str
    size: int
    gain: float  # RMS · √fan_in: 0.58 PyTorch's default, 1 LeCun, 1.41 Kaiming
    identical_rows: bool
    identical_columns: bool
    constant: bool
    hidden: bool  # has a weight layer after it
    norm: float


@dataclass
class LayerFacts:
    """A weight tensor at one probe."""

    gradient: float | None  # L2 norm before clipping
    weight: float
    update: float | None = None  # ‖Δw‖, at the first probes


@dataclass
class ActivationFacts:
    """A nonlinearity at one probe."""

    op: str  # relu, sigmoid, tanh, …
    layer: str  # the weight layer before it
    rms: float
    dead: float  # share of units that are zero for every sample
    saturated: float | None  # share of values within 2.5 % of a bound; None without bounds


@dataclass
class Probe:
    step: int
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)  # weight layer → RMS of its input
    activations: list[ActivationFacts] = field(default_factory=list)


@dataclass
class OptimizerFacts:
    name: str = ""
    held: int = 0  # of the model's trainable parameters, how many the optimiser holds
    trainable: int = 0
    missing: list[str] = field(default_factory=list)  # trainable, reached, and not held
    foreign: int = 0  # parameters that it holds and the model does not have
    frozen_held: list[str] = field(default_factory=list)  # requires_grad=False, and held
    lr: float | None = None
    weight_decay: float = 0.0


@dataclass
class LoopFacts:
    steps: int = 0  # calls of Doctor.step
    optimizer_steps: int = 0
    backwards: int = 0
    empty_steps: int = 0  # optimiser steps without any gradient
    compared_steps: int = 0  # steps whose gradient could be held against the one before
    residual_step: int | None = None  # first step whose gradient was added to an earlier step's
    residual_steps: int = 0
    training_forwards: int = 0
    eval_mode_forwards: int = 0  # training forwards of a model in evaluation mode
    first_eval_mode: int | None = None
    train_mode_evaluations: int = 0  # forwards without gradients of a model in training mode
    evaluations: int = 0
    validated_in_train_mode: int = 0
    validations: int = 0
    loss_ratio: float | None = None  # the loss handed over / loss_fn's own value, the median
    penalty: float | None = None  # share of the loss that loss_fn does not explain, at most


@dataclass
class Score:
    """How well outputs fit targets."""

    relative_loss: float | None = None  # reference loss / that of the best constant predictor
    skill: float | None = None  # 0: best constant predictor, 1: perfect (accuracy or R²)
    balanced: float | None = None  # mean over the classes of their recall
    worst_recall: float | None = None  # of the classes that training has least of
    samples: int = 0
    loss: float | None = None  # reference loss: cross-entropy in nats, or squared error


@dataclass
class Validation:
    step: int
    loss: float | None
    score: Score


@dataclass
class OutcomeFacts:
    first_loss: float | None = None
    last_loss: float | None = None  # median of the last tenth
    highest_loss: float | None = None
    nonfinite_step: int | None = None
    plateau: int | None = None  # steps before the loss is 7 % below that of guessing
    initial: Score = field(default_factory=Score)
    train: Score = field(default_factory=Score)  # evaluation mode
    train_mode: Score = field(default_factory=Score)  # batch norm by batch, dropout off
    validations: list[Validation] = field(default_factory=list)
    movement: float | None = None  # median over weights of ‖w − w₀‖/‖w₀‖
    shrinkage: float | None = None  # median over weights of ‖w‖/‖w₀‖
    epochs: float | None = None  # how often the same samples came


@dataclass
class Fork:
    """A short training of a copy under one change."""

    steps: int
    start: float  # relative loss, mean of the first steps
    end: float  # relative loss, mean of the last steps


@dataclass
class NonFinite:
    step: int
    where: str
    name: str
    layer: str | None
    kind: str
    samples: list[int]
    count: int
    magnitude: float
    overflow: bool
    replay: str | None = None  # file with the batch and the weights


@dataclass
class Evidence:
    task: str = "unknown"  # classes, binary, values, unknown
    classes: int | None = None
    loss: LossFacts = field(default_factory=LossFacts)
    data: DataFacts = field(default_factory=DataFacts)
    network: NetworkFacts = field(default_factory=NetworkFacts)
    weights: list[WeightFacts] = field(default_factory=list)
    optimizer: OptimizerFacts = field(default_factory=OptimizerFacts)
    loop: LoopFacts = field(default_factory=LoopFacts)
    probes: list[Probe] = field(default_factory=list)
    outcome: OutcomeFacts = field(default_factory=OutcomeFacts)
    forks: dict[str, Fork] = field(default_factory=dict)
    fork_steps: int = 0
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
    if is_dataclass(kind):
        types = get_type_hints(kind)
        if unknown := set(value) - set(types):
            raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
        return kind(**{name: _revived(types[name], v) for name, v in value.items()})
    return value
