"""The numbers that rules compare with, as a list, so that evidence can be judged under others.

A threshold is an upper-case number at the top of a cause's file or of a file of `signals`, below a
comment that says why it has this value.
"""

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from debugnn.doctor import causes
from debugnn.doctor.causes import ORDER, signals

# Files whose thresholds several causes use.
SIGNALS = tuple(module.name for module in pkgutil.iter_modules(signals.__path__))


@dataclass(frozen=True)
class Threshold:
    """One number: the file that it stands in, its name there, and its value."""

    file: str
    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.file}.{self.name}"


def thresholds() -> list[Threshold]:
    """Return all thresholds, the shared ones first, then in the order of causes."""
    found = []
    for file in (*SIGNALS, *ORDER):
        module = _module(file)
        for name in _names(module).assigned:
            value = vars(module)[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name.isupper() and not name.startswith("_") and number:
                found.append(Threshold(file, name, value))
    return found


@contextmanager
def moved(threshold: Threshold, value: float) -> Iterator[None]:
    """Give a threshold another value inside the block, in its file and in all that import it.

    The value of a count is rounded.
    """
    if isinstance(threshold.value, int):
        value = round(value)
    home = _module(threshold.file)
    imported = (home.__name__, threshold.name)
    files = [_module(file) for file in (*SIGNALS, "verdict", *ORDER)]
    users = [home, *(file for file in files if imported in _names(file).imported)]
    try:
        for file in users:
            setattr(file, threshold.name, value)
        yield
    finally:
        for file in users:
            setattr(file, threshold.name, threshold.value)


def _module(file: str) -> ModuleType:
    package = signals if file in SIGNALS else causes
    return import_module(f"{package.__name__}.{file}")


class _Names(NamedTuple):
    """Names at the top of a file: those it assigns, and (module, name) of those it imports."""

    assigned: list[str]
    imported: set[tuple[str | None, str]]


@cache
def _names(module: ModuleType) -> _Names:
    names = _Names([], set())
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign):
            names.assigned.extend(each.id for each in node.targets if isinstance(each, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            names.imported.update((node.module, alias.name) for alias in node.names)
    return names
