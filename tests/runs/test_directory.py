"""A run's directory: one process writes it, nothing of other people's is removed, and what is read
again is looked at first."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import REPOSITORY
from debugnn import json_lines, records
from debugnn.errors import ConfigError, RunError
from debugnn.runs.directory import RunDirectory
from debugnn.runs.execute import execute
from debugnn.training import checkpoint
from debugnn.training.restoring import restore

SMALL = ("model=deep_mlp", "reg=bn_dropout", "data.batch_size=64", "trainer.steps_per_epoch=4",
         "doctor=off")  # fmt: skip


@pytest.fixture
def settings(compose, tmp_path):
    def make(*overrides):
        config = compose(*SMALL, *overrides)
        config.output_dir = str(tmp_path / "runs")
        return config

    return make


@pytest.fixture
def ended(settings):
    """A finished run of three epochs: its configuration and its directory."""
    config = settings("trainer.epochs=3")
    return config, execute(config, [], None)


def cut_off(directory):
    facts = records.load((directory / "run.json").read_text())
    (directory / "run.json").write_text(records.dump({**facts, "status": "running"}))


def rows(directory):
    found = json_lines.read(directory / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


# --- who writes it --------------------------------------------------------------------------------

HOLDER = """
import sys
from omegaconf import OmegaConf
from debugnn.runs.execute import open_run, prepare
from debugnn.runs.directory import RunDirectory

with open_run(prepare(RunDirectory(OmegaConf.load(sys.argv[1]), [], None))):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(settings, tmp_path):
    """Another process that has begun the run and waits."""
    OmegaConf.save(settings("trainer.epochs=3"), tmp_path / "settings.yaml", resolve=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "settings.yaml")],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.injects("a second process on a run")
def test_a_second_process_says_who_is_writing(settings, holder, overwrite):
    config = settings("trainer.epochs=3")
    config.overwrite = overwrite
    kept = sorted(Path(config.output_dir).rglob("*"))
    with pytest.raises(RunError, match=f"process {holder.pid} on .*, since 20.*is writing it"):
        execute(config, [], None)
    assert sorted(Path(config.output_dir).rglob("*")) == kept


@pytest.mark.slow
@pytest.mark.injects("the lock of a dead process")
def test_a_dead_processs_lock_is_taken_over(settings, holder):
    config = settings("trainer.epochs=3")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    directory = execute(config, [], None)
    assert records.load((directory / "run.json").read_text())["status"] == "finished"
    assert len([row for row in rows(directory) if row["kind"] == "epoch"]) == 3


@pytest.mark.injects("a second process on a run")
def test_a_run_that_began_meanwhile_is_left_alone(settings):
    config = settings("trainer.epochs=1")
    late = RunDirectory(config, [], None)  # reads that nothing is there
    directory = execute(config, [], None)
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="has begun this run just now"), late.claimed():
        pass
    assert (directory / "metrics.jsonl").read_bytes() == before


# --- what is removed ------------------------------------------------------------------------------


def test_overwrite_removes_what_runs_wrote(ended):
    config, directory = ended
    (directory / "nonfinite_step_3.pt").write_bytes(b"")
    (directory / "metrics.jsonl.tmp").write_bytes(b"of a process that was killed")
    (directory / "wandb" / "offline-run").mkdir(parents=True)
    config.overwrite = True
    execute(config, [], None)
    left = {path.name for path in directory.iterdir()}
    assert not left & {"nonfinite_step_3.pt", "metrics.jsonl.tmp", "wandb"}
    assert len(rows(directory)) == 15


@pytest.mark.parametrize("name", ["notes.md", "plots/figure.png", "checkpoint-of-mine.pt"])
@pytest.mark.injects("other people's files in the directory")
def test_other_peoples_files_are_never_removed(ended, name):
    config, directory = ended
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("mine")
    before = sorted(directory.rglob("*"))
    config.overwrite = True
    with pytest.raises(RunError, match=f"holds {name.partition('/')[0]}, which no run"):
        execute(config, [], None)
    assert sorted(directory.rglob("*")) == before


@pytest.mark.injects("other people's files in the directory")
def test_a_directory_that_no_run_wrote_is_refused(settings):
    config = settings("trainer.epochs=1")
    directory = RunDirectory(config, [], None).path
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("mine: 1")
    with pytest.raises(RunError, match=r"holds config\.yaml, which no run"):
        execute(config, [], None)
    assert [path.name for path in directory.iterdir()] == ["config.yaml"]


def test_an_empty_directory_may_be_there(settings):
    config = settings("trainer.epochs=1")
    path = RunDirectory(config, [], None).path
    path.mkdir(parents=True)
    execute(config, [], None)
    assert (path / "checkpoint.pt").exists()


