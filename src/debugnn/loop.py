"""The training loop: a generator of records that knows neither Hydra, W&B nor the doctor's rules.

Whoever iterates decides what becomes of the records. Between two of them the training stands
still, so that it can be saved, or left.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from debugnn.clipping import GradientRule, keep
from debugnn.data import Data
from debugnn.doctor.probes import LayerProbe
from debugnn.records import Epoch, Layers, Step

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

    `epoch` and `step` count what is done: the next epoch's index and the next step's.
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
        with self._autocast():
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

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of one epoch, the same at every call."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return self.data.train_batches(self.batch_size, generator, self.steps_per_epoch)


_WATCHED = 1024  # test samples that a watcher is shown after an evaluation


def fit(
    training: Training, epochs: int, probe: LayerProbe, watcher: Watcher = NOBODY
) -> Iterator[Step | Layers | Epoch]:
    """Train up to `epochs` epochs from where `training` stands.

    Yields a `Step` each step, `Layers` before it where the probe is due, and an `Epoch` at each
    epoch's end. NaN is an outcome like any other: the training goes on with it.
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
    model = training.model
    epoch, samples, loss_sum, correct = training.epoch, 0, 0.0, 0
    classes = training.data.classes is not None
    model.train()
    for inputs, targets in training.batches(epoch):
        step = training.step
        with probe.watch(model, step) as seen:
            outputs, loss = training.backward(inputs, targets)
        if seen is not None:
            yield Layers(epoch, step, **seen)
        norm = training.update()
        watcher.step(loss, inputs, targets)

        right = int((outputs.detach().argmax(dim=1) == targets).sum()) if classes else 0
        batch_loss = loss.item()
        samples += len(targets)
        loss_sum += batch_loss * len(targets)
        correct += right
        training.step += 1
        yield Step(
            epoch=epoch,
            step=step,
            loss=batch_loss,
            accuracy=100 * right / len(targets) if classes else None,
            lr=training.optimizer.param_groups[0]["lr"],
            grad_norm=norm.item(),
        )
    test_loss, test_accuracy = None, None
    if evaluated:
        test_loss, test_accuracy = evaluate(training)
        watcher.validate(*training.data.test_sample(_WATCHED))
    training.epoch += 1
    yield Epoch(
        epoch=epoch,
        step=training.step - 1,
        train_loss=loss_sum / samples,
        last_batch_loss=batch_loss,
        train_accuracy=100 * correct / samples if classes else None,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        seconds=time.perf_counter() - started,
    )


@torch.inference_mode()
def evaluate(training: Training) -> tuple[float, float | None]:
    """Mean loss over the whole test set, and the accuracy in % (None for a regression).

    The loss is multiplied by `test_loss_scale`. The model's mode is restored.
    """
    was_training = training.model.training
    training.model.eval()
    loss_sum, correct = 0.0, 0
    try:
        for inputs, targets in training.data.test_batches(training.eval_batch_size):
            outputs = training.outputs(inputs)
            loss_sum += training.loss(outputs, targets).item() * len(targets)
            if training.data.classes is not None:
                correct += int((outputs.argmax(dim=1) == targets).sum())
    finally:
        training.model.train(was_training)
    size = len(training.data.test)
    accuracy = 100 * correct / size if training.data.classes is not None else None
    return training.test_loss_scale * loss_sum / size, accuracy
