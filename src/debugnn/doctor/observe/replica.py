"""The copy of the model that the doctor tries things out on, and how the training began."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import copied_model


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
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, copies: bool = True
    ) -> None:
        self._original = model
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.model: nn.Module | None = None
        self.error: Exception | None = None
        self._initial: dict[str, Any] | None = None  # None as long as the copy holds them
        if copies:
            try:
                self.model = copied_model(model)
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
        return copied_model(self.model, shared)

    def current(self) -> nn.Module | None:
        """Return the copy with the model's present weights and buffers, without gradients."""
        if self.model is None:
            return None
        self._keep_initial()
        return self._loaded(self.model, self._original.state_dict())

    def fresh(self) -> nn.Module | None:
        """Return another copy, with the weights and buffers that the training began with."""
        return None if self.model is None else self._loaded(copied_model(self.model), self.initial)

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
        return self._loaded(copied_model(self.model), state).train()

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

    def release(self) -> None:
        """Let go of the copy and the initial weights."""
        self.model, self._initial = None, {}

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
            model.load_state_dict(state)
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
