"""The training loop: a generator of records that knows neither Hydra, W&B nor the doctor.

The caller iterates over the records and decides what to do with them. The training pauses between
two records, so that the caller can save it or stop.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from debugnn.data import Data
from debugnn.records import Epoch, Evaluating, Layers, Pause, Step, TensorStats
from debugnn.training.gradients import GradientRule, keep

if TYPE_CHECKING:
    from debugnn.training.observers import Probe, Watcher

Loss = Callable[[Tensor, Tensor], Tensor]
# `gradients`, `parameters` or `activations` → name of the parameter or layer → statistics.
Seen = dict[str, dict[str, TensorStats]]


def seen_by(
    probe: "Probe | None", model: nn.Module, step: int
) -> AbstractContextManager[Seen | None]:
    """Return what the probe's `watch` does; without a probe, no statistics."""
    return probe.watch(model, step) if probe is not None else nullcontext()


@dataclass
class Training:
    """The state of a training and its settings.

    Attributes:
        model, loss, optimizer, data: what is trained, and how and on what.
        batch_size: number of samples of a training batch.
        seed: determines the order of the batches.
        steps_per_epoch: training batches per epoch; None for all.
        eval_every: epochs between two evaluations; the last epoch is always evaluated.
        eval_batch_size: number of samples of an evaluation batch.
        read_every: the losses are read from the device after each step whose index this divides.
            Each read waits for a GPU to finish its work.
        gradient_rule: applied to the gradients between the backward pass and the update.
        bf16: compute the passes under autocast to bfloat16.
        channels_last: convert images to the channels-last layout.
        test_loss_scale: factor of the reported test loss.
        epoch, step: number of completed epochs and steps, and so the indices of the next ones.
        tally: the sums of an epoch that was begun and not completed, None between two epochs.
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
    tally: "Tally | None" = None

    @property
    def device(self) -> torch.device:
        """The device of the data, on which the model is trained."""
        return self.data.train.inputs.device

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters. To list them takes as long as a small layer."""
        return list(self.model.parameters())

    @property
    def place(self) -> tuple[int, int]:
        """The numbers of completed epochs and steps."""
        return self.epoch, self.step

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the network's outputs as float32, computed in the set precision and layout."""
        if self.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return self.model(inputs).float()

    def backward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute outputs, loss and gradients of one batch; earlier gradients are discarded.

        Returns:
            The outputs (B, C), float32, and the loss, a scalar.
        """
        for parameter in self.parameters:
            parameter.grad = None
        outputs = self.outputs(inputs)
        loss = self.loss(outputs, targets)
        loss.backward()
        return outputs, loss

    def autocast(self) -> AbstractContextManager:
        """Return the context of the forward pass: autocast if `bf16` is set."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training batches of one epoch, the same ones at every call."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return self.data.train_batches(self.batch_size, generator, self.steps_per_epoch)


_VALIDATION_SAMPLES = 1024  # most test samples that a watcher is given after an evaluation


def fit(
    training: Training,
    epochs: int,
    probe: "Probe | None" = None,
    watcher: "Watcher | None" = None,
    pause: Callable[[], bool] | None = None,
) -> Iterator[Step | Layers | Epoch | Pause | Evaluating]:
    """Train until `epochs` epochs are completed, counted from the beginning of the training.

    A loss that is NaN does not stop the training. One that was saved inside an epoch goes on there.

    Args:
        training: is changed in place.
        epochs: total number of epochs.
        probe: records statistics of the layers.
        watcher: observes each step.
        pause: asked after each step whether the training is to be saved there.

    Yields:
        A `Step` for each step (`read_every` of them together, when their losses are read), `Layers`
        for each step that the probe records, an `Epoch` at each epoch's end, an `Evaluating` before
        the evaluation there, and a `Pause` after a step where one is asked for, when all records of
        the steps before have been yielded.
    """
    while training.epoch < epochs:
        last = training.epoch + 1 == epochs
        due = last or (training.epoch + 1) % training.eval_every == 0
        yield from train_one_epoch(training, probe, watcher, evaluated=due, pause=pause)


