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
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from debugnn.doctor.reachable import Changes, kept

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_FLAGS = {
    "_forward_hooks_with_kwargs": "_forward_hooks",
    "_forward_hooks_always_called": "_forward_hooks",
    "_forward_pre_hooks_with_kwargs": "_forward_pre_hooks",
}
_LOCKS = {type(make()): make for make in (threading.Lock, threading.RLock)}
_DEPTH = 4  # levels of containers in a module's attributes that are searched for what has no copy


class _Blocks(threading.local):
    """How many `undisturbed` blocks the thread is in."""

    open = 0


_blocks = _Blocks()


class Relay:
    """A hook that calls a method of its owner, as long as the owner exists.

    It does not keep the owner alive. A copy or a file of the module that it hangs on holds a hook
    that does nothing: a copied model is not the one that is watched. It does nothing either in
    compiled code, while the model is traced, and in what a doctor tries out in an `undisturbed`
    block: a discriminator that the generator's doctor calls is not called by the loop.

    Args:
        owner: is referenced weakly.
        method: name of the method that takes the hook's arguments.
    """

    def __init__(self, owner: object, method: str) -> None:
        self._owner = weakref.ref(owner)
        self._method = method

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or _blocks.open:
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

    Hooks that compute the weights, as torch's own parametrisations do, are kept, and hooks of a
    forward pass that reach the model itself, as one that hands a layer's output to it does. What
    cannot be copied and has no state that the copy needs is replaced: results of an earlier pass,
    which hang on its graph, by their values; locks by new ones; Python's modules by themselves.

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
    kept, parts = [], _parts(model)
    for module in model.modules():
        own = {a: vars(module).get(a) or {} for a in _HOOKS}
        for attribute, hooks in own.items():
            if hooks:
                kept.append((module, attribute, hooks))
                flagged = own.get(_FLAGS.get(attribute, ""), hooks)
                needed = {
                    i: h
                    for i, h in hooks.items()
                    if _is_torchs(flagged.get(i)) or _reaches(flagged.get(i), parts)
                }
                vars(module)[attribute] = OrderedDict(needed)
    copies = _replacements(model) | memo | dict(shared or {})
    try:
        with torch.inference_mode(False):
            replica = copy.deepcopy(model, copies)
    finally:
        for module, attribute, hooks in kept:
            vars(module)[attribute] = hooks
    _rebind(replica, copies)
    for parameter in replica.parameters():
        if parameter.is_leaf:  # TorchScript's copies are none, and warn of their gradients
            parameter.grad = None
    return replica


def own_hooks(model: nn.Module) -> list[tuple[dict[int, Any], int]]:
    """Return the hooks of forward passes that are not torch's: what holds each, and its key."""
    return [
        (hooks, key)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for key, hook in hooks.items()
        if not _is_torchs(hook)
    ]


def hookable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a model that take hooks, with their names; TorchScript's take none."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield name, module


def _parts(model: nn.Module) -> dict[int, bool]:
    """Return the identities of a model's modules (False) and of their containers (True)."""
    containers = (
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, dict | list | set | deque) and not name.startswith("_")
    )
    return {id(m): False for m in model.modules()} | {id(c): True for c in containers}


def _reaches(hook: Any, parts: Mapping[int, bool]) -> bool:
    """Return whether a hook is a method of a module of a model, or holds one of its containers.

    A hook that merely reads a module, whether it is in training mode say, and collects or counts
    what it is given, is the loop's.

    Args:
        parts: the identities of the modules → False, and of the containers → True.
    """
    if isinstance(hook, partial):
        return _reaches(hook.func, parts) or any(
            parts.get(id(value), False) for value in (*hook.args, *hook.keywords.values())
        )
    if isinstance(hook, types.MethodType):
        return id(hook.__self__) in parts
    if not isinstance(hook, types.FunctionType):
        return False
    return any(parts.get(id(value), False) for value in _held(hook))


def _held(function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function's closure and its defaults hold."""
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents


def _rebind(replica: nn.Module, copies: Mapping[int, Any]) -> None:
    """Let the functions among a copy's attributes and hooks reach its own modules and weights.

    `copy.deepcopy` takes functions as they are: a lambda that was made in `__init__` would still
    call the original's layers.

    Args:
        copies: what stands in the copy for things of these identities.
    """
    for module in replica.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType):
                vars(module)[name] = _rebound(value, copies)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for index, hook in list(hooks.items()):
                if isinstance(hook, types.FunctionType):
                    hooks[index] = _rebound(hook, copies)


def _rebound(function: types.FunctionType, copies: Mapping[int, Any]) -> types.FunctionType:
    """Return a function that holds, in its closure and its defaults, the copies of what it held."""
    if not any(id(value) in copies for value in _held(function)):
        return function

    def copied(value: Any) -> Any:
        return copies.get(id(value), value)

    cells = []
    for cell in function.__closure__ or ():
        try:  # a cell of its own: the function may assign to the name
            cells.append(types.CellType(copied(cell.cell_contents)))
        except ValueError:  # an empty cell
            cells.append(cell)
    defaults = function.__defaults__
    bound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__,
        None if defaults is None else tuple(map(copied, defaults)), tuple(cells),
    )  # fmt: skip
    keywords = function.__kwdefaults__
    bound.__kwdefaults__ = keywords and {name: copied(value) for name, value in keywords.items()}
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
    if hook is None:
        return False
    module = type(hook).__module__ if not inspect.isfunction(hook) else hook.__module__
    return module.startswith("torch.")


def copied_state(model: nn.Module) -> dict[str, Any]:
    """Return a copy of the model's state dict."""
    with torch.inference_mode(False):
        return {
            name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in model.state_dict().items()
        }


def _computed_once(function: Callable, preserve_random_state: bool, *args: Any) -> Any:
    return function(*args)


@contextmanager
def undisturbed(loss_fn: Any = None, model: nn.Module | None = None) -> Iterator[Changes]:
    """Leave no trace of what runs in the block, which nobody's doctor takes note of.

    Random states are restored, and all that the loss function or the model's code reaches, see
    `reachable.kept`. In between neither autocast nor inference mode. What is compiled runs as it is
    written: another batch size, or another mode of the gradients, would have it compiled again, for
    the training too. Transformers run layer by layer, in evaluation as in training: their fused
    encoder makes nested tensors of padded ones, which hooks and operations cannot look into. What
    is checkpointed in the older, reentrant way is computed once: it refuses gradients with respect
    to chosen tensors.

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
    fused = torch.backends.mha.get_fastpath_enabled()
    outer = _blocks.open
    _blocks.open = outer + 1
    torch.backends.mha.set_fastpath_enabled(False)
    if not outer:
        CheckpointFunction.apply = _computed_once
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
        if not outer:
            del CheckpointFunction.apply  # its own is that of the class that it inherits from
        torch.backends.mha.set_fastpath_enabled(fused)
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)
