"""The copy of the model that the doctor tries things out on, and how the training began."""

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import copied_model
from debugnn.doctor.observe.module_state import (
    Place,
    follow,
    held,
    keep_state,
    plain_values,
    put_at,
    values_at,
)


class Replica:
    """A copy of a model as it starts, and the settings of its optimiser.

    The copy takes the model's memory once. The initial weights are copied, once more, on the CPU,
    when the copy is given others; a copy on a GPU holds its weights only while it is used.

    Args:
        copies: False keeps no copy, and of the initial weights only those that the optimiser does
            not hold.

    Attributes:
        model: the copy; None without one, and once it is let go of.
        error: why it cannot be copied; None where it can, or where no copy is wanted.
        groups: the optimiser's groups at the start. `names` holds the parameters' names in place
            of `params`; `lr` is the largest learning rate so far.
        device: the model's.
        state: places of what the model keeps in itself from one pass to the next. Every pass of the
            copies begins with the state that the first one began with.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, copies: bool = True
    ) -> None:
        self._original = model
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.model: nn.Module | None = None
        self.error: Exception | None = None
        self.state: tuple[Place, ...] = ()
        self._values: dict[Place, Any] = {}  # plain attributes and buffers, as the copy is made
        self._initial: dict[str, Any] | None = None  # None as long as the copy holds them
        if copies:
            try:
                self.model = copied_model(model)
                self._values = dict(plain_values(self.model))
            except Exception as error:  # a module that holds a lock, a generator, a graph
                self.error = error
        names = {id(p): n for n, p in model.named_parameters()}
        self.groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            kept = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
            kept["names"] = [names[id(p)] for p in group["params"] if id(p) in names]
            self.groups.append(kept)
        if self.model is None:
            held = {name for group in self.groups for name in group["names"]}
            self._initial = _on_cpu(
                {
                    name: parameter
                    for name, parameter in model.named_parameters()
                    if parameter.requires_grad and name not in held
                }
            )

    def keep(self, state: tuple[Place, ...]) -> None:
        """Let every pass of the copies begin with the state that the training began with.

        Args:
            state: its places.
        """
        self.state = state
        if self.model is not None:
            # As the copy was made: a validation before the first step may have left another state.
            for place, (holder, name, _) in zip(state, held(self.model, state), strict=True):
                if place in self._values:
                    holder[name] = self._values[place]
                else:
                    holder.pop(name, None)
            keep_state(self.model, state)
        self._values = {}

    def with_state(self) -> nn.Module | None:
        """Return a copy with the present weights that keeps its state from pass to pass."""
        model = self.current()
        return None if model is None else copied_model(model)

    @property
    def initial(self) -> Mapping[str, Any]:
        """The state dict at the start; without a copy only what the optimiser does not hold."""
        if self._initial is not None:
            return self._initial
        return {} if self.model is None else self.model.state_dict()

    def start(self) -> nn.Module | None:
        """Return another copy as the training began, to be read: it may share its weights."""
        if self.model is None or self._initial is not None:
            return self.fresh()
        shared = {
            id(p): nn.Parameter(p.detach(), p.requires_grad)
            for p in self.model.parameters()
            if type(p) is nn.Parameter
        }
        return self._another(shared)

    def current(self) -> nn.Module | None:
        """Return the copy with the model's present weights and buffers, without gradients."""
        if self.model is None:
            return None
        self._keep_initial()
        follow(self._original, self.model, self.state)
        now, begun = self._original.state_dict(), self.initial
        for path in (place.path for place in self.state):
            now.pop(path, None)
            if path in begun:
                now[path] = begun[path]
        return self._loaded(self.model, now)

    def fresh(self) -> nn.Module | None:
        """Return another copy, with the weights and buffers that the training began with."""
        return None if self.model is None else self._loaded(self._another(), self.initial)

    def trained(self) -> nn.Module | None:
        """Return another copy, with the model's present weights and buffers, to be trained."""
        return None if self.current() is None else self._another()

    def as_before(self, state: Mapping[str, Any]) -> nn.Module | None:
        """Return another copy, in training mode, as the model was before a step that broke.

        Args:
            state: the weights and buffers before the update. In place of buffers that the step's
                forward pass has spoilt, those of the last probe are taken.
        """
        if self.model is None:
            return None
        self._keep_initial()
        buffers = dict(self.model.named_buffers())
        state = {
            n: buffers[n] if n in buffers and not torch.isfinite(t).all() else t
            for n, t in state.items()
        }
        return self._loaded(self._another(), state).train()

    def note_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the largest learning rate of each group: a warm-up starts at zero."""
        for group, kept in zip(optimizer.param_groups, self.groups, strict=False):
            kept["lr"] = max(float(kept["lr"]), float(group["lr"]))

    def rest(self) -> None:
        """Give the memory of a GPU back until the copy is used again."""
        if self.model is None or self.device.type == "cpu":
            return
        self._keep_initial()
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)

    def state_dict(self) -> dict[str, Any]:
        """Return how the training began, and the buffers as they were when the copy was last used.

        The present weights are not part of it.
        """
        self._keep_initial()
        model = self.model
        return {
            "initial": self.initial,
            "groups": self.groups,
            "state": self.state,
            "values": {} if model is None else values_at(model, self.state),
            "buffers": {} if model is None else dict(model.named_buffers()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the training have begun as the result of `state_dict` says."""
        self._initial, self.groups, self.state = state["initial"], state["groups"], state["state"]
        self._values = {}
        if self.model is None:
            return
        own = dict(self.model.named_buffers())
        for name, buffer in state["buffers"].items():
            if name in own and own[name].shape == buffer.shape:
                own[name].copy_(buffer)
        put_at(self.model, self.state, state["values"])
        keep_state(self.model, self.state)

    def release(self) -> None:
        """Let go of the copy and the initial weights."""
        self.model, self._initial = None, {}

    def _another(self, shared: Mapping[int, Any] | None = None) -> nn.Module:
        """Return a copy of the copy, whose passes begin with the same state."""
        assert self.model is not None
        model = copied_model(self.model, shared)
        keep_state(model, self.state)
        return model

    def _keep_initial(self) -> None:
        if self._initial is None and self.model is not None:
            self._initial = _on_cpu(self.model.state_dict())

    def _loaded(self, model: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Return a copy of the model with the weights and buffers of a state dict."""
        sizes = {n: p.shape for n, p in self._original.named_parameters()}
        for name, parameter in model.named_parameters():
            if parameter.shape != sizes.get(name, parameter.shape):  # at rest
                parameter.data = parameter.data.new_empty(sizes[name])
        with torch.no_grad():
            found = model.load_state_dict(state, strict=False)
            if found.unexpected_keys:
                raise RuntimeError(f"it has got other parts: {', '.join(found.unexpected_keys)}")
            # What a model leaves out of its state dict, as a frozen part, is that of the original.
            if found.missing_keys:
                own, parts = (
                    dict(chain(each.named_parameters(), each.named_buffers()))
                    for each in (self._original, model)
                )
                for name in own.keys() & parts.keys() & set(found.missing_keys):
                    parts[name].copy_(own[name])
        return model


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict on the CPU."""
    with torch.inference_mode(False):
        return {
            name: value.detach().to("cpu", copy=True)
            if isinstance(value, Tensor)
            else copy.deepcopy(value)
            for name, value in state.items()
        }
