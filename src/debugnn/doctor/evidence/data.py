"""The samples that the doctor kept."""

from dataclasses import dataclass, field

from debugnn.doctor.evidence.sequences import SequenceFacts, TailFacts, WindowFacts


@dataclass
class PreparationFacts:
    """The training's own loss, of the trained network in evaluation mode."""

    training: float  # of training batches, mean
    # Of one half of some validation samples and of the other; then of two halves that have the
    # classes of the training batches, where samples have one class each.
    validation: list[float]
    # What was done to the validation inputs → the same.
    changed: dict[str, list[float]] = field(default_factory=dict)
    # What was done to the inputs of the latest training batch → its loss.
    training_changed: dict[str, float] = field(default_factory=dict)


@dataclass
class SameShares:
    """The same comparisons as in `DataFacts`, of samples in which each class is as frequent in one
    set as in the other."""

    shift: float | None = None
    scale_shift: float | None = None
    transfer_skill: float | None = None


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
class PairFacts:
    """Pairs of inputs with one of two labels, of which the loss draws one together."""

    together: float  # that label
    # Share of couples, a pair of this label and one of the other, of which the first one's inputs
    # are nearer to each other; and its standard error where both are alike.
    nearer: float
    error: float
    pairs: int


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
    # How much less another training image's target fits, unmoved, in standard errors.
    training_gap: float | None = None


@dataclass
class OwnInputFacts:
    """Outputs whose targets are the inputs at their places: what their gradients go back to."""

    same: bool  # the targets are the inputs; else a rising function of them, as their grey values
    causal: bool  # no output tried depends on an input after its own, and some on one before it
    noisy: bool = False  # in training mode two passes differ: it hides a part, or adds noise
    probes: int = 0  # outputs that have a gradient, of those tried
    share: float | None = None  # of the squared gradient, at the own target's place; median


@dataclass
class TargetCopyFacts:
    """An input that holds target values once, up to a positive scale and an offset.

    All of them; or, where the targets are the next values of a sequence, those of all positions but
    the last ones.
    """

    argument: str  # of the model's forward that holds the input
    columns: int  # target values of a sample that are copied
    samples: int = 0  # that were compared
    varying: int = 0  # input values of a sample that vary between samples
    # Axis of the input along which the copies are the last positions, as many as `last_positions`
    # of `positions`. None where they are no block at an end.
    last_of_axis: int | None = None
    last_positions: int = 0
    positions: int = 0
    # Each copy is one feature of several, at its target's own position, in an input that is handed
    # over beside another one: what a decoder is given, and an encoder not.
    aligned: bool = False
    alone: bool = False  # there is no other input: each is one feature of several in the only one
    shifted: int = 0  # positions that a copy stands behind its target, where it does so everywhere
    # Change of an output as the copy of its own target changes places among the samples, over the
    # outputs' standard deviation; the least of some outputs.
    change: float | None = None


@dataclass
class NeighbourFacts:
    """How much neighbours along an axis depend on each other: 0 not at all, 1 wholly.

    Beyond what their places say: neighbours are compared with those of other entries of the other
    axis, and with values that are far apart.
    """

    first: float
    second: float
    values: str = "inputs"  # or targets, where no inputs depend on each other


@dataclass
class CounterFacts:
    """A feature whose values are all different and whole multiples of one step apart."""

    feature: int
    values: int  # samples that were compared
    steps: int  # from the lowest value to the highest
    counting: int  # features of this kind
    skill: float  # of a simple model that is given this feature alone
    skill_of_others: float  # of one that is given all others
    told: float  # the largest share of another feature's variance that it explains


@dataclass
class LostShare:
    """A feature that tells more of the training targets than of the validation targets."""

    feature: int
    training: float  # share of its variance that the targets explain
    validation: float
    errors: float  # how many standard errors the two correlations are apart


@dataclass
class ColumnOrderFacts:
    """Pairs of target values of which one is always the larger in validation samples alone."""

    pair: tuple[int, int]  # columns of the first one that has both orders in the training
    mixed: int  # how many such pairs
    kept: int  # pairs that have one order in both sets
    reversed: float  # share of training samples in which the first pair's order is the other one


@dataclass
class RecodedFacts:
    """The training's own loss, where categories of validation samples get other numbers."""

    training: float  # of the latest training batch
    validation: list[float]  # of two halves of the validation samples, as they are
    renumbered: list[float]  # of each half, by a table that was chosen on the other one
    categories: list[int]  # in each column that was renumbered


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
    distinct_targets: int | None = None  # targets that differ; None where they are not known
    constant_batches: float = 0.0  # share of batches whose samples are all equal
    # Every batch that was compared with the first one is the same; None: none was compared.
    same_tensor: bool = False  # every step was given one tensor, as where all samples are one batch
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
    one_target: float | None = None  # that all targets are which were trained on
    other_targets: float = 0.0  # share of the validation's that are not, where there is one
    target_tenth: float | None = None  # a tenth of the targets are below it
    target_nine_tenths: float | None = None  # a tenth are above it
    target_low: float | None = None
    target_high: float | None = None
    # Share of each feature's variance that the target explains, in descending order, for the first
    # quarter of the features (at most 64); the features' indices; the median over all features.
    feature_shares: list[float] = field(default_factory=list)
    feature_order: list[int] = field(default_factory=list)
    feature_share_median: float | None = None
    features: int = 0  # how many features were compared
    # The largest squared rank correlation of a feature with the target, and that feature.
    rank_share: float | None = None
    rank_feature: int | None = None
    lost_shares: list[LostShare] = field(default_factory=list)  # of tables, the largest loss first
    recoded: RecodedFacts | None = None  # None: no categories, or nothing lost on validation
    column_order: ColumnOrderFacts | None = None  # None: of targets, or in one order in both sets
    counter: CounterFacts | None = None  # None: of labels, no feature counts the samples
    drift: DriftFacts | None = None
    graphs: GraphBatchFacts | None = None  # None: a batch does not consist of graphs
    sequence: SequenceFacts | None = None  # None: the outputs are no symbols of a sequence
    tail: TailFacts | None = None  # the same
    pairs: PairFacts | None = None  # None: the model is not called with labelled pairs
    # Share of labelled pairs of nodes whose label says whether the graph that the model is given
    # has their edge, in training and in validation; None of other inputs.
    told_by_edges: float | None = None
    validation_told_by_edges: float | None = None
    neighbours: NeighbourFacts | None = None  # None: it is clear which axis holds the samples
    target_copies: TargetCopyFacts | None = None  # None: an input does not hold all target values
    own_inputs: OwnInputFacts | None = None  # None: the targets are no inputs
    targets_moved: bool = False  # late real targets have another size or spread than early ones
    simple_skill: float | None = None  # of a simple model, on samples that it was not fitted to
    # The same of samples with many labels each: R² of the labels at each place.
    skill_of_maps: float | None = None
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
    standardised_alone: bool = False  # all validation samples, by their own mean and deviation
    transfer_skill: float | None = None  # of a simple model from training to validation samples
    # The same from every second validation sample to the others; None of real inputs.
    within_validation: float | None = None
    same_shares: SameShares | None = None  # None: no classes, or none that both sets hold
    matched_skill: float | None = None  # on validation inputs brought to the training scale
    preparations: PreparationFacts | None = None
    alignment: AlignmentFacts | None = None  # where a target is a map of the image's size
    relabelled_skill: float | None = None  # on validation labels under the best renaming
