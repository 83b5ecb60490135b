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

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from debugnn.errors import ConfigError, one_line
from debugnn.random_state import gpus, random_state, set_random_state
from debugnn.records import Epoch, Layers, Step
from debugnn.training.clipping import keep
from debugnn.training.loop import (
    NO_PROBE,
    Probe,
    Seen,
    Tally,
    Training,
    Unread,
    correct,
    evaluate,
)

Batch = tuple[Tensor, Tensor]


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
        self._dropouts = [_dropouts(model) for model in models]
        self._widest = max(range(len(models)), key=lambda index: len(self._dropouts[index]))
        self._tape: list[Tensor] = []
        self._skeleton = copy.deepcopy(models[self._widest])
        for name in self._dropouts[self._widest]:
            self._skeleton.set_submodule(name, _MaskedDropout(self._tape))
        self._dropped: dict[int, list[tuple[str, Tensor]]] = {}
        self._try_one_batch()

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
        self, epochs: int, probe: Probe = NO_PROBE
    ) -> Iterator[tuple[int, Step | Layers | Epoch]]:
        """Train all members up to `epochs` epochs from where they stand.

        Args:
            epochs: of each member, in all.
            probe: records statistics of each member's layers.

        Yields:
            What `training.loop.fit` yields for each member, with the member's index before it. All
            members stand at the epoch's end before the first `Epoch` is yielded.
        """
        lead, trainings = self._trainings[0], self._trainings
        optimizers = _Optimizers(trainings, list(self._parameters.values()))
        while lead.epoch < epochs:
            started = time.perf_counter()
            tallies = [Tally(lead.epoch, lead.data.classes is not None) for _ in trainings]
            yield from self._pass_over(optimizers, probe, tallies)
            due = lead.epoch + 1 == epochs or (lead.epoch + 1) % lead.eval_every == 0
            tested = [evaluate(training) if due else (None, None) for training in trainings]
            optimizers.hand_out()
            for training in trainings:
                training.epoch += 1
            seconds = time.perf_counter() - started
            for index, tally in enumerate(tallies):
                yield index, tally.epoch_of(lead.step, tested[index], seconds)

    def _pass_over(
        self, optimizers: "_Optimizers", probe: Probe, tallies: Sequence[Tally]
    ) -> Iterator[tuple[int, Step | Layers]]:
        """Train one epoch."""
        lead, trainings, unread = self._trainings[0], self._trainings, Unread()
        classes = lead.data.classes is not None
        try:
            for batches in zip(*(t.batches(lead.epoch) for t in trainings), strict=True):
                step = lead.step
                seen: list[tuple[int, Seen]] = []
                if probe.due(step):
                    outputs, losses, seen = self._backward_one_by_one(batches, probe)
                else:
                    outputs, losses = self._backward(batches)
                norms = self._apply_rules()
                optimizers.step()
                targets = torch.stack([targets for _, targets in batches])
                right = correct(outputs, targets) if classes else None
                rates = [t.optimizer.param_groups[0]["lr"] for t in trainings]
                unread.note((step, rates, targets.shape[1]), losses, norms, right)
                for training in trainings:
                    training.step += 1
                yield from ((i, Layers(lead.epoch, step, **stats)) for i, stats in seen)
                if step % lead.read_every == 0:
                    yield from _steps(tallies, unread.read())
        except Exception as error:
            yield from _steps(tallies, unread.read_after(error))
            raise
        yield from _steps(tallies, unread.read())

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
        self, batches: Sequence[Batch], probe: Probe
    ) -> tuple[Tensor, Tensor, list[tuple[int, Seen]]]:
        """The same, each member as it runs alone, and by the members' index what the probe sees."""
        outputs, losses, seen = [], [], []
        for index, (member, batch) in enumerate(zip(self.members, batches, strict=True)):
            training = member.training
            training.model.train()
            with member.randomness(), probe.watch(training.model, training.step) as stats:
                output, loss = training.backward(*batch)
            outputs.append(output.detach())
            losses.append(loss.detach())
            if stats is not None:
                seen.append((index, stats))
        for whole, own in self._trained:
            if own[0].grad is None:
                whole.grad = None
                continue
            # In the memory layout of the parameters, which fused optimisers expect.
            whole.grad = torch.empty_like(whole)
            for parameter, part in zip(own, whole.grad, strict=True):
                parameter.grad = part.copy_(parameter.grad)
        return torch.stack(outputs), torch.stack(losses), seen

    @torch.no_grad()
    def _apply_rules(self) -> Tensor:
        """Apply each member's gradient rule; return the norms (N,) before it."""
        rules = [training.gradient_rule for training in self._trainings]
        if all(rule is keep for rule in rules):
            return _norms([whole.grad for whole, _ in self._trained if whole.grad is not None])
        models = [training.model for training in self._trainings]
        return torch.stack([r(m.parameters()) for r, m in zip(rules, models, strict=True)])

    # --- forward passes ---------------------------------------------------------------------------

    def _forward(
        self, batches: Sequence[Batch], buffers: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        training = self._trainings[0]

        def one(
            parameters: dict, buffers: dict, inputs: Tensor, targets: Tensor, masks: list[Tensor]
        ) -> tuple[Tensor, Tensor]:
            self._tape[:] = masks
            outputs = functional_call(self._skeleton, (parameters, buffers), (inputs,)).float()
            return outputs, training.loss(outputs, targets)

        self._skeleton.train()
        masks = self._draw_masks(batches[self._widest][0])
        inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
        # A layer that draws random numbers raises: it would not draw what the run alone draws.
        together = vmap(one, randomness="error")
        with training.autocast():
            return together(self._parameters, buffers, inputs, targets, masks)

    def _draw_masks(self, inputs: Tensor) -> list[Tensor]:
        """Return a mask (N, B, …) for each dropout in the order of the pass.

        A mask is what a member's dropout makes of ones. Drawn on ones of the same shape, layout and
        type, in the same order and from the same state, it is the mask of the run alone.

        Args:
            inputs: the batch of the widest member.
        """
        if not self._dropouts[self._widest]:
            return []
        if len(inputs) not in self._dropped:
            self._dropped[len(inputs)] = self._trace(inputs)
        drawn = []
        for member, own in zip(self.members, self._dropouts, strict=True):
            with member.randomness():
                drawn.append([own[name].train()(ones) if name in own else ones
                              for name, ones in self._dropped[len(inputs)]])  # fmt: skip
        return [torch.stack(masks) for masks in zip(*drawn, strict=True)]

    @torch.no_grad()
    def _trace(self, inputs: Tensor) -> list[tuple[str, Tensor]]:
        """Return name and input, as ones, of each dropout in a pass of the widest member alone."""
        training = copy.copy(self._trainings[self._widest])
        training.model = copy.deepcopy(training.model).train()  # the pass changes its buffers
        met: list[tuple[str, Tensor]] = []
        for name, module in _dropouts(training.model).items():
            module.register_forward_pre_hook(
                lambda _, given, name=name: met.append((name, torch.ones_like(given[0])))
            )
        with torch.random.fork_rng(gpus(inputs.device)):
            training.outputs(inputs)
        return met


class _MaskedDropout(nn.Module):
    """Dropout by masks that were drawn before the pass; takes them from `tape` in its order."""

    def __init__(self, tape: list[Tensor]) -> None:
        super().__init__()
        self._tape = tape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self._tape.pop(0)


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


# Optimisers that update each number by itself, and whose state beside the count of steps has the
# parameter's shape: they update a stacked parameter as they update its slices.
_ELEMENTWISE = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.RAdam,
    torch.optim.Adagrad, torch.optim.RMSprop,
)  # fmt: skip


