"""What the doctor has seen of a training, as plain numbers.

Everything that a rule reads stands here, so that a saved file can be judged again, under other
thresholds and without torch. Observers fill these fields in and decide nothing: they compare no
number with a threshold. `None` stands for what was not, or could not be, observed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass
class VolumeFacts:
    """How a loss pulls at a flow's outputs, its codes and the logarithm of its change of volume."""

    gradient: float  # mean sign, over samples, of the loss's gradient by log |det dz/dx|
    towards_centre: float  # cosine of the codes and of the loss's gradient by them


@dataclass
class LossFacts:
    """How the loss function responds to outputs that the doctor makes up."""

    error: str | None = None  # why loss_fn(outputs, targets) raised
    # False: not tried on made-up outputs, which could end a GPU's context, or which it gives
    # another value at every call.
    tried: bool = True
    scalar: bool = True  # False: it returns a value for each sample
    gradient: bool = True  # it has a gradient with respect to the outputs
    shapes: list[list[int]] = field(default_factory=list)  # of outputs and targets
    output_space: str = "real"  # real, unit (each in [0, 1]), simplex, log_simplex
    doubling: float | None = None  # its value for every sample twice / for every sample once
    rewards: list[list[float]] = field(default_factory=list)  # values at [right, wrong] outputs
    best: float | None = None  # its lowest value at perfect outputs
    constant: float | None = None  # its value at the best constant outputs
    confident: float | None = None  # classes: its value at the most confident right outputs
    far: float | None = None  # values: its lowest value at outputs of size 1,000
    squared: bool = False  # binary: outputs of 0 and 1 are better than confident logits
    shift_change: float | None = None  # relative change as 3 is added to all outputs of a sample
    other_entries: float | None = None  # share of the gradient on outputs of other classes
    cross_gradient: float | None = None  # relative change of a sample's gradient by other samples
    pairwise: bool = False  # labels count only by being equal or not, as in metric learning
    ignores_targets: bool = False  # other targets leave its value and its gradient as they are
    other_outputs: bool = False  # it depends on other tensors of the outputs than the first
    # Its lowest value where one of the other tensors is 1,000 times as large, over its value at the
    # model's outputs; below zero where it falls without end. None without others.
    far_others: float | None = None
    parameters: bool = False  # it reads parameters: a penalty of weights, or a network of its own
    # Values: what turns outputs into them; identity, sigmoid or exp. Logits that are compared with
    # logits: softmax.
    link: str = "identity"
    # Values: it is the cross-entropy of targets that are probabilities, each side times a factor.
    bernoulli: bool = False
    confirmed: bool = (
        False  # lower at outputs that are right, as the shapes have it, than elsewhere
    )
    opposed: bool = False  # higher at right outputs than elsewhere, for every sample
    permuted: float | None = None  # relative change where outputs, not targets, change places
    fixed_entries: bool = False  # classes: it reads some outputs only, whatever the labels are
    linear: float | None = None  # classes: how far it is from linear in probabilities, relatively
    volume: VolumeFacts | None = None  # of a flow
    # Outputs that it compares with a target, and has no gradient with respect to.
    detached: list[str] = field(default_factory=list)
    # Operation of the loss that the loop computed → the one that made its input, views left out.
    sources: dict[str, str] = field(default_factory=dict)


@dataclass
class SequenceFacts:
    """Symbols that a loss pulls outputs to, beside those of an input with as many positions.

    Shares of a few positions in one batch. An output sees a symbol where it changes with it.
    """

    argument: str  # of the model's forward that holds the input
    same: float  # scored positions whose symbol is the input's there
    following: float  # scored positions whose symbol is the input's at the next position
    second: float  # scored positions whose symbol is the input's at the position after that
    scored: float  # positions that the loss scores
    sees_own: float | None = None  # outputs that see the symbol at their position
    sees_following: float | None = None  # outputs that see the symbol at the next position
    through_code: float | None = None  # … and only through tensors without an axis of positions
    sees_past: bool = False  # some output sees a symbol before it
    sees_future: bool = False  # some output sees a symbol after it


