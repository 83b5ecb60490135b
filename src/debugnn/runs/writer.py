"""Writing beside the training: disk and network are waited for in a thread of its own."""

import queue
import threading
from collections.abc import Callable
from typing import Any

_MOST = 100_000  # records that wait; beyond, the training does


class Writer:
    """Calls what it is handed one after the other, in order, in its own thread.

        with Writer() as writer:
            writer.submit(file.write, line)

    After a call that failed nothing more is called: the error is raised at the next `submit` or
    `drain`.
    """

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[Callable, tuple] | None] = queue.Queue(_MOST)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._calls.put(None)
        self._thread.join()

    def submit(self, call: Callable, *arguments: Any) -> None:
        """Have `call(*arguments)` done after all that was handed over before."""
        self._raise()
        self._calls.put((call, arguments))

    def drain(self) -> None:
        """Wait until everything is done."""
        self._calls.join()
        self._raise()

    def settle(self) -> None:
        """Wait as `drain` does, and let an error be: something else has failed already."""
        self._calls.join()
        self._error = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, arguments = item
            try:
                if self._error is None:
                    call(*arguments)
            except BaseException as error:  # the thread goes on, or `drain` would wait for ever
                self._error = error
            finally:
                self._calls.task_done()
