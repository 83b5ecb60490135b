"""How the training went."""

from dataclasses import dataclass, field


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
class AdjustedFacts:
    """What outputs tell of the classes of new samples, once the classes' shares are undone.

    A number is added to each class's output, fitted on one half of the samples and tried on the
    other. Of classes with some samples in either half; lists have an entry for either half.
    """

    # By the classes' mean recall where all classes are made equally likely; 0 is guessing.
    skill: float | None = None
    samples: int = 0
    counts: dict[int, int] = field(default_factory=dict)  # samples of each class
    expected: dict[int, float] = field(default_factory=dict)  # mean probability by the outputs
    recalls: dict[int, list[float]] = field(default_factory=dict)  # of the outputs as they are
    # Where the classes are made as likely as they are among these samples.
    recalls_after: dict[int, list[float]] = field(default_factory=dict)
    precisions_after: dict[int, list[float]] = field(default_factory=dict)
    lost: list[float] = field(default_factory=list)  # share of right answers that become wrong
    # Recall minus the share of false alarms, of a simple model that is fitted to the other half and
    # gives all classes the same weight.
    told: dict[int, list[float]] = field(default_factory=dict)


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
    # Mean loss of training batches at the best constant outputs. None of an unknown task, or where
    # it is not positive.
    constant: float | None = None
    relative: float | None = None  # that at the outputs over it, the lower one of the two modes
    simple: float | None = None  # values: the same of a simple model, on samples left out


@dataclass
class Validation:
    """The loss and the score on the validation samples after one step."""

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
    against: bool = False  # what it is made of is trained against it, by a reversed gradient
    made_by: str | None = None  # the operation that the output comes from
    # Of targets that are values: the value that a tenth is below, and that nine tenths are below.
    tenth: float | None = None
    nine_tenths: float | None = None


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
    """How the training went: the course of its loss, and its scores."""

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
    # Evaluation mode, batch norm's averages taken anew, of these samples' batches alike; unknown
    # without batch norm.
    train_averaged: Score = field(default_factory=Score)
    own_loss: OwnLoss = field(default_factory=OwnLoss)
    # Of the first batch, in evaluation mode, with the initial and with the present weights; None
    # of a model that draws no noise and is trained by no bound.
    initial_latent: LatentFacts | None = None
    latent: LatentFacts | None = None
    validations: list[Validation] = field(default_factory=list)
    adjusted: AdjustedFacts | None = None  # of the latest validation; None of other than classes
    # R² of the latest validation's outputs after one linear map of them; None of other than values.
    rescaled: float | None = None
    movement: float | None = None  # median over weights of ‖w − w₀‖/‖w₀‖
    # What outputs differ by among samples, the RMS over units, as `NetworkFacts.output_signal` at
    # the start. None where they are no numbers.
    output_signal: float | None = None
    shrinkage: float | None = None  # median over weights of ‖w‖/‖w₀‖
    epochs: float | None = None  # how often the same samples came
    parts: list[PartFacts] = field(default_factory=list)  # of an unknown task
    parts_are_all: bool = False  # the loss compares nothing else
    jumps: list[Jump] = field(default_factory=list)  # the largest, over the spread around them