@dataclass
class TailFacts:
    """The symbol that the most sequences of a batch end with, as the loss scores it."""

    symbol: int
    share: float  # of the scored positions, those in a run of it at an end, without the run's first
    only_there: float  # of the positions with this symbol, those in such runs
    sequences: float  # share of the sequences that end with two of it or more
    lengths: int  # how many lengths such runs have


@dataclass
class PreparationFacts:
    """The training's own loss, of the trained network in evaluation mode."""

    training: float  # of training batches, mean
    validation: list[float]  # of one half of the validation samples, and of the other
    # What was done to the validation inputs → the same two.
    changed: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class DriftFacts:
    """How the inputs of the latest batches differ from those of the first ones."""

    early: float  # root mean square
    late: float
    # Late samples that are early ones times a number plus a number, and the median of how many
    # times their deviation is, and of how far their mean has moved in early deviations.
    returned: int = 0
    scale: float | None = None
    offset: float | None = None


@dataclass
class GraphBatchFacts:
    """Batches of several graphs, whose nodes stand one graph after the other."""

    batches: int = 0
    fewest_graphs: int = 0  # in one of them
    # Batches whose edges name no node beyond the size of the largest graph, as if all graphs lay
    # upon each other.
    overlaid: int = 0
    nodes: int = 0  # in all batches
    alone: int = 0  # of these, those that no edge names


@dataclass
class AlignmentFacts:
    """How well a local model of validation images predicts maps: correlations, mean over images."""

    validation: float  # with the targets of these images
    training: float  # with those of training images
    # With these, each flipped along one axis or both, or turned by a quarter, as it fits best.
    turned: float
    turned_gap: float  # how much less another image's target fits, in standard errors
    shifted: float  # the same, each shifted as it fits best
    shifted_gap: float


@dataclass
class WindowFacts:
    """Validation windows that hold the values of training windows at another position.

    Of two windows that were cut from one series, the overlap is what both hold of it.
    """

    axis: int  # of the inputs, samples first, that holds the positions
    positions: int  # of a window
    windows: int  # validation windows that were looked at
    share: float  # of them, that overlap with a training window
    share_before: float  # with one that begins earlier in the series
    share_after: float  # with one that begins later
    common: float  # the largest overlap of each of them / positions, median
    pairs: int = 0  # overlaps that were compared from end to end
    whole: float = 0.0  # share of these that agree from end to end


@dataclass
class TargetCopyFacts:
    """An input that holds each target value once, up to a positive scale and an offset."""

    argument: str  # of the model's forward that holds the input
    columns: int  # target values of a sample, all of which are copied
    samples: int = 0  # that were compared
    varying: int = 0  # input values of a sample that vary between samples
    # Axis of the input along which the copies are the last positions, as many as `last_positions`
    # of `positions`. None where they are no block at an end.
    last_of_axis: int | None = None
    last_positions: int = 0
    positions: int = 0
    # Change of an output as the copy of its own target changes places among the samples, over the
    # outputs' standard deviation; the least of some outputs.
    change: float | None = None


