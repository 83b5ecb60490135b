"""The doctor: watches a training from one line in its loop, and says in the end what ails it."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor import causes, copy_training
from debugnn.doctor.copies import Relay, own_loss, state_of, twin_of, undisturbed
from debugnn.doctor.copy_training import CopyTraining
from debugnn.doctor.evidence import (
    Evidence,
    LayerFacts,
    NonFinite,
    Probe,
    Score,
    TrialOutcome,
    Validation,
)
from debugnn.doctor.nonfinite import find_origin
from debugnn.doctor.observe import gather, network
from debugnn.doctor.observe.first_look import batch_size, first_look
from debugnn.doctor.observe.kept import Kept, KeptBatch, ValidationSet, copied, rows_of
from debugnn.doctor.observe.network import Call
from debugnn.doctor.observe.stale_gradients import Residue
from debugnn.doctor.observe.task import Task, read, score
from debugnn.doctor.report import Report
from debugnn.doctor.trials import UNCHANGED, Trial
from debugnn.errors import one_line
from debugnn.random_state import random_state, set_random_state
from debugnn.tensor_stats import read_together

_VALIDATED = 1024  # samples of a validation set that are looked at
_PROBED = 8  # samples of a batch that activations are looked at with
_TRIAL_BATCHES = 8
_TRIAL_STEPS = 24
_EARLY_PROBES = (3, 8)
# Probes that look at everything. Later ones leave out the updates, and three of four the
# activations: what dies or saturates stays so.
_THOROUGH_PROBES = 10
_SMALL = 2**13  # values of a gradient that is looked at in every step


def _harmless(method: Callable) -> Callable:
    """A method whose own failure must not end the training: it becomes a line of the report."""

    @functools.wraps(method)
    def guarded(self: "Doctor", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # a model, a loss or a batch that nobody has thought of
            what = method.__name__.strip("_")
            self._trouble(f"{what}: {type(error).__name__}: {one_line(error)}")
            return None

    return guarded


class Doctor:
    """Watches a training and names why it fails; stays silent where it does not.

        doctor = Doctor(model, optimizer, loss_fn=loss_fn)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        print(doctor.report())

    The training stays as it is, bit for bit: probes and trials run on a copy of the model, and the
    random state is restored after them. The copy and the initial weights cost twice the model's
    memory, kept batches some 128 MiB at most.

    Args:
        model: any module; one from `torch.compile` too.
        optimizer: any of `torch.optim`.
        loss_fn: called as `loss_fn(model(inputs), targets)`. Without it, nothing is said about the
            loss function, and no trial is run.
        every: steps between two probes of the layers.
        budget: most training steps that trials may take, over all reports.
        save_to: folder for the batch and the weights of a first non-finite number.
        steps_before: steps that the training took before the doctor was there, where it goes on
            from a checkpoint.

    Raises:
        TypeError: a model that is no module, an optimiser that is none.
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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: a torch.nn.Module is needed")
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer is a {kind}: a torch.optim.Optimizer is needed")
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn is a {type(loss_fn).__name__}: a function is needed")
        if every < 1 or budget < 0:
            raise ValueError(f"every={every}, budget={budget}: at least 1 and 0 are needed")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.every = every
        self.budget = budget
        self.save_to = Path(save_to) if save_to is not None else None
        self.replay: dict[str, Any] | None = None  # of the first non-finite number
        self.evidence = Evidence()
        self._loop = self.evidence.loop
        self._loop.steps_before = steps_before
        self._losses: list[float] = []
        # Losses on a GPU, read together at a probe, with their steps; None for an empty batch's.
        self._unread: list[tuple[int | None, Tensor]] = []
        self._broke_at: int | None = None  # first step whose loss was not finite
        self._twin: nn.Module | None = None
        self._initial: dict[str, Tensor] = {}
        self._groups: list[dict[str, Any]] = []
        self._kept = Kept()
        self._validation: ValidationSet | None = None
        # Forwards since the last step, with the mode and the random state before each.
        self._pending: list[tuple[Call, bool, list[Tensor]]] = []
        self._outputs: Any = None
        self._last_call: Call | None = None
        self._probe: Probe | None = None
        self._before: dict[str, Tensor] = {}
        self._broken: dict[str, Any] | None = None
        self._ratios: list[float] = []
        self._residue = Residue(self._loop)
        self._named: list[tuple[str, nn.Parameter]] = []  # as of the last probe
        self._small: list[nn.Parameter] = []  # of these, those looked at in every step
        self._graded: set[str] = set()  # parameters that have had a gradient
        self._task: Task | None = None
        self._begun = False
        self._device = torch.device("cpu")  # the model's
        self._handles: list[Any] = []
        self._hook(model)

    # --- hooks: what happens between two calls of step ------------------------------------------

    def _hook(self, model: nn.Module) -> None:
        try:
            self._handles += [
                model.register_forward_pre_hook(Relay(self, "_before_forward"), with_kwargs=True),
                model.register_forward_hook(Relay(self, "_after_forward")),
            ]
        except RuntimeError as error:  # TorchScript
            raise TypeError(f"model takes no hooks: {one_line(error)}") from error
        try:
            self._handles += [
                self.optimizer.register_step_pre_hook(Relay(self, "_before_update")),
                self.optimizer.register_step_post_hook(Relay(self, "_after_update")),
            ]
        except AttributeError as error:
            self.close()
            kind = type(self.optimizer).__name__
            raise TypeError(f"{kind} takes no hooks: it never called super().__init__()") from error

    @_harmless
    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        learning = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if learning and not self._begun:
            self._begin()
        call = Call(args, kwargs)
        if learning:
            self._pending.append((call, self.model.training, self._random_state()))
            del self._pending[:-4]
            return
        self._loop.evaluations += 1
        last = self._last_call
        on_training_batch = (
            last is not None and args and last.args and args[0] is last.args[0]
        )  # the training accuracy of a batch, in passing
        if self.model.training and not on_training_batch:
            self._loop.train_mode_evaluations += 1

    @_harmless
    def _after_forward(self, module: nn.Module, args: tuple, output: Any) -> None:
        if torch.is_grad_enabled() and self._due:
            self._outputs = network.mapped(output, lambda tensor: tensor.detach())

    @_harmless
    def _before_update(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._pending:
            self._last_call, training, state = self._pending[-1]
        else:  # the model runs compiled
            training, state = self.model.training, self._random_state()
        self._loop.training_forwards += 1
        if not training:
            self._loop.eval_mode_forwards += 1
            if self._loop.first_eval_mode is None:
                self._loop.first_eval_mode = self._loop.steps
        self._residue.compare(self._due)
        if self._due or not self._named:  # listing them takes as long as a small layer
            self._named = list(self.model.named_parameters())
            self._small = [p for _, p in self._named if p.numel() <= _SMALL and not _waits(p)]
        if all(p.grad is None for _, p in self._named):
            self._loop.empty_steps += 1
            return
        for group, kept in zip(optimizer.param_groups, self._groups, strict=False):
            kept["lr"] = max(float(kept["lr"]), float(group["lr"]))  # a warm-up starts at zero
        if self.evidence.nonfinite is None and self._nonfinite_gradient():
            self._keep_broken(state)
        if self._due:
            named = [(n, p) for n, p in self._named if p.grad is not None]
            self._graded.update(name for name, _ in named)
            self._probe_gradients(named)

    def _nonfinite_gradient(self) -> bool:
        """Whether a gradient holds NaN or infinity: of small tensors at every step, of all at
        a probe. On its way to the first layers NaN passes every layer, and each has a small one."""
        parameters = [p for _, p in self._named] if self._due else self._small
        gradients = [p.grad for p in parameters if p.grad is not None]
        gradients = [g.coalesce().values() if g.is_sparse else g.detach() for g in gradients]
        if not gradients:
            return False
        total = sum(read_together(torch._foreach_norm(gradients)))
        # Norms of finite numbers can overflow.
        return not math.isfinite(total) and any(not torch.isfinite(g).all() for g in gradients)

    def _probe_gradients(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        gradients = {n: p.grad.detach() for n, p in named if not p.grad.is_sparse}
        weights = {n: p.detach() for n, p in self.model.named_parameters() if p.dim() >= 2}
        names = list(weights)
        pulled = [n for n in names if n in gradients]
        with torch.no_grad():
            sizes = _norms([weights[n] for n in names])
            pulls = dict(zip(pulled, _norms([gradients[n] for n in pulled]), strict=True))
            if len(self.evidence.probes) < _THOROUGH_PROBES:
                self._before = {n: weights[n].clone() for n in names}
        layers = {n: LayerFacts(pulls.get(n), size) for n, size in zip(names, sizes, strict=True)}
        self._probe = Probe(self._loop.steps, layers)

    @_harmless
    def _after_update(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self._loop.optimizer_steps += 1
        self._residue.keep(self.every)
        if self._probe is not None and self._before:
            weights = dict(self.model.named_parameters())
            moved = [weights[n].detach() - before for n, before in self._before.items()]
            for name, update in zip(self._before, _norms(moved), strict=True):
                self._probe.layers[name].update = update
            self._before = {}

    # --- the loop's one line --------------------------------------------------------------------

    def step(self, loss: Any, inputs: Any, targets: Any) -> None:
        """Take note of one training step; to be called after `optimizer.step()`.

        Args:
            loss: the loss that was stepped with, a scalar tensor.
            inputs: the batch, or a tuple or dict of the model's arguments.
            targets: what `loss_fn` compares the outputs with.
        """
        self._note(loss, inputs, targets)
        # Counted whatever happens above, so that probes stay where they belong.
        self._loop.steps += 1
        self._pending.clear()
        self._outputs = None
        self._probe = None

    @property
    def _due(self) -> bool:
        return self._loop.steps % self.every == 0 or self._loop.steps in _EARLY_PROBES

    @_harmless
    def _note(self, loss: Any, inputs: Any, targets: Any) -> None:
        if not self._begun:
            self._begin()  # a model that is never called with gradients
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss))
        if value.numel() != 1:
            self._trouble(f"the loss has shape {tuple(value.shape)}: its mean is taken")
            value = value.float().mean()
        call = self._called(inputs)
        if any(t.numel() == 0 for t in call.tensors()):
            self._unread.append((None, value))
            return
        self._kept.take(call, inputs, targets, self._due)
        if self._task is None:
            self._examine()
        step = self._loop.steps
        self._unread.append((step, value))
        if self._due or not _waits(value):
            self._read_losses()
            # Of a loss that is read late, on a GPU, the weights hold it by now, and tell nothing.
            broke = self._broke_at
            late = _waits(value) and broke is not None and broke < step
            if self.evidence.nonfinite is None and not late:
                self._look_for_nonfinite(call, targets)
        if self._due:
            self._compare_loss(value, targets)
            if self._probe is None:
                self._probe = Probe(self._loop.steps)
            self._probe_activations(call)
            self.evidence.probes.append(self._probe)

    def _read_losses(self) -> None:
        """Fetch the losses since the last call, all at once."""
        values = read_together([loss for _, loss in self._unread])
        for (step, _), value in zip(self._unread, values, strict=True):
            if self._broke_at is None and step is not None and not math.isfinite(value):
                self._broke_at = step
        self._losses += values
        self._unread.clear()

    def _called(self, inputs: Any) -> Call:
        """How the model was called in this step: by the hook's word, else by the inputs given."""
        if len(self._pending) == 1:
            return self._pending[0][0]
        return as_call(inputs)

    @_harmless
    def _compare_loss(self, value: Tensor, targets: Any) -> None:
        if self.loss_fn is None or self._outputs is None:
            return
        with undisturbed(), torch.no_grad():
            own = own_loss(self.loss_fn)(self._outputs, targets).float().mean().item()
        if math.isfinite(own) and abs(own) > 1e-8 and math.isfinite(value.item()):
            self._ratios.append(value.item() / own)

    def _probe_activations(self, call: Call) -> None:
        taken = len(self.evidence.probes)
        if taken >= _THOROUGH_PROBES and taken % 4:
            return
        twin = self._current_twin(load=self._loop.steps > 0)
        if twin is None:
            return
        batch = batch_size(call)

        def few(tensor: Tensor) -> Tensor:
            return tensor[:_PROBED] if tensor.dim() and len(tensor) == batch else tensor

        with undisturbed(), network.no_dropout(twin, training=True):
            signals = network.Signals()
            signals.watch(twin, call.map(few))
        self._probe.activations, self._probe.inputs = signals.activations, signals.inputs

    # --- the copy -------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Before the first forward pass: copy the model, note what the optimiser holds."""
        self._begun = True
        self._device = next((p.device for p in self.model.parameters()), self._device)
        try:
            self._twin = twin_of(self.model)
            self._initial = state_of(self._twin)
        except Exception as error:  # a module that holds a lock, a generator, a graph
            self._twin = None
            self._trouble(f"the model cannot be copied ({one_line(error)}): it is not tried out")
        names = {id(p): n for n, p in self.model.named_parameters()}
        for group in self.optimizer.param_groups:
            kept = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
            kept["names"] = [names[id(p)] for p in group["params"] if id(p) in names]
            self._groups.append(kept)
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        watched = sorted(
            (p for p in self.model.parameters() if p.requires_grad and id(p) in held),
            key=Tensor.numel,
        )
        self._handles += self._residue.watch(watched[:2])

    def _current_twin(self, load: bool = True) -> nn.Module | None:
        """The copy with the model's present weights and buffers, without gradients."""
        if self._twin is not None and load:
            with torch.no_grad():
                self._twin.load_state_dict(self.model.state_dict())
        return self._twin

    # --- non-finite numbers ---------------------------------------------------------------------

    def _random_state(self) -> list[Tensor]:
        return random_state(self._device)

    def _keep_broken(self, state: list[Tensor]) -> None:
        """The weights before the update that a non-finite gradient is about to spoil."""
        if self._broken is None:
            self._broken = {"model": state_of(self.model), "random_state": state}

    def _look_for_nonfinite(self, call: Call, targets: Any) -> None:
        if self._broken is None:
            if math.isfinite(self._losses[-1]):
                return
            self._keep_broken(self._pending[-1][-1] if self._pending else self._random_state())
        step, broken = self._loop.steps, self._broken
        found = None
        if self._twin is not None:
            buffers = dict(self._twin.named_buffers())  # as of the last probe
            state = {
                n: buffers[n] if n in buffers and not torch.isfinite(t).all() else t
                for n, t in broken["model"].items()
            }
            scratch = copy.deepcopy(self._twin)
            scratch.load_state_dict(state)
            scratch.train()
            with undisturbed():
                set_random_state(self._device, broken["random_state"])
                found = find_origin(
                    scratch, own_loss(self.loss_fn), call.kwargs or call.args, targets,
                    call=lambda model, _: call(model),
                )  # fmt: skip
        if found is None:
            self.evidence.nonfinite = NonFinite(
                step, "unknown", "", None, "nan", [], 0, 0.0, overflow=True
            )
        else:
            self.evidence.nonfinite = NonFinite(
                step, found.where, found.name, found.layer, found.kind, list(found.samples),
                found.count, found.magnitude, found.overflow,
            )  # fmt: skip
        self.replay = {
            "step": step,
            "call": {"args": call.args, "kwargs": call.kwargs},
            "targets": targets,
            **broken,
        }
        if self.save_to is not None:
            self.save_to.mkdir(parents=True, exist_ok=True)
            path = self.save_to / f"nonfinite_step_{step}.pt"
            torch.save(self.replay, path)
            self.evidence.nonfinite.replay = str(path)

    # --- validation -----------------------------------------------------------------------------

    def validate(self, inputs: Any, targets: Any) -> None:
        """Evaluate a copy of the model, in evaluation mode, on (at most 1,024) validation samples.

        To be called where the loop evaluates, as often as it does.
        """
        self._validate(inputs, targets)

    @_harmless
    def _validate(self, inputs: Any, targets: Any) -> None:
        self._loop.validations += 1
        if self.model.training and not torch.is_grad_enabled():
            self._loop.validated_in_train_mode += 1
        if not self._begun:
            self._begin()
        twin = self._current_twin()
        if twin is None or not isinstance(targets, Tensor):
            return
        call = self._like_training(as_call(inputs))
        batch = batch_size(call, len(targets))
        count = min(batch or 1, _VALIDATED)
        chosen = torch.linspace(0, (batch or 1) - 1, count).long()

        def some(tensor: Tensor) -> Tensor:
            matches = tensor.dim() and batch is not None and len(tensor) == batch
            return tensor[chosen.to(tensor.device)] if matches and count < batch else tensor

        call, targets = call.map(some), some(targets)
        with undisturbed(), torch.no_grad(), network.no_dropout(twin, training=False):
            outputs = gather.in_chunks(twin, call, count)
            loss = self._value(outputs, targets)
        task, step = self._task or read(outputs, targets), self._loop.steps
        self.evidence.outcome.validations.append(
            Validation(step, loss, score(task, outputs, targets, self._kept.rarest(task)))
        )
        rows = copied(some(rows_of(inputs)))
        self._validation = ValidationSet(
            call.map(copied), rows, copied(targets), batch or 1, step, outputs
        )

    def _value(self, outputs: Any, targets: Any) -> float | None:
        if self.loss_fn is None:
            return None
        return own_loss(self.loss_fn)(outputs, targets).detach().float().mean().item()

    def _like_training(self, call: Call) -> Call:
        """The call with its first tensor in the shape that the model was called with in training.

        For loops that hand `step` and `validate` what they reshape before the model.
        """
        if self._last_call is None or not self._last_call.args or not call.args:
            return call
        seen, given = self._last_call.args[0], call.args[0]
        if not isinstance(seen, Tensor) or not isinstance(given, Tensor):
            return call
        if seen.shape[1:] == given.shape[1:] or not len(given):
            return call
        if given[0].numel() == seen[0].numel():
            return Call((given.reshape(-1, *seen.shape[1:]), *call.args[1:]), call.kwargs)
        return call

    # --- the diagnosis --------------------------------------------------------------------------

    def report(self) -> Report:
        """The diagnosis so far. Trials run here, where something looks wrong, within the budget."""
        self._gather()
        self._run_trials()
        return causes.diagnose(self.evidence, budget=self.budget)

    def close(self) -> None:
        """Take all hooks off the model and the optimiser, and let go of copies and batches."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._twin, self._initial = None, {}
        self._kept.clear()
        self._pending.clear()
        self._named.clear()
        self._small.clear()
        self._validation = None

    def __enter__(self) -> "Doctor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _trouble(self, text: str) -> None:
        if text not in self.evidence.troubles:
            self.evidence.troubles.append(text)

    @_harmless
    def _gather(self) -> None:
        """Bring the evidence up to date."""
        self._read_losses()
        self._kept.print()
        gather.optimizer(
            self.evidence, self.model, self.optimizer, self._groups, self._initial, self._graded
        )
        gather.losses(self.evidence, self._losses, self._ratios)
        self._gather_data()
        self._gather_outcome()

    @_harmless
    def _gather_data(self) -> None:
        gather.data(
            self.evidence, self._kept, self._validation, self._task, self._current_twin,
            self._loop.steps,
        )  # fmt: skip

    @_harmless
    def _gather_outcome(self) -> None:
        twin = self._current_twin()
        if twin is not None and self._task is not None:
            gather.outcome(
                self.evidence, self._kept, self._task, self.model, twin, self._groups,
                self._initial,
            )  # fmt: skip

    @_harmless
    def _examine(self) -> None:
        """The network and the loss function as they are at the start, tried out on a batch."""
        self._task = Task("unknown")
        if self._twin is None or not self._kept.early:
            return
        call, _, targets = self._kept.early[0]
        twin = copy.deepcopy(self._twin)
        with undisturbed():
            self._task = first_look(twin, call, targets, own_loss(self.loss_fn), self.evidence)
            self.evidence.outcome.initial = gather.score_of(
                gather.outputs_of(twin, self._kept.early[:1], training=True),
                self._task, self._kept,
            )  # fmt: skip

    # --- trials ---------------------------------------------------------------------------------

    @_harmless
    def _run_trials(self) -> None:
        """Run the trials that the causes ask for, one after the other, within the budget."""
        if self._twin is None or self._task is None or not self._kept.early:
            return
        if self.loss_fn is None or self.evidence.loss.error is not None:
            return
        while wanted := [
            trial
            for trial in causes.trials_wanted(self.evidence)
            if trial.name not in self.evidence.trials
        ]:
            steps = min(_TRIAL_STEPS, self.budget - self.evidence.trial_steps)
            if steps < _TRIAL_STEPS // 2:
                return
            outcome = self._outcome_of(wanted[0], steps)
            self.evidence.trials[wanted[0].name] = outcome
            self.evidence.trial_steps += outcome.steps

    def _outcome_of(self, trial: Trial, steps: int) -> TrialOutcome:
        with undisturbed(), torch.enable_grad():
            torch.random.default_generator.manual_seed(0)  # not seeding a GPU that sleeps
            try:
                return copy_training.run(self._copy_training(trial), self._task, steps)
            except Exception as error:
                self._trouble(f"trial {trial.name}: {type(error).__name__}: {one_line(error)}")
                return TrialOutcome(0, math.nan, math.nan)

    def _copy_training(self, trial: Trial, size: int | None = None) -> CopyTraining:
        """A training from the start, on the first batches, or on `size` samples alone."""
        model = copy.deepcopy(self._twin)
        model.load_state_dict(self._initial)
        batches = [
            copy_training.Batch(b.call, b.targets) for b in self._kept.early[:_TRIAL_BATCHES]
        ]
        if size is not None:
            call, targets = batches[0].call, batches[0].targets
            batch = batch_size(call, len(targets))

            def few(tensor: Tensor) -> Tensor:
                return tensor[:size] if tensor.dim() and len(tensor) == batch else tensor

            batches = [copy_training.Batch(call.map(few), few(targets))]
        loss_fn = own_loss(self.loss_fn)
        return CopyTraining(model, self.optimizer, self._groups, loss_fn, batches, trial)

    # --- without a training ---------------------------------------------------------------------

    def consider(
        self, batches: Sequence[tuple[Any, Any]], validation: Sequence[tuple[Any, Any]] | None
    ) -> None:
        """Take note of batches that nothing is trained on: for a check before the training."""
        self._begin()
        for inputs, targets in batches:
            self._kept.take(as_call(inputs), inputs, targets, self._due)
        self._examine()
        if validation:
            inputs, targets = validation[0]
            if all(isinstance(i, Tensor) and isinstance(t, Tensor) for i, t in validation):
                inputs, targets = (torch.cat(parts) for parts in zip(*validation, strict=True))
            self._validate(inputs, targets)
        self._gather()

    @contextmanager
    def trial(self, size: int | None) -> Iterator[CopyTraining | None]:
        """A training of a copy that the caller steps through; None where it cannot be copied."""
        if self._twin is None or self.loss_fn is None or self.evidence.loss.error is not None:
            yield None
            return
        with undisturbed(), torch.enable_grad():
            torch.random.default_generator.manual_seed(0)  # not seeding a GPU that sleeps
            yield self._copy_training(UNCHANGED, size)

    def score_of(self, training: CopyTraining) -> Score:
        """How well a copy's model fits the batches that it is trained on."""
        batches = [KeptBatch(b.call, None, b.targets) for b in training.batches]
        found = gather.outputs_of(training.model, batches, training=True)
        return gather.score_of(found, self._task, self._kept)


def as_call(inputs: Any) -> Call:
    """How a model takes a batch: a tuple or list as its arguments, a dict as its keywords."""
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, list | tuple):
        return Call(tuple(inputs))
    return Call((inputs,))


def _waits(tensor: Tensor) -> bool:
    """Whether to read the tensor is to wait for a device."""
    return tensor.device.type != "cpu"


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norms with one synchronisation; in float64 where float32's squares overflow."""
    if not tensors:
        return []
    norms = read_together(torch._foreach_norm(list(tensors)))
    return [
        n if math.isfinite(n) and n > 0 else torch.linalg.vector_norm(t.double()).item()
        for n, t in zip(norms, tensors, strict=True)
    ]