class _Optimizers:
    """The members' optimisers: one over the stacked parameters, if it would do the same.

    It starts one operation where the members' own start N.

    Args:
        trainings: the members'.
        wholes: the stacked parameters, in the order of a member's parameters.
    """

    def __init__(self, trainings: Sequence[Training], wholes: Sequence[Tensor]) -> None:
        self._own = [training.optimizer for training in trainings]
        parameters = [training.model.parameters() for training in trainings]
        self._parameters = list(zip(wholes, zip(*parameters, strict=True), strict=True))
        self._common: torch.optim.Optimizer | None = None
        first, *others = self._own
        alike = [type(o) is type(first) and _settings(o) == _settings(first) for o in others]
        if type(first) in _ELEMENTWISE and all(alike):
            whole_of = {own[0]: whole for whole, own in self._parameters}
            make: Callable[..., torch.optim.Optimizer] = type(first)
            self._common = make(
                [{**g, "params": [whole_of[p] for p in g["params"]]} for g in first.param_groups]
            )
            self._take_in(self._common)

    def step(self) -> None:
        """Update the parameters of all members."""
        for optimizer in self._own if self._common is None else [self._common]:
            optimizer.step()

    def _take_in(self, common: torch.optim.Optimizer) -> None:
        """Stack the members' state, which a checkpoint may have restored."""
        for whole, own in self._parameters:
            states = [o.state.get(p, {}) for o, p in zip(self._own, own, strict=True)]
            sliced = [{k: v for k, v in s.items() if _has_slices(k, v)} for s in states]
            same = {k: copy.deepcopy(v) for k, v in states[0].items() if not _has_slices(k, v)}
            if states[0]:
                common.state[whole] = same | _stacked(sliced)

    def hand_out(self) -> None:
        """Let the members' own optimisers have their state, to be saved or read."""
        if self._common is None:
            return
        for whole, own in self._parameters:
            state = self._common.state.get(whole, {})
            for index, (optimizer, parameter) in enumerate(zip(self._own, own, strict=True)):
                for key, value in state.items():
                    part = value[index] if _has_slices(key, value) else copy.deepcopy(value)
                    optimizer.state[parameter][key] = part


def _has_slices(key: str, value: object) -> bool:
    return key != "step" and isinstance(value, Tensor)


def _settings(optimizer: torch.optim.Optimizer) -> list[dict]:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
