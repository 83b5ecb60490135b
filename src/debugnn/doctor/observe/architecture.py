"""What a network is made of, and which parameters its loss depends on, tried out on a batch.

All functions work on a copy of the model that belongs to the doctor.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import NetworkFacts
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.graph import leaves_of, with_derivative
from debugnn.doctor.observe.meant_dropout import keeps_dropout_on
from debugnn.doctor.observe.mixing import evaluation_change
from debugnn.doctor.observe.modes import BATCH_NORM, dropout_rates, without_dropout
from debugnn.doctor.observe.operations import DROPPING, WEIGHTED, trace
from debugnn.doctor.observe.perturbation import without_constants
from debugnn.doctor.observe.placement import place_change
from debugnn.doctor.observe.sample_axis import Samples
from debugnn.random_state import random_state, set_random_state

# Numerical tolerances by which a tensor is read as a distribution, or as the logarithm of one.
_SUM = 1e-3  # largest distance of probabilities' sum from 1
_ABOVE_ZERO = 1e-6  # largest excess above 0 of a logarithm of a probability
_CONSTANT = 1e-4  # relative difference between samples


def network_facts(
    model: nn.Module, call: Call, samples: Samples, loss: Callable[[Any], Tensor]
) -> NetworkFacts:
    """Try a network out on one batch.

    Running statistics of the model move; its weights stay.

    Args:
        samples: where the batch's samples lie, and whether the network keeps them apart.
        loss: maps outputs to a scalar with a gradient, the user's loss or a stand-in for it.
    """
    modules = list(model.modules())
    rates = dropout_rates(model)
    axis = samples.layout.axis
    facts = NetworkFacts(
        parameters=sum(p.numel() for p in model.parameters()),
        sample_axis=axis,
        sample_axis_told=samples.told,
        axis_dependence=samples.dependence,
        mixing=samples.mixing,
        mixing_layers=samples.mixing_layers,
        mixing_by_gradient=samples.mixing_by_gradient,
        halves_used=list(samples.halves_used or ()),
    )
    facts.dropout = max(rates, default=0.0)
    facts.mode_sensitive = facts.dropout > 0 or any(isinstance(m, BATCH_NORM) for m in modules)
    facts.weight_layers = sum(
        isinstance(m, WEIGHTED) and any(p.dim() >= 2 for p in m.parameters()) for m in modules
    )
    with without_dropout(model, training=False):
        outputs, tracer = trace(model, call)
        # A pass of its own: the trace would hold what the hooks compute.
        with _softmax_inputs(model, call, facts.softmax_inputs), torch.no_grad():
            call(model)
        facts.softmax_inputs += [n for n in tracer.softmax_fed if n not in facts.softmax_inputs]
        facts.nonlinear, facts.depth = tracer.nonlinear, tracer.depth
        first = first_tensor(outputs)
        if first is not None:
            facts.last_op = tracer.made(first)
            facts.softmax_over_one = "softmax" in (facts.last_op or "") and any(
                shape == tuple(first.shape) and shape[over] == 1
                for over, shape in tracer.softmax_axes
            )
            facts.batch_softmax = axis == 0 and any(
                over == 0 and shape[0] == samples.count and shape == tuple(first.shape)
                for over, shape in tracer.softmax_axes
                if len(shape) >= 2
            )
        # Sampling in evaluation can be meant, dropout is not.
        facts.dropout_meant = keeps_dropout_on(model)
        facts.drops_in_evaluation = any(name in DROPPING for name in tracer.operations)
        facts.evaluation_change = evaluation_change(model, call)
        facts.place_change = place_change(model, call, samples.layout)
        facts.bend = _bend_of_start(model, call)
    with without_dropout(model, training=True):
        facts.unreached, facts.unused = _without_gradient(model, call, loss)
        facts.time_gradient = _time_gradient(model, call, 0 if axis == 1 else 1, loss)
    return facts


@contextmanager
def _softmax_inputs(model: nn.Module, call: Call, found: list[str]) -> Iterator[None]:
    """Find layers whose input is a distribution, or its logarithm, that the network itself made.

    Args:
        found: the layers' names are appended to it during the passes in the block.
    """
    given = [tensor for tensor in call.tensors() if is_plain(tensor)]

    def watch(name: str, axis: int) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            value = args[0] if args and isinstance(args[0], Tensor) else None
            if value is None or not value.is_floating_point():
                return
            if any(value.shape == t.shape and torch.equal(value, t) for t in given):
                return
            if value.dim() < 2 or value.shape[axis] < 3:
                return
            value = value.detach().float()
            if (value - value[:1]).abs().max() <= _CONSTANT * value.abs().max():
                return  # the same for all samples: its sum may be 1 by chance
            if bool(((value == 0) | (value == 1)).all()):
                return  # one-hot codes: an input, wherever they are made
            if _is_distribution(value, axis):
                found.append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            handles.append(module.register_forward_pre_hook(watch(name, 1)))
        elif isinstance(module, nn.Linear | nn.RNNBase):
            handles.append(module.register_forward_pre_hook(watch(name, -1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_distribution(value: Tensor, axis: int) -> bool:
    """True if the values along the axis are probabilities that sum to 1, or their logarithms."""
    sums = value.sum(dim=axis)
    if value.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=_SUM):
        return True
    logs = value.logsumexp(dim=axis)
    return bool(value.max() <= _ABOVE_ZERO) and torch.allclose(
        logs, torch.zeros_like(logs), atol=_SUM
    )


def _bend_of_start(model: nn.Module, call: Call) -> float | None:
    """Return the larger bend of a network as it starts, and with its closed branches opened.

    A residual branch, a flow or an adapter whose last layer starts at zero bends nothing before it
    has learnt.
    """
    with without_constants(model):
        opened = bend(model, call)
    known = [each for each in (bend(model, call), opened) if each is not None]
    return max(known, default=None)


def bend(model: nn.Module, call: Call) -> float | None:
    """Return how far a network in evaluation mode is from a linear map, see `NetworkFacts.bend`.

    The larger of the batch's and of made-up inputs of unit scale: ReLUs that large inputs never
    turn off bend nothing on the batch alone. For networks of one tensor of real numbers, of four
    samples and more, of which they take a part; else None.
    """
    given = call.tensors()
    if len(given) != 1 or not given[0].is_floating_point():
        return None
    dense = given[0].layout == torch.strided and not given[0].is_nested
    if not dense or given[0].dim() < 2 or len(given[0]) < 4:  # a vector may be a single sample
        return None
    made_up = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(0)).to(given[0])
    bends = [_bend_at(model, call, inputs) for inputs in (given[0], made_up)]
    known = [bend for bend in bends if bend is not None]
    return max(known) if known else None


def _bend_at(model: nn.Module, call: Call, inputs: Tensor) -> float | None:
    half = len(inputs) // 2
    first, second = inputs[:half], inputs[half : 2 * half]

    def of(rows: Tensor) -> Tensor | None:
        with torch.no_grad():
            return first_tensor(call.map(lambda _: rows)(model))

    try:
        found = [of(rows) for rows in (first, second, (first + second) / 2)]
    except Exception:  # whatever a model raises of batches of another size
        return None
    # A model that returns its loss alone gives a scalar.
    ends = [torch.atleast_1d(tensor.double()) for tensor in found if tensor is not None]
    if len(ends) < 3 or len({tensor.shape for tensor in ends}) > 1:
        return None
    middle, mean = ends[2], (ends[0] + ends[1]) / 2
    spread = torch.cat(ends[:2]).std(dim=0).max().item()
    return (middle - mean).abs().max().item() / spread if spread > 0 else None


def _without_gradient(
    model: nn.Module, call: Call, loss: Callable[[Any], Tensor]
) -> tuple[list[str], list[str]]:
    """Return parameters without a gradient: those that the outputs depend on, and the others.

    A gradient that is zero counts as none where all paths to a parameter have a step whose
    derivative is zero.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        return [], []
    with torch.enable_grad():
        value = loss(call(model))
        # Not backward(): a loss may hold parameters of the user's, which would get gradients.
        found = (
            torch.autograd.grad(value, [p for _, p in named], allow_unused=True)
            if value.requires_grad
            else [None] * len(named)
        )
    zero = {id(p) for (_, p), g in zip(named, found, strict=True) if g is not None and not g.any()}
    flat = _behind_flat_steps(value) & zero if zero else zero
    without = [
        pair for pair, g in zip(named, found, strict=True) if g is None or id(pair[1]) in flat
    ]
    if not without:
        return [], []
    unreached: list[str] = []
    unused: list[str] = []
    depend = depends_on(model, call, without, first_tensor)
    for name, _ in without:
        (unreached if name in depend else unused).append(name)
    return unreached, unused


