"""State that a module keeps in plain attributes or buffers from one forward pass to the next.

A recurrent network may keep its hidden state in itself, for the next batch to go on from, and its
loop may reset it. What is tried out on a copy has to begin where the loop's own passes begin, and
to leave no state for the next thing that is tried.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from debugnn.doctor.evidence import StateFacts
from debugnn.doctor.observe.calls import Call, copied, is_plain, map_tensors
from debugnn.doctor.observe.influence import views_of
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.mixing import change_over_spread
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.perturbation import Passes, differ
from debugnn.doctor.observe.samples import came_again

_OWN = frozenset(vars(nn.Module()))  # attributes that every module has
_MISSING = object()  # stands for an attribute that a module does not have


class Place(NamedTuple):
    """Where a state lies: a module's name, and its attribute."""

    module: str
    attribute: str

    @property
    def path(self) -> str:
        """The state's path from the model."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


Saved = list[tuple[Any, str, Any]]  # where, under which name, what


def plain_values(model: nn.Module) -> Iterator[tuple[Place, Any]]:
    """Yield the plain attributes and the buffers of a model that are tensors, containers or None.

    Attributes that hold parameters, and what PyTorch keeps for itself, are left out.
    """
    for name, module in model.named_modules():
        for attribute, value in (*vars(module).items(), *module._buffers.items()):
            if attribute in _OWN or not isinstance(value, Tensor | list | tuple | dict | None):
                continue
            if not any(tensor.requires_grad and tensor.is_leaf for tensor in _tensors(value)):
                yield Place(name, attribute), value


def kept_state(model: nn.Module, call: Call) -> tuple[Place, ...]:
    """Return the places of what a pass leaves in the model, and the next pass goes on from.

    Attributes that every pass in evaluation mode changes, of a model whose outputs are others in
    the second pass than in the first. What is made once, in the first pass, is no state.

    Args:
        model: a copy in evaluation mode, its dropout off. It is left with a state.
        call: how the model is called with a batch.
    """
    with torch.no_grad():
        passes = Passes(model, call)  # which makes two
        if passes.steady or passes.output is None:
            return ()
        before = {place: _marked(value) for place, value in plain_values(model)}
        passes.run(call)
        after = dict(plain_values(model))
    return tuple(
        place
        for place, value in after.items()
        if _tensors(value) and not _is_as_marked(value, before.get(place, []))
    )


def held(model: nn.Module, places: Iterable[Place]) -> Saved:
    """Return what lies at these places, not copied."""
    found: Saved = []
    for place in places:
        module = model.get_submodule(place.module)
        holder = module._buffers if place.attribute in module._buffers else vars(module)
        found.append((holder, place.attribute, holder.get(place.attribute, _MISSING)))
    return found


def saved_state(model: nn.Module, places: Iterable[Place]) -> Saved:
    """Return copies of what lies at these places."""
    return [(h, name, map_tensors(v, copied)) for h, name, v in held(model, places)]


def values_at(model: nn.Module, places: Sequence[Place]) -> dict[str, Any]:
    """Return copies of what lies at these places, by their paths, as far as anything does."""
    saved = zip(places, saved_state(model, places), strict=True)
    return {place.path: value for place, (_, _, value) in saved if value is not _MISSING}


def put_at(model: nn.Module, places: Sequence[Place], values: Mapping[str, Any]) -> None:
    """Put the result of `values_at` at the same places of a model."""
    restore_state(
        [
            (holder, name, values.get(place.path, _MISSING))
            for place, (holder, name, _) in zip(places, held(model, places), strict=True)
        ]
    )


def restore_state(saved: Saved) -> None:
    """Put back what was saved; it can be put back again."""
    for holder, name, value in saved:
        if value is _MISSING:
            holder.pop(name, None)
        else:
            holder[name] = map_tensors(value, copied)


class _Keeper:
    """Lets every pass of a copy begin with one state, and leaves that behind.

    Attributes:
        given: values that the next pass begins with in the place of it, None without.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place]) -> None:
        self.given: list[Any] | None = None
        self._saved = saved_state(model, places)

    def begin(self, *_: Any) -> None:
        """Set the state, before a pass."""
        restore_state(self._saved)
        if self.given is not None:
            pairs = zip(self._saved, self.given, strict=True)
            restore_state([(holder, name, value) for (holder, name, _), value in pairs])

    def end(self, *_: Any) -> None:
        """Set the state back, after a pass."""
        self.given = None
        restore_state(self._saved)


def keep_state(model: nn.Module, places: Sequence[Place]) -> None:
    """Let every pass of a copy begin with the state that it has now, and leave it as it was.

    A call that brings the state with which it began in the training is left alone.
    """
    if places:
        keeper = _Keeper(model, places)
        model.register_forward_pre_hook(keeper.begin)
        model.register_forward_hook(keeper.end, always_call=True)


def _keepers(model: nn.Module) -> Iterator[_Keeper]:
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, _Keeper):
                yield owner


