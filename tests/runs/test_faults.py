"""Disks that are full or read-only, and processes without file descriptors."""

import os
import resource
import subprocess
import sys
from contextlib import suppress

import pytest
import train

from conftest import CONF
from debugnn import cli, json_lines
from debugnn.runs.execute import execute
from debugnn.runs.naming import directory_of

SMALL = ["model=deep_mlp", "model.hidden=[8]", "data.train_size=256", "seed=1", "trainer.epochs=3",
         "trainer.device=cpu", "doctor.every=2", "wandb=disabled",
         "trainer.checkpoint_seconds=0"]  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of one megabyte, and a function that mounts it again."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if sys.platform != "linux" or (failed := mount("size=1m")).returncode:
        pytest.skip(f"no file system can be mounted here: {failed.stderr.strip()}")
    yield path, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def start(monkeypatch, capsys, prepared, disk):
    """`python train.py …` of a small run on the disk, in this process: its code and its error."""

    def start(*arguments):
        given = ("train.py", *SMALL, f"data.cache={prepared}", f"output_dir={disk[0]}", *arguments)
        monkeypatch.setattr(sys, "argv", list(given))
        monkeypatch.setattr(cli, "_exit_codes", set())
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        code = 0
        try:
            cli.launch(train.main, CONF)
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return start


def rows(disk):
    (path,) = disk.rglob("metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in json_lines.read(path)]


def open_files(directory):
    """The files below the directory that this process holds open."""
    targets = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if link.is_symlink()]
    return [target for target in targets if target.startswith(f"{directory}/")]


# KB that are left: for nothing; for the first files; for no checkpoint; for some checkpoints; for
# all of the run's files except the last.
@pytest.mark.parametrize("left", [0, 12, 60, 200, 400])
@pytest.mark.injects("a full disk")
@pytest.mark.slow
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_space(start, disk, left):
    path, remount = disk
    (path / "fill").write_bytes(bytes((1024 - left) * 1024))
    code, error = start()
    assert (code, len(error.splitlines())) == (1, 1)
    assert "No space left on device" in error
    assert str(path) in error
    assert not list(path.rglob("*.tmp"))
    assert open_files(path) == []
    remount("size=50m")
    assert start() == (0, "")
    continued = rows(path)
    assert len(continued) == 3 * 5
    assert start("overwrite=true") == (0, "")
    assert rows(path) == continued


@pytest.fixture(scope="module")
def disk_that_fills():
    """A function: the disk is full from the n-th time that a file of this name is opened."""
    waits = {}

    def fill(event, arguments):
        if event != "open" or not waits or not isinstance(arguments[0], str | os.PathLike):
            return
        name = os.path.basename(arguments[0])
        if name == waits["name"]:
            waits["times"] -= 1
            if waits["times"] == 0:
                disk = waits["disk"]
                waits.clear()  # before this opens a file itself
                fill_up(disk)

    sys.addaudithook(fill)

    def when_opened(disk, name, times):
        waits.update(disk=disk, name=name, times=times)

    yield when_opened
    waits.clear()  # a hook stays as long as the process


@pytest.fixture(scope="module")
def undisturbed(compose):
    """The directory of the same run without a fault."""
    return execute(compose(*SMALL), [], None)


def fill_up(disk):
    with suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize(
    ("name", "times"),
    [("checkpoint.pt.tmp", 3), ("checkpoint.sha256.tmp", 3), ("findings.json.tmp", 1),
     ("evidence.json.tmp", 1), ("run.json.tmp", 2)],
)  # fmt: skip
@pytest.mark.injects("a full disk")
@pytest.mark.slow
def test_a_disk_that_is_full_at_a_runs_end(start, disk, disk_that_fills, undisturbed, name, times):
    """Exactly when one of the last files is written; the next start leaves the same findings."""
    path, remount = disk
    remount("size=50m")
    disk_that_fills(path, name, times)
    code, error = start()
    assert (path / "fill").exists()
    assert (code, len(error.splitlines())) == (1, 1)
    assert "No space left on device" in error
    assert str(path / "adhoc") in error
    assert not list(path.rglob("*.tmp"))
    (path / "fill").unlink()
    assert start() == (0, "")
    assert rows(path) == rows(undisturbed)
    for kind in ("findings.json", "evidence.json"):
        (left,), (expected,) = path.rglob(kind), undisturbed.rglob(kind)
        assert left.read_text() == expected.read_text()


@pytest.mark.injects("a read-only disk")
def test_a_read_only_disk_is_named(start, disk):
    path, remount = disk
    remount("ro")
    code, error = start()
    assert (code, len(error.splitlines())) == (1, 1)
    assert f"{path}/adhoc" in error
    assert "Read-only file system" in error


@pytest.mark.injects("no file descriptors left")
@pytest.mark.slow
def test_a_process_without_file_descriptors_ends_in_a_line(start, disk):
    disk[1]("size=50m")
    start()  # opens whatever libraries keep open
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened, before[1]))
    try:
        code, error = start("overwrite=true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (code, len(error.splitlines())) == (1, 1)
    assert "Too many open files" in error
    assert start("overwrite=true") == (0, "")


@pytest.mark.parametrize("experiment", ["..", "../data/digits", "/data/digits", "x" * 61])
def test_the_name_of_an_experiment_stays_below_output_dir(compose, experiment):
    with pytest.raises(cli.ConfigError, match=r"experiment=.*without /"):
        directory_of(compose(), experiment, {})
