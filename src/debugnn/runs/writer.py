"""A thread that writes, so that the training waits neither for the disk nor for the network."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

_APART = 0.1  # seconds between two turns
_PATIENCE = 0.05  # seconds that a turn takes at most
_LATER = 5.0  # seconds to the next turn, after one that took longer
_ALONE = 1.0  # seconds after which the thread makes its calls without a turn


class Writer:
    """Makes the calls that it is given in its own thread, one after the other, in order.

    The calls of a tenth of a second are made together, in a turn for which `submit` waits. Python
    runs one thread at a time, and two hold each other up: a row of W&B takes 0.1 ms in a turn, and
    0.3 ms beside short steps. Where a disk stands still, a turn ends after 50 ms.

    After a call that failed, no other is made. The next `submit` or `drain` raises its error.

    Args:
        name: of the thread.
        most: calls that may wait; with more, `submit` waits for them, however long that takes.
    """

    def __init__(self, name: str = "writer", most: float = 100_000) -> None:
        self._most = most
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()  # a `Queue` is 7 times slower
        self._asked = threading.Event()  # to make the calls that wait
        self._next_turn = time.monotonic() + _APART
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self._thread.join()

    def submit(self, call: Callable, *arguments: Any) -> None:
        """Add `call(*arguments)` to the end of the queue.

        Raises:
            BaseException: the error of an earlier call.
        """
        if self._error is not None:
            raise self._error
        if self._calls.qsize() >= self._most:
            self.drain()
        self._calls.put((call, arguments))
        if time.monotonic() >= self._next_turn:
            self._next_turn = (_APART if self.wait(_PATIENCE) else _LATER) + time.monotonic()

    def hurry(self) -> None:
        """Let the calls that wait be made at once."""
        self._asked.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all calls are made; return False if they are not after so many seconds."""
        done = threading.Event()
        self._calls.put(done)
        self.hurry()
        return done.wait(seconds)

    def drain(self) -> None:
        """Wait until all calls are made.

        Raises:
            BaseException: the error of one of them.
        """
        self.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let the thread end when all calls are made, without waiting for it."""
        self._calls.put(None)
        self.hurry()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            if isinstance(item, threading.Event):
                self._asked.clear()
                item.set()
            elif self._error is None:
                call, arguments = item
                try:
                    call(*arguments)
                except BaseException as error:
                    self._error = error  # the thread goes on, or `drain` would wait for ever
            if self._calls.empty():
                self._asked.wait(_ALONE)
                self._asked.clear()
