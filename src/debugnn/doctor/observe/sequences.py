"""Whether a network that names a symbol at each position of a sequence is given that symbol.

The gradient of the loss with respect to the outputs tells which symbol each position is pulled to:
whatever the loss does with its targets, shifts and leaves out. These symbols are compared with the
inputs, and single symbols of an input are exchanged to see which positions' outputs change.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import hookable
from debugnn.doctor.evidence import SequenceFacts
from debugnn.doctor.observe.calls import Call, is_plain, scores_of
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.scored_symbols import Scored

_LEAST = 4  # positions of a sequence
_PROBES = 3  # positions whose symbol is exchanged
_CHANGED = 1e-5  # change of an output over the largest one that is no rounding


@dataclass
class _Input:
    """An argument of symbols, (A, B) or one-hot (A, B, classes).

    Attributes:
        index: among the call's tensors.
        name: of the argument.
        symbols: (A, B), or (B, A) where `turned`.
    """

    index: int
    name: str
    symbols: Tensor
    turned: bool


def sequence_facts(model: nn.Module, found: Scored) -> SequenceFacts | None:
    """Compare the symbols that outputs are pulled to with the input's, and probe what they see.

    Args:
        model: a copy of the model.

    Returns:
        None where no input has a symbol for each position.
    """
    best: tuple[tuple[float, ...], _Input, int] | None = None
    for each in _inputs(model, found):
        for axis in (0, 1):
            shares = tuple(_match(each.symbols, found.symbols, axis, by) for by in range(3))
            if best is None or max(shares) > max(best[0]):
                best = shares, each, axis
    if best is None:
        return None
    (same, following, second), each, axis = best
    facts = SequenceFacts(
        argument=each.name,
        same=same,
        following=following,
        second=second,
        scored=(found.symbols >= 0).double().mean().item(),
    )
    with torch.no_grad(), without_dropout(model, training=False):
        # Equal symbols do not tell which axis is time: what depends on what does.
        axes = (axis, 1 - axis) if same >= following else (axis,)
        for time in axes:
            _probe(model, found, each, time, facts)
            if facts.sees_past or facts.sees_future:
                scored = (found.symbols >= 0).reshape(each.symbols.shape)
                facts.left_out = _left_out(scored, time)
                break
    return facts


def _inputs(model: nn.Module, found: Scored) -> Iterator[_Input]:
    """Yield the arguments with a symbol for each scored position, in either layout."""
    for index, (name, tensor) in enumerate(named_tensors(model, found.call)):
        if not is_plain(tensor):
            continue
        symbols = tensor.detach().cpu()
        if symbols.is_floating_point() and symbols.dim() == 3:
            if not bool((((symbols == 0) | (symbols == 1)).all()) and (symbols.sum(-1) == 1).all()):
                continue
            symbols = symbols.argmax(dim=-1)
        if symbols.dim() != 2 or symbols.is_floating_point() or symbols.dtype == torch.bool:
            continue
        if symbols.numel() == len(found.symbols):
            for turned in (False, True):
                yield _Input(index, name, symbols.t() if turned else symbols, turned)


def named_tensors(model: nn.Module, call: Call) -> list[tuple[str, Tensor]]:
    """Return the call's tensors with the names of the forward's arguments that hold them."""
    names = list(inspect.signature(model.forward).parameters)
    named = []
    for position, value in enumerate(call.args):
        name = names[position] if position < len(names) else str(position)
        named += [(name, t) for t in Call((value,)).tensors()]
    for name, value in call.kwargs.items():
        named += [(name, t) for t in Call((value,)).tensors()]
    return named


def _match(symbols: Tensor, wanted: Tensor, axis: int, by: int) -> float:
    """Return the share of scored positions whose target is the input's symbol `by` positions on."""
    length = symbols.shape[axis]
    if length < _LEAST:
        return 0.0
    now = wanted.reshape(symbols.shape).narrow(axis, 0, length - by)
    flags = (symbols.narrow(axis, by, length - by) == now)[now >= 0]
    return flags.double().mean().item() if len(flags) else 0.0


def _left_out(scored: Tensor, axis: int) -> float:
    """Return the share of positions that are not scored, and lie between scored ones.

    Args:
        scored: (A, B).
        axis: of time.
    """
    count = scored.long()
    before = count.cumsum(dim=axis) > 0
    after = count.flip(axis).cumsum(dim=axis).flip(axis) > 0
    return (~scored & before & after).double().mean().item()