@dataclass
class DataFacts:
    """The samples that the doctor kept."""

    samples: int = 0
    axes: int = 0  # of the inputs: 2 for tables, 3 for sequences, 4 for images
    floating: bool = True  # False: tokens
    rms: float | None = None
    mean: float | None = None
    std: float | None = None
    largest_std: float | None = None  # of a single feature
    feature_spread: float | None = None  # largest / tenth percentile of the features' deviations
    distinct: int = 0  # samples that differ
    constant_batches: float = 0.0  # share of batches whose samples are all equal
    # Every batch that was compared with the first one is the same; None: none was compared.
    same_batch: bool | None = False
    batch_sizes: int = 1  # how many sizes batches came in
    nonfinite_samples: int = 0
    nonfinite_features: list[int] = field(default_factory=list)  # not finite in any sample
    class_counts: dict[int, int] = field(default_factory=dict)
    conflicting: float = 0.0  # share of the repeated samples that came with several labels
    repeated: int = 0  # samples that came more than once
    repeats_within: float = 0.0  # share of batches in which a sample occurs twice
    # Batches of four samples and more whose labels are all one class, as a share; the same share of
    # batches drawn at random; and how many batches of one class follow each other, on average.
    one_class_batches: float = 0.0
    one_class_by_chance: float = 0.0
    one_class_run: float = 0.0
    out_of_range: int = 0  # labels that no output stands for
    void_labels: bool = False  # all of these labels are one value
    target_kinds: int | None = None  # how many values regression targets take
    target_consecutive: bool = False  # these values are 0, 1, …, K−1
    target_rarest: float | None = None  # share of the rarest value
    target_std: float | None = None
    target_rms: float | None = None
    target_low: float | None = None
    target_high: float | None = None
    # Share of each feature's variance that the target explains, in descending order, for the first
    # quarter of the features (at most 64); the features' indices; the median over all features.
    feature_shares: list[float] = field(default_factory=list)
    feature_order: list[int] = field(default_factory=list)
    feature_share_median: float | None = None
    features: int = 0  # how many features were compared
    drift: DriftFacts | None = None
    graphs: GraphBatchFacts | None = None  # None: a batch does not consist of graphs
    sequence: SequenceFacts | None = None  # None: the outputs are no symbols of a sequence
    tail: TailFacts | None = None  # the same
    target_copies: TargetCopyFacts | None = None  # None: an input does not hold all target values
    simple_skill: float | None = None  # of a simple model, on samples that it was not fitted to
    # Class → the lower one of recall and precision of a simple model that gives all classes the
    # same weight, on samples that it was not fitted to; of the rarest classes.
    simple_recognition: dict[int, float] = field(default_factory=dict)
    overlap: float | None = None  # share of validation samples that were trained on
    # The same for each class with 20 validation samples, and how many distinct samples these are.
    overlap_of_class: dict[int, float] = field(default_factory=dict)
    copies: int = 0
    windows: WindowFacts | None = None  # None: samples have no axis of positions
    continuous: float | None = None  # distinct values of a feature / distinct samples, median
    covered: float | None = None  # share of training samples that are among the validation samples
    trained_on: int | None = None  # distinct training samples seen
    validation_size: int | None = None  # samples that the latest validation was given
    natural_repeats: float = 0.0  # share of validation samples that repeat another of them
    shift: float | None = None  # skill at telling validation inputs from training inputs, 0 to 1
    scale_shift: float | None = None  # median over features of |Δmean|/std and |log₂ σ ratio|
    transfer_skill: float | None = None  # of a simple model from training to validation samples
    matched_skill: float | None = None  # on validation inputs brought to the training scale
    preparations: PreparationFacts | None = None
    alignment: AlignmentFacts | None = None  # where a target is a map of the image's size
    relabelled_skill: float | None = None  # on validation labels under the best renaming


@dataclass
class LeafFacts:
    """A tensor that the outputs are learnt through, that no parameter list of the model names and
    the optimiser does not hold."""

    name: str | None  # path of attributes and keys to it, None where it was not found
    attribute: str | None  # path of the module's attribute that it lies in
    holder: str | None  # type of that attribute: list, dict, Linear, Tensor, …
    shape: list[int] = field(default_factory=list)
    parameter: bool = False  # an nn.Parameter
    constant: bool = False  # all of its values were equal when it was first seen
    anew: bool = False  # another one stands in its place in the next forward pass
    graded: bool = False  # a gradient of the loss has reached it
    moved: bool = False  # its values have changed since: another optimiser holds it


