import threading
import time

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
        assert writer.wait()  # as at the end of a run that failed
    assert done == [1]


def test_the_calls_of_a_while_are_made_in_a_turn_for_which_the_caller_waits():
    """Beside it, the thread makes none: two threads of Python hold each other up."""
    made, seen = [], []
    with Writer() as writer:
        writer.submit(made.append, 0)
        writer.drain()
        until = time.monotonic() + 0.55
        while time.monotonic() < until:
            writer.submit(made.append, len(seen) + 1)
            seen.append(len(made))
            time.sleep(0.001)  # a training's step
    assert made == [*range(len(seen) + 1)]
    # A turn ends when all calls are made, with the one that it began with.
    turns = [number for number in range(1, len(seen)) if seen[number] > seen[number - 1]]
    assert 2 <= len(turns) <= 5
    assert all(seen[number] == number + 2 for number in turns)


def test_a_disk_that_stands_still_holds_the_caller_up_once_and_not_again(monkeypatch):
    gate, waited = threading.Event(), []
    with Writer() as writer:
        wait = writer.wait
        monkeypatch.setattr(writer, "wait", lambda seconds: waited.append(wait(seconds)))
        writer.submit(gate.wait, 30)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            writer.submit(int)
            time.sleep(0.001)
        gate.set()
    assert waited == [False]
