"""A side in a process of its own, which receives calls and sends answers as lines of JSON.

Each side has its own memory and threads, as in its user's process, and waits while another side is
timed.
"""

import importlib
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


class BenchmarkError(Exception):
    """A measurement failed."""


class Worker:
    """The handle of a side's process.

    Args:
        name: for error messages.
        side: `module:Class`, a class of one of benchmarking's modules.
        log: the file that the process writes its stderr to.
        threads: number of threads of the process; None for one per core.
        gpu: whether the process sees the machine's GPUs.
        variables: of the environment, added to those of this process.
        arguments: keyword arguments of the class.
    """

    def __init__(
        self, name: str, side: str, log: Path, threads: int | None = None, gpu: bool = False,
        variables: Mapping[str, str] | None = None, **arguments: Any,
    ) -> None:  # fmt: skip
        self.name, self._log = name, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarking.worker", side, json.dumps(arguments)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**environment(threads, gpu), **(variables or {})},
            )  # fmt: skip

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the side and return its result.

        Raises:
            BenchmarkError: the method failed, or the process has ended.
        """
        self.ask(method, **arguments)
        return self.answer()

    def ask(self, method: str, **arguments: Any) -> None:
        """Start a call of a method; `answer` returns its result."""
        try:
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: closed by close()
            self._ended()

    def answer(self) -> Any:
        """Wait for the result of the last `ask`, and return it."""
        try:
            line = self._process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self.name}: {answer['error']}")
        return answer["result"]

    def _ended(self) -> NoReturn:
        tail = "\n".join(self._log.read_text().splitlines()[-15:])
        raise BenchmarkError(f"{self.name}: its process has ended\n{tail}")

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Together:
    """Several processes of one side that work at the same time, each with a share of the cores.

    Replaces a `Worker` for steps and evaluations. The seconds are those until all processes are
    done, divided by their number: the cost of one run among simultaneous ones.
    """

    def __init__(self, members: Sequence[Worker]) -> None:
        self._members = members

    def call(self, method: str, **arguments: Any) -> float:
        """Return the seconds of a step or of an evaluation.

        Raises:
            BenchmarkError: as `Worker.call`.
        """
        given = {
            key: value for key, value in arguments.items() if key in ("net", "variant", "count")
        }
        self._all("prepare", kind=method, **given)
        started = time.perf_counter()
        self._all(method, **arguments)
        seconds = time.perf_counter() - started
        return seconds / len(self._members) / arguments.get("count", 1)

    def _all(self, method: str, **arguments: Any) -> None:
        for member in self._members:
            member.ask(method, **arguments)
        for member in self._members:
            member.answer()


def environment(threads: int | None = None, gpu: bool = False) -> dict[str, str]:
    """Return the environment of the processes, with these modules importable and W&B offline."""
    path = [str(ROOT / "scripts"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    return {
        **os.environ, **limit, **hidden, "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "WANDB_SILENT": "true", "WANDB_MODE": "offline",
    }  # fmt: skip


def serve(side: str, arguments: dict[str, Any]) -> None:
    """Answer the calls on stdin, one per line, until it ends."""
    # Whatever libraries print goes to stderr, so that stdout holds the answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    module, _, name = side.partition(":")
    for key in ("root", "directory"):
        if arguments.get(key):
            arguments[key] = Path(arguments[key])
    made = None
    for line in sys.stdin:
        method, given = json.loads(line)
        try:
            if made is None:
                made = getattr(importlib.import_module(module), name)(**arguments)
            answer = {"result": getattr(made, method)(**given)}
        except Exception as error:
            answer = {"error": f"{method} failed: {type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # skips waiting for W&B, whose runs are discarded


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
