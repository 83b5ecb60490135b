"""What keeps the doctor apart from the training it watches: copies, relays, and restored state."""

import copy
import inspect
import random
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

L = TypeVar("L", bound=Callable[..., Any] | None)

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class Relay:
    """A hook that calls a method of its owner, as long as the owner exists.

    It does not keep the owner alive. A copy or a file of the module that it hangs on holds a hook
    that does nothing: a copied model is not the one that is watched. In compiled code it does
    nothing either.

    Args:
        owner: is referenced weakly.
        method: name of the method that takes the hook's arguments.
    """

    def __init__(self, owner: object, method: str) -> None:
        self._owner = weakref.ref(owner)
        self._method = method

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
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


def copied_model(model: nn.Module) -> nn.Module:
    """Return a copy of the model without gradients and without anybody's hooks.

    Hooks that compute the weights, as torch's own parametrisations do, are kept.

    Raises:
        TypeError: a forward was replaced on the instance: the copy would call the original's.
        Exception: whatever copying raises, of a module that holds a lock, say.
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
            replica = copy.deepcopy(model, memo)
    finally:
        for module, attribute, hooks in kept:
            vars(module)[attribute] = hooks
    replica.zero_grad(set_to_none=True)
    return replica


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


def copied_loss(loss_fn: L) -> L:
    """Return the loss function, or a copy of it where it can have a state of its own."""
    plain = types.FunctionType | types.BuiltinFunctionType | types.MethodType | partial
    if loss_fn is None or isinstance(loss_fn, plain):
        return loss_fn
    try:
        if isinstance(loss_fn, nn.Module):
            return cast(L, copied_model(loss_fn))
        return copy.deepcopy(loss_fn)
    except Exception:  # what it holds cannot be copied
        return loss_fn


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore all random states afterwards; in between neither autocast nor inference mode.

    What is compiled runs as it is written: another batch size, or another mode of the gradients,
    would have it compiled again, for the training too.
    """
    devices = []
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = list(range(torch.cuda.device_count()))
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpys = numpy.random.get_state() if numpy else None
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.compiler.set_stance("force_eager")
            if "torch._dynamo" in sys.modules  # which takes seconds to import
            else nullcontext(),
        ):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpys)
