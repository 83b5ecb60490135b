"""The doctor: watches a training from one line in its loop, and names why it fails."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from debugnn.doctor import causes, troubles
from debugnn.doctor.causes import non_finite
from debugnn.doctor.evidence import Evidence, NonFinite
from debugnn.doctor.observe.observer import Observer
from debugnn.doctor.observe.sample_axis import FIND
from debugnn.doctor.report import Report
from debugnn.doctor.state import NotKeptError
from debugnn.doctor.trial_runner import TrialRunner


class NonFiniteError(ArithmeticError):
    """A NaN or an infinite number appeared in a training that asked to be stopped there.

    Attributes:
        found: where the number came from.
    """

    def __init__(self, message: str, found: NonFinite) -> None:
        super().__init__(message)
        self.found = found


class Doctor:
    """Watches a training and names why it fails; reports nothing where it does not.

        doctor = Doctor(model, optimizer, loss_fn=loss_fn)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        print(doctor.report())

    The training stays as it is, bit for bit: whatever the doctor tries runs on a copy of the model.
    The random state is restored after it, and so is all that the loss function reaches: other
    networks, their buffers and modes, lists, counters. The copy and the initial weights cost twice
    the model's memory, kept batches at most 128 MiB. What the doctor cannot look at never raises;
    the report says it.

    Args:
        model: any module; one from `torch.compile` too.
        optimizer: any of `torch.optim`.
        loss_fn: called as `loss_fn(model(inputs), targets)`. Without it, nothing is said about the
            loss function, and no trial is run.
        every: steps between two probes of the layers. From the tenth probe on the distance doubles
            as often as the number of steps does.
        budget: the most training steps that trials may take, over all reports.
        save_to: folder for the batch and the weights of a first non-finite number.
        steps_before: steps that the training took before the doctor watched, where it goes on from
            a checkpoint.
        sample_axis: the axis of the inputs along which samples lie, 0 or 1. None where a batch
            cannot be parted into samples that are apart, as with a graph, or with pairs. "find"
            tries it out on the first batch.
        on_nonfinite: what to do at the step whose loss, gradients or weights are the first to hold
            NaN or infinity: "raise" a `NonFiniteError` from `step`, "warn", or None, which leaves
            it to the report. Anything but None looks at all gradients and weights in every step.
        memory: "low" keeps no copy of the model and of its initial weights. What needs one is not
            looked at then, trials among it.

    Raises:
        TypeError: a model that is no module, an optimiser that is none, or one of them that takes
            no hooks.
        ValueError: `every` below 1, `budget` below 0, or a value that is not listed here.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        every: int = 20,
        budget: int = 200,
        save_to: Path | str | None = None,
        steps_before: int = 0,
        sample_axis: int | str | None = FIND,
        on_nonfinite: Literal["raise", "warn"] | None = None,
        memory: Literal["normal", "low"] = "normal",
    ) -> None:
        if budget < 0:
            raise ValueError(f"budget={budget}: at least 0 is needed")
        if on_nonfinite not in ("raise", "warn", None):
            raise ValueError(f'on_nonfinite={on_nonfinite!r}: "raise", "warn" or None is needed')
        if memory not in ("normal", "low"):
            raise ValueError(f'memory={memory!r}: "normal" or "low" is needed')
        self.budget = budget
        self._on_nonfinite = on_nonfinite
        self._told = False  # of the first non-finite number
        self._observer = Observer(
            model,
            optimizer,
            loss_fn,
            every=every,
            save_to=Path(save_to) if save_to is not None else None,
            steps_before=steps_before,
            sample_axis=sample_axis,
            at_once=on_nonfinite is not None,
            copies=memory == "normal",
        )
        self._trials = TrialRunner(self._observer.training)

    @property
    def evidence(self) -> Evidence:
        """What has been seen; brought up to date by `report`."""
        return self._observer.evidence

    @property
    def replay(self) -> dict[str, Any] | None:
        """Batch, weights and random state of the first step that was not finite, None without."""
        return self._observer.nonfinite.saved

    def step(self, loss: Any, inputs: Any = None, targets: Any = None) -> None:
        """Take note of one training step; to be called after `optimizer.step()`.

        Args:
            loss: the loss that was stepped with, a scalar tensor.
            inputs: the batch, or a tuple or dict of the model's arguments. Without it, the model's
                call that was seen in the step is taken.
            targets: what `loss_fn` compares the outputs with. Without it, nothing is said about
                the loss function, unless that needs no targets, nor about how well outputs fit.

        Raises:
            NonFiniteError: the first NaN or infinite number appeared in this step, and the doctor
                was made with `on_nonfinite="raise"`.
        """
        self._observer.step(loss, inputs, targets)
        found = self.evidence.nonfinite
        if found is None or self._told or self._on_nonfinite is None:
            return
        self._told = True
        message = non_finite.told(self.evidence, found)
        if self._on_nonfinite == "raise":
            raise NonFiniteError(message, found)
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def validate(self, inputs: Any, targets: Any = None) -> None:
        """Evaluate a copy of the model, in evaluation mode, on at most 1,024 validation samples.

        To be called where the loop evaluates, as often as it does. Of more than ten validations
        some are left out: the number of those evaluated grows with the logarithm of all. `report`
        evaluates with the latest samples and the weights as they are then.

        Args:
            inputs: as for `step`; the whole validation set or a batch of it.
            targets: as for `step`. Without them, only the inputs are compared with the training's.
        """
        self._observer.validate(inputs, targets)

    def hopeless(self) -> str | None:
        """Return in a clause why the training cannot come to learn any more, None where it may.

        To be called between two steps, where a training that is beyond help is to be ended. A
        training that is merely slow, or on a plateau, is not hopeless. It takes one forward and one
        backward pass of a copy, and up to eight of each where the first finds nothing that learns.
        """
        return self._observer.why_hopeless()

    def report(self, trials: bool = True) -> Report:
        """Return the diagnosis so far.

        Where something looks wrong, trials run here on copies, within the budget.

        Args:
            trials: False leaves them out.
        """
        self._observer.gather()
        if trials:
            self._trials.run(self.budget)
        return causes.diagnose(self.evidence, budget=self.budget)

    def state_dict(self) -> dict[str, Any]:
        """Return what the doctor knows, for a checkpoint; between two steps.

        Of plain values and tensors, which `torch.load` reads with `weights_only=True`: the initial
        weights, kept batches of 128 MiB at most, the samples of the latest validation, the latest
        batch and a few MiB of numbers. Tensors are not copied: it is to be saved before the next
        step. Where a batch holds objects of other kinds, it holds the number of steps alone: a
        doctor that goes on from it calls no training healthy.
        """
        loop = self.evidence.loop
        state: dict[str, Any] = {
            "steps": loop.steps_before + loop.steps,
            "told": self._told,
            "shapes": self._shapes(),
        }
        try:
            return state | {"seen": self._observer.state() if loop.steps else None}
        except NotKeptError as error:
            return state | {"lost": str(error)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what a doctor of the same training knew; before the first step.

        Model and optimiser are to be restored too. Then the report is the one of a training that
        was never interrupted.

        Args:
            state: the result of `state_dict`.

        Raises:
            ValueError: it is of another model or another version, or steps have been watched.
        """
        loop = self.evidence.loop
        if loop.steps:
            raise ValueError(f"{loop.steps} steps have been watched: a state is loaded before them")
        if self._shapes() != state["shapes"]:
            raise ValueError("the state is of another model: parameters have other names or shapes")
        self._told = state["told"]
        if "lost" in state:
            loop.steps_before = state["steps"]
            troubles.note(
                self.evidence,
                f"what was seen of the first {state['steps']} steps was not kept ({state['lost']})",
            )
        elif state["seen"] is not None:
            self._observer.restore(state["seen"])

    def _shapes(self) -> dict[str, list[int]]:
        parameters = self._observer.training.model.named_parameters()
        return {name: list(parameter.shape) for name, parameter in parameters}

    def close(self) -> None:
        """Take all hooks off the model and the optimiser, and let go of copies and batches."""
        self._observer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
