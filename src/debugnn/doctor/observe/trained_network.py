"""What the network is with the weights that it has now, where it differs from its start."""

from collections import Counter

import torch
from torch import nn

from debugnn.doctor.evidence import NetworkFacts
from debugnn.doctor.observe.architecture import bend
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.graph_batches import graph_mixing
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import BATCH_NORM, without_dropout
from debugnn.doctor.observe.sample_axis import find_samples
from debugnn.doctor.observe.weights import modules_called

_SAMPLES = 16  # samples of a batch, if they are known to be independent: a dozen passes are made

_LEAST = 4  # samples, and features: fewer lengths are 1 by chance
_ROUNDING = 1e-3  # of lengths, and of products of columns


def note_trained_network(
    facts: NetworkFacts,
    model: nn.Module,
    batch: Batch,
    layout: Layout,
    sample_axis: int | str | None,
) -> None:
    """Measure again what weights at the start may hide: that it bends, and that samples mix.

    Scores that start near zero give nearly the same softmax whichever axis it runs over.

    Args:
        facts: of the network at its start.
        model: a copy with the present weights. It stays as it is.
        batch: of the training.
        layout: where its samples lie.
        sample_axis: as it was told, see `find_samples`.
    """
    call, targets = batch.call, batch.targets
    if layout.verified and call.prepare is None:
        call, targets = layout.take(call, slice(_SAMPLES), targets)
    with without_dropout(model, training=False):
        facts.trained_bend = bend(model, call)
        facts.shared_norms = _run_several_times(model, call)
        facts.graph_mixing = graph_mixing(model, batch.call)
        facts.unit_features = _has_unit_features(model, batch.call)
        samples = find_samples(model, call, targets, sample_axis)
    if facts.halves_used and samples.halves_used is not None:
        pairs = zip(facts.halves_used, samples.halves_used, strict=True)
        facts.halves_used = [before or now for before, now in pairs]
    if samples.mixing is not None and samples.mixing > (facts.mixing or 0.0):
        facts.mixing, facts.mixing_layers = samples.mixing, samples.mixing_layers
        facts.mixing_by_gradient = samples.mixing_by_gradient
    elif facts.mixing is None and samples.dependence:  # its outputs follow its inputs by now
        facts.mixing_layers = samples.mixing_layers


def _has_unit_features(model: nn.Module, call: Call) -> bool:
    """Return whether outputs (B, D) have columns of length 1, and some rows have not.

    Columns that are orthogonal too are those of a basis, which is meant.
    """
    given = list(filter(is_plain, call.tensors()))
    with torch.no_grad():
        outputs = first_tensor(call(model))
    if outputs is None or not is_plain(outputs) or outputs.dim() != 2:
        return False
    if not any(tensor.shape[:1] == outputs.shape[:1] for tensor in given):
        return False
    if min(outputs.shape) < _LEAST or not outputs.is_floating_point():
        return False
    found = outputs.detach().double()
    columns, rows = found.norm(dim=0), found.norm(dim=1)
    if (columns - 1).abs().max() > _ROUNDING or (rows - 1).abs().max() < _ROUNDING:
        return False
    others = (found.T @ found).fill_diagonal_(0.0)
    return bool(others.abs().max() > _ROUNDING)


def _run_several_times(model: nn.Module, call: Call) -> list[str]:
    """Return the names of batch norm layers that one pass of the model runs more than once."""
    norms = {m: name for name, m in model.named_modules() if isinstance(m, BATCH_NORM)}
    times = Counter(modules_called(model, call, BATCH_NORM)) if norms else Counter()
    return [name for module, name in norms.items() if times[module] > 1]
