"""What keeps the doctor apart from the training it watches: copies, relays, and restored state."""

import copy
import inspect
import random
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.reachable import Changes, kept

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_LOCKS = {type(make()): make for make in (threading.Lock, threading.RLock)}
_DEPTH = 4  # levels of containers in a module's attributes that are searched for what has no copy


class _Blocks(threading.local):
    """How many `undisturbed` blocks the thread is in."""

    open = 0


_blocks = _Blocks()


class Relay:
    """A hook that calls a method of its owner, as long as the owner exists.

    It does not keep the owner alive. A copy or a file of the module that it hangs on holds a hook
    that does nothing: a copied model is not the one that is watched. In compiled code it does
    nothing either, and in what a doctor tries out in an `undisturbed` block: a discriminator that
    the generator's doctor calls is not called by the loop.

    Args:
        owner: is referenced weakly.
        method: name of the method that takes the hook's arguments.
    """

    def __init__(self, owner: object, method: str) -> None:
        self._owner = weakref.ref(owner)
        self._method = method

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or _blocks.open:
            return None
        owner = self._owner()
        return None if owner is None else getattr(owner, self._method)(*args)

    def __deepcopy__(self, memo: dict) -> Callable:
        return nothing

    def __reduce__(self) -> tuple:
        return _get_nothing, ()


def nothing(*args: Any) -> None:
    """Do nothing: the hook of a model that is not watched."""


def _get_nothing() -> Callable:
    return nothing


def copied_model(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a copy of the model without gradients and without anybody's hooks.

    Hooks that compute the weights, as torch's own parametrisations do, are kept. What cannot be
    copied and has no state that the copy needs is replaced: results of an earlier pass, which hang
    on its graph, by their values; locks by new ones; Python's modules by themselves.

    Args:
        shared: what stands in the copy for things of these identities.

    Raises:
        TypeError: a forward was replaced on the instance: the copy would call the original's.
        Exception: whatever copying raises, of a module that holds an open file, say.
    """
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        patched = vars(module).get("forward")
        compiler = vars(module).get("dynamo_ctx")  # of a module from torch.compile
        if compiler is not None:
            memo[id(compiler)] = compiler  # makes the copy's own forward
        elif isinstance(patched, types.FunctionType | partial):
            raise TypeError(f"the forward of {name or 'the model'} is replaced on the instance")
    kept = []
    for module in model.modules():
        for attribute in _HOOKS:
            hooks = vars(module).get(attribute)
            if hooks:
                kept.append((module, attribute, hooks))
                torchs = {i: h for i, h in hooks.items() if _is_torchs(h)}
                vars(module)[attribute] = OrderedDict(torchs)
    try:
        with torch.inference_mode(False):
            replica = copy.deepcopy(model, _replacements(model) | memo | dict(shared or {}))
    finally:
        for module, attribute, hooks in kept:
            vars(module)[attribute] = hooks
    _rebind(model, replica)
    replica.zero_grad(set_to_none=True)
    return replica


def _rebind(model: nn.Module, replica: nn.Module) -> None:
    """Let the functions among a copy's attributes reach its own modules and weights.

    `copy.deepcopy` takes functions as they are: a lambda that was made in `__init__` would still
    call the original's layers.
    """
    own: dict[int, Any] = {}
    for parts in (nn.Module.modules, nn.Module.parameters, nn.Module.buffers):
        own |= {id(a): b for a, b in zip(parts(model), parts(replica), strict=False)}
    for module in replica.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__closure__:
                vars(module)[name] = _rebound(value, own)


def _rebound(function: types.FunctionType, own: Mapping[int, Any]) -> types.FunctionType:
    """Return a function whose closure holds what `own` has for the things in it, by identity."""
    cells, changed = [], False
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # an empty cell
            cells.append(cell)
            continue
        changed = changed or id(value) in own
        cells.append(types.CellType(own[id(value)]) if id(value) in own else cell)
    if not changed:
        return function
    bound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        tuple(cells),
    )  # fmt: skip
    bound.__kwdefaults__ = function.__kwdefaults__
    return bound


def _replacements(model: nn.Module) -> dict[int, Any]:
    """Return what stands in a copy for things that cannot be copied, by their identity.

    In the form of `copy.deepcopy`'s memory.
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()

    def look(value: Any, depth: int) -> None:
        if id(value) in seen or depth > _DEPTH:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if (
                value.grad_fn is not None
            ):  # as weight norm's product, which the next pass makes anew
                found[id(value)] = value.detach().clone()
        elif isinstance(value, types.ModuleType):
            found[id(value)] = value
        elif type(value) in _LOCKS:
            found[id(value)] = _LOCKS[type(value)]()
        elif isinstance(value, dict):
            for item in list(value.values()):
                look(item, depth + 1)
        elif isinstance(value, list | tuple | set | deque):
            for item in list(value):
                look(item, depth + 1)
        elif not isinstance(value, type) and not callable(value):
            look(getattr(value, "__dict__", None), depth + 1)

    for module in model.modules():
        for value in list(vars(module).values()):
            look(value, 0)
    return found


def _is_torchs(hook: Any) -> bool:
    module = type(hook).__module__ if not inspect.isfunction(hook) else hook.__module__
    return module.startswith("torch.")


def copied_state(model: nn.Module) -> dict[str, Any]:
    """Return a copy of the model's state dict."""
    with torch.inference_mode(False):
        return {
            name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in model.state_dict().items()
        }


@contextmanager
def undisturbed(loss_fn: Any = None, model: nn.Module | None = None) -> Iterator[Changes]:
    """Leave no trace of what runs in the block, which nobody's doctor takes note of.

    Random states are restored, and all that the loss function or the model's code reaches, see
    `reachable.kept`. In between neither autocast nor inference mode. What is compiled runs as it is
    written: another batch size, or another mode of the gradients, would have it compiled again, for
    the training too.

    Args:
        loss_fn: the user's, where the block calls it.
        model: the user's, where the block calls copies of it.
    """
    devices = []
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = list(range(torch.cuda.device_count()))
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    outer = _blocks.open
    _blocks.open = outer + 1
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            kept(loss_fn, model) as changes,
            torch.compiler.set_stance("force_eager")
            if "torch._dynamo" in sys.modules  # which takes seconds to import
            else nullcontext(),
        ):
            yield changes
    finally:
        _blocks.open = outer
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)
