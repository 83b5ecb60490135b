"""The training loop: a generator of records that knows neither Hydra, W&B nor the doctor's rules.

Whoever iterates decides what becomes of the records. Between two of them the training stands
still, so that it can be saved, or left.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from debugnn.data import Data
from debugnn.records import Epoch, Layers, Step
from debugnn.training.clipping import GradientRule, keep
from debugnn.training.layer_stats import LayerProbe

Loss = Callable[[Tensor, Tensor], Tensor]


class Watcher(Protocol):
    """Who looks on at every step: `debugnn.Doctor`, or nobody."""

    def step(self, loss: Tensor, inputs: Tensor, targets: Tensor) -> None: ...

    def validate(self, inputs: Tensor, targets: Tensor) -> None: ...


class Unwatched:
    """Nobody."""

    def step(self, loss: Tensor, inputs: Tensor, targets: Tensor) -> None:
        pass

    def validate(self, inputs: Tensor, targets: Tensor) -> None:
        pass


NOBODY = Unwatched()


@dataclass
class Training:
    """Everything that changes while training, and what it is trained with.

    `epoch` and `step` count what is done: the next epoch's index and the next step's. `read_every`
    is how many steps' losses are read off the device at once, after each step that it divides: a
    GPU has to finish them for that.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    data: Data
    batch_size: int
    seed: int
    steps_per_epoch: int | None = None
    eval_every: int = 1
    eval_batch_size: int = 128
    read_every: int = 20
    gradient_rule: GradientRule = keep
    bf16: bool = False
    channels_last: bool = False
    test_loss_scale: float = 1.0
    epoch: int = 0
    step: int = 0

    @property
    def device(self) -> torch.device:
        return self.data.train.inputs.device

    def outputs(self, inputs: Tensor) -> Tensor:
        """The network's outputs as float32, computed in the training's precision and layout."""
        if self.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return self.model(inputs).float()

    def backward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and loss of one batch, its gradients in place of any earlier ones."""
        self.optimizer.zero_grad(set_to_none=True)
        outputs = self.outputs(inputs)
        loss = self.loss(outputs, targets)
        loss.backward()
        return outputs, loss

    def update(self) -> Tensor:
        """Step the optimiser under the gradient rule; the norm is the gradients' before it."""
        norm = self.gradient_rule(self.model.parameters())
        self.optimizer.step()
        return norm

    def autocast(self, cache: bool = True) -> AbstractContextManager:
        """What the passes run in; `cache` keeps weights that have been cast for a second use."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=cache)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of one epoch, the same at every call."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return self.data.train_batches(self.batch_size, generator, self.steps_per_epoch)


_WATCHED = 1024  # test samples that a watcher is shown after an evaluation


def fit(
    training: Training, epochs: int, probe: LayerProbe, watcher: Watcher = NOBODY
) -> Iterator[Step | Layers | Epoch]:
    """Train up to `epochs` epochs from where `training` stands.

    Yields a `Step` for each step, up to `read_every` of them together when their losses are read;
    `Layers` at a step where the probe is due, and an `Epoch` at each epoch's end. NaN is an outcome
    like any other: the training goes on with it.
    """
    while training.epoch < epochs:
        last = training.epoch + 1 == epochs
        due = last or (training.epoch + 1) % training.eval_every == 0
        yield from train_one_epoch(training, probe, watcher, evaluated=due)


def train_one_epoch(
    training: Training, probe: LayerProbe, watcher: Watcher = NOBODY, evaluated: bool = True
) -> Iterator[Step | Layers | Epoch]:
    """One pass over the training batches, then, where asked, the evaluation on the test set."""
    started = time.perf_counter()
    model, epoch = training.model, training.epoch
    classes = training.data.classes is not None
    tally, unread = Tally(epoch, classes), Unread()
    model.train()
    try:
        for inputs, targets in training.batches(epoch):
            step = training.step
            with probe.watch(model, step) as seen:
                outputs, loss = training.backward(inputs, targets)
            norm = training.update()
            watcher.step(loss, inputs, targets)
            right = correct(outputs.detach(), targets) if classes else None
            lr = training.optimizer.param_groups[0]["lr"]
            unread.note((step, lr, len(targets)), loss.detach(), norm, right)
            training.step += 1
            # After all that this step does in Python, which who writes the records would hold up:
            # during a pass of the next they are free to run.
            if seen is not None:
                yield Layers(epoch, step, **seen)
            if step % training.read_every == 0:
                yield from tally.steps(unread.read())
    except Exception as error:
        try:
            before = unread.read()
        except RuntimeError:  # a GPU that an assertion has stopped answers no more
            raise error from None
        yield from tally.steps(before)  # the steps before a failure, which explain it
        raise
    yield from tally.steps(unread.read())
    tested = None, None
    if evaluated:
        tested = evaluate(training)
        watcher.validate(*training.data.test_sample(_WATCHED))
    training.epoch += 1
    yield tally.epoch_of(training.step, tested, time.perf_counter() - started)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many of outputs (…, B, C) are largest at their target's class (…, B)."""
    return (outputs.argmax(dim=-1) == targets).sum(dim=-1)


