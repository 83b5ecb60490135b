"""Whether the outputs of a model that draws noise depend on its inputs and on this noise."""

from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import LatentFacts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.made_up import equal
from debugnn.doctor.observe.modes import without_dropout


def latent_facts(model: nn.Module, call: Call, layout: Layout) -> LatentFacts | None:
    """Exchange the inputs among the samples, and draw other noise, and compare the outputs.

    Args:
        model: a copy, as it is at some time of the training.
        call: how it is called with a batch.
        layout: where the samples lie.

    Returns:
        None without two samples, or without outputs of floats for each of them.
    """
    inputs, count = layout.inputs(call), layout.count(call)
    if inputs is None or count is None or count <= 1:
        return None
    axis = layout.axis or 0
    moved = call.exchanged(inputs, inputs.roll(1, axis))
    with torch.no_grad(), without_dropout(model, training=False):
        plain, exchanged, again = (
            _outputs(model, given, seed) for given, seed in ((call, 0), (moved, 0), (call, 1))
        )
    largest = max(range(len(plain)), key=lambda i: plain[i].numel(), default=None)
    if largest is None or plain[largest].dim() == 0 or len(exchanged) != len(plain):
        return None
    if layout.place(plain[largest], tuple(inputs.shape)) is None:
        return None
    numbers = [(a.item(), b.item()) for a, b in zip(plain, exchanged, strict=True) if not a.dim()]
    return LatentFacts(
        by_input=_change(plain[largest], exchanged[largest], inputs),
        by_noise=_change(plain[largest], again[largest], inputs),
        loss_reads_input=any(not equal(*pair) for pair in numbers),
        left=left_of_inputs(plain[largest], inputs, axis),
    )


def _outputs(model: nn.Module, call: Call, seed: int) -> list[Tensor]:
    """Return the tensors of floats among a model's outputs."""
    torch.random.default_generator.manual_seed(seed)  # not a GPU's, which would wake it
    found: Any = call(model)
    return [t.float() for t in Call((found,)).tensors() if t.is_floating_point()]


def _change(before: Tensor, after: Tensor, inputs: Tensor) -> float | None:
    """Return the root mean square of the difference over that of the outputs.

    Over that of inputs of the same number where this is larger: outputs that have lost what they
    told of standardised inputs are nearly 0.
    """
    size = before.square().mean().sqrt()
    if inputs.numel() == before.numel():
        size = torch.maximum(size, inputs.float().square().mean().sqrt())
    if before.shape != after.shape or not size > 0:
        return None
    return ((after - before).square().mean().sqrt() / size).item()


def left_of_inputs(outputs: Tensor, inputs: Tensor, axis: int) -> float | None:
    """Return the share of the inputs' variance that outputs leave, as values or as logits."""
    if outputs.numel() != inputs.numel() or not inputs.is_floating_point():
        return None
    variance = inputs.float().var(dim=axis, correction=0).mean()
    wanted, rebuilt = inputs.float().flatten(), outputs.flatten()
    errors = [(given - wanted).square().mean() for given in (rebuilt, rebuilt.sigmoid())]
    return (min(errors) / variance).item() if variance > 0 else None
