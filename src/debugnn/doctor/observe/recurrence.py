"""Whether the gradient of a hand-written recurrence goes back from step to step.

A recurrence in Python calls a layer once for each position of a sequence. Where its state is handed
on without its graph (by `.data`, `.detach()` or numpy), an output depends on all
positions and its gradient reaches the last one alone. Steps that are taken under `no_grad` as a
whole have no graph that could be cut: that is meant, and not looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from debugnn.doctor.evidence import RecurrenceFacts
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.outcome import Predicted
from debugnn.doctor.observe.perturbation import differ
from debugnn.doctor.observe.samples import first_of_each
from debugnn.doctor.observe.simple_models import simple_skill
from debugnn.doctor.observe.task import Task, score
from debugnn.random_state import random_state, set_random_state

_LEAST_STEPS = 4  # of a sequence in which one step can be told from all
_SAMPLES = 16  # of the batch that are looked at
_NUDGE = 0.05  # change of a position, over the root mean square of all; twice that too
_CUTS = {
    Tensor.detach: ".detach()",
    Tensor.detach_: ".detach_()",
    Tensor.data.__get__: ".data",  # type: ignore[attr-defined]
    Tensor.numpy: ".numpy()",
    Tensor.tolist: ".tolist()",
    Tensor.item: ".item()",
}


class _Watched(NamedTuple):
    """A forward pass with its graph."""

    output: Tensor | None
    calls: dict[str, list[Tensor]]  # module with weights of its own → its outputs, call by call
    cuts: dict[str, str]  # line of the person's code that leaves the graph → by what


class _Cuts(TorchFunctionMode):
    """Notes where tensors are taken out of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CUTS and args and isinstance(args[0], Tensor) and args[0].requires_grad:
            line = line_of_caller()
            if line is not None:
                self.lines[line] = _CUTS[func]
        return func(*args, **(kwargs or {}))


def recurrence_facts(model: nn.Module, call: Call, layout: Layout) -> RecurrenceFacts | None:
    """Find out whether outputs depend on positions of a sequence that no gradient goes back to.

    Args:
        model: a copy, its dropout off. Its buffers may move.
        call: of a batch.
        layout: where its samples lie; the other one of the first two axes is the sequence's.

    Returns:
        None without a layer that is called at each position, or where the outputs depend on none
        that is not reached.
    """
    call, _ = layout.take(call, slice(_SAMPLES))
    inputs = layout.inputs(call)
    if layout.axis is None or inputs is None or not is_plain(inputs) or inputs.dim() < 2:
        return None
    time = 1 - layout.axis
    steps = inputs.shape[time]
    if steps < _LEAST_STEPS:
        return None
    state = random_state(inputs.device)

    def run(changed: Call) -> _Watched:
        set_random_state(inputs.device, state)
        with torch.enable_grad(), _outputs_of_layers(model) as calls, _Cuts() as cuts:
            output = first_tensor(changed(model))
        return _Watched(output, calls, cuts.lines)

    values = inputs.is_floating_point()
    entry: Tensor | None = inputs.detach().clone().requires_grad_() if values else None
    seen = run(call if entry is None else _exchanged(call, inputs, entry))
    repeated = {name: found for name, found in seen.calls.items() if len(found) >= steps - 1}
    if not repeated or seen.output is None or not seen.output.requires_grad:
        return None
    embedding = None
    if entry is None:
        embedding, entry = _sequence(seen.calls, inputs)
    if entry is None:
        return None
    nudged = _NudgedOutput(model, call, inputs, embedding, time, run)
    for end in (steps - 1, 0):
        facts = _facts_of(seen, repeated, entry, inputs, layout.axis, end, nudged)
        if facts is not None:
            return facts
    return None


def _exchanged(call: Call, old: Tensor, new: Tensor) -> Call:
    return call.map(lambda tensor: new if tensor is old else tensor)


class _NudgedOutput(NamedTuple):
    """Gives the outputs with one position of a sequence a little different."""

    model: nn.Module
    call: Call
    inputs: Tensor
    embedding: str | None  # module whose output is changed; None: the inputs
    time: int
    run: Callable[[Call], _Watched]

    def at(self, place: int, size: float) -> Tensor | None:
        """Return the outputs with the position changed by `size`, in root mean squares."""

        def nudge(tensor: Tensor) -> Tensor:
            noise = torch.Generator().manual_seed(0)
            part = tensor.select(self.time, place)
            drawn = torch.randn(part.shape, generator=noise).to(tensor)
            rms = tensor.detach().square().mean().sqrt()
            changed = tensor.detach().clone()
            changed.select(self.time, place).add_(size * rms * drawn)
            return changed

        if self.embedding is None:
            return self.run(_exchanged(self.call, self.inputs, nudge(self.inputs))).output
        module = self.model.get_submodule(self.embedding)
        handle = module.register_forward_hook(lambda module, args, output: nudge(output))
        try:
            return self.run(self.call).output
        finally:
            handle.remove()


