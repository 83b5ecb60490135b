"""Classes whose labels a loss leaves out, by `ignore_index` say, and what these are labels of."""

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.loss_function.made_up import Loss, LossFunction, random_numbers
from debugnn.doctor.observe.task import Task


def ignored_classes(
    loss_fn: LossFunction, outputs: object, targets: object, task: Task, call: Call
) -> dict[int, int]:
    """Return class → how many different inputs it is the label of, of those that have no gradient.

    What fills sequences up is one symbol; a class of its own has many. An input is a symbol, where
    an argument of whole numbers has one for each label, or else a sample.

    Args:
        outputs: the model's, for the batch.
        targets: the batch's.
        task: how both are read.
        call: how the model was called.
    """
    tensor = first_tensor(outputs)
    if task.kind != "classes" or tensor is None or not isinstance(targets, Tensor):
        return {}
    if targets.is_floating_point():
        return {}
    loss, labels = Loss(loss_fn, outputs, targets), task.labels(targets).flatten()
    noise = torch.randn(tensor.shape, generator=random_numbers()).to(tensor)
    gradients = [loss.gradient(scores) for scores in (torch.zeros_like(tensor), noise)]
    pulled = torch.zeros(len(labels), dtype=torch.bool, device=tensor.device)
    for gradient in gradients:
        if gradient is None or not torch.isfinite(gradient).all():
            return {}
        rows = gradient.movedim(task.axis, -1).reshape(-1, task.size)
        if len(rows) != len(labels):
            return {}
        pulled |= rows.abs().sum(dim=1) > 0
    known = (labels >= 0) & (labels < task.size)
    if not pulled[known].any():
        return {}
    inputs = _inputs(call, len(labels))
    if inputs is None:
        return {}
    found = {}
    for label in labels[known].unique().tolist():
        own = labels == label
        if not pulled[own].any():
            found[label] = len(inputs[own.to(inputs.device)].unique(dim=0))
    return found


def _inputs(call: Call, labels: int) -> Tensor | None:
    """Return a row for each label: the symbol beside it, or the sample."""
    for tensor in filter(is_plain, call.tensors()):
        if not tensor.is_floating_point() and tensor.numel() == labels:
            return tensor.detach().reshape(labels, 1)
    main = first_tensor(call.args)
    if main is None or not is_plain(main) or not main.dim() or len(main) != labels:
        return None
    return main.detach().reshape(labels, -1)
