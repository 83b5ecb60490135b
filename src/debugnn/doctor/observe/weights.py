"""Scale and symmetry of a network's initial weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import hookable
from debugnn.doctor.evidence import WeightFacts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.operations import WEIGHTED

# Fewest values of a weight for an estimate of its distribution. The RMS of n uniform values has a
# relative standard error of 1 / √(5 n); a difference of up to _ERRORS standard errors is allowed.
_LEAST_DRAWN = 64
_ERRORS = 4.0


def modules_called(
    model: nn.Module, call: Call, kinds: type | tuple[type, ...] = nn.Module
) -> list[nn.Module]:
    """Return the modules that a pass calls, in their order; one that is called twice comes twice.

    Args:
        model: a copy.
        call: of a batch.
        kinds: classes of the modules that are looked at.
    """
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args: called.append(module))
        for _, module in hookable(model)
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            call(model)
    finally:
        for handle in handles:
            handle.remove()
    return called


def forward_order(model: nn.Module, call: Call) -> list[str]:
    """Return the names of the weight tensors (two axes or more) in the order of the forward pass.

    In order of registration where a parameter belongs to no module that is called.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    used: list[str] = []
    for module in modules_called(model, call):
        for parameter in module.parameters(recurse=not list(module.children())):
            name = names[id(parameter)]
            if parameter.dim() >= 2 and name not in used:
                used.append(name)
    left = [n for n, p in model.named_parameters() if p.dim() >= 2 and n not in used]
    return sorted(used + left, key=list(names.values()).index) if left else used


def _as_drawn(weight: Tensor) -> bool:
    """Return whether a weight, (units, fan_in), is as PyTorch draws it: evenly within ±1/√fan_in.

    Training takes some of the values out of these bounds, and changes their RMS.
    """
    size, bound = weight.numel(), weight.shape[1] ** -0.5
    if size < _LEAST_DRAWN:
        return False
    share = weight.square().mean().sqrt().item() / bound * 3**0.5  # of the RMS of even values
    within = weight.abs().max().item() <= bound * (1 + 1e-4)
    return within and abs(share - 1) < _ERRORS * (5 * size) ** -0.5


def weight_facts(
    model: nn.Module, order: list[str], signals: Mapping[str, float]
) -> list[WeightFacts]:
    """Describe each weight tensor as it stands.

    `gain` is RMS · √fan_in. fan_in is the number of inputs of a unit (all axes but the first); of
    recurrent layers the number of hidden units, as in PyTorch's initialisation of them. Embeddings
    and other parameters that multiply no input have no fan-in: they are left out, unless the model
    has no other weights.

    Args:
        order: names of weight tensors in the order of the forward pass.
        signals: see `signal_sizes`.
    """
    named = dict(model.named_parameters())
    maps = {id(p) for m in model.modules() if isinstance(m, WEIGHTED) for p in m.parameters()}
    hidden = {
        id(p): m.hidden_size
        for m in model.modules()
        if isinstance(m, nn.RNNBase | nn.RNNCellBase)
        for p in m.parameters()
    }
    drawn = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    # A table's units are its columns: each row gets the gradient of its own samples.
    tables = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        for p in m.parameters()
    }
    facts = []
    names = [n for n in order if not maps or id(named[n]) in maps]
    for position, name in enumerate(names):
        weight = named[name].detach().float().flatten(1)
        rms = weight.square().mean().sqrt().item()
        units = weight.T if id(named[name]) in tables else weight
        facts.append(
            WeightFacts(
                name=name,
                size=weight.numel(),
                gain=rms * hidden.get(id(named[name]), weight.shape[1]) ** 0.5,
                identical_rows=len(units) > 1 and bool((units == units[:1]).all()),
                identical_columns=units.shape[1] > 1 and bool((units == units[:, :1]).all()),
                constant=bool((weight == weight[0, 0]).all()),
                hidden=position + 1 < len(names),
                norm=torch.linalg.vector_norm(weight).item(),
                inputs=weight.shape[1],
                outputs=weight.shape[0],
                signal=signals.get(name),
                frozen=not named[name].requires_grad,
                as_drawn=id(named[name]) in drawn and _as_drawn(weight),
            )
        )
    return facts