@contextmanager
def _outputs_of_layers(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of modules that have trainable parameters of their own."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.requires_grad:
                found.setdefault(name, []).append(tensor)

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if name and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _sequence(calls: dict[str, list[Tensor]], inputs: Tensor) -> tuple[str | None, Tensor | None]:
    """Return the first module that makes a vector of each symbol of the inputs, and its output."""
    for name, outputs in calls.items():
        first = outputs[0]
        if len(outputs) == 1 and first.dim() > 2 and first.shape[:2] == inputs.shape[:2]:
            return name, first
    return None, None


def _facts_of(
    seen: _Watched,
    repeated: dict[str, list[Tensor]],
    entry: Tensor,
    inputs: Tensor,
    axis: int,
    end: int,
    nudged: _NudgedOutput,
) -> RecurrenceFacts | None:
    """Return the facts of the outputs at one end of the sequence; of all, where they have no such
    axis. None where they depend on no position without a gradient, or where there is none at all.
    """
    time, steps = 1 - axis, inputs.shape[1 - axis]

    def parted(output: Tensor) -> Tensor:
        flat = output.shape[:1] == (inputs.shape[0] * inputs.shape[1],)
        return output.unflatten(0, inputs.shape[:2]) if flat else output

    def of(output: Tensor) -> Tensor:
        output = parted(output)
        return output.select(time, end) if each_step else output

    if seen.output is None:
        return None
    each_step = parted(seen.output).shape[:2] == inputs.shape[:2]
    output = of(seen.output)
    noise = torch.Generator().manual_seed(1)
    pull = torch.randn(output.shape, generator=noise).to(output)
    layers = [tensor for found in repeated.values() for tensor in found]
    gradient, *of_layers = torch.autograd.grad(
        (output * pull).sum(), [entry, *layers], allow_unused=True, retain_graph=True
    )
    if gradient is None or not torch.isfinite(gradient).all():
        return None
    reached = (gradient.movedim((axis, time), (0, 1)) != 0).flatten(2).any(dim=2)
    anywhere = reached.any(dim=0)
    if anywhere.all() or not anywhere.any():
        return None
    known = anywhere.nonzero().flatten()
    place = min(
        (~anywhere).nonzero().flatten().tolist(), key=lambda p: (known - p).abs().min().item()
    )
    once, twice = (nudged.at(place, size) for size in (_NUDGE, 2 * _NUDGE))
    if once is None or twice is None:
        return None
    base, once, twice = (t.detach().float() for t in (output, of(once), of(twice)))
    if base.shape != twice.shape or not differ(base, twice):
        return None
    uneven = (twice - 2 * once + base).norm() / (twice - base).norm()
    order = iter(of_layers)
    idle = {
        name: sum(g is None or not g.any() for g in (next(order) for _ in found))
        for name, found in repeated.items()
    }
    layer = max(idle, key=idle.__getitem__)
    line, by = next(iter(seen.cuts.items())) if len(seen.cuts) == 1 else (None, None)
    return RecurrenceFacts(
        layer=layer,
        steps=steps,
        each_step=each_step,
        reached=int(reached.sum(dim=1).max()),
        uneven=uneven.item(),
        calls=len(repeated[layer]),
        idle=idle[layer],
        line=line,
        cut_by=by,
        end=-1 if end else 0,
    )


def note_what_is_remembered(
    facts: RecurrenceFacts, predicted: Sequence[Sequence[Predicted]], task: Task, layout: Layout
) -> None:
    """Fill in how well outputs at the end of sequences fit, beside simple models of the inputs.

    Args:
        facts: of outputs of each step; of others nothing is filled in.
        predicted: outputs of the trained model, one list for each mode; the better one counts.
        task: of all outputs.
        layout: where the samples lie.
    """
    if not facts.each_step or layout.axis is None or task.kind == "unknown":
        return
    skills = []
    for mode in predicted:
        found = [_at_end(p, layout, layout.axis, facts.end) for p in mode]
        ends = [end for end in found if end is not None]
        if not ends or len({end.inputs.shape[1:] for end in ends}) > 1:
            return
        inputs, outputs, targets = (torch.cat(parts) for parts in zip(*ends, strict=True))
        if task.kind == "classes" and (outputs.dim() != 2 or outputs.shape[1] != task.size):
            return
        of_end = replace(task, axis=1) if task.kind == "classes" else task
        skills.append(score(of_end, outputs, targets).skill)
    known = [skill for skill in skills if skill is not None]
    if not known:
        return
    keep = first_of_each(inputs)  # the same sample in both folds would be learnt by heart
    inputs, targets = inputs[keep], targets[keep]
    facts.end_skill = max(known)
    facts.end_by_all = simple_skill(inputs, targets, of_end)
    step = inputs[:, facts.end]
    facts.end_by_itself = simple_skill(step.reshape(len(step), -1), targets, of_end)


class _End(NamedTuple):
    inputs: Tensor  # (samples, steps, …)
    outputs: Tensor  # (samples, …), of the last or of the first step
    targets: Tensor


def _at_end(predicted: Predicted, layout: Layout, axis: int, end: int) -> _End | None:
    inputs, targets = layout.inputs(predicted.batch.call), predicted.batch.targets
    output = first_tensor(predicted.outputs)
    if inputs is None or output is None or not isinstance(targets, Tensor) or inputs.dim() < 2:
        return None
    shape, sides = inputs.shape[:2], []
    for side in (output.detach(), targets):
        if side.shape[:1] == (shape[0] * shape[1],):
            side = side.unflatten(0, shape)
        if side.shape[:2] != shape:
            return None
        sides.append(side.select(1 - axis, end))
    return _End(inputs.movedim(axis, 0), *sides)