def train_one_epoch(
    training: Training,
    probe: "Probe | None" = None,
    watcher: "Watcher | None" = None,
    evaluated: bool = True,
    pause: Callable[[], bool] | None = None,
) -> Iterator[Step | Layers | Epoch | Pause | Evaluating]:
    """Train one epoch, or what is left of it; then evaluate on the test set if `evaluated` is set.

    Yields:
        As `fit`. If a step fails, the records of the steps before it are yielded before its
        exception is raised.
    """
    model, epoch = training.model, training.epoch
    classes = training.data.classes is not None
    tally, unread = training.tally or Tally(epoch, classes), Unread()
    started = time.perf_counter() - tally.seconds
    training.tally = tally
    model.train()
    try:
        # Batches of an epoch that goes on are drawn again and left out: they draw random numbers.
        for inputs, targets in islice(training.batches(epoch), tally.batches, None):
            step = training.step
            with seen_by(probe, model, step) as seen:
                outputs, loss = training.backward(inputs, targets)
            norm = training.gradient_rule(training.parameters)
            if watcher is not None:
                watcher.before_update(outputs, norm)
            training.optimizer.step()
            if watcher is not None:
                watcher.step(loss, inputs, targets)
            right = correct(outputs.detach(), targets) if classes else None
            lr = training.optimizer.param_groups[0]["lr"]
            unread.note((step, lr, len(targets)), loss.detach(), norm, right)
            training.step += 1
            # Yielded after the step's Python code: the thread that writes the records would compete
            # with it for the interpreter, and runs in parallel with the next step's passes.
            if seen is not None:
                yield Layers(epoch, step, **seen)
            if step % training.read_every == 0:
                yield from tally.steps(unread.read())
            if pause is not None and pause():
                yield from tally.steps(unread.read())
                tally.seconds = time.perf_counter() - started
                yield Pause(epoch, training.step)
    except Exception as error:
        yield from tally.steps(unread.read_after(error))
        raise
    yield from tally.steps(unread.read())
    tested: tuple[float | None, float | None] = None, None
    if evaluated:
        tally.seconds = time.perf_counter() - started
        yield Evaluating(epoch, training.step)
        if watcher is not None:
            watcher.before_evaluation()
        tested = evaluate(training)
        if watcher is not None:
            watcher.validate(*training.data.test_sample(_VALIDATION_SAMPLES))
    training.epoch += 1
    training.tally = None
    yield tally.epoch_of(training.step, tested, time.perf_counter() - started)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how many outputs (…, B, C) are largest at their target class (…, B), as (…)."""
    return (outputs.argmax(dim=-1) == targets).sum(dim=-1)


class Unread:
    """Numbers of past steps that are still on the device, to be read in one transfer."""

    def __init__(self) -> None:
        self._known: list[tuple] = []
        self._columns: list[tuple[Tensor | None, ...]] = []

    def note(self, known: tuple, *numbers: Tensor | None) -> None:
        """Add a step.

        Args:
            known: values that are on the host already.
            numbers: scalar tensors to read later, or None, which stays None.
        """
        self._known.append(known)
        self._columns.append(numbers)

    def read(self) -> list[tuple]:
        """Return the steps since the last call, each as (*known, *numbers)."""
        known, columns = self._known, self._columns
        self._known, self._columns = [], []
        if not known:
            return []
        present = [column for column in zip(*columns, strict=True) if column[0] is not None]
        # One transfer for all, as float64, which represents float32 losses and counts exactly.
        numbers = iter(torch.stack([torch.stack(column).double() for column in present]).tolist())
        read = [
            [None] * len(known) if absent else next(numbers)
            for absent in (number is None for number in columns[0])
        ]
        return [(*k, *numbers) for k, *numbers in zip(known, *read, strict=True)]

    def read_after(self, error: Exception) -> list[tuple]:
        """Return the steps before a failure as `read` does.

        Raises:
            Exception: `error`, if the device cannot be read: a GPU after a failed assertion.
        """
        try:
            return self.read()
        except RuntimeError:
            raise error from None


@dataclass
class Tally:
    """The running sums of one epoch, from which its records are made.

    Attributes:
        epoch: its index.
        classes: the targets are classes.
        batches, samples, correct: that were counted.
        loss_sum: over the samples.
        last_loss: of the last batch.
        seconds: that the epoch had taken when it was saved.
    """

    epoch: int
    classes: bool
    batches: int = 0
    samples: int = 0
    correct: float = 0
    loss_sum: float = 0.0
    last_loss: float = math.nan
    seconds: float = 0.0

    def steps(self, read: Iterable[tuple]) -> Iterator[Step]:
        """Add steps to the sums and yield their records.

        Args:
            read: for each step its index, learning rate, batch size, loss, gradient norm and number
                of correct samples (None for a regression).
        """
        for step, lr, size, loss, norm, right in read:
            self.batches += 1
            self.samples += size
            self.loss_sum += loss * size
            self.correct += right or 0
            self.last_loss = loss
            accuracy = 100 * right / size if self.classes else None
            yield Step(self.epoch, step, loss, accuracy, lr, grad_norm=norm)

    def epoch_of(
        self, steps: int, tested: tuple[float | None, float | None], seconds: float
    ) -> Epoch:
        """Return the epoch's record.

        Args:
            steps: number of steps completed since the training began.
            tested: the test loss and accuracy, or None where not evaluated.
            seconds: the epoch's duration.
        """
        return Epoch(
            epoch=self.epoch,
            step=steps - 1,
            train_loss=self.loss_sum / self.samples,
            last_batch_loss=self.last_loss,
            train_accuracy=100 * self.correct / self.samples if self.classes else None,
            test_loss=tested[0],
            test_accuracy=tested[1],
            seconds=seconds,
        )


@torch.inference_mode()
def evaluate(training: Training) -> tuple[float, float | None]:
    """Evaluate the model on the whole test set, in evaluation mode; the mode is restored.

    Returns:
        The mean loss times `test_loss_scale`, and the accuracy in % (None for a regression).
    """
    was_training = training.model.training
    training.model.eval()
    classes = training.data.classes is not None
    # Summed on the device, so that a GPU is waited for only once.
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
    total_loss, total_right = torch.stack([loss_sum, right]).tolist()
    accuracy = 100 * total_right / size if classes else None
    return training.test_loss_scale * total_loss / size, accuracy
