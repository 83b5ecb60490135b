"""Calls in worker processes: one that dies ends no other, and none outlives this process.

joblib's own `Parallel` and the pools of the standard library put all workers into one executor. If
a worker dies there, the executor is broken, and it ends the other workers and their calls. Here
each worker has an executor of its own.
"""

import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor

from debugnn.errors import WorkerDiedError
from debugnn.runs.pauses import Interrupted, Stoppable, tell, told_by_signals

# loky replaces a worker whose memory has grown, and warns if the next call was on its way to it.
_REPLACED = "A worker stopped while some jobs were given to the executor"


@dataclass(frozen=True)
class Ended:
    """How a call ended.

    Attributes:
        index: of the call.
        value: what it returned.
        error: what it raised, WorkerDiedError if its process died, None if it returned.
    """

    index: int
    value: Any
    error: BaseException | None


def run_in_workers(
    function: Callable[..., Any], calls: Iterable[tuple], at_once: int
) -> Iterator[Ended]:
    """Call a function in worker processes, several at once, and yield each call as it ends.

    The processor's cores are divided among the workers: threads of different runs do not wait for
    each other within a training step, as the threads of one run do.

    A signal to this process is passed on to the runs that are being trained. They are saved and
    end, and no other call begins. If this process dies, its workers die at once.

    Args:
        function: it is pickled, as its arguments and what it returns are.
        calls: the arguments of each call, taken one by one as the calls begin.
        at_once: number of workers, from 1.

    Raises:
        Interrupted: a signal came, and all runs have been saved.
    """
    workers = _Workers(at_once, threads=max(1, cpu_count() // at_once))
    with told_by_signals(workers):
        try:
            yield from workers.run(function, calls)
        finally:
            workers.close()
    if workers.stopped_by is not None:
        raise Interrupted(workers.stopped_by)


class _Workers(Stoppable):
    """See `run_in_workers`. Signals stop it, when all workers have ended."""

    def __init__(self, at_once: int, threads: int) -> None:
        self._at_once = at_once
        self._threads = threads
        self._idle: list[_Worker] = []
        self._busy: dict[Future, tuple[int, _Worker]] = {}

    def run(self, function: Callable, calls: Iterable[tuple]) -> Iterator[Ended]:
        waiting = enumerate(calls)
        while True:
            while len(self._busy) < self._at_once and self.stopped_by is None:
                index, arguments = next(waiting, (-1, ()))
                if index == -1:
                    break
                self._submit(index, function, arguments)
            if not self._busy:
                return
            for future in wait(self._busy, return_when=FIRST_COMPLETED).done:
                index, worker = self._busy.pop(future)
                error = future.exception()
                if isinstance(error, BrokenExecutor):
                    worker.close()
                    error = WorkerDiedError(_cause_of_death(error))
                else:
                    self._idle.append(worker)
                # A worker that is told to stop before its training has begun just ends.
                if error is None or self.stopped_by is None:
                    yield Ended(index, None if error else future.result(), error)

    def _submit(self, index: int, function: Callable, arguments: tuple) -> None:
        while True:
            worker = self._idle.pop() if self._idle else _Worker(self._threads)
            try:
                future = worker.submit(function, arguments)
            except BrokenExecutor:  # it died while it waited
                worker.close()
                continue
            self._busy[future] = index, worker
            if self.stopped_by is not None:  # since `stop` has looked
                worker.tell(self.stopped_by)
            return

    def stop(self, number: int) -> None:
        """Tell all workers to stop, because of the signal of this number."""
        if self.stopped_by is None:
            super().stop(number)
            for _, worker in self._busy.values():
                worker.tell(number)

    def close(self) -> None:
        """End all workers."""
        busy = [worker for _, worker in self._busy.values()]  # only if nobody waits for them
        # Python's own end of a worker takes a second. It is spared where the user waits for it.
        for worker in busy if self.stopped_by is None else [*busy, *self._idle]:
            worker.abandon()
        workers = [*busy, *self._idle]
        if workers:
            with ThreadPoolExecutor(len(workers)) as closing:
                closing.map(_Worker.close, workers)


class _Worker:
    """A process that makes one call after the other.

    Its orders come through a pipe, whose other end is closed with this process, however it ends.
    """

    def __init__(self, threads: int) -> None:
        self._hears, self._orders = Pipe(duplex=False)
        with _terminals_signals_held_back():
            self._executor = ProcessPoolExecutor(
                max_workers=1,
                initializer=_obey,
                initargs=(self._hears,),
                # The other libraries for linear algebra follow OpenMP's variable.
                env={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))},
            )

    def submit(self, function: Callable, arguments: tuple) -> Future:
        """Make a call.

        Raises:
            BrokenExecutor: the process has died.
        """
        with _terminals_signals_held_back(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", _REPLACED)
            return self._executor.submit(function, *arguments)

    def tell(self, number: int) -> None:
        """Let the run that is being trained stop; without one, the process ends."""
        self._orders.send_bytes(bytes([number]))

    def abandon(self) -> None:
        """End the process at once."""
        self._orders.close()

    def close(self) -> None:
        """Wait for the process's end."""
        self._executor.shutdown(wait=True)
        self._orders.close()
        self._hears.close()


# What a terminal sends to all its processes: at Ctrl-C, and when it is closed.
_OF_TERMINALS = {
    getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, "pthread_sigmask")
}


@contextmanager
def _terminals_signals_held_back() -> Iterator[None]:
    """Keep a terminal's signals from the processes that start inside the block.

    These are a worker, until it is ready, and loky's tracker of semaphores, for good: without its
    tracker, loky starts another one in the middle of the end.
    """
    if not _OF_TERMINALS:  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey(orders: Connection) -> None:
    """Follow the orders of the process that has started this one. Called once in a worker."""
    threading.Thread(target=_follow, args=(orders,), name="orders", daemon=True).start()
    # A run that is trained listens to signals itself. Otherwise Ctrl-C is for the other process,
    # which tells this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _OF_TERMINALS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)


def _follow(orders: Connection) -> None:
    while True:
        try:
            (number,) = orders.recv_bytes()
        except (EOFError, OSError):
            # The other process has ended. Nobody waits for this run, and whoever starts it again
            # needs its lock: its checkpoint carries on.
            os._exit(1)
        if not tell(number):
            os._exit(128 + number)


def _cause_of_death(error: BrokenExecutor) -> str:
    """Return in a few words what loky says of a worker that has died."""
    found = re.search(r"exit codes of the workers are \{(\w+)\((-?\d+)\)", str(error))
    if found is None:
        return "its process died"
    name, code = found.groups()
    if name == "SIGKILL":
        return "its process was killed (SIGKILL), perhaps because memory ran out"
    return f"its process died ({name if name.startswith('SIG') else f'exit code {code}'})"
