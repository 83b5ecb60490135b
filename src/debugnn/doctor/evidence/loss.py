"""How the loss function behaves."""

from dataclasses import dataclass, field


@dataclass
class VolumeFacts:
    """How a loss pulls at a flow's outputs, its codes and the logarithm of its change of volume."""

    # Mean sign, over samples, of the loss's gradient by log |det dz/dx|; 0 where it is not read.
    gradient: float
    towards_centre: float  # cosine of the codes and of the loss's gradient by them
    # The number that the model returns is this logarithm; False where it is another one, of which
    # each sample's has the same gradient.
    exact: bool = True


@dataclass
class PolicyFacts:
    """How a loss responds to the numbers that weight the probabilities of actions, as returns."""

    rises: bool  # with the probability of an action whose number is positive, in every sample
    # Share of the samples whose ratio of probabilities is clipped on that side alone from which a
    # descent would bring it back. None where the outputs are probabilities.
    held_back: float | None = None
    # The words for them in the code of the loss, where all are words for what is to be high.
    called: list[str] = field(default_factory=list)
    # The gradient of the scores depends neither on the actions nor on these numbers.
    deaf: bool = False


@dataclass
class JudgedFacts:
    """What is asked of a network of values by the losses of networks that make its inputs."""

    critic: str  # the network of values, as the code calls it
    seen: int = 0  # its outputs at which a gradient arrived that goes on to such a network
    lowered: int = 0  # of these, those that a step lowers, by the same number for every sample
    called: list[str] = field(default_factory=list)  # words for it as one of what is to be high
    low: bool = False  # the code has words for what judges what is to be low, or an adversary's
    costs: bool = False  # the code has a word for costs
    below_zero: float = 0.0  # share of its targets' sizes that is of targets below zero
    line: str | None = None  # `file:line` of the person's code that called it


@dataclass
class LossCall:
    """What a function of torch.nn.functional was given as part of a loss, at one line of code.

    Counts are of all calls that were looked at.
    """

    function: str
    reduction: str  # none, mean, sum, batchmean
    line: str | None = None  # `file:line` of the person's code
    calls: int = 0
    targets: int = 0  # of cosine_embedding_loss and its like: 1 or -1; of multi-label margins: rows
    unsigned: int = 0  # targets that are neither
    negative: int = 0  # targets below zero
    others: list[float] = field(default_factory=list)  # some values of targets that are neither
    labels: int = 0  # ctc_loss: within the lengths of their sequences
    blanks: int = 0  # labels that are the blank
    blank: int | None = None
    sequences: int = 0
    too_long: int = 0  # sequences whose labels do not fit into their frames
    # kl_div: logarithm of the sum of the first input's exponentials along the axis along which
    # the targets are probabilities. The median over a call's rows, the highest of all calls.
    # ctc_loss: the same along the axis of the symbols, of the logarithms' sizes.
    log_mass: float | None = None
    repeating: int = 0  # multilabel_margin_loss: rows that name a class twice
    logarithms: bool = False  # poisson_nll_loss: it takes its input for logarithms of rates
    of_outputs: bool = False  # the same: its input is the model's output as it is
    target_sum: float = 0.0  # the same
    inputs: int = 0  # the same: values of its input
    not_above_zero: int = 0  # of these
    below_zero: int = 0  # of these


