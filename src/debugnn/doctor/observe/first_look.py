"""The first look at a training: task, loss function, network and initial weights, on one batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import state_of
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe import loss_function, network
from debugnn.doctor.observe.network import Call
from debugnn.doctor.observe.task import Task, first_tensor, read


def first_look(
    twin: nn.Module,
    call: Call,
    targets: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    evidence: Evidence,
) -> Task:
    """Fill in what can be told before any step, and return how outputs and targets are read.

    Args:
        twin: a copy of the model, as it starts; its weights are left as they are found.
    """
    batch = batch_size(call, len(targets) if _indexed(targets) else None)
    if _time_first(twin, call, targets):
        batch = None  # PyTorch's default layout of sequences: axis 0 is time throughout
    with network.no_dropout(twin, training=False):
        outputs, tracer = network.trace(twin, call)
    first = first_tensor(outputs)
    task = read(outputs, targets)
    squashed = first is not None and tracer.made(first) in network.SQUASHING
    task = Task(task.kind, task.classes, task.axis, squashed)
    evidence.task = task.kind
    evidence.classes = 2 if task.kind == "binary" else task.classes
    if loss_fn is not None:
        evidence.loss = loss_function.examine(loss_fn, outputs, targets, task)
        if not evidence.loss.tried:
            evidence.troubles.append("the loss function cannot be tried out on the CPU")
    tried = loss_fn is not None and evidence.loss.error is None and evidence.loss.gradient
    distance = tried and task.kind == "binary" and not _takes_sides(evidence.loss.rewards)
    if evidence.loss.pairwise or distance:
        # Outputs are embeddings, or distances, and neither classes nor logits.
        task = Task("unknown")
        evidence.task, evidence.classes = task.kind, None
    usable = loss_fn is not None and evidence.loss.error is None

    def loss(value: Any) -> Tensor:
        if usable:
            return loss_fn(value, targets).float().mean()
        return first_tensor(value).float().square().mean()

    kept = state_of(twin)
    evidence.network = network.examine(twin, call, batch, loss)
    with torch.no_grad():
        twin.load_state_dict(kept)
    evidence.weights = network.initial_weights(twin, network.forward_order(twin, call))
    return task


def _takes_sides(rewards: list[list[float]]) -> bool:
    """True if the loss tells right outputs from wrong ones.

    It is lower at the right ones; or higher and below zero at one of them, where its sign is
    flipped. Any other loss (of a distance, say) has another idea of what is right.

    Args:
        rewards: pairs of its values, [at right outputs, at wrong outputs].
    """
    values = [value for pair in rewards for value in pair]
    if not values or not all(map(math.isfinite, values)):
        return False
    return any(right < wrong for right, wrong in rewards) or min(values) < 0


def _time_first(model: nn.Module, call: Call, targets: Any) -> bool:
    shapes = [t.shape for t in call.tensors() if t.dim() == 3]
    recurrent = (nn.RNNBase, nn.MultiheadAttention)
    return (
        isinstance(targets, Tensor)
        and targets.dim() >= 2
        and any(shape[:2] == targets.shape[:2] for shape in shapes)
        and any(isinstance(m, recurrent) and not m.batch_first for m in model.modules())
    )


def batch_size(call: Call, targets: int | None = None) -> int | None:
    """Number of samples of a batch: the targets', where an input has as many along an axis."""
    shapes = [t.shape for t in call.tensors() if t.dim()]
    if targets is not None and any(targets in shape[:2] for shape in shapes):
        return targets
    return shapes[0][0] if shapes else None


def _indexed(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dim() > 0
