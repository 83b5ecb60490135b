"""The parts of a loss that compares several outputs with several targets, one with one each.

A net that names a digit and tells its angle has a dict of outputs, and its loss is a sum. Where one
output's gradient depends on one target alone, the two are a task of their own, which is read and
scored as any other.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import PartFacts
from debugnn.doctor.observe import simple_models
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call, map_tensors
from debugnn.doctor.observe.gradient_reversal import reversed_outputs
from debugnn.doctor.observe.loss_function.facts import loss_facts
from debugnn.doctor.observe.loss_function.made_up import LossFunction, alike
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.operations import trace
from debugnn.doctor.observe.samples import middle_of
from debugnn.doctor.observe.task import Task, read, score

_MOST = 8  # tensors of outputs, and of targets
_READ = 0.99  # share of an output's entries, or rows of classes, that a loss of all of it reads
_ROUNDING = 1e-5  # relative, of a loss in float32
_SCORED = 2048  # samples that a score is computed from


class Part(NamedTuple):
    """An output and its target: their places among the tensors, and how they are read."""

    output: int
    target: int
    name: str
    task: Task


@torch.enable_grad()
def find_parts(loss_fn: LossFunction, outputs: Any, targets: Any) -> tuple[list[Part], bool]:
    """Return the outputs that are compared with one target each, and whether these are all.

    The loss function is called some fifty times for each pair of an output and a target that may
    belong to each other.

    Args:
        outputs: the model's for a batch, a nest of containers.
        targets: the batch's.
    """
    given, wanted = Call((outputs,)).tensors(), Call((targets,)).tensors()
    if not (1 < len(given) <= _MOST and 0 < len(wanted) <= _MOST):
        return [], False
    outputs = map_tensors(outputs, Tensor.detach)
    given, names = Call((outputs,)).tensors(), _names(outputs)
    found: list[Part] = []
    read_at_all = 0
    for index, output in enumerate(given):
        if not output.is_floating_point() or not output.dim() or len(output) < 2:
            continue
        try:
            gradient = _gradient(loss_fn, outputs, targets, output)
            read_at_all += gradient is not None and bool(gradient.any())
            if gradient is None or not _reads_all(gradient):
                continue
            part = _part(loss_fn, outputs, targets, index, names[index])
        except Exception:  # whatever the loss raises of samples in another order
            continue
        if part is not None:
            found.append(part)
    paired = {part.target for part in found}
    return found, len(found) == read_at_all and len(paired) == len(found) == len(wanted)


def without_gradient(loss_fn: LossFunction, outputs: Any, targets: Any) -> list[str]:
    """Return the names of the outputs that the loss compares with a target, without a gradient.

    The loss changes as such an output and a target change places among the samples, each alone and
    both together, in a way that a sum of a term of each does not: an output that is compared with
    another output, as a teacher's is, has no part in it.

    Args:
        outputs: the model's for a batch, a nest of containers.
        targets: the batch's.
    """
    outputs = map_tensors(outputs, Tensor.detach)
    given, wanted = Call((outputs,)).tensors(), Call((targets,)).tensors()
    if not (1 < len(given) <= _MOST and 0 < len(wanted) <= _MOST):
        return []
    names = _names(outputs)

    def value(output: Tensor, out: Tensor, target: Tensor, want: Tensor) -> float:
        torch.random.default_generator.manual_seed(0)
        found = loss_fn(_with(outputs, output, out), _with(targets, target, want))
        return found.double().mean().item()

    def meet(output: Tensor, target: Tensor) -> bool:
        there, elsewhere = output.roll(1, dims=0), target.roll(1, dims=0)
        plain = value(output, output, target, target)
        one, other = value(output, there, target, target), value(output, output, target, elsewhere)
        both = value(output, there, target, elsewhere)
        terms = plain, one, other, both
        return abs(plain - one - other + both) > _ROUNDING * max(map(abs, terms))

    found = []
    for name, output in zip(names, given, strict=True):
        if not output.is_floating_point() or not output.dim() or len(output) < 2:
            continue
        try:
            with torch.enable_grad():
                cut = _gradient(loss_fn, outputs, targets, output) is None
            pairs = (t for t in wanted if t.dim() and len(t) == len(output))
            if cut and any(meet(output, target) for target in pairs):
                found.append(name)
        except Exception:  # whatever the loss raises of samples in another order
            continue
    return found


def _part(loss_fn: LossFunction, outputs: Any, targets: Any, index: int, name: str) -> Part | None:
    """Return the part that an output belongs to, None where it depends on more than a target."""
    output, wanted = Call((outputs,)).tensors()[index], Call((targets,)).tensors()
    moving = [j for j, t in enumerate(wanted) if _moves(loss_fn, outputs, targets, output, t)]
    if len(moving) != 1 or _moved_by_others(loss_fn, outputs, targets, output):
        return None
    target = wanted[moving[0]]
    task = read(output, target)
    if task.kind == "unknown":
        return None
    unit = bool((output >= 0).all() and (output <= 1).all())
    task = replace(task, squashed=unit and task.kind == "binary")

    def own(made_up: Any, other: Any) -> Any:
        return loss_fn(_with(outputs, output, made_up), _with(targets, target, other))

    facts = loss_facts(own, output, target, task)
    if not (facts.confirmed and facts.tried) or facts.error is not None:
        return None
    return Part(index, moving[0], name, replace(task, link=facts.link))


def _gradient(
    loss_fn: LossFunction, outputs: Any, targets: Any, output: Tensor, point: Tensor | None = None
) -> Tensor | None:
    """Return the gradient of the loss with respect to one of the outputs; None where there is none.

    All calls draw the same random numbers.

    Args:
        point: other values of this output; None for its own.
    """
    leaf = (output if point is None else point).detach().clone().requires_grad_()
    torch.random.default_generator.manual_seed(0)
    value = loss_fn(_with(outputs, output, leaf), targets).float().mean()
    if not value.requires_grad:
        return None
    return torch.autograd.grad(value, leaf, allow_unused=True)[0]


def _reads_all(gradient: Tensor) -> bool:
    rows = gradient.reshape(len(gradient), -1) != 0
    return rows.float().mean().item() >= _READ


def _moves(
    loss_fn: LossFunction, outputs: Any, targets: Any, output: Tensor, target: Tensor
) -> bool:
    """Return whether the gradient of an output depends on a target: samples change places in it.

    Of values, also where the output is the target: far from it, absolute errors have a gradient of
    the same size.
    """
    if not target.dim() or len(target) < 2:
        return False
    turned = _with(targets, target, target.roll(1, dims=0))

    def moves_at(point: Tensor) -> bool:
        here, there = (_gradient(loss_fn, outputs, t, output, point) for t in (targets, turned))
        return not alike(here, there)

    values = target.is_floating_point() and target.shape == output.shape
    return moves_at(output) or (values and moves_at(target.to(output)))


def _moved_by_others(loss_fn: LossFunction, outputs: Any, targets: Any, output: Tensor) -> bool:
    """Return whether the gradient of an output depends on other outputs."""

    def changed(tensor: Tensor) -> Tensor:
        other = tensor is not output and tensor.is_floating_point()
        return tensor * 1.1 + 0.1 if other else tensor

    here = _gradient(loss_fn, outputs, targets, output)
    return not alike(here, _gradient(loss_fn, map_tensors(outputs, changed), targets, output))


def _with(value: Any, old: Tensor, new: Any) -> Any:
    return map_tensors(value, lambda tensor: new if tensor is old else tensor)


def _names(outputs: Any) -> list[str]:
    """Return the outputs' keys, or their places where they have none."""
    count = len(Call((outputs,)).tensors())
    if isinstance(outputs, dict) and len(outputs) == count:
        return [str(key) for key in outputs]
    fields = getattr(outputs, "_fields", None)
    if fields is not None and len(fields) == count:
        return list(fields)
    return [str(index) for index in range(count)]


