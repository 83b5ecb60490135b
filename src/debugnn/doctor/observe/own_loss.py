"""How well outputs do by the training's own loss function, beside what needs no network."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.evidence import LossFacts, OwnLoss
from debugnn.doctor.observe.buffer import Batch, ValidationBatch
from debugnn.doctor.observe.calls import first_tensor
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.made_up import EDGE, Loss, LossFunction
from debugnn.doctor.observe.outcome import Predicted
from debugnn.doctor.observe.pairing import compare_pairings
from debugnn.doctor.observe.task import Task, labels_by_entry, shares_by_entry, space

_CONSTANT_FROM = 4  # batches that a constant is fitted to
_STEPS = 40  # most steps of the fit
# It is fitted where this many steps on end have not lowered the loss by a thousandth: a loss may
# call a whole network, and frequencies and means are most losses' best constants.
_PATIENCE = 5
_LOWER = 0.999
_RATE = 0.2  # Adam's learning rate, in logits
_RATE_OF_VALUES = 0.1  # the same, in deviations of the values
_LEAST_SHARE = 1e-4  # smallest share of a class whose logarithm is taken


def note_own_loss(
    facts: OwnLoss,
    plain: Sequence[Predicted],
    by_batch: Sequence[Predicted],
    late: Iterable[Batch],
    validation: ValidationBatch | None,
    layout: Layout,
    loss_fn: LossFunction,
    one_batch: bool,
) -> None:
    """Fill in whether outputs belong to their own samples.

    Args:
        plain: training batches and their outputs in evaluation mode.
        by_batch: the same in training mode; `plain` itself where the outputs are equal.
        late: batches of late steps.
        validation: the latest.
        layout: where samples lie.
        loss_fn: the training's.
        one_batch: the training has the same batch at every step.
    """

    def compared(predicted: Sequence[Predicted]) -> Any:
        kept = predicted[:1] if one_batch else predicted
        pairs = [(p.batch.call, p.outputs, p.batch.targets) for p in kept]
        return compare_pairings(pairs, layout, loss_fn)

    late_ones = {id(batch) for batch in late}
    facts.train = facts.train_mode = compared(plain)
    if by_batch is not plain:
        facts.train_mode = compared(by_batch)
    facts.late = compared([p for p in plain if id(p.batch) in late_ones])
    if validation is not None and validation.targets is not None:
        found = (validation.call, validation.outputs, validation.targets)
        facts.validation = compare_pairings([found], layout, loss_fn)


def note_beside_constant(
    facts: OwnLoss,
    plain: Sequence[Predicted],
    by_batch: Sequence[Predicted],
    loss_fn: LossFunction,
    task: Task,
) -> None:
    """Fill in the loss of the best constant outputs, and that of training batches over it."""
    modes = [plain] if by_batch is plain else [plain, by_batch]
    losses = [
        [Loss(loss_fn, p.outputs, p.batch.targets) for p in mode[:_CONSTANT_FROM]] for mode in modes
    ]
    constant = best_constant(losses[0], task)
    own_places = _constant_by_entry(losses[0], [p.batch.targets for p in plain], task)
    if constant is not None and own_places is not None:
        constant = min(constant, own_places)
    facts.constant = constant
    if constant is not None:
        own = [statistics.fmean(loss.at(loss.outputs) for loss in mode) for mode in losses if mode]
        facts.relative = min(filter(math.isfinite, (each / constant for each in own)), default=None)


@torch.enable_grad()
def best_constant(losses: Sequence[Loss], task: Task) -> float | None:
    """Return the mean loss over some batches at the best outputs that are the same for all samples.

    Fitted by gradient descent, from what frequencies or means tell. None where it is not positive,
    or of an unknown task.
    """
    made = [_constants(loss, task) for loss in losses]
    if not made or any(build is None for build in made):
        return None
    start = _start(losses, task)
    if start is None:
        return None
    first, unit = start
    if not math.isfinite(unit):  # of targets that hold NaN or infinity
        return None
    theta = first.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=unit)
    lowest, waited = math.inf, 0
    for _ in range(_STEPS):
        outputs = [build(theta) for build in made if build is not None]
        pairs = list(zip(losses, outputs, strict=True))
        try:
            found = [loss.with_gradient(out.detach()) for loss, out in pairs]
        except Exception:  # a loss without a gradient there
            lowest = min(lowest, statistics.fmean(loss.within(out.detach()) for loss, out in pairs))
            break
        value, gradients = statistics.fmean(v for v, _ in found), [g for _, g in found]
        waited = 0 if value < _LOWER * lowest else waited + 1
        lowest = min(lowest, value)
        if waited == _PATIENCE or any(g is None or not g.isfinite().all() for g in gradients):
            break
        optimizer.zero_grad()
        # Chained by hand: backward() with given gradients imports sympy on first use, 0.3 s.
        chained = [(o * g).sum() for o, g in zip(outputs, gradients, strict=True) if g is not None]
        torch.stack(chained).sum().backward()
        optimizer.step()
    return lowest if math.isfinite(lowest) and lowest > 0 else None


def _constant_by_entry(losses: Sequence[Loss], every: Sequence[Any], task: Task) -> float | None:
    """Return the mean loss at the frequencies of the labels at each place of a sample.

    A batch's own labels are left out of its frequencies. None where samples have one label each,
    where there is one batch, and where the loss is not positive there.

    Args:
        every: targets of all batches, those of the losses first.
    """
    labels = [labels_by_entry(task, targets) for targets in every]
    found = []
    for number, loss in enumerate(losses):
        own, outputs = labels[number], first_tensor(loss.outputs)
        if own is None or outputs is None or len(outputs) != len(own):
            return None
        others = [
            each
            for place, each in enumerate(labels)
            if place != number and each is not None and each.shape[1] == own.shape[1]
        ]
        shares = shares_by_entry(task, torch.cat(others)) if others else None
        if shares is None or outputs[0].numel() != own.shape[1] * (task.classes or 1):
            return None
        found.append(loss.within(_as_outputs(shares.float(), outputs, task)))
    value = statistics.fmean(found) if found else math.nan
    return value if math.isfinite(value) and value > 0 else None


def _as_outputs(shares: Tensor, outputs: Tensor, task: Task) -> Tensor:
    """Return the outputs of a batch, the same for each sample, that give classes these shares.

    Args:
        shares: (places, classes).
    """
    if task.kind == "binary":
        value = shares[:, 1] if task.squashed else shares[:, 1].logit()
        return value.to(outputs).reshape(outputs.shape[1:]).expand(outputs.shape)
    moved = outputs.movedim(task.axis, -1)
    kind = space(moved.reshape(-1, task.size))
    row = shares if kind == "simplex" or task.squashed else shares.log()
    return row.to(outputs).reshape(moved.shape[1:]).expand(moved.shape).movedim(-1, task.axis)


def _constants(loss: Loss, task: Task) -> Callable[[Tensor], Tensor] | None:
    """Return what turns logits or values into a batch's outputs, the same for every sample."""
    outputs = first_tensor(loss.outputs)
    if outputs is None or task.kind == "unknown" or not outputs.is_floating_point():
        return None
    if task.kind == "classes":
        moved = outputs.movedim(task.axis, -1)
        kind = space(moved.reshape(-1, task.size))

        def of_classes(theta: Tensor) -> Tensor:
            row = theta
            if kind == "log_simplex":
                row = theta.log_softmax(dim=0)
            elif kind == "simplex" or task.squashed:
                row = theta.softmax(dim=0)
            return row.to(outputs).expand(moved.shape).movedim(-1, task.axis)

        return of_classes

    def of_values(theta: Tensor) -> Tensor:
        value = theta.sigmoid() if task.kind == "binary" and task.squashed else theta
        return value.to(outputs).expand(outputs.shape)

    return of_values