@dataclass
class LabelPull:
    """How a step down the loss would change squared distances of embeddings, a number a batch."""

    same: list[float]  # mean over pairs with the same label
    different: list[float]  # the same with different labels
    apart: list[float]  # the difference of both, in its standard errors


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
    # Several labels: those of a sample compete, because its outputs sum to 1 or the loss takes a
    # softmax of them. Then the share of the samples that have no label or several, else None.
    competing: float | None = None
    squared: bool = False  # binary: outputs of 0 and 1 are better than confident logits
    # Binary: it is the overlap of areas (Dice, Jaccard), and takes outputs for probabilities.
    overlap: bool = False
    shift_change: float | None = None  # relative change as 3 is added to all outputs of a sample
    other_entries: float | None = None  # share of the gradient on outputs of other classes
    cross_gradient: float | None = None  # relative change of a sample's gradient by other samples
    pairwise: bool = False  # labels count only by being equal or not, as in metric learning
    ignores_targets: bool = False  # other targets leave its value and its gradient as they are
    other_outputs: bool = False  # it depends on other tensors of the outputs than the first
    # Its lowest value where one of the other tensors is 1,000 times as large, over its value at the
    # model's outputs; below zero where it falls without end. None without others.
    far_others: float | None = None
    undecided: float | None = None  # of two classes: at outputs between both
    unsure: float | None = None  # of two classes: at outputs that are wrong, and not sure of it
    # It changes the targets that it is given in place; and these are a part of a larger tensor, as
    # of a whole data set.
    changes_targets: bool = False
    targets_are_a_part: bool = False
    parameters: bool = False  # it reads parameters: a penalty of weights, or a network of its own
    # Values: what turns outputs into them; identity, sigmoid or exp. Logits that are compared with
    # logits: softmax.
    link: str = "identity"
    # Values: it is the cross-entropy of targets that are probabilities, each side times a factor.
    bernoulli: bool = False
    # Lower at outputs that are right, as the shapes have it, than elsewhere.
    confirmed: bool = False
    opposed: bool = False  # higher at right outputs than elsewhere, for every sample
    # Class → how much it weighs a sample of it, over the mean of the classes.
    class_weights: dict[int, float] = field(default_factory=dict)
    # Class whose labels it leaves out → how many different inputs of a batch these are labels of.
    ignored: dict[int, int] = field(default_factory=dict)
    permuted: float | None = None  # relative change where outputs, not targets, change places
    fixed_entries: bool = False  # classes: it reads some outputs only, whatever the labels are
    # Classes of positions: of the labels tried, the share that the loss compares with one score of
    # each of several positions, and not with the scores of one position. None where none was tried.
    across_positions: float | None = None
    linear: float | None = None  # classes: how far it is from linear in probabilities, relatively
    volume: VolumeFacts | None = None  # of a flow
    # Of embeddings with labels; None of other outputs.
    label_pull: LabelPull | None = None
    # Of a Cox partial likelihood: an event is compared with samples whose time is at least as long
    # (later), as it should be, or with those whose time is at most as long (earlier).
    risk_sets: str | None = None
    time_column: tuple[int, int] | None = None  # of its targets: number of a tensor, and a column
    policy: PolicyFacts | None = None  # of a policy whose actions have weights
    # Cosine, at probes, of its gradient with respect to outputs and of that of the loss of a
    # discriminator which is trained to tell such outputs from other samples.
    beside_discriminator: list[float] = field(default_factory=list)
    # Networks of values, with a doctor of their own, that are given the outputs.
    judged: list[JudgedFacts] = field(default_factory=list)
    # Lowest cosine, of the probes, of the loss's gradient by the outputs and of outputs less
    # targets, where no loss function is known: 1 of a squared error.
    towards_targets: float | None = None
    samples_compete: bool = False  # a softmax over the samples makes the likelihoods of classes
    crossed: list[int] | None = None  # shape in which each output is compared with every target
    multiplied: list[int] | None = None  # the same, multiplied with every sample's factor
    # Shape of the errors that one of its terms sums over the batch, where another term is a mean.
    summed_term: list[int] | None = None
    summed_term_is_sure: bool = False  # the factors of both are known
    # Outputs that it compares with a target, and has no gradient with respect to.
    detached: list[str] = field(default_factory=list)
    # Operation of the loss that the loop computed → the one that made its input, views left out.
    sources: dict[str, str] = field(default_factory=dict)
    # The loss that the loop computed is a cross-entropy among so many; the most of the probes.
    candidates: int | None = None
    calls: list[LossCall] = field(default_factory=list)
