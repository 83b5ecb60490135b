"""Several trainings of one architecture at once: seeds, and arms that differ only in numbers.

Small nets spend their time on starting operations, not in them. A stack keeps the parameters of N
trainings as single tensors (N, …) and runs their forward and backward passes as one, through
`torch.func`. All else stays each member's own: its batches, its stream of random numbers, its
gradient norm and clipping, its batch-norm buffers, its optimiser. A member's model and optimiser
are those of its own `Training`, whose tensors are slices of the stack's, so that it can be saved,
watched or trained alone at any time.

Each member ends where the run alone ends, up to the order in which floats are added up.
"""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from debugnn.errors import ConfigError, one_line
from debugnn.random_state import gpus, random_state, set_random_state
from debugnn.records import Epoch, Layers, Step
from debugnn.stacking.clipping import NormLimits, clip_each, limit_of
from debugnn.stacking.graph import Graph, capture
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import Tally, Training, Unread, correct, evaluate

log = logging.getLogger(__name__)

# Optimisers that treat each number by itself: a step on stacked tensors is every member's step.
# Any other, say one that divides by a tensor's norm, steps member by member.
ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


class Member:
    """A training and its own stream of random numbers.

    The stream goes on from torch's global generators as they stand when the member is made: make
    it where a run alone would begin to train, straight after building.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self._state = random_state(training.device)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Let torch's global generators be the member's, and put the others' back at the end."""
        device = self.training.device
        outer = random_state(device)
        set_random_state(device, self._state)
        try:
            yield
        finally:
            self._state = random_state(device)
            set_random_state(device, outer)


def fit_captured(
    training: Training, epochs: int, probe: LayerProbe
) -> Iterator[Step | Layers | Epoch]:
    """`debugnn.training.loop.fit` as a stack of one: on a GPU its passes are a CUDA graph.

    Nobody can watch inside a graph; where the probe is due, the plain passes run.
    """
    member = Member(training)
    for _, record in Stack([member], at_once=True, graph=True).fit(epochs, [probe]):
        if isinstance(record, Epoch):
            with member.randomness():  # for whoever saves the training now
                yield record
        else:
            yield record


def share_data(training: Training, other: Training) -> None:
    """Let a training on the same data as another's hold no copy of its own.

    The data may differ: the seed chooses the samples where not all are taken.
    """
    own, theirs = training.data, other.data
    if all(_equal(getattr(own, f.name), getattr(theirs, f.name)) for f in fields(own)):
        training.data = theirs


def _equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


