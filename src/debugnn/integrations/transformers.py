"""A callback that watches a training of the Trainer of Transformers.

    callback = DoctorCallback()
    transformers.Trainer(model=model, args=args, callbacks=[callback], ...).train()
    callback.report

Needs the extra `transformers` (Transformers 5 or newer, and Accelerate).
"""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from debugnn.doctor import Doctor, Report
from debugnn.integrations.batches import ValidationSamples, split

_IGNORED = -100  # the label that the library's losses leave out


class DoctorCallback(transformers.TrainerCallback):
    """Watches what `Trainer.train` trains; prints the report and adds it to the log history.

    The loss is tried out as the Trainer computes it: by `compute_loss_func`, with label smoothing,
    or by the model's own loss function. Without labels in the batch, or where `compute_loss` is
    overridden, nothing is said about the loss, unless `loss_fn` is given. One step is one update:
    accumulated batches count as one batch, of which the doctor sees the last part.

    Args:
        loss_fn: called as `loss_fn(outputs, labels)`, in place of what the Trainer computes.
        **options: of `Doctor`, such as `every`, `budget`, `on_nonfinite` and `memory`.

    Attributes:
        report: the report, None before the end of the training.
    """

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor] | None = None, **options: Any) -> None:
        self.report: Report | None = None
        self._loss_fn = loss_fn
        self._options = options
        self._doctor: Doctor | None = None
        self._trainer: transformers.Trainer | None = None
        self._batch: Mapping[str, Any] = {}
        self._losses: list[Tensor] = []  # of the parts of an accumulated batch
        self._validation = ValidationSamples()
        self._shifted = False  # a position's label is the next token

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin to watch, after a checkpoint has been restored."""
        self._close()
        self.report = None
        self._trainer = trainer = _calling_trainer()
        self._shifted = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        optimizer = trainer.optimizer
        self._doctor = Doctor(
            model,
            getattr(optimizer, "optimizer", optimizer),  # Accelerate's wrapper takes no hooks
            self._loss_fn or trainers_loss(trainer, model, self._shifted),
            steps_before=state.global_step,
            **self._options,
        )
        step, evaluate = trainer.training_step, trainer.prediction_step

        def training_step(model: nn.Module, inputs: Any, *rest: Any, **named: Any) -> Tensor:
            self._batch = dict(inputs)
            loss = step(model, inputs, *rest, **named)
            self._losses.append(loss.detach())
            return loss

        def prediction_step(model: nn.Module, inputs: Any, *rest: Any, **named: Any) -> Any:
            self._validation.add(*self._split(inputs))
            return evaluate(model, inputs, *rest, **named)

        trainer.training_step = training_step
        trainer.prediction_step = prediction_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take note of an update."""
        losses, self._losses = self._losses, []
        if self._doctor is not None and losses:
            # The parts' losses are divided already by how many they are.
            inputs, labels = self._split(self._batch)
            self._doctor.step(torch.stack(losses).sum(), inputs, labels)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the doctor the first samples of the evaluation."""
        samples = self._validation.taken()
        if self._doctor is not None and samples is not None:
            self._doctor.validate(*samples)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the report, and add it to `state.log_history`."""
        if self._doctor is None:
            return
        self.report = self._doctor.report()
        self._close()
        if state.is_world_process_zero:
            print(self.report)
        told = {f"doctor/{key}": value for key, value in self.report.to_dict().items()}
        state.log_history.append({**told, "step": state.global_step})

    def _split(self, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return what the model is called with, and the labels of its outputs."""
        _, labels = split(inputs)
        if self._shifted and isinstance(labels, Tensor):
            labels = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], _IGNORED)], -1)
        return inputs, labels

    def _close(self) -> None:
        if self._doctor is not None:
            self._doctor.close()
        if self._trainer is not None:
            for wrapped in ("training_step", "prediction_step"):
                vars(self._trainer).pop(wrapped, None)
        self._doctor = self._trainer = None
        self._batch, self._losses = {}, []


def trainers_loss(
    trainer: transformers.Trainer, model: nn.Module, shifted: bool
) -> Callable[[Any, Any], Tensor] | None:
    """Return the loss that a Trainer computes, as a function of the model's outputs and labels.

    Args:
        shifted: the model predicts the next token. The labels are shifted already, so that each
            stands at the position of its output.

    Returns:
        None where the Trainer's `compute_loss` is overridden, or the model has no loss function.
    """
    if type(trainer).compute_loss is not transformers.Trainer.compute_loss:
        return None
    if trainer.compute_loss_func is not None:
        return None if shifted else trainer.compute_loss_func
    smoother = trainer.label_smoother
    if smoother is not None:
        return lambda outputs, labels: smoother({"logits": _logits(outputs)}, labels)
    loss_function = getattr(model, "loss_function", None)
    config = getattr(model, "config", None)
    if loss_function is None or config is None:
        return None

    def models_own(outputs: Any, labels: Any) -> Tensor:
        logits = _logits(outputs)
        shift = {"shift_labels": labels} if shifted else {}
        return loss_function(
            logits=logits,
            pooled_logits=logits,
            labels=labels,
            config=copy.copy(config),  # the function may note there what kind of labels it sees
            vocab_size=getattr(config, "vocab_size", None),
            **shift,
        )

    return models_own


def _logits(outputs: Any) -> Tensor:
    """Return the logits of a model's outputs: outputs of the library hold the loss before them."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs["logits"]
    return next(value for value in outputs if isinstance(value, Tensor) and value.dim())


def _calling_trainer() -> transformers.Trainer:
    """Return the Trainer whose callback is running: a callback is not told.

    Raises:
        RuntimeError: no Trainer has called.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, transformers.Trainer):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("DoctorCallback works as a callback of transformers.Trainer only")
