import threading

import pytest

from debugnn.runs.writer import Writer


def test_calls_are_made_in_order_and_the_caller_does_not_wait():
    done, gate = [], threading.Event()
    with Writer() as writer:
        writer.submit(gate.wait)  # a disk that stands still
        for number in range(100):
            writer.submit(done.append, number)
        assert done == []
        gate.set()
        writer.drain()
        assert done == [*range(100)]
        writer.submit(done.append, 100)
    assert done == [*range(101)]  # leaving the block waits


def test_an_error_is_raised_where_the_next_call_is_handed_over_and_nothing_is_done_after_it():
    done = []
    with Writer() as writer:
        writer.submit(done.append, 1)
        writer.submit(lambda: 1 / 0)
        writer.submit(done.append, 2)
        with pytest.raises(ZeroDivisionError):
            writer.drain()
        with pytest.raises(ZeroDivisionError):
            writer.submit(done.append, 3)
        writer.settle()
        assert done == [1]
        writer.submit(done.append, 4)
        writer.drain()
    assert done == [1, 4]
