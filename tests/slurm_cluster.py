"""A cluster of Slurm on loopback, for tests: a controller, and two nodes of two processors each."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
NODES = ("n1", "n2")
# In a namespace of its own: all its processes end with the first.
ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

# `cred_expire`: otherwise a job that is queued again waits for two minutes. `KillWait`: how long a
# job that is ended has after SIGTERM. `GraceTime`: the same for one that is preempted by a job in
# the partition `urgent`. `LLN`: jobs go to the node with the most room.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
SlurmdTimeout=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=main Nodes=ALL Default=YES State=UP LLN=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Return why there can be no cluster here, None if there can be one."""
    missing = [program for program in NEEDED if path_of(program) is None]
    if missing:
        return f"Slurm is not installed: no {', '.join(missing)}"
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    alone = subprocess.run([*ALONE, "true"], capture_output=True, check=False)
    return "no namespaces of processes are allowed here" if alone.returncode else None


def path_of(program: str) -> str | None:
    """Return where a program is. Daemons are where the PATH of a user does not lead."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    """A running cluster. Its commands work in this process's environment.

    A node's processes are a namespace of their own, so that the node can be lost with all of them.

    Args:
        folder: for its files. The path is short, because the path of a socket is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        self._before = os.environ.get("SLURM_CONF")
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(64))
        key.chmod(0o400)
        (folder / "state").mkdir()
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
        path = folder / "slurm.conf"
        host = socket.gethostname().partition(".")[0]
        path.write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(3)))
        os.environ["SLURM_CONF"] = str(path)
        try:
            self._start(
                "munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2",
                *(f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")),
                f"--socket={folder}/munge.sock",
            )  # fmt: skip
            poll(lambda: (folder / "munge.sock").exists(), "munged has a socket")
            self._start("slurmctld", "-D")
            for node in NODES:
                self._start(*ALONE, path_of("slurmd") or "", "-D", "-N", node, name=node)
            poll(lambda: said("sinfo", "-hNt", "idle", "-p", "main", "-o", "%N") == [*NODES],
                 "both nodes are idle")  # fmt: skip
        except BaseException:
            self.stop()
            raise

    def _start(self, *command: str, name: str | None = None) -> None:
        name = name or command[0]
        with (self._folder / f"{name}.out").open("w") as output:
            self._daemons[name] = subprocess.Popen(
                [path_of(command[0]) or "", *command[1:]], stdout=output, stderr=output
            )

    def lose(self, node: str) -> None:
        """Kill a node with all that runs there, and let Slurm notice it at once."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        told = ("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
        subprocess.run(told, check=True)

    def stop(self) -> None:
        """End the daemons and what they run."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()
        if self._before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = self._before


def said(*command: str) -> list[str]:
    """Return the words that a command prints; none if it fails."""
    with suppress(subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return []


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def poll(happened: Callable[[], object], what: str, seconds: float = 180) -> None:
    """Wait until something has happened.

    Raises:
        AssertionError: it has not, after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