@dataclass
class RecurrenceFacts:
    """A layer that is called at each step of a sequence, whose outputs depend on steps that no
    gradient goes back to."""

    layer: str
    steps: int
    each_step: bool  # there are outputs of each step: those of one end of the sequence were taken
    reached: int  # steps of a sample that a gradient comes back to, at most
    # How far the outputs' change with one of the others is from growing evenly with that step's:
    # 0 where it is smooth, about 1 where it is a jump.
    uneven: float
    calls: int  # of the layer
    idle: int  # calls whose outputs get no gradient
    line: str | None = None  # `file:line` of the only place that takes tensors out of the graph
    cut_by: str | None = None  # what does so there: .data, .detach(), …
    end: int = -1  # the step whose outputs were taken, where there are some of each: −1 or 0
    # Skill of these outputs after the training; that of a simple model of all steps of the
    # sequence, and of one that is given this step alone, on samples that they were not fitted to.
    end_skill: float | None = None
    end_by_all: float | None = None
    end_by_itself: float | None = None


@dataclass
class BrokenPathFacts:
    """The outputs follow the inputs by parameters that their own gradient does not go back to."""

    parameters: list[str]  # these, as far as the optimiser holds them
    # Share of the outputs' values that stay as they are, but for rounding, as inputs change a
    # little: 1 where what lies between them is a choice, 0 where it is smooth.
    steady: float
    drawn: bool  # the outputs change with random numbers
    # After the training: squared distance of outputs that have as many values as the inputs from
    # these, over the inputs' variance among the samples. None of other outputs.
    left: float | None = None


@dataclass
class StateFacts:
    """What a network keeps in itself, in attributes or buffers, from one pass to the next."""

    paths: list[str]  # of the attributes
    compared: int = 0  # steps whose first pass came right after the last pass of the step before
    carried: int = 0  # of these, those that began with the state that it had left
    # Relative change of a sample's output by what had its place in the batch before. None where
    # outputs of other places follow as well.
    change: float | None = None
    came_again: int = 0  # samples that came again
    after_another: int = 0  # of these, those with another one at their place in the batch before


@dataclass
class NetworkFacts:
    """What the network is, tried out on a batch."""

    parameters: int = 0
    weight_layers: int = 0
    depth: int = 0  # weight layers that follow each other
    # Distance of the outputs at the mean of two samples from the mean of their outputs, over the
    # outputs' spread: 0 of a linear network. None where inputs cannot be averaged. At the start the
    # larger of its own and of what it is with noise added to weights that are all equal.
    bend: float | None = None
    trained_bend: float | None = None  # the same of the weights at the end
    nonlinear: bool | None = None  # some operation of the forward pass is a nonlinearity
    last_op: str | None = None  # the operation that makes the outputs: sigmoid, softmax, relu, …
    batch_softmax: bool = False  # a softmax over the batch axis
    softmax_over_one: bool = False  # the outputs are a softmax over an axis of one entry
    sample_axis: int | None = 0  # of the inputs; None: a batch cannot be parted into samples
    sample_axis_told: bool = False  # by the user, and not found
    # Axis of the inputs → on which other positions along it an output depends: apart (on none),
    # earlier, later, all. Axes that the outputs do not have are missing.
    axis_dependence: dict[int, str] = field(default_factory=dict)
    # Relative change of a sample's output by other samples' inputs; None where it is not certain
    # that they are samples.
    mixing: float | None = None
    mixing_layers: dict[str, float] = field(
        default_factory=dict
    )  # the same at each module's output
    # Relative change of a sample's output as all samples of the batch move up by one place.
    place_change: float | None = None
    evaluation_change: float | None = None  # relative difference of two evaluations of one batch
    drops_in_evaluation: bool = False  # the forward pass draws dropout masks in evaluation mode
    softmax_inputs: list[str] = field(default_factory=list)  # layers fed with (log-)probabilities
    unreached: list[str] = field(default_factory=list)  # used, trainable, without a gradient
    unused: list[str] = field(default_factory=list)
    broken_path: BrokenPathFacts | None = None  # None: a gradient goes back to the inputs
    unregistered: list[LeafFacts] = field(default_factory=list)
    time_gradient: float | None = None  # at a sequence's first tenth over that at its last
    recurrence: RecurrenceFacts | None = None  # None: no such layer is seen
    state: StateFacts | None = None  # None: it keeps nothing in itself
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
    inputs: int = 0  # values that a unit is fed with
    outputs: int = 0  # units


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
    saturated: float | None  # share of values within 2.5 % of a bound's range; None without bounds


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
    # [update, learning rate of each group], where a rate changed (at most 64 points) and at the end
    rates: list[list[float]] = field(default_factory=list)
    # The highest rate that a scheduler wrote into the groups as its base or its maximum.
    scheduled: float | None = None
    lost_eps: float | None = None  # an eps above 0 that is 0 in the type of its parameters
    dtype: str | None = None  # this type, as float16


