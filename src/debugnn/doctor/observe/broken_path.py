"""Whether a gradient goes back from an output to the inputs that it follows.

Where all that an output knows of its inputs has gone through a choice (the nearest entry of a
codebook, an `argmax`) or a drawn number, its graph ends there. A loss that reads other outputs
besides may give the parameters before that place some gradient, but none that tells how good the
output is.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import BrokenPathFacts
from debugnn.doctor.observe.architecture import depends_on
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.graph import with_derivative
from debugnn.doctor.observe.latent import left_of_inputs
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.perturbation import differ
from debugnn.random_state import random_state, set_random_state

_SAMPLES = 16  # samples of the batch that are examined
# Change of the inputs, over their root mean square: too little to change most choices between the
# entries of a codebook. A smooth output changes by about as much, as a share of its change as
# samples change places; a chosen one by what rounding leaves, which is below a tenth of it.
_NUDGE = 1e-3
_ROUNDED = 0.1 * _NUDGE


def broken_path_facts(
    model: nn.Module,
    call: Call,
    targets: Any,
    layout: Layout,
    held: Collection[str],
    loss_fn: Callable[[Any, Any], Tensor] | None,
) -> BrokenPathFacts | None:
    """Follow the graph of the outputs that are compared with the targets back to the inputs.

    Args:
        model: a copy, its dropout off. Its buffers may move.
        call: of a batch.
        targets: of the same batch.
        layout: where its samples lie.
        held: names of the parameters that the optimiser holds.
        loss_fn: the training's; None where it is not known.

    Returns:
        None where the graph leads to the inputs, where the outputs do not follow these, or follow
        them by no parameter that is held and not reached, and where inputs are no real numbers.
    """
    call, targets = layout.take(call, slice(_SAMPLES), targets)
    inputs, count = layout.inputs(call), layout.count(call)
    if inputs is None or count is None or count < 2 or layout.axis is None:
        return None
    if not is_plain(inputs) or not inputs.is_floating_point():
        return None
    entry = inputs.detach().clone().requires_grad_()
    state, buffers = random_state(inputs.device), [(b, b.clone()) for b in model.buffers()]

    def run(changed: Tensor, same_noise: bool = True) -> Any:
        if same_noise:
            set_random_state(inputs.device, state)
        outputs = call.exchanged(inputs, changed)(model)
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        return outputs

    def of(outputs: Any) -> Tensor | None:
        return _compared(outputs, inputs)

    with torch.enable_grad():
        outputs = run(entry)
        output = of(outputs)
        if output is None or not output.requires_grad or not output.is_floating_point():
            return None
        reached = with_derivative([output])
        if reached is None or id(entry) in reached:
            return None
        if loss_fn is not None and not _is_read(output, loss_fn(outputs, targets)):
            return None
    with torch.no_grad():
        other, near = of(run(inputs.roll(1, layout.axis))), of(run(_nudged(inputs)))
        again = of(run(inputs, same_noise=False))
    output = output.detach()
    if other is None or near is None or again is None or not differ(output, other):
        return None
    closed = [(n, p) for n, p in model.named_parameters() if id(p) not in reached and n in held]
    parameters = depends_on(model, call, [pair for pair in closed if pair[1].requires_grad], of)
    if not parameters:
        return None
    still = (near - output).abs() < _ROUNDED * (other - output).square().mean().sqrt()
    return BrokenPathFacts(
        parameters=parameters,
        steady=still.float().mean().item(),
        drawn=differ(output, again),
    )


def note_left(facts: BrokenPathFacts, model: nn.Module, call: Call, layout: Layout) -> None:
    """Fill in how much of the inputs' variance the outputs of the trained model leave.

    Args:
        facts: of the model at its start.
        model: a copy with the present weights. Its mode stays.
        call: of a batch.
        layout: where its samples lie.
    """
    inputs = layout.inputs(call)
    if inputs is None:
        return
    with torch.no_grad(), without_dropout(model, training=False):
        output = _compared(call(model), inputs)
    if output is not None:
        facts.left = left_of_inputs(output.float(), inputs, layout.axis or 0)


def _compared(outputs: Any, inputs: Tensor) -> Tensor | None:
    """Return the first output with as many values as the inputs; the first of all without one."""
    tensors = Call((outputs,)).tensors()
    like = (t for t in tensors if t.is_floating_point() and t.numel() == inputs.numel())
    found = next(like, None)
    return first_tensor(outputs) if found is None else found


def _is_read(output: Tensor, loss: Tensor) -> bool:
    """Return whether a loss has a gradient with respect to an output."""
    if not loss.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(
        loss.float().mean(), output, allow_unused=True, retain_graph=True
    )
    return gradient is not None and bool(gradient.any())


def _nudged(inputs: Tensor) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    drawn = torch.randn(inputs.shape, generator=noise).to(inputs)
    return inputs + _NUDGE * inputs.square().mean().sqrt() * drawn
