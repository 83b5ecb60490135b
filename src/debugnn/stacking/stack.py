"""Several trainings of one architecture at once: seeds, and arms that differ only in numbers.

Small networks spend their time on starting operations. A stack holds the parameters of N trainings
as single tensors (N, …) and runs their forward and backward passes as one, through `torch.func`.
Everything else belongs to each member: its batches, its random numbers, its dropout masks, its
batch-norm statistics, its gradient rule and its optimiser. The tensors of a member's model are
slices of the stack's, so a member can be saved, watched or trained alone at any time.

Each member ends where the same run ends alone, up to the order in which floats are added.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from debugnn.errors import ConfigError, one_line
from debugnn.random_state import random_state, set_random_state
from debugnn.records import Epoch, Evaluating, Layers, Pause, Step
from debugnn.training import process
from debugnn.training.gradients import keep
from debugnn.training.loop import Seen, Tally, Training, Unread, correct, evaluate, seen_by
from debugnn.training.observers import Probe

Batch = tuple[Tensor, Tensor]
Told = Step | Layers | Epoch | Pause | Evaluating


class Member:
    """A training and its own stream of random numbers.

    The stream starts from torch's global generators as they are when the member is made: make it
    where a run alone would begin to train.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.random_state = random_state(training.device)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Let torch's global generators be the member's inside the block."""
        device = self.training.device
        outer = random_state(device)
        set_random_state(device, self.random_state)
        try:
            yield
        finally:
            self.random_state = random_state(device)
            set_random_state(device, outer)


class Stack:
    """Trainings of one architecture whose forward and backward passes run as one.

    Members may differ in their seeds, weights, dropout rates (none included), gradient rules and
    optimisers. In all else they agree, the number of epochs reached included.

    Raises:
        ConfigError: a layer or the loss cannot be stacked.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._trainings = [member.training for member in members]
        models = [training.model for training in self._trainings]
        self._parameters = _stacked([dict(model.named_parameters()) for model in models])
        self._buffers = _stacked([dict(model.named_buffers()) for model in models])
        # Each stacked parameter that is trained, and the members' parameters, which are its slices.
        self._trained = [
            (self._parameters[name].requires_grad_(), [m.get_parameter(name) for m in models])
            for name, parameter in models[0].named_parameters()
            if parameter.requires_grad
        ]
        # Members may lack the others' dropouts: all go through the network of one that has them.
        widest = max(models, key=lambda model: len(_dropouts(model)))
        self._skeleton = copy.deepcopy(widest)
        for name in _dropouts(widest):
            self._skeleton.set_submodule(name, _Dropout(self.members, name))
        process.choose_threads(models[0], len(models) * self._trainings[0].batch_size)
        self._try_one_batch()
        self._optimizers = _together([training.optimizer for training in self._trainings])

    def _try_one_batch(self) -> None:
        """Pass two samples forwards in training mode; statistics and random state stay."""
        batch = next(self._trainings[0].data.test_batches(2))
        states = [member.random_state for member in self.members]
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        try:
            self._forward([batch] * len(self.members), buffers)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"the network or its loss cannot be stacked: {one_line(error)}"
            ) from error
        finally:
            for member, state in zip(self.members, states, strict=True):
                member.random_state = state

    # --- training ---------------------------------------------------------------------------------

    def fit(
        self, epochs: int, probe: Probe | None = None, pause: Callable[[], bool] | None = None
    ) -> Iterator[tuple[int, Told]]:
        """Train all members up to `epochs` epochs from where they stand.

        Args:
            epochs: of each member, in all.
            probe: records statistics of each member's layers.
            pause: asked after each step whether the members are to be saved there.

        Yields:
            What `training.loop.fit` yields for each member, with the member's index before it. At
            a `Pause`, an `Evaluating` or an `Epoch` all members stand at one place, until the last
            one's was yielded.
        """
        lead = self._trainings[0]
        while lead.epoch < epochs:
            due = lead.epoch + 1 == epochs or (lead.epoch + 1) % lead.eval_every == 0
            yield from self._train_one_epoch(probe, pause, evaluated=due)

    def _train_one_epoch(
        self, probe: Probe | None, pause: Callable[[], bool] | None, evaluated: bool
    ) -> Iterator[tuple[int, Told]]:
        lead, trainings, unread = self._trainings[0], self._trainings, Unread()
        epoch, classes = lead.epoch, lead.data.classes is not None
        tallies = [training.tally or Tally(epoch, classes) for training in trainings]
        started = time.perf_counter() - tallies[0].seconds
        for training, tally in zip(trainings, tallies, strict=True):
            training.tally = tally

        def of_all(record: Pause | Evaluating) -> Iterator[tuple[int, Told]]:
            for tally in tallies:
                tally.seconds = time.perf_counter() - started
            yield from ((index, record) for index in range(len(tallies)))

        try:
            drawn = zip(*(training.batches(epoch) for training in trainings), strict=True)
            for batches in islice(drawn, tallies[0].batches, None):
                step, seen = lead.step, list[tuple[int, Seen]]()
                if probed := probe is not None and probe.due(step):
                    outputs, losses, seen = self._backward_one_by_one(batches, probe)
                else:
                    outputs, losses = self._backward(batches)
                norms = self._apply_rules(one_by_one=probed)
                for optimizer in self._optimizers:
                    optimizer.step()
                targets = torch.stack([targets for _, targets in batches])
                right = correct(outputs, targets) if classes else None
                rates = [t.optimizer.param_groups[0]["lr"] for t in trainings]
                unread.note((step, rates, targets.shape[1]), losses, norms, right)
                for training in trainings:
                    training.step += 1
                yield from ((i, Layers(epoch, step, **stats)) for i, stats in seen)
                paused = pause is not None and pause()
                if paused or step % lead.read_every == 0:
                    yield from _steps(tallies, unread.read())
                if paused:
                    yield from of_all(Pause(epoch, lead.step))
        except Exception as error:
            yield from _steps(tallies, unread.read_after(error))
            raise
        yield from _steps(tallies, unread.read())
        if evaluated:
            yield from of_all(Evaluating(epoch, lead.step))
        tested = [evaluate(training) if evaluated else (None, None) for training in trainings]
        for training in trainings:
            training.epoch, training.tally = epoch + 1, None
        seconds = time.perf_counter() - started
        for index, tally in enumerate(tallies):
            yield index, tally.epoch_of(lead.step, tested[index], seconds)

    def _backward(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Set the gradients of all members; return their outputs (N, B, …) and losses (N,)."""
        outputs, losses = self._forward(batches, self._buffers)
        for whole, _ in self._trained:
            whole.grad = None
        # No member's loss depends on another's parameters, so these are each member's own
        # gradients. A sum of the losses is never taken: one NaN would spoil it.
        losses.backward(torch.ones_like(losses))
        for whole, own in self._trained:
            parts = [None] * len(own) if whole.grad is None else whole.grad.unbind()
            for parameter, part in zip(own, parts, strict=True):
                parameter.grad = part
        return outputs.detach(), losses.detach()

    def _backward_one_by_one(
        self, batches: Sequence[Batch], probe: Probe | None
    ) -> tuple[Tensor, Tensor, list[tuple[int, Seen]]]:
        """The same, each member as it runs alone, and by the members' index what the probe sees."""
        outputs, losses, seen = [], [], []
        for index, (member, batch) in enumerate(zip(self.members, batches, strict=True)):
            training = member.training
            training.model.train()
            with member.randomness(), seen_by(probe, training.model, training.step) as stats:
                output, loss = training.backward(*batch)
            outputs.append(output.detach())
            losses.append(loss.detach())
            if stats is not None:
                seen.append((index, stats))
        return torch.stack(outputs), torch.stack(losses), seen

    @torch.no_grad()
    def _apply_rules(self, one_by_one: bool) -> Tensor:
        """Apply each member's gradient rule; return the norms (N,) before it."""
        rules = [training.gradient_rule for training in self._trainings]
        if not one_by_one and all(rule is keep for rule in rules):
            return _norms([whole.grad for whole, _ in self._trained if whole.grad is not None])
        pairs = zip(rules, self._trainings, strict=True)
        return torch.stack([rule(training.parameters) for rule, training in pairs])

    # --- forward passes ---------------------------------------------------------------------------

    def _forward(
        self, batches: Sequence[Batch], buffers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        training = self._trainings[0]

        def one(
            parameters: dict, buffers: dict, inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            outputs = functional_call(self._skeleton, (parameters, buffers), (inputs,)).float()
            return outputs, training.loss(outputs, targets)

        self._skeleton.train()
        inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
        # A layer that draws random numbers raises: it would not draw what the run alone draws.
        together = vmap(one, randomness="error")
        with training.autocast():
            return together(self._parameters, buffers, inputs, targets)


class _Dropout(nn.Module):
    """The members' dropouts of one name. Each draws what it draws in the run alone."""

    def __init__(self, members: Sequence[Member], name: str) -> None:
        super().__init__()
        models = [(member, dict(member.training.model.named_modules())) for member in members]
        self._own = [(member, modules.get(name)) for member, modules in models]

    def forward(self, inputs: Tensor) -> Tensor:
        return _ToAll.apply(inputs, self)

    def of_all(self, inputs: Tensor) -> Tensor:
        """Return the outputs (N, B, …) for the inputs of all members.

        A mask is what a member's dropout makes of ones. Drawn on ones of the same shape, layout and
        type, in the same order and from the same state, it is the mask of the run alone.
        """
        masks = []
        for (member, own), part in zip(self._own, inputs, strict=True):
            with member.randomness():
                ones = torch.ones_like(part)
                masks.append(own.train()(ones) if isinstance(own, nn.Dropout) else ones)
        return inputs * torch.stack(masks)


class _ToAll(torch.autograd.Function):
    """Hands the inputs of all members, which `vmap` hides from a module, to `_Dropout.of_all`."""

    @staticmethod
    def forward(inputs: Tensor, dropout: _Dropout) -> Tensor:  # called without vmap alone
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: object, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: object, axes: tuple, inputs: Tensor, dropout: _Dropout) -> tuple[Tensor, int]:
        return dropout.of_all(inputs.movedim(axes[0], 0)), 0


def _dropouts(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Dropout)}


@torch.no_grad()
def _stacked(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack each name's tensors to (N, …), and make the given tensors slices of the result.

    As `torch.func.stack_module_state`, which would lose the channels-last layout: fused optimisers
    go through weights, gradients and their own state in the order of memory.
    """
    stacked = {}
    for name, first in tensors[0].items():
        layout = (first.numel(), *torch.empty_like(first).stride())
        whole = torch.empty_strided(
            (len(tensors), *first.shape), layout, dtype=first.dtype, device=first.device
        )
        for part, each in zip(whole, tensors, strict=True):
            part.copy_(each[name])
            each[name].data = part
        stacked[name] = whole
    return stacked


def _steps(tallies: Sequence[Tally], read: Sequence[tuple]) -> Iterator[tuple[int, Step]]:
    """Yield the records of all members for each step that was read."""
    for step, rates, size, losses, norms, rights in read:
        for index, tally in enumerate(tallies):
            right = None if rights is None else rights[index]
            own = step, rates[index], size, losses[index], norms[index], right
            yield from ((index, record) for record in tally.steps([own]))


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return each member's global L2 norm (N,), in float64, whose range no square leaves."""
    every = torch.cat([g.reshape(len(g), -1).double() for g in gradients], dim=1)
    return torch.linalg.vector_norm(every, dim=1)


def _together(optimizers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Return one optimiser that updates what all of these do, where torch allows it.

    Its state of a parameter is the same object as in the member's own optimiser.
    """
    first = optimizers[0]
    settings = [[{**g, "params": None} for g in each.param_groups] for each in optimizers]
    if any(type(each) is not type(first) for each in optimizers) or settings[1:] != settings[:-1]:
        return optimizers
    if not type(first).__module__.startswith("torch.optim."):
        return optimizers  # it may keep a state elsewhere
    make: Callable[..., torch.optim.Optimizer] = type(first)
    groups = zip(*(each.param_groups for each in optimizers), strict=True)
    together = make([{**own[0], "params": [p for g in own for p in g["params"]]} for own in groups])
    for each in optimizers:
        for group in each.param_groups:
            together.state.update({p: each.state[p] for p in group["params"]})
    return [together]