def part_facts(
    model: nn.Module,
    batches: Sequence[Batch],
    parts: Sequence[Part],
    by_sample: Callable[[Batch, Any], Any],
) -> list[PartFacts]:
    """Return how well each part is learnt, on the latest of the batches, without dropout.

    Args:
        model: a copy of the model as it is now.
        batches: of the training.
        by_sample: returns a batch's targets with the samples on the first axis.
    """
    plain = _pairs(model, batches, parts, training=False)
    batched = _pairs(model, batches, parts, training=True)
    rows = [(b, b.inputs) for b in batches if b.inputs is not None]
    with without_dropout(model, training=True):
        against = reversed_outputs(model, batches[-1].call)
    with without_dropout(model, training=False):
        outputs, tracer = trace(model, batches[-1].call)
    made = Call((outputs,)).tensors()
    facts = []
    for part, own, other in zip(parts, plain, batched, strict=True):
        scores = [score(part.task, *pair) for pair in (own, other)]
        values = part.task.kind == "values"
        tenth, nine_tenths = middle_of(own[1].detach()) if values else (None, None)
        simple = None
        same = rows and all(r.shape[1:] == rows[0][1].shape[1:] for _, r in rows)
        if same:
            inputs = torch.cat([r for _, r in rows])
            wanted = [by_sample(b, Call((b.targets,)).tensors()[part.target]) for b, _ in rows]
            simple = simple_models.simple_skill(
                inputs[:_SCORED], torch.cat(wanted)[:_SCORED], part.task
            )
        facts.append(
            PartFacts(
                name=part.name,
                task=part.task.kind,
                classes=part.task.size if part.task.kind in ("classes", "binary") else None,
                train=scores[0],
                train_mode=scores[1],
                simple_skill=simple,
                against=part.output in against,
                made_by=tracer.made(made[part.output]),
                tenth=tenth,
                nine_tenths=nine_tenths,
            )
        )
    return facts


def _pairs(
    model: nn.Module, batches: Sequence[Batch], parts: Sequence[Part], training: bool
) -> list[tuple[Tensor, Tensor]]:
    """Return each part's outputs and targets of the latest batches."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in parts]
    count = 0
    with torch.no_grad(), without_dropout(model, training):
        for batch in reversed(batches):
            if count >= _SCORED:
                break
            outputs = Call((batch.call(model),)).tensors()
            targets = Call((batch.targets,)).tensors()
            for part, pairs in zip(parts, found, strict=True):
                pairs.append((outputs[part.output], targets[part.target]))
            count += len(outputs[parts[0].output])
    return [_together(pairs) for pairs in found]


def _together(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return outputs and targets of the batches that have the shape of the first."""
    shape = [tensor.shape[1:] for tensor in pairs[0]]
    same = [pair for pair in pairs if [tensor.shape[1:] for tensor in pair] == shape]
    return torch.cat([outputs for outputs, _ in same]), torch.cat([targets for _, targets in same])
