"""Whether an output copies the input that is its target: by the gradient of single outputs.

An autoregressive model of pixels or values is trained on targets that are its inputs, and must not
see the one that it is to predict. An autoencoder without a bottleneck may pass its inputs through.
"""

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import OwnInputFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import first_tensor, is_plain
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.task import Task

_PROBES = 24  # outputs whose gradient is computed
_SAMPLES = 16  # most samples from which these outputs are taken
_LEAST = 2  # entries of a sample


def own_input_facts(
    model: nn.Module, batch: Batch, layout: Layout, task: Task
) -> OwnInputFacts | None:
    """Compare the gradient of single outputs at the input that is their target with all of it.

    Args:
        model: a copy of the model.
        batch: of the training.
        layout: where its samples lie.
        task: how outputs and targets are read.

    Returns:
        None where targets are no inputs, each at its place, nor a rising function of them.
    """
    given = layout.inputs(batch.call)
    if layout.axis != 0 or given is None or not isinstance(batch.targets, Tensor):
        return None
    if (
        given.dim() < 2
        or not is_plain(given)
        or not given.is_floating_point()
        or not is_plain(batch.targets)
    ):
        return None
    rows, targets = given.detach().flatten(1), batch.targets.detach()
    if targets.numel() != rows.numel() or rows.shape[1] < _LEAST:
        return None
    wanted = targets.reshape(rows.shape)
    same = torch.equal(wanted.to(rows.dtype), rows)
    if not same and not _rises_with(rows, wanted):
        return None
    noisy = is_noisy(model, batch)
    leaf = given.detach().clone().requires_grad_()
    with torch.enable_grad(), without_dropout(model, training=False):
        outputs = first_tensor(batch.call.exchanged(given, leaf)(model))
        values = None if outputs is None else _of_targets(outputs, wanted, task)
        if values is None:
            return None
        facts = OwnInputFacts(same=same, causal=True, noisy=noisy)
        shares, earlier = [], False
        for sample, place in _probes(rows):
            gradient = torch.autograd.grad(
                values[sample, place], leaf, retain_graph=True, allow_unused=True
            )[0]
            if gradient is None:
                return None
            energy = gradient[sample].flatten().double().square()
            if not bool(torch.isfinite(energy).all()) or not bool(energy.any()):
                continue
            shares.append((energy[place] / energy.sum()).item())
            earlier = earlier or bool(energy[:place].any())
            facts.causal = facts.causal and not bool(energy[place + 1 :].any())
    facts.causal = facts.causal and earlier
    facts.probes = len(shares)
    facts.share = torch.tensor(shares).median().item() if shares else None
    return facts


def is_noisy(model: nn.Module, batch: Batch) -> bool:
    """Return whether two passes in training mode differ."""
    training = model.training
    with torch.no_grad():
        first, second = (first_tensor(batch.call(model.train())) for _ in range(2))
    model.train(training)
    return first is not None and second is not None and not torch.equal(first, second)


def _rises_with(rows: Tensor, wanted: Tensor) -> bool:
    """Return whether targets are one rising function of the inputs at their places."""
    order = rows.flatten().argsort()
    values, found = rows.flatten()[order], wanted.flatten()[order]
    steps = found.double().diff()
    equal = values.diff() == 0
    return bool((steps >= 0).all() and (steps > 0).any() and not (equal & (steps != 0)).any())


def _of_targets(outputs: Tensor, wanted: Tensor, task: Task) -> Tensor | None:
    """Return the output that stands for each target, (samples, places); None of other shapes."""
    if task.kind in ("binary", "values"):
        return outputs.reshape(wanted.shape) if outputs.numel() == wanted.numel() else None
    if task.kind != "classes" or wanted.is_floating_point():
        return None
    scores = outputs.movedim(task.axis, -1)
    if scores.numel() != wanted.numel() * task.size:
        return None
    scores = scores.reshape(*wanted.shape, task.size)
    labels = wanted.long().clamp(0, task.size - 1)
    return scores.gather(-1, labels[..., None]).squeeze(-1) - scores.mean(dim=-1)


def _probes(rows: Tensor) -> list[tuple[int, int]]:
    """Return some samples and places, of those whose input is another one in other samples."""
    varies = (rows != rows[:1]).any(dim=0).nonzero()[:, 0]
    if not len(varies):
        return []
    chosen = varies[torch.linspace(0, len(varies) - 1, min(_PROBES, len(varies))).long()]
    count = min(len(rows), _SAMPLES)
    return [(number % count, place) for number, place in enumerate(chosen.tolist())]
