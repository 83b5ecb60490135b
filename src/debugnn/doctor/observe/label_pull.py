"""Which way a loss moves embeddings of the same label, and of different ones.

Metric learning draws samples of one label together and those of different labels apart, whichever
pairs, triplets or batches its loss is made of (Weinberger & Saul 2009, JMLR 10:207-244).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import LabelPull
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import first_tensor, with_first
from debugnn.doctor.observe.loss_function.made_up import random_numbers
from debugnn.doctor.observe.losses import output_gradient, value_of
from debugnn.doctor.observe.modes import without_dropout

_BATCHES = 4  # most batches that are asked
_SAMPLES = 256  # most samples of a batch: pairs are their square
_LEAST = 16  # fewest pairs of the same label
_ROUNDING = 1e-3  # relative, of a loss of outputs that were turned

LossFunction = Callable[[Any, Any], Tensor]


def label_pull(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFunction
) -> LabelPull | None:
    """Return how a step down the loss, on outputs alone, would change their distances.

    Args:
        model: a copy as the training began. Its outputs are an embedding (N, D) of each sample.
        batches: of the training, with a label of each sample as targets, (N,).
        loss_fn: its loss.

    Returns:
        None of other outputs and targets, and of a loss without a gradient.
    """
    found = [_of_batch(model, batch, loss_fn) for batch in batches[:_BATCHES]]
    known = [scores for scores in found if scores is not None]
    if len(known) < len(found) or not known:
        return None
    same, different, apart = (list(column) for column in zip(*known, strict=True))
    return LabelPull(same, different, apart)


def _of_batch(
    model: nn.Module, batch: Batch, loss_fn: LossFunction
) -> tuple[float, float, float] | None:
    """Return the mean change of squared distances of pairs of one label and of different labels,
    and the difference of both in its standard errors."""
    labels = batch.targets
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        return None
    with torch.no_grad(), without_dropout(model, training=True):
        made = batch.call(model)
    outputs = first_tensor(made)
    usable = outputs is not None and outputs.dim() == 2 and outputs.is_floating_point()
    if outputs is None or not usable or len(outputs) != len(labels) or outputs.shape[1] < 2:
        return None
    gradient = output_gradient(loss_fn, made, labels)  # by these outputs: the first of two axes
    if gradient is None or not _depends_on_distances(loss_fn, made, outputs, labels):
        return None
    rows, pulls, labels = outputs[:_SAMPLES], gradient[:_SAMPLES], labels[:_SAMPLES]
    one, other = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    change = -2 * ((rows[one] - rows[other]) * (pulls[one] - pulls[other])).sum(dim=1).double()
    alike = labels[one] == labels[other]
    same, different = change[alike], change[~alike]
    if min(len(same), len(different)) < _LEAST:
        return None
    spread = same.var() / len(same) + different.var() / len(different)
    means = same.mean().item(), different.mean().item()
    error = math.sqrt(spread.item())
    return (*means, (means[0] - means[1]) / error) if error > 0 else None


def _depends_on_distances(
    loss_fn: LossFunction, made: Any, outputs: Tensor, labels: Tensor
) -> bool:
    """Return whether a loss stays as it is while all outputs are turned, as one of their distances
    or angles does: scores that stand for a class or a rank each have another loss then."""
    random = torch.randn(outputs.shape[1], outputs.shape[1], generator=random_numbers())
    turn = torch.linalg.qr(random.double()).Q.to(outputs)
    values = []
    for rows in (outputs, outputs @ turn):
        with undisturbed(loss_fn):  # with the same random numbers both times
            values.append(value_of(loss_fn, with_first(made, rows), labels))
    here, there = values
    return abs(here - there) <= _ROUNDING * max(abs(here), abs(there))
