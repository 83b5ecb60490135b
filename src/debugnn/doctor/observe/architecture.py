"""What a network is made of, and which parameters its loss depends on, tried out on a batch.

All functions work on a copy of the model that belongs to the doctor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import NetworkFacts
from debugnn.doctor.observe.calls import Call, first_tensor
from debugnn.doctor.observe.mixing import LEAST_BATCH, evaluation_change, mixing
from debugnn.doctor.observe.modes import BATCH_NORM, dropout_rates, without_dropout
from debugnn.doctor.observe.operations import DROPPING, WEIGHTED, trace

# Numerical tolerances by which a tensor is read as a distribution, or as the logarithm of one.
_SUM = 1e-3  # of its sum to 1
_ABOVE_ZERO = 1e-6  # of a logarithm
_CONSTANT = 1e-4  # relative difference between samples


def network_facts(
    model: nn.Module, call: Call, batch: int | None, loss: Callable[[Any], Tensor]
) -> NetworkFacts:
    """Try a network out on one batch.

    Running statistics of the model move; its weights stay.

    Args:
        batch: number of samples, None where inputs and outputs have no common batch axis.
        loss: maps outputs to a scalar with a gradient, the user's loss or a stand-in for it.
    """
    modules = list(model.modules())
    rates = dropout_rates(model)
    facts = NetworkFacts(parameters=sum(p.numel() for p in model.parameters()))
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
                shape == tuple(first.shape) and shape[axis] == 1
                for axis, shape in tracer.softmax_axes
            )
            facts.batch_softmax = any(
                axis == 0 and len(shape) >= 2 and shape[0] == batch and shape == tuple(first.shape)
                for axis, shape in tracer.softmax_axes
            )
        # Sampling in evaluation can be meant, dropout is not.
        facts.drops_in_evaluation = any(name in DROPPING for name in tracer.operations)
        facts.evaluation_change = evaluation_change(model, call)
        if first is not None and batch is not None and batch >= LEAST_BATCH:
            facts.mixing, facts.mixing_layers = mixing(model, call, batch)
    with without_dropout(model, training=True):
        facts.unreached, facts.unused = _without_gradient(model, call, loss)
        facts.time_gradient = _time_gradient(model, call, loss)
    return facts


@contextmanager
def _softmax_inputs(model: nn.Module, call: Call, found: list[str]) -> Iterator[None]:
    """Find layers whose input is a distribution, or its logarithm, that the network itself made.

    Args:
        found: the layers' names are appended to it during the passes in the block.
    """
    given = call.tensors()

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


def _without_gradient(
    model: nn.Module, call: Call, loss: Callable[[Any], Tensor]
) -> tuple[list[str], list[str]]:
    """Return parameters without a gradient: those that the outputs depend on, and the others."""
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
    without = [pair for pair, gradient in zip(named, found, strict=True) if gradient is None]
    if not without:
        return [], []
    unreached: list[str] = []
    unused: list[str] = []
    with torch.no_grad():
        before = first_tensor(call(model))
        for name, parameter in without:
            kept = parameter.clone()
            parameter.mul_(1.5).add_(0.1)
            after = first_tensor(call(model))
            parameter.copy_(kept)
            depends = before is not None and after is not None and not torch.equal(before, after)
            (unreached if depends else unused).append(name)
    return unreached, unused


def _time_gradient(model: nn.Module, call: Call, loss: Callable[[Any], Tensor]) -> float | None:
    """Return ‖∂L/∂x‖ of the first tenth of the time steps over that of the last tenth.

    For a recurrent network on one input (B, T, features) of at least ten steps; else None.
    """
    recurrent = any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in model.modules())
    given = call.tensors()
    if not recurrent or len(given) != 1 or given[0].dim() != 3:
        return None
    if not given[0].is_floating_point() or given[0].shape[1] < 10:
        return None
    inputs = given[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        value = loss(call.map(lambda _: inputs)(model))
        if not value.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(value, inputs, allow_unused=True)
    if gradient is None:
        return None
    tenth = max(1, inputs.shape[1] // 10)
    first, last = (
        torch.linalg.vector_norm(part.double()).item()
        for part in (gradient[:, :tenth], gradient[:, -tenth:])
    )
    return first / last if last > 0 else None
