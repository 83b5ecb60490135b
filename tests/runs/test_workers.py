"""A worker that dies ends no other call, and workers end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest

from debugnn.errors import WorkerDiedError
from debugnn.runs.pauses import Interrupted
from debugnn.runs.workers import run_in_workers

DEADLINE = 60  # seconds, for what takes a moment on an idle machine


def until(true):
    """Wait until something is true."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < DEADLINE
        time.sleep(0.02)


def nobody_is_left(group):
    """Whether no process of a group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def act(what, file):
    """What the calls do in a worker."""
    if what == "waits":
        until(file.exists)
    elif what == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "ends":
        os._exit(3)
    elif what == "raises":
        raise ValueError(what)
    elif what == "exits":
        sys.exit(4)
    elif what == "is told":  # by somebody who tells this process alone
        raise Interrupted(signal.SIGTERM)
    elif what == "makes":
        file.touch()
    return what, os.environ["OMP_NUM_THREADS"]


@pytest.mark.injects("a worker that dies")
def test_a_call_that_ends_its_process_ends_no_other(tmp_path):
    """The first one is waiting for the last all the time."""
    acts = ["waits", "is killed", "ends", "raises", "exits", "is told", "makes"]
    calls = [(what, tmp_path / "made") for what in acts]
    ended = {e.index: e for e in run_in_workers(act, calls, 2)}
    assert list(ended)[1:4] == [2, 3, 4]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // 2)))
    assert ended[0].value == ("waits", threads)
    assert "SIGKILL" in str(ended[1].error)
    assert "exit code 3" in str(ended[2].error)
    assert [type(ended[i].error) for i in range(1, 7)] == [
        WorkerDiedError, WorkerDiedError, ValueError, SystemExit, Interrupted, type(None),
    ]  # fmt: skip


PROGRAM = """
import os, sys, time
from pathlib import Path
from debugnn.runs.pauses import Interrupted, Pauses, told_by_signals
from debugnn.runs.workers import run_in_workers

def train(name):
    pauses = Pauses(5)
    with told_by_signals(pauses):
        Path(name).touch()
        while True:
            time.sleep(0.01)
            if pauses.stopped_by is not None:
                time.sleep(0.1)  # in which another signal could come
                Path(name + " saved").touch()
                pauses.end_if_told()

def build(name):
    Path(name).touch()
    while True:
        time.sleep(0.01)

def call(kind, name):
    kind(name)

if __name__ == "__main__":
    calls = [(train, "one"), (train, "two"), (build, "three"), (train, "never")]
    try:
        for ended in run_in_workers(call, iter(calls), 3):
            print(ended)
    except Interrupted as stop:
        sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGKILL, os.kill), (signal.SIGTERM, os.kill), (signal.SIGHUP, os.killpg),
     (signal.SIGINT, os.killpg)],
    ids=["killed", "told", "terminal_closed", "ctrl_c"],
)  # fmt: skip
@pytest.mark.injects("the death of a sweep's own process")
@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path, number, whom):
    """A terminal sends its signals to all its processes, and the parent passes them on."""
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup it is not
    )  # fmt: skip
    until(lambda: {"one", "two", "three"} <= set(os.listdir(tmp_path)))
    whom(process.pid, number)
    shown, errors = process.communicate(timeout=DEADLINE)
    until(lambda: nobody_is_left(process.pid))
    killed = number == signal.SIGKILL
    assert process.returncode == (-number if killed else 128 + number), errors
    assert shown == ""  # no call has ended
    saved = set() if killed else {"one saved", "two saved"}
    assert set(os.listdir(tmp_path)) == {"program.py", "one", "two", "three", *saved}
    assert not list(Path("/dev/shm").glob(f"sem.loky-{process.pid}-*"))
    if not killed:
        assert "Traceback" not in errors
        assert "resource_tracker" not in errors
