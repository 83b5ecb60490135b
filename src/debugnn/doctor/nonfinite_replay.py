"""The repetition of the first training step whose loss or gradient is not finite."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import copied_loss, copied_state, undisturbed
from debugnn.doctor.evidence import NonFinite
from debugnn.doctor.nonfinite import find_origin
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.replica import Replica
from debugnn.random_state import set_random_state


class NonFiniteReplay:
    """Keeps the weights of a step that broke, and repeats the step on a copy.

    Attributes:
        saved: batch, weights and random state of the step, once it has been repeated.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None
        self._broken: dict[str, Any] | None = None

    @property
    def pending(self) -> bool:
        """True if a step's weights are kept."""
        return self._broken is not None

    def keep(self, model: nn.Module, random_state: list[Tensor]) -> None:
        """Keep the weights before the update that a non-finite gradient is about to spoil.

        Only the first time.

        Args:
            random_state: before the step's forward pass.
        """
        if self._broken is None:
            self._broken = {"model": copied_state(model), "random_state": random_state}

    def repeat(
        self,
        step: int,
        call: Call,
        targets: Any,
        replica: Replica | None,
        loss_fn: Callable[[Any, Any], Tensor] | None,
    ) -> NonFinite:
        """Repeat the step whose weights are kept, and return where its first bad number came from.

        `unknown` where it cannot be repeated, or does not break again.
        """
        found = None
        if replica is not None and replica.model is not None:
            model = self._as_before(replica.model)
            with undisturbed():
                set_random_state(replica.device, self._broken["random_state"])
                found = find_origin(
                    model,
                    copied_loss(loss_fn),
                    call.kwargs or call.args,
                    targets,
                    call=lambda model, _: call(model),
                )
        self.saved = {
            "step": step,
            "call": {"args": call.args, "kwargs": call.kwargs},
            "targets": targets,
            **self._broken,
        }
        if found is None:
            return NonFinite(step, "unknown", "", None, "nan", [], 0, 0.0, overflow=True)
        return NonFinite(step, **asdict(found))

    def save(self, folder: Path) -> Path:
        """Write `saved` to a file, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"nonfinite_step_{self.saved['step']}.pt"
        torch.save(self.saved, path)
        return path

    def _as_before(self, replica: nn.Module) -> nn.Module:
        """Return a copy of the model before the step, in training mode.

        The forward pass may have spoilt its buffers: they are taken from the last probe.
        """
        buffers = dict(replica.named_buffers())
        state = {
            n: buffers[n] if n in buffers and not torch.isfinite(t).all() else t
            for n, t in self._broken["model"].items()
        }
        model = copy.deepcopy(replica)
        model.load_state_dict(state)
        return model.train()