# --- what is read again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", b"", r"run\.json: not a run's record; overwrite=true"),
        ("run.json", b'{"status": "finished"}', r"run\.json: not a run's record"),
        ("run.json", b"[]", r"run\.json: not a run's record"),
        ("config.yaml", b"", r"config\.yaml: not a run's settings \(no mapping"),
        ("config.yaml", b"a: [", r"config\.yaml: not a run's settings \("),
        ("config.yaml", b"\xff\x00", r"config\.yaml: not a run's settings \("),
        ("config.yaml", None, r"config\.yaml: not a run's settings \(no such file"),
        ("metrics.jsonl", None, r"metrics\.jsonl: missing, of a finished run"),
    ],
)
@pytest.mark.injects("a damaged record or configuration")
def test_a_damaged_file_of_a_finished_run_is_named(ended, name, content, said):
    config, directory = ended
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(RunError, match=said):
        execute(config, [], None)


@pytest.mark.parametrize("line", [2, 5])
@pytest.mark.parametrize("damage", [b"{\n", b"\n", b"\xff\n", b"17\n", None])
@pytest.mark.injects("a damaged row")
def test_a_damaged_row_of_a_run_that_is_continued_is_named(ended, damage, line):
    config, directory = ended
    path = directory / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line : line + 1] = [] if damage is None else [damage]
    path.write_bytes(b"".join(lines))
    cut_off(directory)
    with pytest.raises(RunError, match=r"metrics\.jsonl(, line|: the row of (step|epoch))"):
        execute(config, [], None)


# --- checkpoints ----------------------------------------------------------------------------------


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {"flipped": flipped, "cut": lambda content: content[:-100], "empty": lambda _: b""}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.injects("a damaged checkpoint")
def test_a_damaged_checkpoint_gives_way_to_the_one_before(ended, caplog, damage):
    config, directory = ended
    whole, expected = weights(directory / "checkpoint.pt"), rows(directory)
    path = directory / "checkpoint.pt"
    (directory / "findings.json.tmp").write_bytes(b"of a process that was killed")
    path.write_bytes(damage(path.read_bytes()))
    cut_off(directory)
    with caplog.at_level("INFO"):
        execute(config, [], None)
    assert "checkpoint.pt: damaged; goes on from the one before" in caplog.text
    assert "continues from epoch 2" in caplog.text
    assert not list(directory.glob("*.tmp"))
    assert rows(directory) == expected
    assert all(torch.equal(value, whole[name]) for name, value in weights(path).items())


@pytest.mark.injects("a damaged checkpoint")
def test_without_a_whole_checkpoint_the_run_is_refused(ended):
    config, directory = ended
    for path in directory.glob("checkpoint*.pt"):
        path.write_bytes(flipped(path.read_bytes()))
    cut_off(directory)
    with pytest.raises(RunError, match=r"checkpoint\.pt: damaged, and so is the one before"):
        execute(config, [], None)


class Program:
    """What a malicious pickle would run."""

    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "state",
    [{}, {"epoch": 3}, [1], Program(), {"epoch": 9, "model": {}},
     {"epoch": 1, "step": 4, "model": {"fc1.weight": torch.zeros(2)}}],
    ids=["empty", "short", "list", "program", "ahead", "of_another_model"],
)  # fmt: skip
@pytest.mark.injects("a checkpoint of something else")
def test_a_checkpoint_of_something_else_is_refused_in_a_line(ended, state):
    config, directory = ended
    checkpoint.write(directory / "checkpoint.pt", state)
    cut_off(directory)
    with pytest.raises(RunError, match=r"checkpoint\.pt: not a checkpoint of this run") as raised:
        execute(config, [], None)
    assert "\n" not in str(raised.value)


def test_a_run_that_has_more_epochs_than_are_asked_for_is_refused(ended):
    config, directory = ended
    cut_off(directory)
    config.trainer.epochs = 2
    with pytest.raises(ConfigError, match=r"trainer\.epochs=3"):
        execute(config, [], None)


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.injects("a kill while a checkpoint is written")
def test_wherever_writing_a_checkpoint_is_cut_off_one_is_whole(
    small_training, tmp_path, monkeypatch, moment
):
    """A process can be killed before each of the three replacements of files, several times."""
    path, training, restored = tmp_path / "checkpoint.pt", small_training(), small_training()
    replace = os.replace

    def write(step, dies_before=None):
        done = []

        def replace_or_die(*names):
            if len(done) == dies_before:
                raise KeyboardInterrupt
            done.append(names)
            replace(*names)

        training.step = step
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace_or_die)
            checkpoint.write(path, checkpoint.state_of(training))

    def kept():
        restore(path, restored, epochs=1)
        return restored.step

    write(1)
    write(2)
    last = 2
    for step, dies_before in ((3, moment), (4, moment), (5, None), (6, moment)):
        with suppress(KeyboardInterrupt):
            write(step, dies_before)
            last = step
        assert kept() == last
    assert last >= 5
