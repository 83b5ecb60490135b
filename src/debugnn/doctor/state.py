"""What a doctor knows, as plain values and tensors that a checkpoint can hold.

`flattened` writes down the objects that an observer consists of; `put_back` gives their values to
those of a new observer, of the same model. The form holds lists, dicts with texts as keys, numbers,
texts and tensors alone, so that `torch.load` reads it with `weights_only=True`. Each other value is
a list that begins with its kind:

    ["object", class, {attribute: value}]     of a class in this package
    ["stateful", class, state]                of one that has a `state_dict`
    ["parameter", name]                       the model's own, by its name
    ["same", number]                          the n-th of the values that came before

What belongs to the process is left out, and stays as the new observer has it: the model, the
optimiser, functions, folders, and the attributes that a class names in `not_in_state`: arguments of
its constructor, handles of hooks, and what belongs to one step.
"""

import importlib
import pathlib
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

_PACKAGE = __package__ + "."
_PLAIN = {bool, int, float, str, bytes, type(None)}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class NotKeptError(TypeError):
    """A value has no plain form."""


def flattened(root: Any, model: nn.Module) -> Any:
    """Return the plain form of an object and of all that it consists of.

    Tensors are not copied.

    Args:
        root: of a class of this package.
        model: whose parameters are written down by their names.

    Raises:
        NotKeptError: something has none, such as an object of the user's own among the inputs.
    """
    return _Writer(model).form_of(root)


def put_back(form: Any, root: Any, model: nn.Module, device: torch.device) -> None:
    """Give an object the values that another one had.

    Args:
        form: the result of `flattened`.
        root: of the same class, as its constructor leaves it.
        model: whose parameters the names stand for.
        device: of the tensors that were not on the CPU.

    Raises:
        ValueError: the form is of another class, or of another version of this package.
    """
    try:
        _Reader(model, device).value_of(form, root)
    except (KeyError, IndexError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"the state is of another version ({error})") from error


class _Writer:
    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._numbers: dict[int, int] = {}  # id of what was written down → its number
        self._alive: list[Any] = []  # so that no id is used again

    def form_of(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor) and id(value) in self._names:
            return ["parameter", self._names[id(value)]]
        if isinstance(value, torch.dtype | torch.device):
            return [type(value).__name__, str(value)]
        if id(value) in self._numbers:
            return ["same", self._numbers[id(value)]]
        self._numbers[id(value)] = len(self._alive)
        self._alive.append(value)
        return self._container(value)

    def _container(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            return ["tensor", value.detach(), value.device.type != "cpu"]
        if isinstance(value, tuple) and hasattr(value, "_fields") and _is_own(kind):
            return ["named", _path(kind), [self.form_of(item) for item in value]]
        if kind in (list, tuple, torch.Size, set, frozenset):
            return [kind.__name__, self._forms_of(value)]
        if kind is deque:
            return ["deque", value.maxlen, self._forms_of(value)]
        if kind is dict:
            pairs = [[self.form_of(key), self.form_of(item)] for key, item in value.items()]
            return ["dict", pairs]
        if _is_own(kind):
            if hasattr(value, "state_dict"):
                return ["stateful", _path(kind), self.form_of(value.state_dict())]
            attributes, left_out = {}, getattr(kind, "not_in_state", ())
            for name, item in vars(value).items():
                if name not in left_out and not _is_of_process(item):
                    attributes[name] = self.form_of(item)
            return ["object", _path(kind), attributes]
        raise NotKeptError(f"a {kind.__module__}.{kind.__qualname__} has no plain form")

    def _forms_of(self, values: Collection[Any]) -> list[Any]:
        if _PLAIN.issuperset(map(type, values)):  # a number for each step of a long training
            return list(values)
        return [self.form_of(value) for value in values]


class _Reader:
    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._parameters = dict(model.named_parameters())
        self._device = device
        self._known: list[Any] = []  # by their numbers

    def value_of(self, form: Any, present: Any = None) -> Any:
        """Return what a form stands for.

        Args:
            present: what the new observer has in this place. An object of the same class is
                changed, and returned.
        """
        if not isinstance(form, list):
            return form
        kind, *parts = form
        if kind == "parameter":
            return self._parameters[parts[0]]
        if kind == "dtype":
            return _DTYPES[parts[0]]
        if kind == "device":
            return torch.device(parts[0])
        if kind == "same":
            return self._known[parts[0]]
        number = len(self._known)
        self._known.append(None)
        return self._container(number, kind, parts, present)

    def _container(self, number: int, kind: str, parts: list, present: Any) -> Any:
        def known(value: Any) -> Any:
            self._known[number] = value
            return value

        if kind == "tensor":
            return known(parts[0].to(self._device if parts[1] else "cpu"))
        if kind == "list":
            items: list[Any] = known([])
            items += map(self.value_of, parts[0])
            return items
        if kind == "dict":
            pairs: dict[Any, Any] = known({})
            for key, item in parts[0]:
                name = self.value_of(key)
                pairs[name] = self.value_of(item)
            return pairs
        if kind in _MAKERS:
            *options, values = parts
            return known(_MAKERS[kind](map(self.value_of, values), *options))
        own = _class_at(parts[0])
        if kind == "named":
            return known(own(*map(self.value_of, parts[1])))
        thing = known(present if type(present) is own else object.__new__(own))
        if kind == "stateful":
            thing.load_state_dict(self.value_of(parts[1]))
            return thing
        for name, form in parts[1].items():
            # A frozen dataclass has no other way.
            object.__setattr__(thing, name, self.value_of(form, vars(thing).get(name)))
        return thing


_MAKERS: dict[str, Callable[..., Any]] = {
    "tuple": tuple, "Size": torch.Size, "set": set, "frozenset": frozenset, "deque": deque
}  # fmt: skip


def _is_of_process(value: Any) -> bool:
    """True of what a new observer has itself: the model, the optimiser, functions, folders."""
    if type(value) in _PLAIN or _is_own(type(value)):
        return False
    return isinstance(value, nn.Module | torch.optim.Optimizer | pathlib.PurePath) or callable(
        value
    )


def _is_own(kind: type) -> bool:
    return f"{kind.__module__}.".startswith(_PACKAGE)


def _path(kind: type) -> str:
    return f"{kind.__module__.removeprefix(_PACKAGE)}:{kind.__qualname__}"


def _class_at(path: str) -> type:
    """Return the class of this package that a path names.

    Raises:
        ImportError, AttributeError, TypeError: there is none.
    """
    module, _, name = path.partition(":")
    found = getattr(importlib.import_module(_PACKAGE + module), name)
    if not isinstance(found, type) or not _is_own(found):
        raise TypeError(f"{path} is no class of the doctor's")
    return found
