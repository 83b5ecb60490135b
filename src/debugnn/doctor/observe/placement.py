"""Whether a sample's output depends on its place in the batch."""

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.calls import Call, first_tensor
from debugnn.doctor.observe.layout import Layout, samples_axis
from debugnn.doctor.observe.mixing import LEAST_BATCH, change_over_spread
from debugnn.doctor.observe.perturbation import Passes


def place_change(model: nn.Module, call: Call, layout: Layout) -> float | None:
    """Let all samples of a batch move up by one place, and compare their outputs.

    Args:
        model: a copy, in evaluation mode.
        layout: where the samples lie.

    Returns:
        The change of the outputs as in `change_over_spread`. None where samples cannot be moved:
        they are not apart, or it is not known where a tensor of the call has them; and where two
        passes of one batch differ.
    """
    count = layout.count(call)
    if layout.axis is None or count is None or count < LEAST_BATCH or call.prepare is not None:
        return None
    if not all(_moves(tensor, count, layout.axis) for tensor in call.tensors()):
        return None
    order = torch.arange(count).roll(-1)
    moved, _ = layout.take(call, order)
    if moved is call:
        return None
    with torch.no_grad():
        outputs = call(model)
        try:
            passes = Passes(model, moved)
        except Exception:  # a model may ask for an order: packed sequences stand by their lengths
            return None
    wanted = first_tensor(layout.part_of(call, outputs, order))
    found = passes.output
    if wanted is None or found is None or not passes.steady or wanted.shape != found.shape:
        return None
    axis = layout.axis if wanted.dim() > layout.axis else 0
    return change_over_spread(wanted.float().movedim(axis, 0), found.movedim(axis, 0))


def _moves(tensor: Tensor, count: int, axis: int) -> bool:
    """True if the tensor has its samples along a known axis, or none that could be theirs."""
    return samples_axis(tensor, count, axis) is not None or count not in tensor.shape
