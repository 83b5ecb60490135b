"""What a training program is made of, the loop that trains it, and the score of what it learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Data = tuple[Tensor, Tensor]  # inputs and targets
Loss = Callable[[Any, Any], Tensor]  # of outputs and targets
Half = Literal["tuning", "held_out"]


class Scheduler(Protocol):
    """Anything that changes the learning rate when it is stepped."""

    def step(self) -> None: ...


class Observer(Protocol):
    """Anything that watches a training from inside its loop, as `debugnn.Doctor` does."""

    def step(self, loss: Any, inputs: Any = None, targets: Any = None) -> None: ...

    def validate(self, inputs: Any, targets: Any) -> None: ...


AnyObserver = TypeVar("AnyObserver", bound=Observer)
MakeObserver = Callable[[nn.Module, Optimizer, Loss | None], AnyObserver]


def zero_grad(optimizer: Optimizer, batch_number: int) -> None:
    """Zero the gradients before every optimiser step, which is right."""
    optimizer.zero_grad()


@dataclass
class Setup:
    """All parts of a training. A fault changes some of them in place.

    `make_optimizer` may replace `model`, because users do so too: `train` reads the model after it
    has made the optimiser.
    """

    model: nn.Module
    loss_fn: Loss
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    train: Data
    val: Data
    batch_size: int = 32
    epochs: int = 8
    make_scheduler: Callable[[Optimizer], Scheduler] | None = None
    scheduler_steps_after: Literal["epoch", "batch"] = "epoch"
    accumulate: int = 1  # batches per optimiser step
    averages_accumulated: bool = True  # divides each batch's loss by `accumulate`
    clip: float | None = None  # largest gradient norm
    penalty: Callable[[nn.Module], Tensor | float] | None = None  # added to the loss
    loss_sign: float = 1.0
    change_batch: Callable[[Tensor, Tensor], Data] | None = None  # augments a training batch
    zero_grad: Callable[[Optimizer, int], None] = zero_grad  # gets the batch's number in its epoch
    before_step: Callable[[Optimizer], None] | None = None  # between backward and optimiser step
    after_step: Callable[[nn.Module], None] | None = None  # called after each optimiser step
    shuffles: bool = True  # draws the order of the samples anew in each epoch
    calls_train: bool = True  # model.train() before each epoch
    calls_eval: bool = True  # model.eval() before each validation
    score: Callable[[Any, Tensor], float] | None = None  # of validation outputs; None: `score`
    # Takes the place of the plain loop: it gets the setup, the seed and `train`'s `make_observer`.
    loop: Callable[[Setup, int, MakeObserver], Any] | None = None
    scores: list[float] = field(default_factory=list)  # one per validation, filled by `train`


Build = Callable[[int], Setup]  # from a seed


@dataclass(frozen=True)
class Program:
    """A training to diagnose.

    `accepted` lists other causes that would be a correct diagnosis too.
    """

    name: str
    cause: str | None  # None: a sound program
    family: str | None  # name of the fault function; None: a sound program
    half: Half
    build: Build
    accepted: tuple[str, ...] = ()


def begin(
    setup: Setup, make_observer: MakeObserver[AnyObserver]
) -> tuple[nn.Module, Optimizer, AnyObserver]:
    """Return the model, its optimiser and its observer, as a loop begins with them."""
    optimizer = setup.make_optimizer(setup.model.parameters())
    return setup.model, optimizer, make_observer(setup.model, optimizer, setup.loss_fn)


def train(
    setup: Setup,
    seed: int,
    make_observer: MakeObserver[AnyObserver],
) -> AnyObserver:
    """Train a setup with the loop that users write, or with its own.

    Args:
        setup: the training; the plain loop fills its `scores`.
        seed: of PyTorch's generator and of the order of the samples.
        make_observer: called once with the model, the optimiser and the loss function; None where
            the loop computes its loss itself.

    Returns:
        The observer, which is not closed.
    """
    torch.manual_seed(seed)
    if setup.loop is not None:
        return setup.loop(setup, seed, make_observer)
    shuffle = torch.Generator().manual_seed(seed)
    model, optimizer, observer = begin(setup, make_observer)
    loss_fn = setup.loss_fn
    scheduler = setup.make_scheduler(optimizer) if setup.make_scheduler else None
    inputs, targets = setup.train
    for _ in range(setup.epochs):
        if setup.calls_train:
            model.train()
        order = torch.arange(len(inputs))
        if setup.shuffles:
            order = torch.randperm(len(inputs), generator=shuffle)
        for number, batch in enumerate(order.split(setup.batch_size)):
            x, y = inputs[batch], targets[batch]
            if setup.change_batch:
                x, y = setup.change_batch(x, y)
            if number % setup.accumulate == 0:
                setup.zero_grad(optimizer, number)
            loss = setup.loss_sign * loss_fn(model(x), y)
            if setup.penalty:
                loss = loss + setup.penalty(model)
            (loss / setup.accumulate if setup.averages_accumulated else loss).backward()
            if setup.clip:
                nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
            if (number + 1) % setup.accumulate == 0:
                if setup.before_step:
                    setup.before_step(optimizer)
                optimizer.step()
                if setup.after_step:
                    setup.after_step(model)
            observer.step(loss, x, y)
            if scheduler and setup.scheduler_steps_after == "batch":
                scheduler.step()
        if scheduler and setup.scheduler_steps_after == "epoch":
            scheduler.step()
        if setup.calls_eval:
            model.eval()
        with torch.no_grad():
            measure = setup.score or score
            setup.scores.append(measure(model(setup.val[0]), setup.val[1]))
        observer.validate(*setup.val)
    return observer


def score(outputs: Tensor, targets: Tensor) -> float:
    """Return the accuracy (0 to 1) for classes, or R² (at most 1) for real targets.

    Args:
        outputs: (N, C) logits for whole-number targets, else logits or values of the targets' size.
        targets: (N,) whole numbers are classes; floats that are all 0.0 or 1.0 are two classes.
    """
    if not targets.is_floating_point():
        return (outputs.argmax(dim=1) == targets).float().mean().item()
    outputs = outputs.reshape(targets.shape)
    if torch.isin(targets, torch.tensor([0.0, 1.0])).all():
        return ((outputs > 0) == (targets > 0.5)).float().mean().item()
    residual = (outputs - targets).square().sum()
    return (1 - residual / (targets - targets.mean(dim=0)).square().sum()).item()
