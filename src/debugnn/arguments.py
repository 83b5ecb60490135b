"""Whether the arguments in a configuration fit the functions and classes that they are for.

Their signatures say what is allowed. Many wrong values would do no harm that is seen: each number
above 0 switches on what is true or false.
"""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from debugnn.config import as_typed, leaves
from debugnn.errors import ConfigError

# Keys that the function is not called with: Hydra's own, and one that only checks the data.
_NOT_PASSED = {"_target_", "_partial_", "outputs"}


def check(config: DictConfig) -> None:
    """Check the arguments in a configuration, before anything is built of it.

    Nothing is said where nothing is known, as of a function that cannot be imported.

    Raises:
        ConfigError: one is of a type that its function does not take.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for name, section in leaves(settings):
        for key in (key for key in section if key not in _NOT_PASSED):
            try:
                wanted = wanted_type(get_object(section["_target_"]), key)
            except (HydraException, ImportError, ValueError, TypeError):
                continue  # what the building itself tells better
            value = section[key]
            made = isinstance(value, dict) and "_target_" in value  # by another function
            if not made and not fits(value, wanted):
                raise ConfigError(f"{name}.{key}={as_typed(value)}: allowed is {in_words(wanted)}")


def wanted_type(function: Callable, argument: str) -> Any:
    """Return the type that a function's signature states for an argument, Any if it states none.

    A type that the argument's own default is not of says nothing. Where no type is stated, the
    default is taken for one if it is true, false or a number with a decimal point.
    """
    try:
        default = inspect.signature(function).parameters[argument].default
    except (TypeError, ValueError, KeyError):
        return Any  # no signature, or no such argument
    try:
        made = isinstance(function, type)
        hints = get_type_hints(function.__init__ if made else function)  # type: ignore[misc]
    except (TypeError, NameError, AttributeError):
        hints = {}  # a type that cannot be imported
    if argument not in hints:
        return _BY_DEFAULT.get(type(default), Any)
    wanted = hints[argument]
    return wanted if default is inspect.Parameter.empty or fits(default, wanted) else Any


# What an argument without a stated type takes, by the type of its default. A list may be an item
# for each group or layer.
_BY_DEFAULT: dict[type, Any] = {bool: Literal[True, False, None], float: float | list | None}


def fits(value: Any, wanted: Any) -> bool:
    """Return whether a value of a configuration is of a type; True for types not known here."""
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if origin in (Union, UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is Callable:
        return callable(value)
    if origin in (Sequence, list, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        if origin is tuple and Ellipsis not in inner:
            return len(value) == len(inner) and all(map(fits, value, inner))
        return all(fits(item, kind) for kind in inner[:1] for item in value)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (bool, str, NoneType, torch.Tensor):
        return isinstance(value, origin)
    return True


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
    Callable: "a function or a class, named by _target_ within it",
}


def in_words(wanted: Any) -> str:
    """Return a type as words, without what cannot be typed."""
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if origin is Literal:
        return " or ".join(map(as_typed, inner))
    if origin in (Union, UnionType):
        return " or ".join(in_words(kind) for kind in inner if kind is not torch.Tensor)
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: {', '.join(map(in_words, inner))}"
    if origin in (Sequence, list, tuple):
        return ", each item ".join(["a list", *map(in_words, inner[:1])])
    return _WORDS.get(origin, str(wanted))
