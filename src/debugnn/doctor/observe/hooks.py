"""Hooks on the model and the optimiser, which note what happens between two steps."""

from collections.abc import MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from debugnn.doctor.copies import Relay
from debugnn.doctor.nonfinite.replay import NonFiniteReplay
from debugnn.doctor.observe import transforms
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import Call, map_tensors, scores_of
from debugnn.doctor.observe.critics import Critic
from debugnn.doctor.observe.erased_gradients import ErasedGradients
from debugnn.doctor.observe.forward_passes import ForwardPass
from debugnn.doctor.observe.graph import UnregisteredLeaves
from debugnn.doctor.observe.input_derivatives import InputDerivatives
from debugnn.doctor.observe.layers import LayerProbes
from debugnn.doctor.observe.loss_calls import LossCalls, is_compiling
from debugnn.doctor.observe.loss_parameters import LossParameters
from debugnn.doctor.observe.module_state import StateBetweenSteps
from debugnn.doctor.observe.opponents import Opponents
from debugnn.doctor.observe.optimizer import RateCurve
from debugnn.doctor.observe.policy_in_loop import PolicyInLoop
from debugnn.doctor.observe.rivals import Rivals
from debugnn.doctor.observe.stale_gradients import StaleGradients
from debugnn.doctor.observe.volume import Volume, volume_like
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded
from debugnn.errors import one_line

_SMALLEST = 32  # parameters whose gradients may be erased between two passes: heads are small