class Stack:
    """Trainings of one architecture whose forward and backward passes run as one.

    Members may differ in their seeds, weights, dropout rates (none included), gradient rules and
    optimisers. They stand at the same epoch and have data sets of the same sizes.

    Args:
        at_once: run the members' passes as one, or one after the other; None takes what is faster.
        graph: on a GPU, capture the passes as a CUDA graph, one for each size of a batch.

    Raises:
        ConfigError: the members do not fit each other, or a layer or loss cannot be stacked.
    """

    def __init__(
        self, members: Sequence[Member], at_once: bool | None = None, graph: bool = False
    ) -> None:
        self.members = list(members)
        trainings = self.trainings
        _check_alike(trainings)
        self._lead = trainings[0]
        # Dropout that a member lacks is dropout at a rate of 0.
        self._dropouts = [
            {
                name: copy.deepcopy(m).train()
                for name, m in t.model.named_modules()
                if isinstance(m, nn.Dropout)
            }
            for t in trainings
        ]
        self._widest = max(range(len(trainings)), key=lambda i: len(self._dropouts[i]))
        self._tape: list[Tensor] = []
        self._skeleton = _without_dropout(trainings[self._widest].model, self._tape)
        self._parameters = _stack_in_place([dict(t.model.named_parameters()) for t in trainings])
        self._buffers = _stack_in_place([dict(t.model.named_buffers()) for t in trainings])
        self._trained = [name for name, p in self._lead.model.named_parameters() if p.requires_grad]
        for name in self._trained:
            self._parameters[name].requires_grad_()
        self._templates: dict[int, list[tuple[str, Tensor]]] = {}
        self._graph = graph and self._lead.device.type == "cuda"
        self._graphs: dict[int, Graph | None] = {}
        limits = [limit_of(t.gradient_rule) for t in trainings]
        self._limits = None if None in limits else NormLimits.of(limits, self._lead.device)
        # Stacked convolutions are grouped ones, which take longer on a CPU than one after the
        # other: 1.3 times as long for 4 members of the MNIST net, twice as long for 16.
        layers = self._skeleton.modules()
        on_cpu = self._lead.device.type == "cpu"
        convolutions = any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in layers)
        self.at_once = not (on_cpu and convolutions) if at_once is None else at_once
        if self.at_once:
            self._try_one_batch()

    @property
    def trainings(self) -> list[Training]:
        return [member.training for member in self.members]

    # --- training ---------------------------------------------------------------------------

    def fit(
        self, epochs: int, probes: Sequence[LayerProbe]
    ) -> Iterator[tuple[int, Step | Layers | Epoch]]:
        """Train all members up to `epochs` epochs from where they stand.

        Yields what `training.loop.fit` yields for each member, with the member's index before it.
        All members stand at the epoch's end before the first `Epoch` is yielded.

        Args:
            probes: one a member.
        """
        optimizer = _Optimizer(self._parameters, self.trainings)
        while self._lead.epoch < epochs:
            last = self._lead.epoch + 1 == epochs
            due = last or (self._lead.epoch + 1) % self._lead.eval_every == 0
            yield from self._train_one_epoch(optimizer, probes, evaluated=due)

    def _train_one_epoch(
        self, optimizer: "_Optimizer", probes: Sequence[LayerProbe], evaluated: bool
    ) -> Iterator[tuple[int, Step | Layers | Epoch]]:
        started = time.perf_counter()
        lead, trainings, members = self._lead, self.trainings, range(len(self.members))
        epoch, classes = lead.epoch, lead.data.classes is not None
        tallies, unread = [Tally(epoch, classes) for _ in members], Unread()
        for batches in zip(*(t.batches(epoch) for t in trainings), strict=True):
            step, seen = lead.step, [None] * len(members)
            if not self.at_once or any(probe.due(step) for probe in probes):
                outputs, losses, gradients, seen = self._one_by_one(batches, probes)
            else:
                inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
                outputs, losses, gradients = self._at_once(inputs, targets)
            norms = self._apply_rules(gradients)
            optimizer.step(gradients)

            rights = None
            if classes:
                rights = correct(outputs, torch.stack([targets for _, targets in batches]))
            rates = [t.optimizer.param_groups[0]["lr"] for t in trainings]
            unread.note((step, rates, len(batches[0][1])), losses, norms, rights)
            for training in trainings:
                training.step += 1
            for index in members:
                if seen[index] is not None:
                    yield index, Layers(epoch, step, **seen[index])
            if step % lead.read_every == 0:
                yield from _steps(tallies, unread)
        yield from _steps(tallies, unread)
        tested = self.evaluate() if evaluated else [(None, None)] * len(members)
        optimizer.hand_out()
        seconds = time.perf_counter() - started
        for training in trainings:
            training.epoch += 1
        for index, tally in enumerate(tallies):
            yield index, tally.epoch_of(lead.step, tested[index], seconds)

    def _at_once(
        self, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
        """Outputs (N, B, …), losses (N,) and gradients (N, …) of inputs (N, B, …)."""
        self._skeleton.train()
        masks = self._draw_masks(inputs[self._widest])
        size = inputs.shape[1]
        if self._graph and size not in self._graphs:
            arguments = (inputs, targets, *masks)
            self._graphs[size] = capture(self._compute, arguments, self._buffers)
        graph = self._graphs.get(size)
        return (graph or self._compute)(inputs, targets, *masks)

    def _compute(
        self, inputs: Tensor, targets: Tensor, *masks: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
        outputs = self._outputs(inputs, masks)
        losses = vmap(self._lead.loss)(outputs, targets)
        # No member's loss depends on another's parameters: this is each one's own gradient, and a
        # sum over the losses, which a single NaN would swallow, is never taken.
        parameters = [self._parameters[name] for name in self._trained]
        gradients = torch.autograd.grad(
            losses, parameters, torch.ones_like(losses), allow_unused=True
        )
        laid_out = map(_laid_out_as, gradients, parameters)
        return outputs.detach(), losses.detach(), dict(zip(self._trained, laid_out, strict=True))

    def _outputs(
        self, inputs: Tensor, masks: Sequence[Tensor] = (), shared: bool = False
    ) -> Tensor:
        """Each member's outputs (N, B, …) as float32; `shared` inputs (B, …) go to all members."""

        def one(parameters: dict, buffers: dict, inputs: Tensor, masks: tuple) -> Tensor:
            self._tape[:] = masks
            return functional_call(self._skeleton, (parameters, buffers), (inputs,)).float()

        # Random operations inside raise: they would not draw what the run alone draws.
        at_once = vmap(one, in_dims=(0, 0, None if shared else 0, 0), randomness="error")
        # Each weight is cast once a pass, and a graph must hold no cache.
        with self._lead.autocast(cache=False):
            return at_once(self._parameters, self._buffers, inputs, tuple(masks))

    def _one_by_one(
        self, batches: Sequence[tuple[Tensor, Tensor]], probes: Sequence[LayerProbe]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor | None], list]:
        """Each member's passes as it would run alone; a watched step's, hooks and all."""
        outputs, losses, seen = [], [], []
        for member, probe, (inputs, targets) in zip(self.members, probes, batches, strict=True):
            training = member.training
            training.model.train()
            with member.randomness(), probe.watch(training.model, training.step) as stats:
                output, loss = training.backward(inputs, targets)
            outputs.append(output.detach())
            losses.append(loss.detach())
            seen.append(stats)
        gradients = {}
        for name in self._trained:
            own = [t.model.get_parameter(name).grad for t in self.trainings]
            gradients[name] = None if own[0] is None else torch.stack(own)
        return torch.stack(outputs), torch.stack(losses), gradients, seen

    @torch.no_grad()
    def _apply_rules(self, gradients: dict[str, Tensor | None]) -> Tensor:
        """Each member's gradient rule on its slice, in place; the norms (N,) before it."""
        present = [g for g in gradients.values() if g is not None]
        if present and self._limits is not None:
            return clip_each(present, self._limits)
        norms = []
        for index, training in enumerate(self.trainings):
            own = dict(training.model.named_parameters())
            for name, gradient in gradients.items():
                own[name].grad = None if gradient is None else gradient[index]
            norms.append(training.gradient_rule(own.values()))
        return torch.stack(norms)

    # --- random numbers ---------------------------------------------------------------------

    def _draw_masks(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """A mask (N, B, …) for each dropout in the order of the pass, at each member's rate.

        Dropout of ones is the mask that it would multiply an input by. Drawn on ones of the
        same shape, layout and type, in the same order and from the same state, the masks are those
        of the run alone, on any device.
        """
        if not self._dropouts[self._widest]:
            return ()
        size = len(inputs)
        if size not in self._templates:
            self._templates[size] = self._trace(inputs)
        drawn = []
        for member, dropouts in zip(self.members, self._dropouts, strict=True):
            with member.randomness():
                drawn.append([
                    dropouts[name](ones) if name in dropouts else ones
                    for name, ones in self._templates[size]
                ])  # fmt: skip
        return tuple(torch.stack(masks) for masks in zip(*drawn, strict=True))

    @torch.no_grad()
    def _trace(self, inputs: Tensor) -> list[tuple[str, Tensor]]:
        """Name and input, as ones, of each dropout in one pass of the widest member alone."""
        training = copy.copy(self.trainings[self._widest])
        training.model = copy.deepcopy(training.model).train()  # its buffers will change
        met: list[tuple[str, Tensor]] = []
        for name, module in training.model.named_modules():
            if isinstance(module, nn.Dropout):
                module.register_forward_pre_hook(
                    lambda _, given, name=name: met.append((name, torch.ones_like(given[0])))
                )
        with torch.random.fork_rng(gpus(inputs.device)):
            training.outputs(inputs)
        return met

    # --- evaluation -------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> list[tuple[float, float | None]]:
        """What `debugnn.training.loop.evaluate` returns, for each member."""
        lead, trainings = self._lead, self.trainings
        if not self.at_once:
            return [evaluate(training) for training in trainings]
        shared = all(t.data is lead.data for t in trainings)
        self._skeleton.eval()
        count, device = len(trainings), lead.device
        loss_sums = torch.zeros(count, dtype=torch.float64, device=device)
        corrects = torch.zeros(count, dtype=torch.float64, device=device)
        sources = trainings[:1] if shared else trainings
        for batches in zip(
            *(t.data.test_batches(lead.eval_batch_size) for t in sources), strict=True
        ):
            inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
            outputs = self._outputs(inputs[0] if shared else inputs, shared=shared)
            targets = targets.expand(count, *targets.shape[1:])
            losses = vmap(lead.loss)(outputs, targets)
            loss_sums += losses.double() * targets.shape[1]
            if lead.data.classes is not None:
                corrects += correct(outputs, targets)
        size = len(lead.data.test)
        loss_sums, corrects = torch.stack([loss_sums, corrects]).tolist()
        means = [t.test_loss_scale * s / size for t, s in zip(trainings, loss_sums, strict=True)]
        if lead.data.classes is None:
            return [(mean, None) for mean in means]
        return [(mean, 100 * right / size) for mean, right in zip(means, corrects, strict=True)]

    def _try_one_batch(self) -> None:
        """Two samples forwards in training mode, and back to where everything stood."""
        inputs, targets = next(self._lead.data.test_batches(2))
        count = len(self.members)
        before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._skeleton.train()
        try:
            masks = [
                torch.stack([ones] * count)
                for _, ones in (self._trace(inputs) if self._dropouts[self._widest] else ())
            ]
            outputs = self._outputs(torch.stack([inputs] * count), masks)
            vmap(self._lead.loss)(outputs, torch.stack([targets] * count))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(
                f"trainer.stack={count}: the network or its loss cannot be stacked, "
                f"trainer.stack=1 trains one after the other: {one_line(error)}"
            ) from error
        finally:
            for name, buffer in self._buffers.items():
                buffer.copy_(before[name])


def _steps(tallies: Sequence[Tally], unread: Unread) -> Iterator[tuple[int, Step]]:
    """The unread steps of all members, step by step."""
    for step, rates, size, losses, norms, rights in unread.read():
        for index, tally in enumerate(tallies):
            right = None if rights is None else rights[index]
            row = (step, rates[index], size, losses[index], norms[index], right)
            for record in tally.steps([row]):
                yield index, record


# --- what is stacked ------------------------------------------------------------------------------


class _MaskedDropout(nn.Module):
    """Dropout by a mask that was drawn outside; takes the masks of a pass one after the other."""

    def __init__(self, tape: list[Tensor]) -> None:
        super().__init__()
        self._tape = tape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self._tape.pop(0) if self.training else inputs


def _without_dropout(model: nn.Module, tape: list[Tensor]) -> nn.Module:
    """A copy of the model that takes its dropout masks from `tape`."""
    skeleton = copy.deepcopy(model)
    for parent in list(skeleton.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, _MaskedDropout(tape))
    return skeleton


@torch.no_grad()
def _stack_in_place(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack each name's tensors to (N, …), and make the given tensors slices of the result.

    A slice keeps its tensor's layout in memory (channels-last weights stay so).
    """
    stacked = {}
    for name, first in tensors[0].items():
        layout = torch.empty_like(first).stride()
        whole = torch.empty_strided(
            (len(tensors), *first.shape), (first.numel(), *layout),
            dtype=first.dtype, device=first.device,
        )  # fmt: skip
        for index, each in enumerate(tensors):
            whole[index].copy_(each[name])
            each[name].data = whole[index]
        stacked[name] = whole
    return stacked


def _laid_out_as(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient in the parameter's memory layout, as `backward` would leave it.

    Some come transposed; one copy is cheaper than every later operation on two layouts.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _check_alike(trainings: Sequence[Training]) -> None:
    """Raise ConfigError where the trainings cannot go through one pass."""
    first, count = trainings[0], len(trainings)
    for training in trainings[1:]:
        for what, own, other in (
            ("the networks", _architecture(training.model), _architecture(first.model)),
            ("the epochs reached", training.epoch, first.epoch),
            ("the numbers of samples", _sizes(training), _sizes(first)),
            ("the settings of the training", _settings(training), _settings(first)),
        ):
            if own != other:
                raise ConfigError(
                    f"trainer.stack={count}: {what} differ between the members; a stack's members "
                    "differ in seed, init, learning rate, clip threshold and dropout rate alone"
                )


def _architecture(model: nn.Module) -> list:
    """Everything that decides what the network computes but its numbers and its dropout."""
    modules = [
        (name, type(m), repr(m) if not list(m.children()) else None)
        for name, m in model.named_modules()
        if not isinstance(m, nn.Dropout)
    ]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [modules, [(n, t.shape, t.dtype, t.stride(), t.requires_grad) for n, t in tensors]]


def _sizes(training: Training) -> tuple:
    data = training.data
    return (
        data.train.inputs.shape, data.train.targets.shape, data.test.inputs.shape, data.classes,
        data.train.inputs.device,
    )  # fmt: skip


def _settings(training: Training) -> tuple:
    # A configured loss comes as a partial, anew for each training.
    loss = training.loss
    if isinstance(loss, partial):
        loss = (loss.func, loss.args, loss.keywords)
    elif isinstance(loss, nn.Module):
        loss = repr(loss)
    return (
        loss, training.step, training.batch_size, training.steps_per_epoch, training.eval_every,
        training.eval_batch_size, training.bf16, training.channels_last,
    )  # fmt: skip


# --- the optimiser --------------------------------------------------------------------------------


class _Optimizer:
    """One optimiser on the stacked tensors where that does the same, else each member's own.

    `hand_out` brings the members' own optimisers up to date, to be saved or read.
    """

    def __init__(self, parameters: dict[str, Tensor], trainings: Sequence[Training]) -> None:
        self._parameters = parameters
        self._trainings = trainings
        self._own = [dict(t.model.named_parameters()) for t in trainings]
        self._whole = self._stacked() if self._alike() else None

    def step(self, gradients: dict[str, Tensor | None]) -> None:
        """One step of every member by its gradients (N, …)."""
        if self._whole is not None:
            for name, gradient in gradients.items():
                self._parameters[name].grad = gradient
            self._whole.step()
            return
        for index, training in enumerate(self._trainings):
            for name, gradient in gradients.items():
                self._own[index][name].grad = None if gradient is None else gradient[index]
            training.optimizer.step()

    def hand_out(self) -> None:
        """Write the stacked optimiser's state into the members' own."""
        if self._whole is None:
            return
        for name, whole in self._parameters.items():
            state = self._whole.state.get(whole)
            if state is None:
                continue
            for index, training in enumerate(self._trainings):
                training.optimizer.state[self._own[index][name]] = {
                    key: _part(value, whole, index) for key, value in state.items()
                }

    def _alike(self) -> bool:
        first = self._trainings[0].optimizer
        if type(first) not in ELEMENTWISE:
            return False
        return all(
            type(t.optimizer) is type(first) and _hyper(t.optimizer) == _hyper(first)
            for t in self._trainings
        )

    def _stacked(self) -> torch.optim.Optimizer:
        first = self._trainings[0].optimizer
        names = {id(p): name for name, p in self._own[0].items()}
        groups = [
            {**group, "params": [self._parameters[names[id(p)]] for p in group["params"]]}
            for group in first.param_groups
        ]
        whole = type(first)(groups)
        for name, stacked in self._parameters.items():
            states = [t.optimizer.state.get(o[name]) for t, o in
                      zip(self._trainings, self._own, strict=True)]  # fmt: skip
            if states[0]:
                whole.state[stacked] = {
                    key: _together(key, [state[key] for state in states]) for key in states[0]
                }
        return whole


def _hyper(optimizer: torch.optim.Optimizer) -> list[dict]:
    """The groups' settings without their parameters."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def _part(value: object, whole: Tensor, index: int) -> object:
    """A member's part of one entry of the state of `whole` (N, …)."""
    if not isinstance(value, Tensor):
        return value
    return (value[index] if value.shape == whole.shape else value).clone()


def _together(key: str, values: Sequence) -> object:
    """The inverse of `_part`. The number of steps is common to all members."""
    if not isinstance(values[0], Tensor):
        return values[0]
    return values[0].clone() if key == "step" else torch.stack(list(values))
