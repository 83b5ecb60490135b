"""The loop, the optimiser, and the layers at some of its steps."""

from dataclasses import dataclass, field


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
    """What was measured in the layers around one update."""

    step: int
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)  # weight layer → RMS of its input
    activations: list[ActivationFacts] = field(default_factory=list)


@dataclass
class OptimizerFacts:
    """The optimiser's settings, and which parameters it holds."""

    name: str = ""
    held: int = 0  # of the model's trainable parameters, how many the optimiser holds
    trainable: int = 0
    missing: list[str] = field(default_factory=list)  # trainable, reached, and not held
    foreign: int = 0  # parameters that it holds and the model does not have
    # Parameters of the loss function that it has a gradient by, in no optimiser that moved them.
    of_loss: list[str] = field(default_factory=list)
    frozen_held: list[str] = field(default_factory=list)  # requires_grad=False, and held
    # All of a module's, frozen though `requires_grad = True` was set on it, where it means nothing.
    frozen_in_named: list[str] = field(default_factory=list)
    maximizes: bool = False  # it goes up the gradient
    lr: float | None = None
    weight_decay: float = 0.0
    decay_rescaled: bool = False  # the decay is part of a gradient whose size does not count
    # [update, learning rate of each group], where a rate changed (at most 64 points) and at the end
    rates: list[list[float]] = field(default_factory=list)
    # The highest rate that a scheduler wrote into the groups as its base or its maximum.
    scheduled: float | None = None
    lost_eps: float | None = None  # an eps above 0 that is 0 in the type of its parameters
    dtype: str | None = None  # this type, as float16


@dataclass
class LoopFacts:
    """In which order, and how often, the loop does its parts."""

    steps: int = 0  # calls of Doctor.step
    optimizer_steps: int = 0
    empty_steps: int = 0  # optimiser steps without any gradient
    looked_for_cleared: int = 0  # updates before which a gradient was looked for that had arrived
    cleared_steps: int = 0  # of these, those that found no gradient, or zeros alone
    cleared_to_none: bool = False  # there was none; else they were zero
    # Of the first updates that a gradient was seen to come before: those before which all gradients
    # were erased between two backward passes, and the parameters that got none again.
    looked_for_erased: int = 0
    erased_updates: int = 0
    erased: list[str] = field(default_factory=list)
    # Of these, updates by the last one of three or more passes over different samples: all
    # gradients were erased before each pass.
    last_pass_updates: int = 0
    passes_per_update: list[int] = field(default_factory=list)  # backward passes, the latest 64
    # [step, distance to the sum of the old and the new gradient, distance to the new gradient] of
    # gradients' directions (0 equal, 2 opposite), for the first 1,000 comparisons.
    residues: list[list[float]] = field(default_factory=list)
    # Norm of such a gradient at the update / its norm as it arrived, of the same comparisons.
    gradient_shares: list[float] = field(default_factory=list)
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
class TrialOutcome:
    """How a short training of a copy under one change went.

    If the copy goes on from the trained weights, the relative losses are measured before and after
    it, on batches that it does not train on.
    """

    steps: int
    start: float  # relative loss, mean of the first steps
    end: float  # relative loss, mean of the last steps
    # The same of a second training, on other batches; None: not run.
    end_again: float | None = None
    start_again: float | None = None
    # Relative losses of other batches than it trains on, at the end, of either training; None: not
    # measured.
    others: float | None = None
    others_again: float | None = None


@dataclass
class NonFinite:
    """The first NaN or infinite number of the training, and the operation that made it."""

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