class Unread:
    """Steps whose numbers still lie on the device. A GPU is waited for once to read them all."""

    def __init__(self) -> None:
        self._known: list[tuple] = []
        self._columns: list[tuple[Tensor | None, ...]] = []

    def note(self, known: tuple, *numbers: Tensor | None) -> None:
        """A step, by what is known of it and the tensors that are read later."""
        self._known.append(known)
        self._columns.append(numbers)

    def read(self) -> list[tuple]:
        """The steps since the last call: what was known, then the numbers (None for None)."""
        known, columns = self._known, self._columns
        self._known, self._columns = [], []
        if not known:
            return []
        present = [column for column in zip(*columns, strict=True) if column[0] is not None]
        # As float64, which holds losses and counts exactly: one transfer for all.
        numbers = iter(torch.stack([torch.stack(column).double() for column in present]).tolist())
        read = [
            [None] * len(known) if absent else next(numbers)
            for absent in (number is None for number in columns[0])
        ]
        return [(*k, *numbers) for k, *numbers in zip(known, *read, strict=True)]


class Tally:
    """The sums of one epoch, and the records that they come from and lead to."""

    def __init__(self, epoch: int, classes: bool) -> None:
        self._epoch, self._classes = epoch, classes
        self._samples, self._correct, self._loss_sum = 0, 0, 0.0
        self._last_loss = math.nan

    def steps(self, read: Iterable[tuple]) -> Iterator[Step]:
        """A record for each step's index, learning rate, size, loss, norm and correct samples."""
        for step, lr, size, loss, norm, right in read:
            self._samples += size
            self._loss_sum += loss * size
            self._correct += right or 0
            self._last_loss = loss
            accuracy = 100 * right / size if self._classes else None
            yield Step(self._epoch, step, loss, accuracy, lr, grad_norm=norm)

    def epoch_of(
        self, steps: int, tested: tuple[float | None, float | None], seconds: float
    ) -> Epoch:
        """The epoch's record after `steps` steps in all, and the test's loss and accuracy."""
        return Epoch(
            epoch=self._epoch,
            step=steps - 1,
            train_loss=self._loss_sum / self._samples,
            last_batch_loss=self._last_loss,
            train_accuracy=100 * self._correct / self._samples if self._classes else None,
            test_loss=tested[0],
            test_accuracy=tested[1],
            seconds=seconds,
        )


@torch.inference_mode()
def evaluate(training: Training) -> tuple[float, float | None]:
    """Mean loss over the whole test set, and the accuracy in % (None for a regression).

    The loss is multiplied by `test_loss_scale`. The model's mode is restored.
    """
    was_training = training.model.training
    training.model.eval()
    classes = training.data.classes is not None
    # Summed up where they are: a GPU is waited for once.
    loss_sum = torch.zeros((), dtype=torch.float64, device=training.device)
    right = torch.zeros((), dtype=torch.float64, device=training.device)
    try:
        for inputs, targets in training.data.test_batches(training.eval_batch_size):
            outputs = training.outputs(inputs)
            loss_sum += training.loss(outputs, targets).double() * len(targets)
            if classes:
                right += correct(outputs, targets)
    finally:
        training.model.train(was_training)
    size = len(training.data.test)
    loss_sum, right = torch.stack([loss_sum, right]).tolist()
    accuracy = 100 * right / size if classes else None
    return training.test_loss_scale * loss_sum / size, accuracy
