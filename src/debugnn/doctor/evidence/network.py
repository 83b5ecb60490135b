"""The network: what it is made of, and what its passes do."""

from dataclasses import dataclass, field


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
    # Relative change of the outputs of a batch's graphs by the nodes of other graphs in it.
    graph_mixing: float | None = None
    # Each feature of the outputs has length 1 over the samples, and no sample has length 1.
    unit_features: bool = False
    # Such an output has a gradient with respect to these inputs; None: nothing mixes, or it cannot
    # be told.
    mixing_by_gradient: bool | None = None
    # Of sequences with outputs for the whole of each, whether these depend on the first half of the
    # positions, and on the second, at the start or at the end. Empty of others.
    halves_used: list[bool] = field(default_factory=list)
    # Relative change of a sample's output as all samples of the batch move up by one place.
    place_change: float | None = None
    evaluation_change: float | None = None  # relative difference of two evaluations of one batch
    dropout_meant: bool = False  # its code keeps dropout on in every mode by training=True
    drops_in_evaluation: bool = False  # the forward pass draws dropout masks in evaluation mode
    softmax_inputs: list[str] = field(default_factory=list)  # layers fed with (log-)probabilities
    unreached: list[str] = field(default_factory=list)  # used, trainable, without a gradient
    unused: list[str] = field(default_factory=list)
    # Of the optimiser, and outputs depend on them with a gradient: those that had none at any probe
    # of the training, and their share of all values that the optimiser holds of the model.
    never_arrived: list[str] = field(default_factory=list)
    never_arrived_share: float = 0.0
    broken_path: BrokenPathFacts | None = None  # None: a gradient goes back to the inputs
    unregistered: list[LeafFacts] = field(default_factory=list)
    # Looks at steps that took derivatives of second order with respect to the inputs for their
    # loss. Those where these are 0 for all samples, and those others where the derivatives of the
    # last layer's output with respect to the first layer's input are.
    second_derivatives: int = 0
    flat_derivatives: int = 0
    flat_layers: int = 0
    shared_norms: list[str] = field(default_factory=list)  # batch norm run several times in a pass
    # Scales of batch, group and layer norm that are 0 for all units, at the start and at the end.
    zero_scales: list[str] = field(default_factory=list)
    time_gradient: float | None = None  # at a sequence's first tenth over that at its last
    recurrence: RecurrenceFacts | None = None  # None: no such layer is seen
    state: StateFacts | None = None  # None: it keeps nothing in itself
    table_rms: float | None = None  # at the start, of all weights of embeddings; None without any
    # Weight layer that takes data as they are → root mean square of its input.
    data_inputs: dict[str, float] = field(default_factory=dict)
    # What the outputs differ by among samples at the start, the RMS over units.
    output_signal: float | None = None
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
    # What its layer's outputs differ by among samples and places, the RMS over units; None of
    # layers that are neither linear nor convolutional.
    signal: float | None = None
    frozen: bool = False  # takes no gradient, and stays as it is
    # Share of the units that began equal to others, moved, and still equal another one.
    still_equal: float = 0.0
    as_drawn: bool = False  # as PyTorch draws the weights of a new linear or convolutional layer
