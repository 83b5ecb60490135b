"""The repetition of the first training step whose loss or gradient is not finite."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import copied_state, undisturbed
from debugnn.doctor.evidence import NonFinite
from debugnn.doctor.nonfinite.search import find_origin
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.replica import Replica
from debugnn.random_state import set_random_state


class NonFiniteReplay:
    """Keeps the weights of a step that broke, and repeats the step on a copy.

    Attributes:
        saved: batch, weights and random state of the step, once it has been repeated.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None
        self._state: dict[str, Any] | None = None
        self._random_state: list[Tensor] = []

    @property
    def pending(self) -> bool:
        """True if a step's weights are kept."""
        return self._state is not None

    def keep(self, model: nn.Module, random_state: list[Tensor]) -> None:
        """Keep the weights before the update that a non-finite gradient is about to spoil.

        Only the first time.

        Args:
            random_state: before the step's forward pass.
        """
        if self._state is None:
            self._state, self._random_state = copied_state(model), random_state

    def repeat(
        self,
        step: int,
        call: Call,
        targets: Any,
        replica: Replica | None,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        layout: Layout,
    ) -> NonFinite:
        """Repeat the step whose weights are kept, and return where its first bad number came from.

        Args:
            step: its number.
            call: how the model was called.
            targets: the batch's.
            replica: a copy of the model; without one the step cannot be repeated.
            loss_fn: without it only the forward pass is repeated.
            layout: where the batch's samples lie.

        Returns:
            The origin; `unknown` where the step cannot be repeated, or does not break again.
        """
        found = None
        state = self._state or {}
        model = None if replica is None else replica.as_before(state)
        if replica is not None and model is not None:
            with undisturbed(loss_fn, replica.model):
                set_random_state(replica.device, self._random_state)
                found = find_origin(
                    model,
                    loss_fn,
                    {str(i): value for i, value in enumerate(call.args)} | call.kwargs,
                    targets,
                    call=lambda model, _: call(model),
                    layout=layout,
                )
        self.saved = {
            "step": step,
            "call": {"args": call.args, "kwargs": call.kwargs},
            "targets": targets,
            "model": state,
            "random_state": self._random_state,
        }
        if found is None:
            return NonFinite(step, "unknown", "", None, "nan", [], 0, 0.0, overflow=True)
        return NonFinite(step, **asdict(found))

    def drop(self) -> None:
        """Let go of the weights, of a step that turned out to be none that broke."""
        self._state = None

    def save(self, folder: Path, step: int) -> Path:
        """Write `saved` to a file that the step names, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"nonfinite_step_{step}.pt"
        torch.save(self.saved, path)
        return path
