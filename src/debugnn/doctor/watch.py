"""The doctor: watches a training from one line in its loop, and says in the end what ails it."""

import copy
import functools
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor import forks, network, rules, samples
from debugnn.doctor.copies import Relay, own_loss, state_of, twin_of, undisturbed
from debugnn.doctor.evidence import (
    DataFacts,
    Evidence,
    LayerFacts,
    NonFinite,
    Probe,
    Score,
    Validation,
)
from debugnn.doctor.examine import batch_size, first_look
from debugnn.doctor.findings import Report
from debugnn.doctor.network import Call
from debugnn.doctor.origin import find_origin
from debugnn.doctor.probes import read_together
from debugnn.doctor.signals import SHIFTED
from debugnn.doctor.task import Task, first_tensor, read, score
from debugnn.errors import one_line
from debugnn.random_state import random_state, set_random_state
from debugnn.runtime import give_back_memory

_KEPT_BATCHES = 4  # of the beginning, at least; more where they hold fewer than _KEPT_SAMPLES
_KEPT_SAMPLES = 768
_DESCRIBED = 1024  # samples that statistics of the data are taken of
_KEPT_BYTES = 64 * 2**20
_LATE_BATCHES = 8
_VALIDATED = 1024  # samples of a validation set that are looked at
_PROBED = 8  # samples of a batch that activations are looked at with
_FORK_BATCHES = 8
_FORK_STEPS = 24
_EARLY_PROBES = (3, 8)
# Probes that look at everything. Later ones leave out the updates, and every other one the
# activations: what dies or saturates stays so.
_THOROUGH_PROBES = 10
_SMALL = 2**13  # values of a gradient that is looked at in every step
_TIDIED = 200  # steps after which memory is given back: what is kept leaves holes between blocks
_COMPARED = 20  # steps whose gradients are all held against the step before
_NOTHING = torch.empty(0)
_PRINTS = 50_000  # samples whose fingerprint is kept


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

    The training stays as it is, bit for bit: probes and forks run on a copy of the model, and the
    random state is restored after them. The copy and the initial weights cost twice the model's
    memory, kept batches at most 64 MiB.

    Args:
        model: any module; one from `torch.compile` too.
        optimizer: any of `torch.optim`.
        loss_fn: called as `loss_fn(model(inputs), targets)`. Without it, nothing is said about the
            loss function, and no fork is run.
        every: steps between two probes of the layers.
        budget: most training steps that forks may take, over all reports.
        save_to: folder for the batch and the weights of a first non-finite number.

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
        self._losses: list[float] = []
        self._unread: list[Tensor] = []  # losses on a GPU, read together at a probe
        self._twin: nn.Module | None = None
        self._initial: dict[str, Tensor] = {}
        self._groups: list[dict[str, Any]] = []
        self._early: list[tuple[Call, Any, Any]] = []  # call, inputs, targets
        self._late: deque[tuple[Call, Any, Any]] = deque(maxlen=_LATE_BATCHES)
        self._kept_bytes = self._kept_samples = 0
        self._prints: list[Tensor] = []  # fingerprints of the training batches
        self._unprinted: list[Tensor] = []  # batches whose fingerprints are taken together
        self._print_count = 0
        self._labels: list[Tensor] = []
        self._validation: tuple[Call, Any, Tensor] | None = None
        self._validation_size = 0
        self._validated: tuple[int, Any] = (-1, None)  # at which step, the copy's outputs
        # Forwards since the last step, with the mode and the random state before each.
        self._pending: list[tuple[Call, bool, list[Tensor]]] = []
        self._outputs: Any = None
        self._last_call: Call | None = None
        self._probe: Probe | None = None
        self._before: dict[str, Tensor] = {}
        self._broken: dict[str, Any] | None = None
        self._ratios: list[float] = []
        self._watched: list[nn.Parameter] = []  # small parameters whose gradients are followed
        self._stale: dict[int, Tensor] = {}  # their gradients at the last optimiser step
        self._new: dict[int, Tensor] = {}  # what has been added to them since
        self._residual_at: int | None = None
        self._compared_at: int | None = None
        self._named: list[tuple[str, nn.Parameter]] = []  # as of the last probe
        self._graded: set[str] = set()  # parameters that have had a gradient
        self._task: Task | None = None
        self._begun = False
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

    def _watch_gradient(self, parameter: nn.Parameter) -> None:
        """See at each backward pass whether the gradient is added to one that was used already."""
        found: dict[str, Tensor | None] = {"new": None}

        def arriving(gradient: Tensor) -> None:
            found["new"] = gradient.detach()

        def added(parameter: nn.Parameter) -> None:  # not at torch.autograd.grad, which adds none
            self._after_backward(parameter, found["new"])

        self._handles += [
            parameter.register_hook(arriving),
            parameter.register_post_accumulate_grad_hook(added),
        ]

    @_harmless
    def _after_backward(self, parameter: nn.Parameter, new: Tensor | None) -> None:
        self._loop.backwards += 1
        if new is None or new.is_sparse or id(parameter) not in self._stale:
            return
        before = self._new.get(id(parameter))
        self._new[id(parameter)] = new.clone() if before is None else before + new

    def _compare_gradients(self) -> None:
        """Whether what is stepped with is this step's gradients, or earlier steps' with them.

        Compared by direction: the loop may have clipped them.
        """
        new, self._new = self._new, {}
        for parameter in self._watched:
            stale, added = self._stale.get(id(parameter)), new.get(id(parameter))
            total = parameter.grad
            if stale is None or added is None or total is None or total.numel() < 2:
                continue
            if _waits(total) and not self._due:
                continue
            clean, sum_of_all = added.flatten().double(), (added + stale).flatten().double()
            used = total.detach().flatten().double()
            if not torch.isfinite(sum_of_all).all() or not used.any():
                continue
            if self._compared_at != self._loop.steps:
                self._loop.compared_steps += 1
                self._compared_at = self._loop.steps
            near, far = _angle(used, sum_of_all), _angle(used, clean)
            if near < 1e-3 and near < 0.1 * far and self._residual_at != self._loop.steps:
                self._residual_at = self._loop.steps
                self._loop.residual_steps += 1
                if self._loop.residual_step is None:
                    self._loop.residual_step = self._loop.steps

    @_harmless
    def _before_update(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        training, state = self.model.training, self._random_state()
        if self._pending:  # empty where the model runs compiled
            self._last_call, training, state = self._pending[-1]
        self._loop.training_forwards += 1
        if not training:
            self._loop.eval_mode_forwards += 1
            if self._loop.first_eval_mode is None:
                self._loop.first_eval_mode = self._loop.steps
        self._compare_gradients()
        if self._due or not self._named:
            self._named = list(self.model.named_parameters())  # takes as long as a small layer
        named = [(n, p) for n, p in self._named if p.grad is not None]
        if not named:
            self._loop.empty_steps += 1
            return
        for group, kept in zip(optimizer.param_groups, self._groups, strict=False):
            kept["lr"] = max(float(kept["lr"]), float(group["lr"]))  # a warm-up starts at zero
        if self.evidence.nonfinite is None and self._nonfinite_gradient([p for _, p in named]):
            self._keep_broken(state)
        if self._due:
            self._graded.update(name for name, _ in named)
            self._probe_gradients(named)

    def _nonfinite_gradient(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Whether a gradient holds NaN or infinity: of small tensors at every step, of all at
        a probe. On its way to the first layers NaN passes every layer, and each has a small one."""
        gradients = [
            p.grad.coalesce().values() if p.grad.is_sparse else p.grad.detach()
            for p in parameters
            if self._due or (p.numel() <= _SMALL and not _waits(p))
        ]
        if not gradients:
            return False
        if self._due:
            norms = torch._foreach_norm(gradients)
            total = torch.stack([n.float() for n in norms]).sum().item()
        else:
            total = torch.cat([g.flatten() for g in gradients]).sum().item()
        # Sums and norms of finite numbers can overflow.
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
        # A gradient that is never cleared shows in the first steps; after them now and then.
        often = self._loop.compared_steps < _COMPARED or (self._loop.steps + 1) % self.every == 0
        self._stale = {
            id(p): p.grad.detach().clone()
            for p in self._watched
            if often and p.grad is not None and not p.grad.is_sparse
        }
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
        if (self._loop.steps + 1) % _TIDIED == 0:
            give_back_memory()
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
            self._unread.append(value)
            return
        self._keep(call, inputs, targets)
        if self._task is None:
            self._examine()
        self._unread.append(value)
        if self._due or not _waits(value):
            *earlier, _ = self._read_losses()
            if self.evidence.nonfinite is None:
                self._look_for_nonfinite(call, targets, earlier)
        if self._due:
            self._compare_loss(value, targets)
            if self._probe is None:
                self._probe = Probe(self._loop.steps)
            self._probe_activations(call)
            self.evidence.probes.append(self._probe)

    def _read_losses(self) -> list[float]:
        """Fetch the losses since the last call, all at once."""
        read = read_together(self._unread)
        self._unread.clear()
        self._losses += read
        return read

    def _called(self, inputs: Any) -> Call:
        """How the model was called in this step: by the hook's word, else by the inputs given."""
        if len(self._pending) == 1:
            return self._pending[0][0]
        return as_call(inputs)

    def _keep(self, call: Call, inputs: Any, targets: Any) -> None:
        rows = leading(call, inputs)
        if isinstance(targets, Tensor) and len(self._labels) * max(targets.numel(), 1) < 200_000:
            self._labels.append(targets.detach().clone())
        if rows is not None and self._print_count < _PRINTS:
            self._unprinted.append(samples.thinned(rows))
            self._print_count += len(rows)
            if self._due:
                self._print()
        size = sum(t.numel() * t.element_size() for t in call.tensors())
        count = len(rows) if rows is not None else 1
        few = len(self._early) < _KEPT_BATCHES or self._kept_samples < _KEPT_SAMPLES
        early = few and self._kept_bytes + size <= _KEPT_BYTES
        if early or (self._due and size <= _KEPT_BYTES // _LATE_BATCHES):
            same = rows is not None and isinstance(inputs, Tensor) and inputs is not rows
            kept = (
                call.map(_copied),
                _copied(inputs) if same else rows if rows is None else _copied(rows),
                network.mapped(targets, _copied),
            )
            (self._early if early else self._late).append(kept)
            self._kept_bytes += size if early else 0
            self._kept_samples += count if early else 0

    def _print(self) -> None:
        """Take the fingerprints of the batches since the last probe."""
        batches, self._unprinted = self._unprinted, []
        if len({(batch.shape[1:], batch.dtype) for batch in batches}) > 1:
            self._prints += [samples.fingerprints(batch) for batch in batches]
        elif batches:
            prints = samples.fingerprints(torch.cat(batches))
            self._prints += prints.split([len(batch) for batch in batches])

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
        if taken >= _THOROUGH_PROBES and taken % 2:
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
        self._watched = watched[:2]
        for parameter in self._watched:
            self._watch_gradient(parameter)

    def _current_twin(self, load: bool = True) -> nn.Module | None:
        """The copy with the model's present weights and buffers, without gradients."""
        if self._twin is not None and load:
            with torch.no_grad():
                self._twin.load_state_dict(self.model.state_dict())
        return self._twin

    # --- non-finite numbers ---------------------------------------------------------------------

    def _random_state(self) -> list[Tensor]:
        return random_state(next(self.model.parameters(), _NOTHING).device)

    def _keep_broken(self, state: list[Tensor]) -> None:
        """The weights before the update that a non-finite gradient is about to spoil."""
        if self._broken is None:
            self._broken = {"model": state_of(self.model), "random_state": state}

    def _look_for_nonfinite(self, call: Call, targets: Any, earlier: Sequence[float]) -> None:
        """Replay a step that was not finite; `earlier` losses were read with this step's own."""
        late = next((i for i, loss in enumerate(earlier) if not math.isfinite(loss)), None)
        if late is not None:  # on a GPU: by now the weights hold it, and tell nothing
            first = self._loop.steps - len(earlier) + late
            self.evidence.nonfinite = NonFinite(
                first, "unknown", "", None, "nan", [], 0, 0.0, overflow=True
            )
            return
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
                device = next(scratch.parameters(), _NOTHING).device
                set_random_state(device, broken["random_state"])
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
        give_back_memory()  # what the loop's own evaluation took
        call = self._like_training(as_call(inputs))
        batch = batch_size(call, len(targets))
        count = min(batch or 1, _VALIDATED)
        chosen = torch.linspace(0, (batch or 1) - 1, count).long()

        def some(tensor: Tensor) -> Tensor:
            matches = tensor.dim() and batch is not None and len(tensor) == batch
            return tensor[chosen.to(tensor.device)] if matches and count < batch else tensor

        self._validation_size = batch or 1
        call, targets = call.map(some), some(targets)
        with undisturbed(), torch.no_grad(), network.no_dropout(twin, training=False):
            outputs = _in_chunks(twin, call, count)
            loss = self._value(outputs, targets)
        task = self._task or read(outputs, targets)
        self.evidence.outcome.validations.append(
            Validation(self._loop.steps, loss, score(task, outputs, targets, self._rare(task)))
        )
        self._validation = (call.map(_copied), _copied(some(_rows(inputs))), _copied(targets))
        self._validated = (self._loop.steps, outputs)

    def _value(self, outputs: Any, targets: Any) -> float | None:
        """The loss function's value, a sum brought to a mean."""
        if self.loss_fn is None:
            return None
        value = own_loss(self.loss_fn)(outputs, targets).detach().float().mean().item()
        summed = self.evidence.loss.reduction == "sum" and isinstance(targets, Tensor)
        return value / len(targets) if summed else value

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

    def _rare(self, task: Task) -> Tensor | None:
        """Classes with less than a fifth of the commonest one's training samples."""
        if task.kind not in ("classes", "binary") or not self._labels:
            return None
        labels = torch.cat([samples._labels(t, task) for t in self._labels]).cpu()
        counts = torch.bincount(labels[labels >= 0], minlength=task.classes or 2)
        return (counts < 0.2 * counts.max()).nonzero().flatten()

    # --- the diagnosis --------------------------------------------------------------------------

    def report(self) -> Report:
        """The diagnosis so far. Forks run here, where something looks wrong, within the budget."""
        self._gather()
        self._probe_causes()
        return rules.diagnose(self.evidence, budget=self.budget)

    def close(self) -> None:
        """Take all hooks off the model and the optimiser, and let go of copies and batches."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._twin, self._initial = None, {}
        self._early.clear()
        self._late.clear()
        self._pending.clear()
        self._named.clear()
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
        self._print()
        self._gather_optimizer()
        self._gather_losses()
        for part in (self._gather_data, self._gather_outcome):
            _harmless(part.__func__)(self)

    def _gather_optimizer(self) -> None:
        facts = self.evidence.optimizer
        parameters = dict(self.model.named_parameters())
        own = {id(p) for p in parameters.values()}
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        trainable = {n: p for n, p in parameters.items() if p.requires_grad}
        facts.name = type(self.optimizer).__name__
        facts.trainable = len(trainable)
        facts.held = sum(id(p) in held for p in trainable.values())
        # What another optimiser moves is not missing.
        facts.missing = [
            n
            for n, p in trainable.items()
            if id(p) not in held
            and (n not in self._initial or torch.equal(self._initial[n], p.detach()))
        ]
        facts.foreign = len(held - own)
        frozen = {n: p for n, p in parameters.items() if not p.requires_grad}
        facts.frozen_held = [n for n, p in frozen.items() if id(p) in held]
        facts.lr = max((float(g["lr"]) for g in self._groups), default=None)
        facts.weight_decay = max(
            (float(g.get("weight_decay") or 0) for g in self.optimizer.param_groups), default=0.0
        )

        # One pass may leave out a layer at random that others reach.
        network_facts = self.evidence.network
        network_facts.unreached = [n for n in network_facts.unreached if n not in self._graded]

    def _gather_losses(self) -> None:
        outcome, losses = self.evidence.outcome, self._losses
        if not losses:
            return
        finite = [v for v in losses if math.isfinite(v)]
        outcome.nonfinite_step = next(
            (i for i, v in enumerate(losses) if not math.isfinite(v)), None
        )
        outcome.first_loss = losses[0]
        if finite:
            tenth = max(1, len(losses) // 10)
            outcome.last_loss = statistics.median(losses[-tenth:])
            outcome.highest_loss = max(finite)
        outcome.plateau = self._plateau()
        self._loop.loss_ratio = statistics.median(self._ratios) if self._ratios else None
        beyond = [1 - 1 / ratio for ratio in self._ratios if ratio > 1]
        # Targets that only the loop knows (mixed ones) leave a rest to both sides.
        self._loop.penalty = max(beyond) if beyond and min(self._ratios) > 0.95 else 0.0

    def _plateau(self) -> int | None:
        """Steps until a mean of ten losses is below 0.93 of the best constant predictor's."""
        initial = self.evidence.outcome.initial.relative_loss
        if not initial or not math.isfinite(initial) or len(self._losses) < 20:
            return None
        limit = 0.93 * self._losses[0] / initial
        for end in range(10, len(self._losses) + 1):
            if statistics.fmean(self._losses[end - 10 : end]) < limit:
                return end - 10
        return len(self._losses)

    def _batches(self) -> list[tuple[Call, Any, Any]]:
        return [*self._early, *self._late]

    @_harmless
    def _examine(self) -> None:
        """The network and the loss function as they are at the start, tried out on a batch."""
        self._task = Task("unknown")
        if self._twin is None or not self._early:
            return
        call, _, targets = self._early[0]
        twin = copy.deepcopy(self._twin)
        with undisturbed():
            self._task = first_look(twin, call, targets, own_loss(self.loss_fn), self.evidence)
            self.evidence.outcome.initial = self._score(
                self._outputs_of(twin, [self._early[0]], training=True)
            )
        give_back_memory()  # all layers' outputs, several times over: more than a step ever needs

    def _gather_data(self) -> None:
        batches = self._batches()
        pairs = [(rows, t) for _, rows, t in batches if isinstance(rows, Tensor)]
        if not pairs or self._task is None:
            return
        shape = pairs[0][0].shape[1:]
        pairs = [(rows, t) for rows, t in pairs if rows.shape[1:] == shape]
        inputs = torch.cat([rows for rows, _ in pairs])
        tensors = [t for _, t in pairs if isinstance(t, Tensor)]
        whole = len(tensors) == len(pairs) and all(
            len(r) == len(t) and t.shape[1:] == tensors[0].shape[1:] for r, t in pairs
        )
        targets = torch.cat(tensors) if whole else None
        # Steps over the whole set would be the same samples again and again.
        count, distinct = len(inputs), _distinct(inputs)
        chosen = distinct[:_DESCRIBED] if count > _DESCRIBED else slice(None)
        inputs = inputs[chosen]
        targets = targets[chosen] if targets is not None else None
        facts = samples.describe(inputs, targets, self._task)
        facts.samples, facts.distinct = count, len(distinct)
        facts.constant = facts.constant or len(distinct) == 1
        several = [p for p in self._prints if len(p) > 1]
        same = sum(bool((p == p[0]).all()) for p in several)
        facts.constant_batches = same / len(several) if several else 0.0
        self.evidence.data = facts
        if self._labels and self._task.kind in ("classes", "binary"):
            labels = torch.cat([samples._labels(t, self._task) for t in self._labels]).cpu()
            counts = torch.bincount(labels[labels >= 0], minlength=self._task.classes or 2)
            facts.class_counts = dict(enumerate(counts.tolist()))
        if self._task.kind in ("classes", "binary") and not facts.constant:
            sizes = [t.numel() for t in self._labels]
            labels = torch.cat([t.flatten() for t in self._labels]).cpu().split(sizes)
            facts.conflicting = samples.conflicts(self._prints, labels)
        seen, times = samples.repeats(self._prints)
        self.evidence.outcome.epochs = times if seen else None
        if targets is not None:
            keep = _distinct(inputs)
            facts.simple_skill = samples.simple_skill(inputs[keep], targets[keep], self._task)
        if self._validation is not None:
            self._compare_validation(facts, inputs, targets)

    def _compare_validation(
        self, facts: DataFacts, inputs: Tensor, known_targets: Tensor | None
    ) -> None:
        call, rows, targets = self._validation
        if rows is None or rows.shape[1:] != inputs.shape[1:]:
            return
        known = torch.cat(self._prints) if self._prints else samples.fingerprints(inputs)
        prints = samples.fingerprints(rows)
        facts.natural_repeats = 1 - len(prints.unique()) / max(len(prints), 1)
        facts.overlap = torch.isin(prints, known).double().mean().item()
        trained_on = len(known.unique())
        whole = facts.overlap > 0.95 and self._validation_size >= 0.9 * trained_on
        facts.same_set = whole or bool(torch.isin(known, prints).double().mean() > 0.95)
        if facts.floating:
            facts.scale_shift = samples.scale_shift(inputs, rows)
        facts.shift = samples.told_apart(inputs, rows)
        if known_targets is not None:
            facts.transfer_skill = samples.transfer_skill(
                inputs, known_targets, rows, targets, self._task
            )
        twin = self._current_twin()
        plain = len(call.args) == 1 and isinstance(call.args[0], Tensor) and not call.kwargs
        if twin is None or not plain:
            return
        # Whether the scale is all that was lost: asked where it has moved.
        moved = (facts.scale_shift or 0) > SHIFTED and call.args[0].is_floating_point()
        trained = [
            c.args[0] for c, _, _ in self._early
            if moved and c.args and isinstance(c.args[0], Tensor)
            and c.args[0].shape[1:] == call.args[0].shape[1:]
        ]  # fmt: skip
        with undisturbed(), torch.no_grad(), network.no_dropout(twin, training=False):
            if trained:
                brought = Call((samples.matched(torch.cat(trained), call.args[0]),))
                outputs = _in_chunks(twin, brought, len(rows))
                facts.matched_skill = score(self._task, outputs, targets).skill
            step, outputs = self._validated
            if step != self._loop.steps:
                outputs = _in_chunks(twin, call, len(rows))
        if self._task.kind == "classes" and first_tensor(outputs) is not None:
            predicted, wanted = self._task.pair(outputs, targets)
            size = self._task.classes
            pairs = wanted * size + predicted.argmax(dim=1)
            confusion = torch.bincount(pairs, minlength=size * size).reshape(size, size)
            renamed, other = samples.renamed_skill(confusion.cpu())
            facts.relabelled_skill = renamed if other else None

    def _gather_outcome(self) -> None:
        outcome = self.evidence.outcome
        twin = self._current_twin()
        if twin is None or self._task is None:
            return
        with undisturbed():
            batches = self._batches()
            plain = self._outputs_of(twin, batches, training=False)
            outcome.train = outcome.train_mode = self._score(plain)
            last = self._outputs_of(twin, batches[-1:], training=True)
            # Without batch norm the mode is the same to most models, dropout left out.
            if not (plain and last and torch.equal(plain[0][0], last[0][0])):
                outcome.train_mode = self._score(self._outputs_of(twin, batches, training=True))
        held = {n for group in self._groups for n in group["names"]}
        moved, sizes = [], []
        for name, parameter in self.model.named_parameters():
            if name in held and parameter.requires_grad and parameter.dim() >= 2:
                start = self._initial[name].float()
                norm = torch.linalg.vector_norm(start)
                change = torch.linalg.vector_norm(parameter.detach().float() - start)
                moved.append((change / norm).item() if norm > 0 else math.inf)
                sizes.append((torch.linalg.vector_norm(parameter.detach().float()), norm))
        outcome.movement = statistics.median(moved) if moved else None
        ratios = [(now / start).item() for now, start in sizes if start > 0]
        outcome.shrinkage = statistics.median(ratios) if ratios else None

    def _outputs_of(
        self, twin: nn.Module, batches: Sequence[tuple[Call, Any, Any]], training: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Outputs and targets of the latest batches, the last one first, without dropout."""
        found: list[tuple[Tensor, Tensor]] = []
        count = 0
        with torch.no_grad(), network.no_dropout(twin, training):
            for call, _, targets in reversed(batches):
                if isinstance(targets, Tensor) and count < 2 * _DESCRIBED:
                    count += len(targets) if targets.dim() else 1
                    outputs = first_tensor(call(twin))
                    if outputs is not None:
                        found.append((outputs, targets))
        return found

    def _score(self, found: list[tuple[Tensor, Tensor]]) -> Score:
        if not found:
            return Score()
        shapes = {(o.shape[1:], t.shape[1:]) for o, t in found}
        if len(shapes) > 1:  # sequences of several lengths
            found = found[:1]
        outputs, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        return score(self._task, outputs, targets, self._rare(self._task))

    # --- forks ----------------------------------------------------------------------------------

    @_harmless
    def _probe_causes(self) -> None:
        """Run the forks that the rules ask for, one after the other, within the budget."""
        if self._twin is None or self._task is None or not self._early:
            return
        if self.loss_fn is None or self.evidence.loss.error is not None:
            return
        while wanted := [
            name for name in rules.forks_wanted(self.evidence) if name not in self.evidence.forks
        ]:
            name = wanted[0]
            steps = min(_FORK_STEPS, self.budget - self.evidence.fork_steps)
            if steps < _FORK_STEPS // 2:
                return
            fork = self._fork(name, steps)
            self.evidence.forks[name] = fork
            self.evidence.fork_steps += fork.steps

    def _fork(self, name: str, steps: int) -> "forks.Fork":
        with undisturbed(), torch.enable_grad():
            torch.random.default_generator.manual_seed(0)  # not seeding a GPU that sleeps
            try:
                return forks.run(self._trial(self._change(name)), self._task, steps)
            except Exception as error:
                self._trouble(f"fork {name}: {type(error).__name__}: {one_line(error)}")
                return forks.Fork(0, math.nan, math.nan)

    def _trial(self, change: forks.Change, size: int | None = None) -> forks.Trial:
        """A training from the start, on the first batches, or on `size` samples alone."""
        model = copy.deepcopy(self._twin)
        model.load_state_dict(self._initial)
        batches = [forks.Batch(c, t) for c, _, t in self._early[:_FORK_BATCHES]]
        if size is not None:
            call, targets = batches[0].call, batches[0].targets
            batch = batch_size(call, len(targets))

            def few(tensor: Tensor) -> Tensor:
                return tensor[:size] if tensor.dim() and len(tensor) == batch else tensor

            batches = [forks.Batch(call.map(few), few(targets))]
        loss_fn = own_loss(self.loss_fn)
        return forks.Trial(model, self.optimizer, self._groups, loss_fn, batches, change)

    # --- without a training ---------------------------------------------------------------------

    def consider(
        self, batches: Sequence[tuple[Any, Any]], validation: Sequence[tuple[Any, Any]] | None
    ) -> None:
        """Take note of batches that nothing is trained on: for a check before the training."""
        self._begin()
        for inputs, targets in batches:
            self._keep(as_call(inputs), inputs, targets)
        self._examine()
        if validation:
            inputs, targets = validation[0]
            if all(isinstance(i, Tensor) and isinstance(t, Tensor) for i, t in validation):
                inputs, targets = (torch.cat(parts) for parts in zip(*validation, strict=True))
            self._validate(inputs, targets)
        self._gather()

    @contextmanager
    def trial(self, size: int | None) -> Iterator[forks.Trial | None]:
        """A training of a copy that the caller steps through; None where it cannot be copied."""
        if self._twin is None or self.loss_fn is None or self.evidence.loss.error is not None:
            yield None
            return
        with undisturbed(), torch.enable_grad():
            torch.random.default_generator.manual_seed(0)  # not seeding a GPU that sleeps
            yield self._trial(forks.Change(), size)

    def score_of(self, trial: forks.Trial) -> Score:
        """How well a trial's model fits its own batches."""
        batches = [(b.call, None, b.targets) for b in trial.batches]
        return self._score(self._outputs_of(trial.model, batches, training=True))

    def _change(self, name: str) -> forks.Change:
        """What each fork that a rule can ask for does differently."""
        if name.startswith("lr"):
            factor = float(name[3:])
            return forks.Change(lr=factor if name[2] == "*" else 1 / factor)
        match name:
            case "same":
                return forks.Change()
            case "unregularised":
                return forks.Change(regularised=False)
            case "init":
                return forks.Change(initial=forks.reset)
            case "unfrozen":
                return forks.Change(trainable=True)
            case "mean":
                count = max(batch_size(self._early[0][0]) or 1, 1)
                return forks.Change(loss=lambda o, t: self.loss_fn(o, t) / count)
            case "inputs":
                rows = torch.cat([c.tensors()[0] for c, _, _ in self._early[:_FORK_BATCHES]])
                mean, std = samples.standardise_like(rows.float())
                shape = rows.shape[1:]
                return forks.Change(
                    inputs=lambda x: (x - mean) / std if x.shape[1:] == shape else x
                )
            case "targets":
                values = torch.cat([t.float() for _, _, t in self._early[:_FORK_BATCHES]])
                mean, std = values.mean(), values.std().clamp_min(1e-12)
                return forks.Change(targets=lambda t: (t - mean) / std)
        raise ValueError(name)


def as_call(inputs: Any) -> Call:
    """How a model takes a batch: a tuple or list as its arguments, a dict as its keywords."""
    if isinstance(inputs, Mapping):
        return Call((), dict(inputs))
    if isinstance(inputs, list | tuple):
        return Call(tuple(inputs))
    return Call((inputs,))


def leading(call: Call, inputs: Any) -> Tensor | None:
    """The tensor that holds the samples: the inputs themselves, or the first the model took."""
    return _rows(inputs) if _rows(inputs) is not None else next(iter(call.tensors()), None)


def _rows(inputs: Any) -> Tensor | None:
    tensor = first_tensor(inputs) if isinstance(inputs, Tensor | list | tuple | dict) else None
    return tensor if tensor is not None and tensor.dim() else None


def _copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _distinct(inputs: Tensor) -> Tensor:
    """Index of the first of each group of equal samples."""
    seen: dict[float, int] = {}
    for index, value in enumerate(samples.fingerprints(inputs).tolist()):
        seen.setdefault(value, index)
    return torch.tensor(sorted(seen.values()), device=inputs.device)


def _in_chunks(model: nn.Module, call: Call, batch: int, size: int = 64) -> Any:
    """The model's outputs over a batch that may be too large for one pass; a plain tensor alone is
    put together from several."""
    if batch <= size or any(t.dim() == 0 or len(t) != batch for t in call.tensors()):
        return call(model)
    parts = []
    for start in range(0, batch, size):
        part = call.map(lambda t, start=start: t[start : start + size])(model)
        if not isinstance(part, Tensor) or part.dim() == 0:
            return call(model)
        parts.append(part)
    return torch.cat(parts)


def _waits(tensor: Tensor) -> bool:
    """Whether to read the tensor is to wait for a device."""
    return tensor.device.type != "cpu"


def _angle(a: Tensor, b: Tensor) -> float:
    """Distance of two directions: 0 for the same, 2 for opposite ones."""
    if not b.any():
        return 2.0
    return torch.linalg.vector_norm(a / a.norm() - b / b.norm()).item()


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norms with one synchronisation; in float64 where float32's squares overflow."""
    if not tensors:
        return []
    norms = read_together(torch._foreach_norm(list(tensors)))
    return [
        n if math.isfinite(n) and n > 0 else torch.linalg.vector_norm(t.double()).item()
        for n, t in zip(norms, tensors, strict=True)
    ]