def _behind_flat_steps(value: Tensor) -> set[int]:
    """Return the ids of the leaves that a value's graph leads to, by no path with a derivative."""
    reached = with_derivative([value])
    return set() if reached is None else {id(leaf) for leaf in leaves_of([value], [])} - reached


def depends_on(
    model: nn.Module,
    call: Call,
    parameters: Sequence[tuple[str, nn.Parameter]],
    output_of: Callable[[Any], Tensor | None],
) -> list[str]:
    """Return the names of the parameters that an output depends on.

    Args:
        model: its parameters are changed for a while. Its buffers are as before.
        call: of a batch; every pass draws the same random numbers.
        parameters: of the model, with their names.
        output_of: takes the output out of what the model returns.
    """
    device = next((t.device for t in call.tensors()), torch.device("cpu"))
    state, buffers = random_state(device), [(b, b.clone()) for b in model.buffers()]

    def output() -> Tensor | None:
        set_random_state(device, state)
        found = output_of(call(model))
        for buffer, kept in buffers:
            buffer.copy_(kept)
        return found

    names = []
    with torch.no_grad():
        before = output()
        for name, parameter in parameters:
            kept = parameter.clone()
            parameter.mul_(1.5).add_(0.1)
            after = output()
            parameter.copy_(kept)
            if before is not None and after is not None and not torch.equal(before, after):
                names.append(name)
    return names


def _time_gradient(
    model: nn.Module, call: Call, axis: int, loss: Callable[[Any], Tensor]
) -> float | None:
    """Return ‖∂L/∂x‖ of the first tenth of the time steps over that of the last tenth.

    For a recurrent network on one input (B, T, features) or (T, B, features) of at least ten steps;
    else None.

    Args:
        axis: of time.
    """
    recurrent = any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in model.modules())
    given = call.tensors()
    if not recurrent or len(given) != 1 or given[0].dim() != 3 or not is_plain(given[0]):
        return None
    if not given[0].is_floating_point() or given[0].shape[axis] < 10:
        return None
    inputs = given[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        value = loss(call.map(lambda _: inputs)(model))
        if not value.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True)
    if gradient is None:
        return None
    gradient = gradient.movedim(axis, 1)
    tenth = max(1, gradient.shape[1] // 10)
    first, last = (
        torch.linalg.vector_norm(part.double()).item()
        for part in (gradient[:, :tenth], gradient[:, -tenth:])
    )
    return first / last if last > 0 else None
