"""Every launcher leaves the runs that a sweep in this process leaves, whatever happens meanwhile.

Each is given one sweep of two arms with two seeds. The runs are compared bit for bit.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus

import slurm_cluster
from conftest import REPOSITORY
from debugnn.errors import WorkerDiedError
from debugnn.nn.losses import cross_entropy
from hydra_plugins import debugnn_engines
from hydra_plugins.debugnn_engines import SlurmLauncher, SubmittedJob
from left_by_runs import facts, rows, weights
from slurm_cluster import Cluster, poll
from test_cli import launch

# So that the jobs' processes find this module.
PATHS = os.pathsep.join(
    [*(str(REPOSITORY / "tests" / name) for name in ("runs", "")), os.environ.get("PYTHONPATH", "")]
)
EPOCHS, STEPS = 4, 4
SWEEP = (
    "-m", "init=kaiming,xavier", "seed=0,1", "model=deep_mlp", "model.hidden=[20,12]",
    "reg=dropout", "data.train_size=128", "data.batch_size=32", f"trainer.epochs={EPOCHS}",
    "trainer.device=cpu", "doctor=off", "wandb=disabled", "trainer.checkpoint_seconds=0",
    "loss._target_=test_launchers.guarded_cross_entropy",
)  # fmt: skip


def guarded_cross_entropy(outputs, targets):
    """The loss of each step. The tests count the steps, and stop runs inside the third epoch.

    With a file `closed` in the folder `GATE`, the tenth step of a process waits until it is gone.
    """
    if torch.is_grad_enabled() and outputs.requires_grad and len(targets) > 2:
        gate = Path(os.environ["GATE"])
        with (gate / "steps").open("ab") as file:
            file.write(b".")
        guarded_cross_entropy.steps += 1
        if guarded_cross_entropy.steps == 2 * STEPS + 2 and (gate / "closed").exists():
            place = os.environ.get("SLURMD_NODENAME", "here")
            (gate / f"waits-{place}-{os.getpid()}").touch()
            while (gate / "closed").exists():
                time.sleep(0.02)
    return cross_entropy(outputs, targets)


guarded_cross_entropy.steps = 0


class Sweep:
    """The sweep, as a process of its own, in a folder of its own."""

    def __init__(self, folder, prepared):
        self.output = folder / "outputs"
        self.gate = folder
        self.command = [sys.executable, str(REPOSITORY / "train.py"), *SWEEP,
                        f"output_dir={self.output}", f"data.cache={prepared}"]  # fmt: skip
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "GATE": str(folder), "PYTHONPATH": PATHS,
        }  # fmt: skip
        self.started = []

    def start(self, *arguments):
        self.started.append(subprocess.Popen(
            [*self.command, *arguments], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
        return self.started[-1]

    def stop(self):
        """End what a failed test leaves running, and show what it said."""
        (self.gate / "closed").unlink(missing_ok=True)
        for process in self.started:
            if process.returncode is None:
                process.terminate()
                try:
                    print(*process.communicate(timeout=30), sep="\n")
                except subprocess.TimeoutExpired:
                    process.kill()
                    print(*process.communicate(), sep="\n")

    def close(self):
        (self.gate / "closed").touch()

    def open(self):
        (self.gate / "closed").unlink()

    def waiting(self, place="here"):
        """The processes whose runs wait at the gate."""
        return [int(path.name.split("-")[2]) for path in self.gate.glob(f"waits-{place}-*")]

    def saved(self):
        """The runs whose second checkpoint is written, which a thread of the run does."""
        return [path for path in self.runs().values()
                if (path / "checkpoint.previous.pt").exists()
                and (path / "checkpoint.pt").exists()]  # fmt: skip

    def steps(self):
        """How many steps all processes have made."""
        return (self.gate / "steps").stat().st_size

    def runs(self):
        """`arm/seed=n` → its directory."""
        return {str(path.parent.relative_to(self.output)): path.parent
                for path in self.output.rglob("run.json")}  # fmt: skip

    def statuses(self):
        return sorted(facts(path)["status"] for path in self.runs().values())


@pytest.fixture
def sweep(tmp_path, prepared):
    made = Sweep(tmp_path, prepared)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def in_process(tmp_path_factory, prepared):
    """The runs that the sweep leaves without another launcher."""
    made = Sweep(tmp_path_factory.mktemp("in_process"), prepared)
    ended(made.start("hydra/launcher=local"))
    assert made.steps() == 4 * EPOCHS * STEPS
    return made.runs()


def ended(process, code=0):
    """What a process has said, which ends with this code."""
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == code, shown + errors
    return shown, errors


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, directory in found.items():
        assert facts(directory)["status"] == "finished"
        assert rows(directory) == rows(expected[name])
        ours, theirs = weights(directory), weights(expected[name])
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def told_to_stop(output, name="SIGTERM"):
    """Whether a run has said that it heard the signal, in one of these files."""
    return any(f"{name}: stops" in path.read_text() for path in output)


@pytest.mark.slow
def test_joblib(sweep, in_process):
    ended(sweep.start("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"))
    assert_same(sweep.runs(), in_process)


# --- Slurm ----------------------------------------------------------------------------------------

needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed"
)
WHY_NOT = slurm_cluster.why_not()
needs_slurm = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    running = Cluster(tmp_path_factory.mktemp("slurm"))
    yield running
    running.stop()


@pytest.mark.slow
@needs_submitit
@needs_slurm
@pytest.mark.injects("a preempted Slurm job")
@pytest.mark.injects("a lost Slurm node")
def test_slurm_goes_on_after_a_preemption_and_elsewhere_after_a_lost_node(
    sweep, in_process, cluster
):
    sweep.close()
    process = sweep.start("hydra/launcher=slurm", "hydra.launcher.array_parallelism=2")
    poll(lambda: sweep.waiting("n1") and sweep.waiting("n2"), "a run waits on each node")
    poll(lambda: len(sweep.saved()) == 2, "both have their second checkpoint")
    began = {name: facts(path)["started"] for name, path in sweep.runs().items()}
    logs = sweep.output / ".submitit"
    subprocess.run(
        ["sbatch", "--partition=urgent", "--nodelist=n1", "--exclusive", "--nodes=1",
         "--output=/dev/null", "--wrap=true"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    poll(lambda: told_to_stop(logs.rglob("*.err")), "the run on n1 is preempted")
    cluster.lose("n2")
    sweep.open()
    shown, _ = ended(process)
    assert "4 of 4" in shown
    assert_same(sweep.runs(), in_process)
    # The preempted run was saved after its step. The other one repeats two steps of its epoch.
    assert sweep.steps() == 4 * EPOCHS * STEPS + 2
    assert all(facts(sweep.runs()[name])["started"] == when for name, when in began.items())
    assert not logs.exists()


class Asks(SubmittedJob):
    """A job that ends well, unless its overrides name a way to die."""

    def __call__(self):
        print("the output of a broken job")
        match self.overrides:
            case ["raises"]:
                raise ArithmeticError("in two\nlines")
            case ["exits"]:
                sys.stdout.flush()
                os._exit(3)
        return JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)


@pytest.mark.slow
@needs_submitit
@needs_slurm
@pytest.mark.injects("a Slurm job that dies")
def test_a_job_that_dies_in_slurm_is_one_failed_arm(tmp_path, cluster, monkeypatch):
    """Without accounting, where Slurm's own words about ended jobs are not kept."""
    monkeypatch.setattr(debugnn_engines, "_ASK_EVERY", 0.5)
    monkeypatch.setenv("PYTHONPATH", PATHS)
    launcher = SlurmLauncher(f"{tmp_path}/%j", max_num_timeout=0, timeout_min=60, signal_delay_s=60)
    jobs = [Asks(number, [how], None, None, None, None, False, [])
            for number, how in enumerate(["exits", "raises", "ends"])]  # fmt: skip
    found = {job.number: outcome for job, outcome in launcher.outcomes(jobs)}
    assert found[2].status == JobStatus.COMPLETED
    for number, reason in enumerate(["its process died", "ArithmeticError: in two lines"]):
        assert isinstance(found[number], WorkerDiedError)
        told, _, folder = str(found[number]).partition("; its output is in ")
        assert told == reason
        folder = Path(folder)
        assert "of a broken job" in next(folder.glob("*.out")).read_text()
        shutil.rmtree(folder)
    assert not list(tmp_path.iterdir())  # of the job that ended well, nothing is kept


