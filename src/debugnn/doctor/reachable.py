"""What a function can reach and change: whatever it changes is put back."""

import random
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

_MOST = 20_000  # most objects that are searched
_LONG = 10_000  # items of a container above which it is data, and no state
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
_RUNNING = ("running_mean", "running_var")  # are changed by operations that do not declare it
_ATOMS = (type(None), bool, int, float, str)
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_INSTALLED = ("site-packages", "dist-packages")

Undo = Callable[[], None]


class Reached:
    """What a function reaches by the names and values that it holds.

    Through closures, defaults, globals that the code names, what a method is bound to, the
    arguments of a partial, containers, and attributes of modules and of the user's own objects.
    Libraries' code and classes are not entered.

    Args:
        function: the loss function; any object that can be called, or None.
        model: a model that is called as a copy only. What its code reaches through closures and
            globals, which a copy shares with it, is reached too.

    Attributes:
        modules: all modules.
        tensors: all tensors outside of containers that are too long.
    """

    def __init__(self, function: Any, model: nn.Module | None = None) -> None:
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self._notes: list[
            Callable[[], Undo]
        ] = []  # each notes a state and returns what restores it
        self._seen: set[int] = set()
        self._kinds: set[type] = set()
        self._alive: list[Any] = []  # an address is not used again while its object lives
        self._waiting: deque[Any] = deque()
        library = not isinstance(function, types.FunctionType | nn.Module | None)
        if library and not isinstance(function, types.BuiltinFunctionType):
            self._push(getattr(function, "__dict__", {}).values())  # a library's loss object, too
        self._push((function, *_shared_functions(model)))
        while self._waiting and len(self._seen) < _MOST:
            value = self._waiting.popleft()
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._alive.append(value)
                self._visit(value)
        self._waiting.clear()

    def _push(self, values: Iterable[Any]) -> None:
        self._waiting.extend(values)

    def _visit(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value)
            if value.is_leaf and value.requires_grad:
                self._notes.append(partial(_gradient, value))
        elif isinstance(value, nn.Module):
            self.modules.append(value)
            self._attributes(value)
        elif type(value) in _CONTAINERS:
            if len(value) <= _LONG:
                self._notes.append(partial(_contents, value))
                self._push(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, tuple | frozenset):
            self._push(value)
        elif isinstance(value, types.MethodType):
            self._push((value.__self__, value.__func__))
        elif isinstance(value, partial):
            self._push((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.FunctionType):
            if is_own(value.__module__):
                self._function(value)
        elif isinstance(value, torch.Generator | random.Random) or _is_numpys_generator(value):
            self._notes.append(partial(_random_numbers, value))
        elif isinstance(value, torch.optim.Optimizer) or (
            not isinstance(value, type | types.ModuleType)
            and hasattr(value, "__dict__")
            and is_own(type(value).__module__)
        ):
            self._attributes(value)

    def _attributes(self, value: Any) -> None:
        attributes = vars(value)
        if not isinstance(attributes, dict):
            return
        # Most containers of a module are empty: its hooks. Together they cost a tenth.
        values = [v for v in attributes.values() if type(v) not in _ATOMS]
        empty = [v for v in values if type(v) in _CONTAINERS and not v]
        self._notes.append(partial(_contents, attributes))
        self._notes.append(partial(_emptiness, empty))
        self._push(v for v in values if not (type(v) in _CONTAINERS and not v))
        if type(value) not in self._kinds:
            self._kinds.add(type(value))
            self._push(_methods(type(value)))

    def _function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                self._push((cell.cell_contents,))
            except ValueError:  # an empty cell
                continue
            self._notes.append(partial(_cell, cell))
        self._push(function.__defaults__ or ())
        self._push((function.__kwdefaults__ or {}).values())
        if function.__dict__:
            self._notes.append(partial(_contents, function.__dict__))
            self._push(function.__dict__.values())
        names = names_in(function.__code__)
        known = {n: function.__globals__[n] for n in names if n in function.__globals__}
        self._push(known.values())
        values = {n: v for n, v in known.items() if not isinstance(v, _CODE)}
        if values:
            self._notes.append(partial(_globals, function.__globals__, values))
        for module in known.values():
            if isinstance(module, types.ModuleType) and is_own(module.__name__):
                self._push(vars(module)[n] for n in names if n in vars(module))

    def states(self) -> list[Undo]:
        """Note the state of everything that is no tensor; return what restores it."""
        return [note() for note in self._notes]


@contextmanager
def kept(function: Any, model: nn.Module | None = None) -> Iterator["Changes"]:
    """Put everything back afterwards that is reachable, see `Reached`, and changed in the block.

    That is: tensors that an operation changes in place, without a trace in their version counters;
    attributes of modules and of the user's own objects, and with these training modes and
    buffers; gradients; the contents of containers and closures; globals that the code names; random
    number generators.

    Yields:
        Which of the tensors have been read.
    """
    reached = Reached(function, model)
    changes = Changes(reached)
    with ExitStack() as stack:  # all of it is put back, whatever one of them raises
        for undo in reached.states():
            stack.callback(undo)
        stack.callback(changes.undo)
        if reached.tensors:
            stack.enter_context(changes)
        yield changes


class Changes(TorchDispatchMode):
    """Keeps a copy of each reached tensor before an operation changes it, and notes what is read.

    A tensor costs nothing as long as it is not changed.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to exempt the mode from compilation would import the compiler, for seconds

    def __init__(self, reached: Reached) -> None:
        super().__init__()
        self.reached = reached
        self.read: set[int] = set()  # addresses of storages
        self._protected = {
            address
            for tensor in reached.tensors
            for each in (tensor, tensor.grad if tensor.is_leaf else None)
            if each is not None and (address := _address(each)) is not None
        }
        self._copies: dict[tuple, tuple[Tensor, Tensor, int]] = {}

    def reads(self, tensor: Tensor) -> bool:
        """Return whether an operation has read the tensor, or another of its storage."""
        return _address(tensor) in self.read

    def undo(self) -> None:
        """Give all changed tensors their values and their version counters back."""
        for tensor, copy, version in reversed(self._copies.values()):
            with torch.no_grad():
                tensor.copy_(copy)
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
        self._copies.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None:
            for index, argument in enumerate(schema.arguments):
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                changes = argument.alias_info is not None and argument.alias_info.is_write
                for tensor in given if isinstance(given, list | tuple) else (given,):
                    if isinstance(tensor, Tensor):
                        self._note(tensor, changes or argument.name in _RUNNING)
        return func(*args, **kwargs)

    def _note(self, tensor: Tensor, changes: bool) -> None:
        address = _address(tensor)
        if address not in self._protected or address is None:
            return
        self.read.add(address)
        key = (address, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if changes and key not in self._copies:
            self._copies[key] = (tensor, tensor.detach().clone(), tensor._version)


# --- states ---------------------------------------------------------------------------------------


def _contents(container: Any) -> Undo:
    """Note what a container holds; its items keep their own states."""
    named = isinstance(container, dict)
    saved = dict(container) if named else list(container)

    def undo() -> None:
        now = list(container.items() if named else container)
        before = list(saved.items() if isinstance(saved, dict) else saved)
        if len(now) == len(before) and all(map(_same, now, before)):
            return
        container.clear()
        (container.extend if isinstance(container, list | deque) else container.update)(saved)

    return undo


def _emptiness(containers: list[Any]) -> Undo:
    """Note that these containers are empty."""

    def undo() -> None:
        for container in containers:
            if container:
                container.clear()

    return undo


def _same(now: Any, before: Any) -> bool:
    """Return whether two items are one object; of a dictionary's items, key and value each."""
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
    return now is before


def _gradient(tensor: Tensor) -> Undo:
    saved, required = tensor.grad, tensor.requires_grad

    def undo() -> None:
        if tensor.requires_grad is not required:
            tensor.requires_grad_(required)
        if tensor.grad is not saved:
            tensor.grad = saved

    return undo


def _cell(cell: types.CellType) -> Undo:
    saved = cell.cell_contents

    def undo() -> None:
        if cell.cell_contents is not saved:
            cell.cell_contents = saved

    return undo


def _globals(names: dict[str, Any], saved: dict[str, Any]) -> Undo:
    def undo() -> None:
        for name, value in saved.items():
            if names.get(name) is not value:
                names[name] = value

    return undo


def _random_numbers(generator: Any) -> Undo:
    bits = getattr(generator, "bit_generator", None)  # of NumPy's newer kind
    if bits is not None:
        state = bits.state

        def undo() -> None:
            bits.state = state

        return undo
    for get, put in (("getstate", "setstate"), ("get_state", "set_state")):
        if hasattr(generator, get):
            return partial(getattr(generator, put), getattr(generator, get)())
    return lambda: None


# --- what is whose --------------------------------------------------------------------------------


@cache
def is_own(module: str | None) -> bool:
    """Return whether code of this module belongs to the user: to no library, and not to us."""
    name = module or ""
    top = name.partition(".")[0]
    ours = name == "debugnn.doctor" or name.startswith("debugnn.doctor.")
    if ours or top in sys.stdlib_module_names - {"__main__"} or top in ("torch", "numpy"):
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return not any(part in file for part in _INSTALLED)


def _is_numpys_generator(value: Any) -> bool:
    numpy = sys.modules.get("numpy")  # not imported for it
    if numpy is None:
        return False
    return isinstance(value, numpy.random.Generator | numpy.random.RandomState)


def _methods(kind: type) -> Iterator[types.FunctionType]:
    """Yield the functions of a class that the user's own code defines."""
    for each in kind.__mro__:
        if is_own(each.__module__):
            for member in vars(each).values():
                if isinstance(member, staticmethod | classmethod):
                    member = member.__func__
                elif isinstance(member, property):
                    member = member.fget
                if isinstance(member, types.FunctionType):
                    yield member


def _shared_functions(model: nn.Module | None) -> Iterator[types.FunctionType]:
    """Yield the functions that a copy of a model shares with it."""
    kinds = set()
    for module in model.modules() if model is not None else ():
        if type(module) not in kinds:
            kinds.add(type(module))
            yield from _methods(type(module))
        for value in vars(module).values():
            if isinstance(value, types.FunctionType):
                yield value


@lru_cache(maxsize=1024)
def names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that code uses, and code inside of it, each once, in their order."""
    inner = [names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys(chain(code.co_names, *inner)))


def _address(tensor: Tensor) -> int | None:
    """Return the address of a tensor's storage, None where it has none."""
    if tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor):
        return None
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):  # a tensor without data
        return None
