"""The copy of the model that the doctor tries things out on, and how the training began."""

import copy
from typing import Any

import torch
from torch import nn

from debugnn.doctor.copies import copied_model, copied_state


class Replica:
    """A copy of a model as it starts, and the settings of its optimiser.

    Attributes:
        model: the copy; None where the model cannot be copied, and once it is let go of.
        error: why it cannot be copied.
        initial: the copy's state dict at the start; {} without a copy.
        groups: the optimiser's groups at the start. `names` holds the parameters' names in place
            of `params`; `lr` is the largest learning rate so far.
        device: the model's.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._original = model
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.model: nn.Module | None = None
        self.error: Exception | None = None
        self.initial: dict[str, Any] = {}
        try:
            self.model = copied_model(model)
            self.initial = copied_state(self.model)
        except Exception as error:  # a module that holds a lock, a generator, a graph
            self.model, self.error = None, error
        names = {id(p): n for n, p in model.named_parameters()}
        self.groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            kept = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
            kept["names"] = [names[id(p)] for p in group["params"] if id(p) in names]
            self.groups.append(kept)

    def current(self) -> nn.Module | None:
        """Return the copy with the model's present weights and buffers, without gradients."""
        if self.model is not None:
            with torch.no_grad():
                self.model.load_state_dict(self._original.state_dict())
        return self.model

    def fresh(self) -> nn.Module | None:
        """Return another copy, with the weights and buffers that the training began with."""
        if self.model is None:
            return None
        fresh = copied_model(self.model)
        fresh.load_state_dict(self.initial)
        return fresh

    def note_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the largest learning rate of each group: a warm-up starts at zero."""
        for group, kept in zip(optimizer.param_groups, self.groups, strict=False):
            kept["lr"] = max(float(kept["lr"]), float(group["lr"]))

    def release(self) -> None:
        """Let go of the copy and the initial weights."""
        self.model, self.initial = None, {}