@pytest.mark.slow
@needs_submitit
@pytest.mark.injects("a stop signal")
@pytest.mark.injects("the end of a job's time")
def test_slurm_local_stops_when_told_and_goes_on_after_a_timeout(sweep, in_process):
    sweep.close()
    process = sweep.start("hydra/launcher=slurm_local")
    poll(lambda: len(sweep.waiting()) == 2, "two runs wait")
    process.terminate()
    poll(lambda: len([*sweep.output.rglob("*.err")]) == 2, "both have their output")
    poll(lambda: all(told_to_stop([path]) for path in sweep.output.rglob("*.err")), "both hear it")
    sweep.open()
    _, errors = ended(process, 128 + signal.SIGTERM)
    assert errors.splitlines()[-1] == (
        "interrupted: the same command goes on from the last checkpoint"
    )
    assert sweep.statuses() == ["interrupted", "interrupted"]
    stopped = sweep.waiting()
    sweep.close()
    again = sweep.start("hydra/launcher=slurm_local")
    poll(lambda: len(sweep.waiting()) == 4, "the other two runs wait")
    late = next(process for process in sweep.waiting() if process not in stopped)
    os.kill(late, signal.SIGUSR2)  # the time of its job is over
    poll(lambda: told_to_stop(sweep.output.rglob("*.err"), "SIGUSR2"), "it hears it")
    sweep.open()
    ended(again)
    assert_same(sweep.runs(), in_process)
    assert sweep.steps() == 4 * EPOCHS * STEPS  # all were saved after their step


# --- Ray ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.injects("a process of Ray that dies")
def test_ray_goes_on_after_a_process_died(sweep, in_process):
    sweep.close()
    process = sweep.start("hydra/launcher=ray", "+hydra.launcher.init.num_cpus=2")
    poll(lambda: len(sweep.waiting()) == 2, "two runs wait")
    for worker in sweep.waiting():
        assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, 0)
    poll(lambda: len(sweep.saved()) == 2, "both have their second checkpoint")
    os.kill(sweep.waiting()[0], signal.SIGKILL)
    sweep.open()
    ended(process)
    assert_same(sweep.runs(), in_process)
    assert sweep.steps() == 4 * EPOCHS * STEPS + 2  # two steps of its epoch again


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "library", "extra"),
    [("slurm", "submitit", "slurm"), ("slurm_local", "submitit", "slurm"), ("ray", "ray", "ray")],
)
def test_an_engine_that_is_not_installed_is_one_line(
    monkeypatch, capsys, tmp_path, option, library, extra
):
    monkeypatch.setitem(sys.modules, library, None)  # so that it cannot be imported
    code, _, errors = launch(
        monkeypatch, capsys, "-m", f"hydra/launcher={option}", "seed=0,1", f"output_dir={tmp_path}"
    )
    assert code == 2
    assert errors == (
        f"error: hydra/launcher={option}: {library} is not installed: "
        f"pip install 'debugnn[{extra}]'\n"
    )
