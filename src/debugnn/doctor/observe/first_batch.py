"""What one batch tells before the first step: the task, the loss function, the initial network."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe.architecture import network_facts
from debugnn.doctor.observe.calls import Call, batch_size, first_tensor
from debugnn.doctor.observe.loss_function import LossFunction, loss_facts
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.operations import SQUASHING, trace
from debugnn.doctor.observe.task import Task, read
from debugnn.doctor.observe.weights import forward_order, weight_facts


def examine(
    model: nn.Module, call: Call, targets: Any, loss_fn: LossFunction | None, evidence: Evidence
) -> Task:
    """Fill in what the evidence holds of the task, the loss, the network and its weights.

    Args:
        model: a copy of the model as it starts. Its weights and buffers stay.
        call: how the model is called with the batch.
        targets: the batch's targets.
        evidence: where the facts are noted.

    Returns:
        How outputs and targets are read.
    """
    batch = batch_size(call, len(targets) if _has_axes(targets) else None)
    if _is_time_first(model, call, targets):
        batch = None  # PyTorch's default layout of sequences: axis 0 is time throughout
    with without_dropout(model, training=False):
        outputs, tracer = trace(model, call)
    first = first_tensor(outputs)
    task = read(outputs, targets)
    squashed = first is not None and tracer.made(first) in SQUASHING
    task = Task(task.kind, task.classes, task.axis, squashed)
    _note_task(evidence, task)
    if loss_fn is not None:
        evidence.loss = loss_facts(loss_fn, outputs, targets, task)
        if not evidence.loss.tried:
            evidence.troubles.append("the loss function cannot be tried out on the CPU")
    usable = loss_fn is not None and evidence.loss.error is None
    distance = (
        usable
        and evidence.loss.gradient
        and task.kind == "binary"
        and not _takes_sides(evidence.loss.rewards)
    )
    if evidence.loss.pairwise or distance:
        # The outputs are embeddings or distances, and neither classes nor logits.
        task = Task("unknown")
        _note_task(evidence, task)

    def loss(value: Any) -> Tensor:
        if loss_fn is not None and usable:
            return loss_fn(value, targets).float().mean()
        tensor = first_tensor(value)
        if tensor is None:
            raise TypeError("the outputs hold no tensor")
        return tensor.float().square().mean()

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    evidence.network = network_facts(model, call, batch, loss)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    evidence.weights = weight_facts(model, forward_order(model, call))
    return task


def _note_task(evidence: Evidence, task: Task) -> None:
    evidence.task = task.kind
    evidence.classes = 2 if task.kind == "binary" else task.classes


def _takes_sides(rewards: list[list[float]]) -> bool:
    """True if the loss tells right outputs from wrong ones.

    It is lower at the right ones; or higher, and below zero at one of them, where its sign is
    flipped. Any other loss (a contrastive one of a distance, say) has another idea of what is
    right.

    Args:
        rewards: pairs of its values, [at right outputs, at wrong outputs].
    """
    values = [value for pair in rewards for value in pair]
    if not values or not all(map(math.isfinite, values)):
        return False
    return any(right < wrong for right, wrong in rewards) or min(values) < 0


def _is_time_first(model: nn.Module, call: Call, targets: Any) -> bool:
    """True if inputs and targets are sequences whose first axis is time."""
    shapes = [t.shape for t in call.tensors() if t.dim() == 3]
    recurrent = (nn.RNNBase, nn.MultiheadAttention)
    return (
        isinstance(targets, Tensor)
        and targets.dim() >= 2
        and any(shape[:2] == targets.shape[:2] for shape in shapes)
        and any(isinstance(m, recurrent) and not m.batch_first for m in model.modules())
    )


def _has_axes(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dim() > 0