def follow(original: nn.Module, model: nn.Module, state: Iterable[Place]) -> None:
    """Give a copy the numbers, texts and tensors that lie in the original's attributes now.

    A loop may set them: a temperature that it lowers, a stage that it is in. The state is left out.
    """
    left_out = set(state)
    own = dict(model.named_modules())
    for name, module in original.named_modules():
        if name not in own:
            continue
        unsaved = {n: module._buffers[n] for n in module._non_persistent_buffers_set}
        parts: tuple[tuple[Any, Any], ...] = (
            (vars(own[name]), vars(module)),
            (own[name]._buffers, unsaved),
        )
        for holder, values in parts:
            for attribute, value in values.items():
                known = holder.get(attribute, _MISSING)
                if attribute in _OWN or Place(name, attribute) in left_out:
                    continue
                if _is_simple(value) and _is_simple(known) and not _equal(value, known):
                    holder[attribute] = map_tensors(value, copied)


@dataclass(frozen=True)
class BeginsWith:
    """Gives a copy the state that a call of the model began with.

    Attributes:
        values: at the places of the state.
    """

    values: list[Any]

    def __call__(self, model: nn.Module) -> None:
        """Let the copy's next pass begin with the state."""
        for keeper in _keepers(model):
            keeper.given = self.values


class StateBetweenSteps:
    """Notes whether training steps begin with the state that the step before has left.

    Args:
        model: the training's own.

    Attributes:
        places: of its state; empty for most models, of which nothing is noted.
        compared: steps whose first pass began right after the last pass of the step before.
        carried: of these, those that began with the state as it was left.
    """

    not_in_state = ("_left",)

    def __init__(self, model: nn.Module) -> None:
        self.places: tuple[Place, ...] = ()
        self.compared = self.carried = 0
        self._model = model
        self._left: list[tuple[Tensor, int]] | None = None

    def note_start(self, first: bool) -> "BeginsWith | None":
        """Note a pass of a training step, before it.

        Args:
            first: it is the first one of its step.

        Returns:
            What gives a copy the state that this pass begins with; None where there is none.
        """
        if not self.places:
            return None
        left, self._left = self._left, None
        if left and first:
            self.compared += 1
            self.carried += _is_as_marked(self._present(), left)
        return BeginsWith([value for *_, value in saved_state(self._model, self.places)])

    def note_end(self) -> None:
        """Note a pass of a training step, after it."""
        if self.places:
            self._left = _marked(self._present())

    def note_interruption(self) -> None:
        """Note that the model was called by something else than a training step."""
        self._left = None

    def _present(self) -> list[Any]:
        return [value for _, _, value in held(self._model, self.places)]


def state_facts(
    between: StateBetweenSteps,
    model: nn.Module,
    call: Call,
    layout: Layout,
    prints: Sequence[Tensor],
) -> StateFacts:
    """Return what a network keeps in itself, and what its outputs make of it.

    Args:
        between: what was noted between the training's steps.
        model: a copy with the present weights, which keeps its state from pass to pass.
        call: how the model is called with a batch.
        layout: where the samples lie.
        prints: fingerprints of each batch of the training.
    """
    again, after_another = came_again(prints)
    facts = StateFacts(
        paths=[place.path for place in between.places],
        compared=between.compared,
        carried=between.carried,
        came_again=again,
        after_another=after_another,
    )
    inputs = layout.inputs(call)
    if inputs is not None and layout.axis is not None:
        with without_dropout(model, training=False):
            facts.change = _state_change(model, between.places, call, inputs, layout.axis)
    return facts


def _state_change(
    model: nn.Module, places: Sequence[Place], call: Call, inputs: Tensor, axis: int
) -> float | None:
    """Return how much a sample's output changes with what had its place in the batch before.

    As `change_over_spread`. None where outputs of other places follow too, as they do of a running
    mean over samples, or of a memory of all of them.

    Args:
        model: a copy in evaluation mode, which keeps its state from pass to pass.
        places: of the state.
        call: how the model is called with a batch, which comes before itself.
        inputs: the tensor of the call that holds the samples.
        axis: of the samples.
    """
    with torch.no_grad():
        passes, start = Passes(model, call), saved_state(model, places)
        restore_state(start)
        passes.run(call)
        base = passes.run(call)
        restore_state(start)
        passes.changed(inputs, axis, 0)
        other = passes.run(call)
    if base is None or other is None or base.shape != other.shape:
        return None
    middle, found = inputs.shape[axis] // 2, []
    for view in views_of(inputs, base, axis):
        before, after = view.of(base), view.of(other)
        if not differ(before[middle:], after[middle:]):
            found.append(change_over_spread(before[:middle], after[:middle]))
    return max(found, default=None)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _marked(value: Any) -> list[tuple[Tensor, int]]:
    """Return the tensors within a value, and how often each has been changed in place."""
    return [(tensor, _version(tensor)) for tensor in _tensors(value)]


def _is_as_marked(value: Any, marked: list[tuple[Tensor, int]]) -> bool:
    """True if these are the marked tensors, or others on the same memory, and have not changed."""
    now = _tensors(value)
    return len(now) == len(marked) and all(
        tensor.shape == old.shape
        and tensor.data_ptr() == old.data_ptr()
        and _version(old) == version
        for tensor, (old, version) in zip(now, marked, strict=True)
    )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _is_simple(value: Any) -> bool:
    if isinstance(value, Tensor):
        return type(value) is Tensor and value.grad_fn is None and is_plain(value)
    return value is None or isinstance(value, bool | int | float | str)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other
