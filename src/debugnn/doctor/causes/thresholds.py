"""The numbers that rules compare with, as a list, so that evidence can be judged under others.

A threshold is an upper-case number at the top of a file of this folder, below a comment that says
why it has this value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from debugnn.doctor import causes
from debugnn.doctor.causes import ORDER


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
    for file in ("signals", *ORDER):
        for name, value in vars(_module(file)).items():
            imported = file != "signals" and name in vars(_module("signals"))
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name.isupper() and not name.startswith("_") and number and not imported:
                found.append(Threshold(file, name, value))
    return found


@contextmanager
def moved(threshold: Threshold, value: float) -> Iterator[None]:
    """Give a threshold another value inside the block, in every file that uses it.

    The value of a count is rounded.
    """
    if isinstance(threshold.value, int):
        value = round(value)
    files = [_module(file) for file in ("signals", "verdict", *ORDER)]
    users = [file for file in files if threshold.name in vars(file)]
    if threshold.file != "signals":
        users = [_module(threshold.file)]
    try:
        for file in users:
            setattr(file, threshold.name, value)
        yield
    finally:
        for file in users:
            setattr(file, threshold.name, threshold.value)


def _module(file: str) -> ModuleType:
    return import_module(f"{causes.__name__}.{file}")
