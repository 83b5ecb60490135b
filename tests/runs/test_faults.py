"""Disks that are full or read-only, and processes without file descriptors."""

import os
import resource
import subprocess
import sys

import pytest
import train

from conftest import CONF
from debugnn import cli, records
from debugnn.runs.naming import directory_of


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
        given = ("train.py", "model=deep_mlp", "model.hidden=[8]", "data.train_size=256", "seed=1",
                 "trainer.epochs=3", "doctor.every=2", "wandb=disabled", f"data.cache={prepared}",
                 f"output_dir={disk[0]}", *arguments)  # fmt: skip
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
    return [{k: v for k, v in row.items() if k != "seconds"} for row in records.read_jsonl(path)]


# KB that are left: for nothing; for the first files; for no checkpoint; for some checkpoints; for
# all of the run's files except the last.
@pytest.mark.parametrize("left", [0, 12, 60, 200, 400])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_space(start, disk, left):
    path, remount = disk
    (path / "fill").write_bytes(bytes((1024 - left) * 1024))
    code, error = start()
    assert (code, len(error.splitlines())) == (1, 1)
    assert "No space left on device" in error
    assert str(path) in error
    assert not list(path.rglob("*.tmp"))
    remount("size=50m")
    assert start() == (0, "")
    continued = rows(path)
    assert len(continued) == 3 * 5
    assert start("overwrite=true") == (0, "")
    assert rows(path) == continued


def test_a_read_only_disk_is_named(start, disk):
    path, remount = disk
    remount("ro")
    code, error = start()
    assert (code, len(error.splitlines())) == (1, 1)
    assert f"{path}/adhoc" in error
    assert "Read-only file system" in error


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
