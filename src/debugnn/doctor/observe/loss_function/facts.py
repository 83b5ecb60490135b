"""What a loss function rewards: which questions it is asked, by the task that shapes propose."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.calls import first_tensor, map_tensors, with_first
from debugnn.doctor.observe.loss_function.across_samples import doubling, exchangeable
from debugnn.doctor.observe.loss_function.binary import try_binary
from debugnn.doctor.observe.loss_function.class_weights import class_weights
from debugnn.doctor.observe.loss_function.classes import (
    compares_logits,
    try_classes,
    try_logits,
    try_soft_classes,
)
from debugnn.doctor.observe.loss_function.dependence import (
    far_others,
    ignores_targets,
    reads_other_outputs,
)
from debugnn.doctor.observe.loss_function.made_up import Loss, LossFunction, equal, random_numbers
from debugnn.doctor.observe.loss_function.regression import try_values
from debugnn.doctor.observe.task import Task

_SOFT_LABELS = 0.99  # targets whose largest value is smaller are distributions, not one-hot


@torch.enable_grad()
def loss_facts(loss_fn: LossFunction, outputs: Any, targets: Any, task: Task) -> LossFacts:
    """Try out `loss_fn(outputs, targets)` with a batch's targets and made-up outputs.

    The loss function is called about forty times. If the outputs are a nest of containers, made-up
    tensors take the place of its first tensor. If the task is unknown, or the loss changes from
    call to call, the loss function is only tried with the model's own outputs.

    Args:
        outputs: the model's, for the batch; at least two samples.
        task: how outputs and targets are read, by their shapes.
    """
    with torch.random.fork_rng([]):
        facts = _loss_facts(loss_fn, outputs, targets, task)
        outside = _outside(targets, task)
        if facts.error is not None and outside is not None and not outside.all():
            # The others tell what it is for.
            inside = torch.where(outside, targets[~outside].flatten()[0], targets)
            error, facts = facts.error, _loss_facts(loss_fn, outputs, inside, task)
            facts.error = error
        return facts


def _loss_facts(loss_fn: LossFunction, outputs: Any, targets: Any, task: Task) -> LossFacts:
    facts = LossFacts()
    tensor = first_tensor(outputs)
    if tensor is not None and isinstance(targets, Tensor):
        facts.shapes = [list(tensor.shape), list(targets.shape)]
    given = targets.clone() if isinstance(targets, Tensor) else None
    try:
        value = loss_fn(outputs, targets)
    except Exception as error:  # whatever the user's function raises
        facts.error = f"{type(error).__name__}: {error}"
        return facts
    if given is not None and not torch.equal(given.nan_to_num(), targets.nan_to_num()):
        facts.changes_targets = True
        targets.copy_(given)
    facts.scalar = isinstance(value, Tensor) and value.numel() == 1
    if tensor is None or task.kind == "unknown":
        return facts

    if tensor.device.type != "cpu":
        try:
            loss_fn, outputs, targets = _on_cpu(loss_fn, outputs, targets)
        except Exception:  # a function that holds tensors of its device
            facts.tried = False
            return facts
        tensor = first_tensor(outputs)
        assert tensor is not None

    loss = Loss(loss_fn, outputs, targets)
    tensor = tensor.detach().float()  # half precision would hide small differences
    if not torch.isfinite(tensor).all():
        tensor = torch.randn(tensor.shape, generator=random_numbers()).to(tensor)
    if not equal(loss.within(tensor), loss.within(tensor)):
        loss.restores = True
        if not equal(loss.within(tensor), loss.within(tensor)):
            facts.tried = False
            return facts
    if facts.scalar:
        facts.doubling = doubling(loss, tensor)
    try:
        gradient = loss.gradient(tensor)
    except Exception:  # a function that makes its value a leaf itself: loss.requires_grad = True
        facts.tried = False
        return facts
    facts.gradient = gradient is not None and bool(gradient.any())
    facts.other_outputs = reads_other_outputs(loss, tensor)
    if facts.other_outputs:
        facts.far_others = far_others(loss, tensor)
    facts.ignores_targets = facts.gradient and ignores_targets(loss, tensor, task)
    if task.kind == "values" and compares_logits(loss, tensor):
        try_logits(facts, loss)
    elif task.kind == "values":
        try_values(facts, loss, tensor, task)
    elif task.kind == "binary":
        try_binary(facts, loss, tensor, task)
    elif targets.is_floating_point() and targets.max() < _SOFT_LABELS:
        try_soft_classes(facts, loss, tensor, task)
    else:
        try_classes(facts, loss, tensor, task)
    if task.kind in ("classes", "binary"):
        facts.class_weights = class_weights(loss, tensor, targets, task)
    if facts.other_outputs:  # other terms add to it, whatever the outputs' first tensor is
        facts.best = facts.constant = facts.confident = None
    if facts.ignores_targets or facts.pairwise:
        facts.confirmed = facts.opposed = facts.fixed_entries = False
    facts.opposed = facts.opposed and not facts.other_outputs and exchangeable(loss, tensor)
    return facts


def _outside(targets: Any, task: Task) -> Tensor | None:
    """Return which class indices no output stands for; None where all are possible."""
    if task.kind != "classes" or targets.is_floating_point():
        return None
    outside = (targets < 0) | (targets >= task.size)
    return outside if outside.any() else None


def _on_cpu(
    loss_fn: LossFunction, outputs: Any, targets: Tensor
) -> tuple[LossFunction, Any, Tensor]:
    """Return all three on the CPU.

    There an output outside of the loss's domain raises an exception. On a GPU it fails an
    assertion, after which the process can do nothing more with that GPU.
    """
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).cpu()
    first = first_tensor(outputs)
    assert first is not None
    outputs = map_tensors(outputs, lambda tensor: tensor.detach().cpu())
    outputs = with_first(outputs, first.detach().cpu())  # an object's tensors are no container's
    targets = targets.cpu()
    loss_fn(outputs, targets)
    return loss_fn, outputs, targets
