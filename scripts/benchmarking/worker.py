"""A side in a process of its own: calls come in as lines of JSON, and answers go back.

The sides stand still while another is timed, and each has its own memory and threads, as its user's
process has.
"""

import importlib
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]


class BenchmarkError(Exception):
    """A measurement that could not be made."""


class Worker:
    """The handle of a side's process.

    Args:
        side: `module:Class` with the keyword arguments, of benchmarking's modules.
        threads: of the process; None for a thread a core.
    """

    def __init__(
        self, name: str, side: str, log: Path, threads: int | None = None, **arguments: Any
    ) -> None:
        self.name, self._log = name, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarking.worker", side, json.dumps(arguments)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment(threads),
            )  # fmt: skip

    def call(self, method: str, **arguments: Any) -> Any:
        """What the side's method returns there.

        Raises:
            BenchmarkError: the method failed, or the process has ended.
        """
        self.ask(method, **arguments)
        return self.answer()

    def ask(self, method: str, **arguments: Any) -> None:
        """Have the method called, without waiting for its `answer`."""
        try:
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: closed by close()
            self._ended()

    def answer(self) -> Any:
        """What the method that was asked for returns."""
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
    """Processes of one side that work at the same time, each with its share of the cores.

    Stands where a `Worker` does for steps and evaluations. Its seconds are those until all of them
    are done, over how many there are: what one of them costs where others run beside it.
    """

    def __init__(self, members: Sequence[Worker]) -> None:
        self._members = members

    def call(self, method: str, **arguments: Any) -> float:
        """Seconds of a step or of an evaluation.

        Raises:
            BenchmarkError: as `Worker.call`.
        """
        given = {key: value for key, value in arguments.items() if key in ("net", "variant")}
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


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of all processes: these modules importable, W&B silent and offline."""
    path = [str(ROOT / "scripts"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {
        **os.environ, **limit, "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "WANDB_SILENT": "true", "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def serve(side: str, arguments: dict[str, Any]) -> None:
    # What libraries print must not get between the answers.
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
    os._exit(0)  # W&B's runs are thrown away: nothing to wait for


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