class TrainingHooks:
    """Notes forward passes, gradients and updates as they come.

    Args:
        training: what is watched.
        model: as the loop calls it, which may be one from `torch.compile`.
        replay: is given the weights of the first update whose gradients are not finite.
        at_once: look at all gradients in every step.

    Attributes:
        evidence: what has been seen.
        outputs: of the latest forward pass since the last step.
        output_gradient: of the scores among these outputs, where a probe is due. The latest
            backward pass counts.
        volume: places of outputs that may be a flow's.
        volume_gradients: place → gradient of these outputs, where a probe is due.
        layers: gradients and updates.
        leaves: tensors of the outputs' graph that the model does not list.
        rates: learning rates.
        rivals: other networks.
        loss_parameters: of the loss function itself.
        opponents: other doctors' networks that are given this one's outputs.
        critic: what other networks' losses ask of the model, where it is one of values.
        state: what the model keeps in itself between steps.
        derivatives: by the inputs, which the loss is made of.
        policy: what the loop's own loss does to the actions of a policy.
        loss_calls: what functions are given that the loss is computed by.

    Raises:
        TypeError: a model or an optimiser that takes no hooks.
    """

    not_in_state = (
        "_as_given",
        "_at_once",
        "_handles",
        "_unsized",
    )

    def __init__(
        self, training: WatchedTraining, model: nn.Module, replay: NonFiniteReplay, at_once: bool
    ) -> None:
        self.evidence = training.evidence
        self.outputs: Any = None
        self.output_gradient: Tensor | None = None
        self.volume: Volume | None = None
        self.volume_gradients: dict[int, Tensor] = {}
        self.layers = LayerProbes(training.evidence, training.model)
        self.leaves = UnregisteredLeaves(training.model, training.optimizer)
        self.rates = RateCurve()
        self.rivals = Rivals(training.model, training.optimizer)
        self.loss_parameters = LossParameters(training.model, training.optimizer)
        self.opponents = Opponents(training)
        self.critic = Critic(training)
        self.state = StateBetweenSteps(training.model)
        self.loss_calls = LossCalls(training.evidence, lambda: self.outputs)
        self.derivatives = InputDerivatives(training.evidence, training.model)
        self.policy = PolicyInLoop(training.model)
        self._training = training
        self._replay = replay
        self._at_once = at_once
        self._loop = training.evidence.loop
        self._stale = StaleGradients(self._loop, training.optimizer)
        self._erased = ErasedGradients(self._loop)
        self._forwards = 0  # passes with gradients
        self._begun = False
        self._as_given: Call | None = None  # before a model took items out of a mapping
        self._unsized: tuple[Call, bool, list[Tensor]] | None = None  # a pass of lazy layers
        self._handles: list[Any] = []
        self.put_on(model)

    def put_on(self, model: nn.Module) -> None:
        """Hang hooks on the model and the optimiser.

        Args:
            model: as the loop calls it.

        Raises:
            TypeError: one of them takes none.
        """
        optimizer = self._training.optimizer
        try:
            self._handles += [
                model.register_forward_pre_hook(Relay(self, "_before_forward"), with_kwargs=True),
                model.register_forward_hook(Relay(self, "_after_forward")),
            ]
        except RuntimeError as error:  # TorchScript
            raise TypeError(f"model takes no hooks: {one_line(error)}") from error
        try:
            self._handles += [
                optimizer.register_step_pre_hook(Relay(self, "_before_update")),
                optimizer.register_step_post_hook(Relay(self, "_after_update")),
            ]
        except AttributeError as error:
            self.release()
            kind = type(optimizer).__name__
            raise TypeError(f"{kind} takes no hooks: it never called super().__init__()") from error

    def take_off(self) -> None:
        """Take the hooks off the model and the optimiser."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def settle(self) -> None:
        """Take off the hooks on parameters that a state from a checkpoint has no need of."""
        self._stale.settle()
        self._erased.settle()

    @property
    def are_busy(self) -> bool:
        """True where something is noted at each step, with hooks of its own."""
        return self.leaves.looks or self._stale.looks or self._erased.looks

    @property
    def kept_weights(self) -> bool:
        """True once the weights of an update are kept whose gradients were not finite."""
        return self._replay.pending

    def begin(self) -> None:
        """Copy the model and note what the optimiser holds, before the first forward pass."""
        if self._begun:
            return
        self._begun = True
        self._training.copy_model()
        model, optimizer = self._training.model, self._training.optimizer
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        watched = sorted(
            ((n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) in held),
            key=lambda pair: pair[1].numel(),
        )
        # A number alone has no direction that could be compared.
        several = [p for _, p in watched if p.numel() > 1]
        self._stale.watch((several or [p for _, p in watched])[:2])
        self._erased.watch(watched[:_SMALLEST])

    def clear(self) -> None:
        """Forget the outputs and the probe of a step."""
        self.outputs = self.output_gradient = None
        self.volume_gradients = {}
        self.derivatives.clear()
        self.critic.note_step()
        self.policy.clear()
        self.layers.drop()

    def release(self) -> None:
        """Take all hooks off, and let go of what they have kept."""
        self.take_off()
        self.derivatives.clear()
        self._stale.release()
        self._erased.release()
        self.loss_calls.ignore()
        self.loss_parameters.release()
        self.opponents.release()
        self.critic.release()
        self.policy.clear()
        self.layers.release()
        self.leaves.release()
        self.output_gradient = None
        self.volume_gradients = {}

    @guarded("a forward pass")
    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = Call(args, kwargs)
        if not transforms.is_active():
            self._note_start(given)
            return
        self.derivatives.note_transformed(given)
        with transforms.paused():
            self._note_start(given.map(transforms.unwrapped))

    def _note_start(self, call: Call) -> None:
        training, passes = self._training.model.training, self._training.passes
        learning = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if not learning:
            self.state.note_interruption()
            if passes.note_evaluation(call, training):
                self._loop.evaluation_line = self._loop.evaluation_line or line_of_caller()
            return
        if not self._begun and any(map(is_lazy, self._training.model.parameters())):
            # The layers learn their sizes in this pass: it is noted at its end, before any update.
            self._unsized = call, training, self._training.random_state()
            return
        self.begin()
        if self._training.loss_fn is None and self._training.probe_due:
            self.loss_calls.watch()
        call.prepare = self.state.note_start(first=not passes.pending)
        self.rivals.note_inputs(call.tensors())
        if self._loop.training_line is None:
            self._loop.training_line = line_of_caller()
        if not training and self._loop.eval_mode_line is None:
            self._loop.eval_mode_line = line_of_caller()
        if self._training.probe_due and not is_compiling():
            self.derivatives.watch_layers(call)
        passes.note_training(ForwardPass(call, training, self._training.random_state()))
        if any(isinstance(value, MutableMapping) for value in (*call.args, *call.kwargs.values())):
            self._as_given = call.map(lambda tensor: tensor)

    @guarded("the outputs of a forward pass")
    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.opponents.note_outputs(output)
        if not torch.is_grad_enabled():
            return
        if not transforms.is_active():
            self._note_end(output)
            return
        with transforms.paused():
            self._note_end(map_tensors(output, transforms.unwrapped))

    def _note_end(self, output: Any) -> None:
        if self._unsized is not None:
            call, training, state = self._unsized
            self._unsized = None
            self.begin()
            self._training.passes.note_training(ForwardPass(call, training, state))
        if self._as_given is not None:
            self._training.passes.put_back(self._as_given)
            self._as_given = None
        self.outputs = map_tensors(output, Tensor.detach)
        self._forwards += 1
        self.state.note_end()
        if self._training.probe_due:
            scores = scores_of(output)
            if scores is not None and scores.requires_grad and not scores.is_leaf:
                note = Relay(self, "_note_output_gradient")
                scores.register_hook(partial(_with_place, note, self._forwards))
            if self._training.loss_fn is None:
                self.policy.watch(output)
            self._watch_volume(output)
        pending = self._training.passes.pending
        if self._training.probe_due and pending:
            self.derivatives.watch(pending[-1].call)
        if pending:
            self.critic.note_pass(pending[-1].call, output)
        if self.leaves.looks and pending:
            self.leaves.look(pending[-1].call, output)

    def _watch_volume(self, output: Any) -> None:
        self.volume, tensors = volume_like(output), Call((output,)).tensors()
        for place in self.volume or ():
            if not tensors[place].is_leaf:
                note = Relay(self, "_note_volume_gradient")
                tensors[place].register_hook(partial(_with_place, note, place))

    def _note_volume_gradient(self, place: int, gradient: Tensor) -> None:
        self.volume_gradients[place] = gradient.detach()

    def _note_output_gradient(self, forward: int, gradient: Tensor) -> None:
        if forward == self._forwards:  # an earlier pass may be gone back through later
            self.output_gradient = gradient.detach()

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict] | None:
        """Note the gradients of an update; with a closure, those that its first call leaves.

        Returns:
            Arguments with a closure that notes them; None where there is no closure.
        """
        own, *rest = args  # a hook on the step gets the optimiser too
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self.note_update(optimizer)
            return None
        noted = False

        def watched() -> Any:
            nonlocal noted
            result = closure()
            if not noted:
                noted = True
                self.note_update(optimizer)
            return result

        if rest:
            return (own, watched, *rest[1:]), kwargs
        return args, {**kwargs, "closure": watched}

    @guarded("the gradients before an update")
    def note_update(self, optimizer: torch.optim.Optimizer, thorough: bool = False) -> None:
        """Look at the gradients and the rates of an update, before it.

        Args:
            thorough: at all values of all gradients; else only where numbers are read anyway.
        """
        training = self._training
        due, state = training.probe_due, training.state_before_pass()
        reading = training.reading_due
        if self._loop.update_line is None:
            self._loop.update_line = line_of_caller()
        training.passes.note_update(training.model.training)
        self._stale.compare(reading)
        self._erased.compare([each.call for each in training.passes.pending])
        self.layers.refresh(reading)
        if not self.layers.has_gradients():
            self._loop.empty_steps += 1
            return
        self.note_rates(optimizer)
        thorough = thorough or reading or self._at_once
        if self.evidence.nonfinite is None and self.layers.has_nonfinite_gradients(thorough):
            self._replay.keep(training.model, state)
        if due:
            self._compare_policy()
            self.layers.measure_gradients(training.replica)

    def note_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the learning rates of an update, before it."""
        if self.rates.note(optimizer) and self._training.replica is not None:
            self._training.replica.note_rates(optimizer)

    @guarded("the numbers that a policy's actions are weighted by")
    def _compare_policy(self) -> None:
        self.policy.compare()

    @guarded("the weights after an update")
    def _after_update(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self._loop.optimizer_steps += 1
        self._stale.keep(self._training.probe_follows)
        self._erased.clear()
        self.layers.measure_updates()


def _with_place(note: Relay, place: int, gradient: Tensor) -> None:
    note(place, gradient)