def _probe(model: nn.Module, found: Scored, each: _Input, time: int, facts: SequenceFacts) -> None:
    """Note which positions' outputs change as single symbols are exchanged.

    Args:
        time: axis of the sequence in `each.symbols`.
    """
    call, symbols = found.call, each.symbols
    kinds, length = symbols.unique(), symbols.shape[time]
    if len(kinds) < 2 or length < _LEAST:
        return
    # Axes are told apart by their sizes, so one sample is left out if there are as many samples as
    # positions.
    if symbols.shape[0] == symbols.shape[1] and time == int(not each.turned):
        call = call.map(lambda t: t[: length - 1] if t.dim() and len(t) == length else t)
        symbols = symbols.narrow(1 - time, 0, length - 1)
    others = symbols.shape[1 - time]
    passes = _Passes(model, others, length)
    before = _rows(passes.run(call), symbols.shape, found.axis)
    if before is None:
        return
    sample = others // 2
    positions = sorted({length * (i + 1) // (_PROBES + 1) for i in range(_PROBES)} - {0})
    seen = torch.zeros(4)  # own, following, following through a code, positions
    facts.sees_past = facts.sees_future = False
    for position in positions:
        place = (position, sample) if time == 0 else (sample, position)
        other = _exchanged(call, each, place, symbols[place], kinds)
        after = _rows(passes.run(other, again=True), symbols.shape, found.axis)
        held = _rows(passes.run(other, again=True, hold=True), symbols.shape, found.axis)
        if after is None or held is None:
            return
        changed = _changed(before, after, time, sample)
        direct = _changed(before, held, time, sample)
        before_it = position - 1
        flags = (changed[position], changed[before_it], changed[before_it] & ~direct[before_it])
        seen += torch.tensor([*flags, 1.0])
        facts.sees_future |= bool(changed[:position].any())
        facts.sees_past |= bool(changed[position + 1 :].any())
    facts.sees_own, facts.sees_following, code = (seen[:3] / seen[3]).tolist()
    facts.through_code = None if others == length else code


def _changed(before: Tensor, after: Tensor, time: int, sample: int) -> Tensor:
    """Which positions of a sample have other outputs, (positions,)."""
    size = before.abs().max().clamp_min(1e-30)
    return ((after - before).abs().amax(dim=-1) / size > _CHANGED).select(1 - time, sample)


def _rows(outputs: Any, shape: torch.Size, axis: int) -> Tensor | None:
    """The outputs by position, (*shape, classes); None where they have no such form."""
    tensor = scores_of(outputs)
    if tensor is None or tensor.numel() != shape.numel() * tensor.shape[axis]:
        return None
    return tensor.movedim(axis, -1).reshape(*shape, -1).float()


def _exchanged(
    call: Call, each: _Input, place: tuple[int, int], old: Tensor, kinds: Tensor
) -> Call:
    """The call with another symbol of these kinds at one place of an input."""
    new = next(kind for kind in kinds.tolist() if kind != old)
    place = place[::-1] if each.turned else place
    count = iter(range(1 << 30))

    def change(tensor: Tensor) -> Tensor:
        if next(count) != each.index:
            return tensor
        tensor = tensor.clone()
        if tensor.dim() == 3:
            tensor[place] = 0
            tensor[(*place, new)] = 1
        else:
            tensor[place] = new
        return tensor

    return call.map(change)


class _Passes:
    """Forward passes in which modules may repeat what they gave in the first one.

    Tensors without an axis of positions can be held as they were in the first pass: what reaches an
    output through a code of the whole sequence, as in an autoencoder, then no longer does.

    Args:
        batch: sequences in a batch.
        length: positions of a sequence.
    """

    def __init__(self, model: nn.Module, batch: int, length: int) -> None:
        self._model = model
        self._batch, self._length = batch, length
        self._first: dict[tuple[str, int], list[Tensor]] = {}
        self._calls: dict[str, int] = {}
        self._state: list[Tensor] = []

    def run(self, call: Call, again: bool = False, hold: bool = False) -> Any:
        """Return the outputs of a pass.

        Args:
            again: it is not the first pass, and draws the same random numbers.
            hold: tensors without positions are those of the first pass.
        """
        if again:
            torch.random.default_generator.set_state(self._state[0])
        else:
            self._state = [torch.random.default_generator.get_state()]
        self._calls.clear()
        handles = []
        if hold or not again:
            for name, module in hookable(self._model):
                if name:
                    hook = self._hold(name) if again else self._keep(name)
                    handles.append(module.register_forward_hook(hook))
        try:
            return call(self._model)
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self._first[self._key(name)] = [t.clone() for t in Call((output,)).tensors()]

        return hook

    def _hold(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            kept = self._first.get(self._key(name))
            if kept is None:
                return None
            pairs = iter(kept)

            def repeat(tensor: Tensor) -> Tensor:
                first = next(pairs, tensor)
                return first if self._without_positions(first) else tensor

            return Call((output,)).map(repeat).args[0]

        return hook

    def _key(self, name: str) -> tuple[str, int]:
        self._calls[name] = self._calls.get(name, -1) + 1
        return name, self._calls[name]

    def _without_positions(self, tensor: Tensor) -> bool:
        """True of (batch, …) and of a recurrent layer's state, (layers, batch, …)."""
        shape = list(tensor.shape)
        if self._length not in shape:
            return self._batch in shape and self._batch * self._length not in shape
        if self._batch == self._length:
            return False
        flat = len(shape) == 2 and shape[0] == self._batch
        state = len(shape) == 3 and shape[1] == self._batch and shape[0] != self._length
        return flat or state