@dataclass
class LoopFacts:
    steps: int = 0  # calls of Doctor.step
    optimizer_steps: int = 0
    backwards: int = 0
    empty_steps: int = 0  # optimiser steps without any gradient
    looked_for_cleared: int = 0  # updates before which a gradient was looked for that had arrived
    cleared_steps: int = 0  # of these, those that found no gradient, or zeros alone
    cleared_to_none: bool = False  # there was none; else they were zero
    # Of the first updates that a gradient was seen to come before: those before which all gradients
    # were erased between two backward passes, and the parameters that got none again.
    looked_for_erased: int = 0
    erased_updates: int = 0
    erased: list[str] = field(default_factory=list)
    passes_per_update: list[int] = field(default_factory=list)  # backward passes, the latest 64
    # [step, distance to the sum of the old and the new gradient, distance to the new gradient] of
    # gradients' directions (0 equal, 2 opposite), for the first 1,000 comparisons.
    residues: list[list[float]] = field(default_factory=list)
    training_forwards: int = 0
    eval_mode_forwards: int = 0  # training forwards of a model in evaluation mode
    first_eval_mode: int | None = None
    train_mode_evaluations: int = 0  # forwards without gradients of a model in training mode
    evaluations: int = 0
    validated_in_train_mode: int = 0
    validations: int = 0
    # The loss handed over / loss_fn's own value, over the probes.
    loss_ratio: float | None = None  # median
    loss_ratio_low: float | None = None
    loss_ratio_high: float | None = None
    # Gradient that reached the outputs / that of loss_fn's mean, median over the probes: 1 / k
    # where the loss is divided by k.
    gradient_scale: float | None = None
    steps_before: int = 0  # steps that were taken before the doctor began to watch
    # `file:line` of the person's code that called, the first time that it was seen.
    training_line: str | None = None  # the model, with gradients
    eval_mode_line: str | None = None  # the model, with gradients, in evaluation mode
    evaluation_line: str | None = None  # the model, without gradients, in training mode
    update_line: str | None = None  # optimizer.step()


@dataclass
class Score:
    """How well outputs fit targets."""

    relative_loss: float | None = None  # reference loss / that of the best constant predictor
    skill: float | None = None  # 0: best constant predictor, 1: perfect (accuracy or R²)
    balanced: float | None = None  # mean over the classes of their recall
    recalls: dict[int, float] = field(default_factory=dict)  # of the rarest training classes
    samples: int = 0
    loss: float | None = None  # reference loss: cross-entropy in nats, or squared error


@dataclass
class LatentFacts:
    """What the largest outputs of a model with a random code depend on, noise or inputs.

    Root mean square of the outputs' change, over that of the outputs, or of inputs of the same
    number where this is larger.
    """

    by_input: float | None = None  # as the inputs change places among the samples
    by_noise: float | None = None  # as other noise is drawn
    loss_reads_input: bool = False  # a number among the outputs changes with the inputs
    # Squared distance of the outputs, or of their sigmoids, from the inputs, over the inputs'
    # variance among the samples. None where the outputs are of another size.
    left: float | None = None


