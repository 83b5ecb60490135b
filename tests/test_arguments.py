"""What a function's signature says about its arguments, and what it does not say."""

import enum
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from debugnn.arguments import fits, wanted_type


class Mode(enum.Enum):
    PLAIN = "plain"


def stated(
    number: float, switch: bool, pair: tuple[float, float], sizes: Sequence[int], mode: Mode,
    table: Mapping[str, int], made: Callable, either: int | str | None, wrong: int = 0.5,
): ...  # fmt: skip


def unstated(
    anything, switch=False, number=1e-8, whole=1, name="sum", pair=(3, 3), nothing=None
): ...


class Inheriting(torch.nn.Conv2d):
    """Its constructor is that of a class whose attribute `bias` is of another type."""


GOOD = [
    (stated, "number", 1), (stated, "pair", [0.9, 1]), (stated, "sizes", [3]),
    (stated, "mode", "plain"), (stated, "table", {"a": 1}), (stated, "either", None),
    (stated, "wrong", 0.7), (unstated, "anything", "x"), (unstated, "switch", 1),
    (unstated, "switch", None), (unstated, "number", 2), (unstated, "number", [0.1, 0.2]),
    (unstated, "whole", "same"), (unstated, "name", 2), (unstated, "pair", 3),
    (unstated, "nothing", 3), (unstated, "of another function", 3), (Inheriting, "bias", False),
    (Inheriting, "padding", "same"), (torch.optim.Adam, "foreach", None),
]  # fmt: skip
BAD = [
    (stated, "number", "x"), (stated, "number", True), (stated, "switch", 3),
    (stated, "pair", [0.9]), (stated, "sizes", [1.5]), (stated, "made", "relu"),
    (stated, "either", 1.5), (unstated, "switch", 3), (unstated, "switch", "no"),
    (unstated, "number", "x"), (unstated, "number", True), (Inheriting, "bias", 3),
]  # fmt: skip


@pytest.mark.parametrize(("function", "argument", "value"), GOOD)
def test_a_sound_value_fits(function, argument, value):
    assert fits(value, wanted_type(function, argument))


@pytest.mark.parametrize(("function", "argument", "value"), BAD)
def test_a_value_of_another_type_does_not_fit(function, argument, value):
    assert not fits(value, wanted_type(function, argument))