def _start(losses: Sequence[Loss], task: Task) -> tuple[Tensor, float] | None:
    """Return the constant that a fit starts from, and the length of its steps."""
    targets = [loss.targets for loss in losses]
    if not all(isinstance(t, Tensor) for t in targets):
        return None
    if task.kind == "values":
        values = torch.cat([t.detach().double().flatten() for t in targets])
        centre = _mean_by_column(losses)
        centre = values.mean() if centre is None else centre
        spread = through(task, values).std(correction=0).item()
        return through(task, centre).float(), _RATE_OF_VALUES * spread
    labels = torch.cat([task.labels(t) for t in targets])
    counts = torch.bincount(labels[(labels >= 0) & (labels < task.size)], minlength=task.size)
    shares = (counts.double() / counts.sum().clamp_min(1)).clamp_min(_LEAST_SHARE).float()
    if task.kind == "binary":
        return shares[1].clamp(max=1 - _LEAST_SHARE).logit(), _RATE
    return shares.log(), _RATE


def _mean_by_column(losses: Sequence[Loss]) -> Tensor | None:
    """Return the mean targets in the shape of a sample's outputs; None where shapes differ."""
    rows = []
    for loss in losses:
        outputs, targets = first_tensor(loss.outputs), loss.targets
        if outputs is None or not targets.dim() or len(targets) != len(outputs):
            return None
        rows.append(targets.detach().double().reshape(len(targets), *outputs.shape[1:]))
    return torch.cat(rows).mean(dim=0) if len({row.shape[1:] for row in rows}) == 1 else None


def through(task: Task, values: Tensor) -> Tensor:
    """Return the outputs that stand for these values."""
    if task.link == "sigmoid":
        return values.clamp(EDGE, 1 - EDGE).logit()
    if task.link == "exp":
        return values.clamp_min(EDGE).log()
    return values


def loss_of_values(
    values: Tensor, targets: Tensor, loss_fn: LossFunction, task: Task, facts: LossFacts
) -> float | None:
    """Return the loss of predicted values over that of the best constant one.

    Args:
        values: (N, …), of a simple model.
        targets: (N, …).
        loss_fn: the training's.
        task: values.
        facts: of the loss function, which tell the shapes of outputs and targets.
    """
    if task.kind != "values" or len(facts.shapes) != 2 or facts.other_outputs:
        return None
    (_, *out), (_, *wanted) = facts.shapes
    if math.prod(out) != math.prod(values.shape[1:]) or math.prod(wanted) != math.prod(
        targets.shape[1:]
    ):
        return None  # samples do not lie along the first axis of the loss's arguments
    outputs = through(task, values).float().reshape(-1, *out)
    targets = targets.reshape(-1, *wanted)
    if len(outputs) != len(targets):
        return None
    loss = Loss(loss_fn, outputs, targets)
    constant, own = best_constant([loss], task), loss.at(outputs)
    return own / constant if constant is not None and math.isfinite(own) else None
