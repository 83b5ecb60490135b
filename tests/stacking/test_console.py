"""What a stack shows on the console."""

from debugnn.records import Epoch
from debugnn.stacking.console import line_of


def test_the_line_of_several_runs_shows_the_range_and_how_many_are_nan():
    nan = float("nan")

    def ended(loss):
        return Epoch(0, 9, loss, loss, None, loss, None, 0.1)

    assert "train loss 1 … 3  test loss 1 … 3" in line_of([ended(3.0), ended(1.0)], 2)
    assert "train loss 1 … 3 (1 NaN)" in line_of([ended(3.0), ended(nan), ended(1.0)], 2)
    assert "train loss (2 NaN)" in line_of([ended(nan), ended(nan)], 2)
