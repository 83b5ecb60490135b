"""What the optimiser holds of the model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import NetworkFacts, OptimizerFacts

_POINTS = 64  # most points that are kept of the learning rate's course
# Where PyTorch's schedulers note the rate that they multiply, and the one that they rise to.
_SCHEDULED = ("initial_lr", "max_lr")
_ADAPTIVE = (
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
)


class RateCurve:
    """The learning rates of an optimiser's groups over its updates, in few points.

    A point is kept where a rate changes. Of many points every second one is dropped.

    Attributes:
        updates: how many there were.
    """

    def __init__(self) -> None:
        self.updates = 0
        self._points: list[list[float]] = []  # [update, rate of each group]
        self._latest: list[float] = []
        self._spacing = 1

    def note(self, optimizer: torch.optim.Optimizer) -> bool:
        """Note the rates of an update that is about to be made.

        Returns:
            False where they are those of the update before.
        """
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        changed = rates != self._latest
        last = self._points[-1] if self._points else None
        if not changed and last is not None and rates == last[1:]:
            self.updates += 1
            return False
        far_enough = last is None or self.updates - last[0] >= self._spacing
        if far_enough and (last is None or rates != last[1:]):
            self._points.append([float(self.updates), *rates])
        if len(self._points) > _POINTS:
            self._points = self._points[::2]
            self._spacing *= 2
        self._latest = rates
        self.updates += 1
        return changed

    @property
    def are_kept(self) -> bool:
        """True if the latest rates are those of the last point."""
        return bool(self._points) and self._points[-1][1:] == self._latest

    def repeat(self, updates: int) -> None:
        """Count updates at the rates of the latest one."""
        self.updates += updates

    def points(self) -> list[list[float]]:
        """Return the points [update, rate of each group]; the latest update's is the last one."""
        if not self.updates:
            return []
        end = [float(self.updates - 1), *self._latest]
        return [*self._points, *([end] if self._points[-1] != end else [])]


def optimizer_facts(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Mapping[str, Any]],
    initial: Mapping[str, Tensor],
    rates: Sequence[Sequence[float]] = (),
) -> OptimizerFacts:
    """Compare the optimiser's parameters with the model's.

    Args:
        groups: the optimiser's groups as they began, with the largest learning rate seen.
        initial: the weights that the training began with.
        rates: points [update, rate of each group].
    """
    parameters = dict(model.named_parameters())
    own = {id(p) for p in parameters.values()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {n: p for n, p in parameters.items() if p.requires_grad}
    decays = (float(g.get("weight_decay") or 0) for g in optimizer.param_groups)
    return OptimizerFacts(
        name=type(optimizer).__name__,
        held=sum(id(p) in held for p in trainable.values()),
        trainable=len(trainable),
        # What another optimiser moves is not missing.
        missing=[
            n
            for n, p in trainable.items()
            if id(p) not in held
            and (n not in initial or torch.equal(initial[n].to(p.device), p.detach()))
        ],
        foreign=len(held - own),
        frozen_held=[n for n, p in parameters.items() if not p.requires_grad and id(p) in held],
        frozen_in_named=_frozen_in_named(model),
        maximizes=any(bool(g.get("maximize")) for g in optimizer.param_groups),
        lr=max((float(g["lr"]) for g in groups), default=None),
        weight_decay=max(decays, default=0.0),
        decay_rescaled=_rescales_decay(optimizer),
        rates=[list(point) for point in rates],
        scheduled=max(
            (float(g[k]) for g in optimizer.param_groups for k in _SCHEDULED if k in g),
            default=None,
        ),
        **_lost_eps(optimizer),
    )


def _frozen_in_named(model: nn.Module) -> list[str]:
    """Return the parameters of frozen modules that have an attribute `requires_grad` of True."""
    wholly_frozen = [
        module
        for module in model.modules()
        if vars(module).get("requires_grad") is True
        and not any(p.requires_grad for p in module.parameters())
    ]
    found = {id(p) for module in wholly_frozen for p in module.parameters()}
    return [name for name, p in model.named_parameters() if id(p) in found]


def _rescales_decay(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether weight decay is added to gradients that are divided by their size afterwards.

    A weight with small gradients is then pulled to 0 as fast as one with large gradients is moved
    by them (Loshchilov & Hutter 2019, arXiv:1711.05101).
    """
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    return isinstance(optimizer, _ADAPTIVE) and not decoupled


def _lost_eps(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The first eps above 0 that is 0 in its parameters' type, and that type's name."""
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if not isinstance(eps, float) or eps <= 0:
            continue
        for parameter in group["params"]:
            if torch.tensor(eps, dtype=parameter.dtype).item() == 0:
                return {"lost_eps": eps, "dtype": str(parameter.dtype).removeprefix("torch.")}
    return {}


def still_unreached(unreached: Sequence[str], graded: Collection[str]) -> list[str]:
    """Return the parameters of the first pass without a gradient that have never had one.

    One pass may leave out a layer at random that others reach.

    Args:
        unreached: parameters that the outputs of the first pass depended on without a gradient.
        graded: parameters that have had a gradient in a training step.
    """
    return [name for name in unreached if name not in graded]


def note_never_arrived(
    facts: NetworkFacts,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    arrived: Collection[str],
) -> None:
    """Fill in which parameters of the optimiser outputs depend on, and no gradient came to.

    Args:
        facts: hold the parameters that outputs do not depend on, or not with a gradient.
        arrived: parameters that had a gradient at a probe, be it zero.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in held}
    explained = {*arrived, *facts.unreached, *facts.unused}
    facts.never_arrived = [name for name in own if name not in explained]
    values = sum(p.numel() for p in own.values())
    missing = sum(own[name].numel() for name in facts.never_arrived)
    facts.never_arrived_share = missing / max(values, 1)
