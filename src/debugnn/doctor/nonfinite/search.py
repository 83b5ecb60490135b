"""The origin of a non-finite number: the first bad tensor of one training step.

Every operation of the forward pass and the loss is watched. A NaN or an infinity is followed from
the operation that made it, and is reported only where it reaches the loss, the gradients or the
outputs: the −inf of an attention mask ends in a softmax and does no harm.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from debugnn.doctor.nonfinite.backward import BackwardSearch
from debugnn.doctor.nonfinite.forward import ForwardTrace
from debugnn.doctor.nonfinite.origin import Origin
from debugnn.doctor.nonfinite.values import SampleAxis, census, is_finite, named, watched_tensors
from debugnn.doctor.observe.calls import Call, as_call
from debugnn.doctor.observe.layout import FIRST_AXIS, Layout


def find_origin(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    inputs: Any,
    targets: Any,
    call: Callable[[nn.Module, Any], Any] | None = None,
    layout: Layout = FIRST_AXIS,
) -> Origin | None:
    """Repeat a training step and find the first non-finite number in it that did harm.

    The number that made the loss non-finite is returned; if there is none, the number that made a
    gradient non-finite; if there is none, one that reached the outputs; if there is none, an input,
    target, parameter or buffer that is not finite.

    The pass draws the same random numbers as the model: restore the generators to their state
    before the step, and again afterwards where it matters. The pass moves running statistics and
    leaves gradients behind, so pass a copy of the model.

    Args:
        model: in its state before the update, in the mode (train or eval) of the step.
        loss_fn: maps (outputs, targets) to the loss; without it only the forward pass is searched.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of named ones.
        targets: what the loss function compares the outputs with.
        call: calls the model with `inputs` where it takes them in another way; the place for
            autocast, too.
        layout: where the samples lie in `inputs`. Where they are not apart, the entries of the
            first axis are told in their place.

    Returns:
        The origin; None if everything is finite, or only a mask is not. Its samples are those of
        tensors that have an axis of as many entries as there are samples: a tensor that happens to
        have that size is taken for the batch's.

    Raises:
        Exception: whatever the model or the loss function raises.
    """
    trace = ForwardTrace(model, _sample_axis(inputs, targets, layout), find_origin.__code__)
    trace.seed("input", named(inputs))
    trace.seed("target", named(targets))
    trace.seed("parameter", model.named_parameters())
    trace.seed("buffer", model.named_buffers())
    with trace.watching("forward"):
        outputs = _called(model, inputs) if call is None else call(model, inputs)
    in_outputs = trace.reaching(outputs)
    if loss_fn is not None:
        with trace.watching("loss"):
            loss = loss_fn(outputs, targets)
        in_loss = trace.reaching(loss)
        if in_loss is not None:
            return _with_samples(in_loss.origin, outputs, trace.batch)
        leaves: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        leaves += [t for t in watched_tensors(inputs) if t.requires_grad and t.is_leaf]
        in_backward = BackwardSearch(trace).search(loss, leaves)
        if in_backward is not None:
            return in_backward.origin
    if in_outputs is not None and not in_outputs.excused:
        return in_outputs.origin
    return next((leaf.origin for leaf in trace.leaves if not leaf.excused), None)


def _with_samples(origin: Origin, outputs: Any, batch: SampleAxis | None) -> Origin:
    """The origin; where its samples are not known, with those whose outputs are not finite."""
    tensor = next((t for t in watched_tensors(outputs) if not is_finite(t)), None)
    if origin.samples or tensor is None or origin.where not in ("input", "forward"):
        return origin
    samples = census(tensor, batch)["samples"]
    # All samples of the batch are none in particular.
    every = batch is not None and len(samples) == batch.count
    return origin if every else replace(origin, samples=samples)


def _called(model: nn.Module, inputs: Any) -> Any:
    """Return the model's outputs for the inputs themselves: clones would hide the origin."""
    call = as_call(inputs)
    return model(*call.args, **call.kwargs)


def _sample_axis(inputs: Any, targets: Any, layout: Layout) -> SampleAxis | None:
    """Return where the samples lie; None without any, or where the first target has other ones."""
    layout = replace(layout, axis=layout.axis or 0)
    call = Call(tuple(tensor for _, tensor in named(inputs)))
    given = layout.inputs(call)
    if given is None or not layout.count(call):
        return None
    target = next((tensor for _, tensor in named(targets) if tensor.dim()), None)
    shape = tuple(given.shape)
    agree = target is None or layout.place(target, shape) is not None
    return SampleAxis(layout, shape) if agree else None