@dataclass
class Pairing:
    """The training's own loss of outputs beside their own targets and beside other samples'.

    Only samples whose input and target differ from the other one's count.
    """

    groups: int = 0  # of samples whose targets changed places
    better: float | None = None  # share of the exchanges in which the own output is better
    own: float | None = None  # mean loss beside the own target
    gap: float | None = None  # by how much it is higher beside another's, on average
    error: float | None = None  # standard error of the gap


@dataclass
class OwnLoss:
    """How well a training does by its own loss function."""

    train: Pairing = field(default_factory=Pairing)  # evaluation mode
    train_mode: Pairing = field(default_factory=Pairing)  # batch norm by batch, dropout off
    late: Pairing = field(default_factory=Pairing)  # evaluation mode, batches of late steps alone
    validation: Pairing = field(default_factory=Pairing)
    # Mean loss of training batches over that of the best constant outputs, the lower one of the two
    # modes. None of an unknown task, or where the constant's loss is not positive.
    relative: float | None = None
    simple: float | None = None  # values: the same of a simple model, on samples left out


@dataclass
class Validation:
    step: int
    loss: float | None
    score: Score


@dataclass
class PartFacts:
    """An output that the loss compares with one target of its own, beside others."""

    name: str  # its key among the outputs, or its place
    task: str  # classes, binary or values
    classes: int | None = None
    train: Score = field(default_factory=Score)  # evaluation mode
    train_mode: Score = field(default_factory=Score)  # batch norm by batch
    simple_skill: float | None = None  # of a simple model, on samples that it was not fitted to


@dataclass
class Jump:
    """A single step whose loss lies above those around it."""

    step: int
    loss: float
    around: float  # median of the ten losses before and the ten after
    spread: float  # median distance of these to their median
    samples: list[int] = field(default_factory=list)  # of its batch, the largest losses first
    own: list[float] = field(default_factory=list)  # these samples' losses
    typical: float | None = None  # median of its samples' losses
    again: list[int] = field(default_factory=list)  # other steps with the first of these samples


@dataclass
class OutcomeFacts:
    first_loss: float | None = None
    last_loss: float | None = None  # median of the last tenth
    highest_loss: float | None = None
    lowest_loss: float | None = None
    tenths: list[float] = field(default_factory=list)  # median loss of each tenth of the training
    nonfinite_step: int | None = None
    # Level → steps until a mean of ten losses is below level × the loss of guessing; all steps
    # where it never is. Levels 0.99, 0.98, …, 0.50.
    first_below: dict[float, int] = field(default_factory=dict)
    initial: Score = field(default_factory=Score)
    train: Score = field(default_factory=Score)  # evaluation mode
    train_mode: Score = field(default_factory=Score)  # batch norm by batch, dropout off
    own_loss: OwnLoss = field(default_factory=OwnLoss)
    # Of the first batch, in evaluation mode, with the initial and with the present weights; None
    # of a model that draws no noise and is trained by no bound.
    initial_latent: LatentFacts | None = None
    latent: LatentFacts | None = None
    validations: list[Validation] = field(default_factory=list)
    movement: float | None = None  # median over weights of ‖w − w₀‖/‖w₀‖
    shrinkage: float | None = None  # median over weights of ‖w‖/‖w₀‖
    epochs: float | None = None  # how often the same samples came
    parts: list[PartFacts] = field(default_factory=list)  # of an unknown task
    parts_are_all: bool = False  # the loss compares nothing else
    jumps: list[Jump] = field(default_factory=list)  # the largest, over the spread around them


@dataclass
class TrialOutcome:
    """How a short training of a copy under one change went."""

    steps: int
    start: float  # relative loss, mean of the first steps
    end: float  # relative loss, mean of the last steps
    end_again: float | None = None  # the same of a second training, on other batches; None: not run


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
    inputs: list[str] = field(default_factory=list)  # types and shapes that the operation took
    outputs: list[str] = field(default_factory=list)  # and gave
    line: str | None = None  # `file:line` of the person's code that called the operation


@dataclass
class Evidence:
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
