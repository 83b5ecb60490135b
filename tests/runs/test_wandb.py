"""An offline run read back with W&B's own reader, and a server that is not there."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_execute import kill_after_two_epochs

from conftest import REPOSITORY
from debugnn import json_lines, records
from debugnn.files import replace_text
from debugnn.records import Epoch, Step
from debugnn.runs.execute import execute
from debugnn.runs.sinks import JsonLines
from debugnn.runs.wandb_sink import WandB
from offline_wandb import WANDB, read_back

pytestmark = pytest.mark.slow

# Without what a run in this process left there for its own service.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "WANDB" not in name}


@pytest.fixture(scope="module")
def run(compose, tmp_path_factory) -> Path:
    config = compose(
        "wandb=offline", "experiment=dropout_batchnorm", "reg=bn", "data=digits",
        "data.train_size=96", "trainer.epochs=2", "doctor.every=2", "model.blocks=[[4,4]]",
        "model.hidden=[16]",
    )  # fmt: skip
    config.output_dir = str(tmp_path_factory.mktemp("runs"))
    return execute(config, ["reg=bn"], "dropout_batchnorm")


@pytest.fixture(scope="module")
def seen(run) -> dict[str, list[dict]]:
    return read_back(run)


def test_name_and_group_are_the_articles_and_the_experiments(seen, run):
    (described,) = seen["run"]
    assert described["display_name"] == "batch_norm"
    assert described["run_group"] == "dropout_batchnorm"
    assert described["project"] == "debug-neural-nets"
    assert described["job_type"] == "train"
    assert described["run_id"] == records.load((run / "run.json").read_text())["wandb_id"]


def test_the_resolved_config_is_there(seen):
    config = seen["run"][0]["config"]["update"]
    assert config["reg"] == {"batch_norm": True, "dropout": 0}
    assert config["data"]["name"] == "digits"
    assert config["optim"]["lr"] == 0.001


def test_every_epochs_metrics_are_there(seen, run):
    logged = [h["item"] for h in seen["history"] if "test/loss" in h["item"]]
    kept = list(json_lines.read(run / "metrics.jsonl", "epoch"))
    assert len(logged) == len(kept) == 2
    for item, row in zip(logged, kept, strict=True):
        assert item["epoch"] == row["epoch"]
        assert item["test/loss"] == pytest.approx(row["test_loss"])
        assert item["test/accuracy"] == pytest.approx(row["test_accuracy"])
        assert item["train/loss"] == pytest.approx(row["train_loss"])


def test_histograms_stand_under_the_keys_of_wandb_watch(seen, run):
    logged = [h["item"] for h in seen["history"] if "gradients/conv1.weight._type" in h["item"]]
    kept = list(json_lines.read(run / "layers.jsonl"))
    assert len(logged) == len(kept) == 2  # steps 0 and 2 of 4
    for item, row in zip(logged, kept, strict=True):
        for kind in ("gradients", "parameters"):
            assert row[kind]
            for name, stats in row[kind].items():
                assert item[f"{kind}/{name}._type"] == "histogram"
                assert item[f"{kind}/{name}.values"] == stats["histogram"]
                assert item[f"{kind}/{name}.bins"][0] == pytest.approx(stats["low"], rel=1e-4)
        # Of activations alone is it known how many units are dead.
        dead = {key: value for key, value in item.items() if key.endswith("/dead_units")}
        assert dead == {
            f"activations/{name}/dead_units": pytest.approx(stats["dead_units"])
            for name, stats in row["activations"].items()
        }


@pytest.fixture(scope="module")
def thinned(compose, tmp_path_factory) -> Path:
    """The directory of a run of 48 steps that is asked for every second one, and its checkpoint."""
    config = compose(
        "wandb=offline", "data=regression", "model=regressor", "loss=mse", "doctor.every=4",
        "trainer.epochs=3", "wandb.every=2", "wandb.checkpoint=true",
    )  # fmt: skip
    config.output_dir = str(tmp_path_factory.mktemp("thinned"))
    return execute(config, [], None)


def test_steps_and_layers_are_thinned_in_wandb_alone(thinned):
    history = [h["item"] for h in read_back(thinned)["history"]]
    assert [h["step"] for h in history if "step/loss" in h] == [0, *range(1, 48, 2)]
    assert len(list(json_lines.read(thinned / "metrics.jsonl", "step"))) == 48
    # The histograms of layers are at least twenty steps apart.
    logged = [h["step"] for h in history if "gradients/fc1.weight._type" in h]
    kept = [row["step"] for row in json_lines.read(thinned / "layers.jsonl")]
    assert kept == [*range(0, 41, 4)]  # ten at one distance, and then further apart
    assert logged == [0, 20, 40]


def test_an_epoch_has_one_row_with_its_last_step(thinned):
    history = [h["item"] for h in read_back(thinned)["history"]]
    epochs = [h for h in history if "test/loss" in h]
    assert [(h["epoch"], h["step"]) for h in epochs] == [(0, 15), (1, 31), (2, 47)]
    losses = {
        row["step"]: row["loss"] for row in json_lines.read(thinned / "metrics.jsonl", "step")
    }
    assert [h["step/loss"] for h in epochs] == [pytest.approx(losses[h["step"]]) for h in epochs]


def test_by_default_a_run_has_at_most_500_rows(compose, tmp_path):
    config = compose(
        "wandb=offline", "data=regression", "model=regressor", "loss=mse", "data.batch_size=1",
        "doctor=off", "trainer.epochs=3", "trainer.steps_per_epoch=400", "wandb.every=null",
    )  # fmt: skip
    config.output_dir = str(tmp_path)
    directory = execute(config, [], None)
    history = [h["item"] for h in read_back(directory)["history"]]
    assert [item["step"] for item in history if "step/loss" in item] == [0, *range(2, 1200, 3)]
    assert len(list(json_lines.read(directory / "metrics.jsonl", "step"))) == 1200


def test_the_checkpoint_is_uploaded_where_it_is_asked_for(thinned, seen):
    (model,) = models_among(read_back(thinned))
    name = f"checkpoint-{records.load((thinned / 'run.json').read_text())['wandb_id']}"
    assert model["name"] == name
    (entry,) = model["manifest"]["contents"]
    assert entry["path"] == "checkpoint.pt"
    assert int(entry["size"]) == (thinned / "checkpoint.pt").stat().st_size
    assert models_among(seen) == []


def models_among(seen):
    """Return the artifacts that hold a model, in a run read back."""
    requests = [row["log_artifact"] for row in seen["request"] if "log_artifact" in row]
    artifacts = [request["artifact"] for request in requests] + seen["artifact"]
    return [artifact for artifact in artifacts if artifact["type"] == "model"]


def test_the_run_ends_well(seen):
    assert seen["exit"][0].get("exit_code", 0) == 0


def test_a_range_tests_curve_is_logged(compose, tmp_path):
    config = compose("wandb=offline", "task=lr_find", "task.finder.repeats=1",
                     "task.finder.iterations=5", "data.batch_size=8")  # fmt: skip
    config.output_dir = str(tmp_path)
    history = [h["item"] for h in read_back(execute(config, [], None))["history"]]
    rates = [item["lr_finder/0/lr"] for item in history if "lr_finder/0/lr" in item]
    assert rates[0] == pytest.approx(1e-9)


# A run that takes a moment: what is asked of W&B does not depend on it.
SHORT = ("trainer.epochs=1", "data.train_size=64", "model.blocks=[]", "model.hidden=[16]")


@pytest.mark.parametrize("key", ["", "0" * 40])
@pytest.mark.injects("W&B's server is not there")
def test_a_server_that_is_not_there_does_not_end_the_run(tmp_path, prepared, key):
    """With and without an API key: the run goes on offline, and says how to sync it."""
    shown = subprocess.run(
        [
            sys.executable, str(REPOSITORY / "train.py"), "wandb=online", "wandb.init_timeout=4",
            "doctor=off", *SHORT, f"data.cache={prepared}",
        ],
        cwd=tmp_path,
        env={**ENVIRONMENT, "HOME": str(tmp_path), "WANDB_API_KEY": key,
             "WANDB_BASE_URL": "http://127.0.0.1:9"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "wandb sync" in shown.stdout
    (facts,) = tmp_path.rglob("run.json")
    assert records.load(facts.read_text())["status"] == "finished"
    assert len([h for h in read_back(tmp_path)["history"] if "test/loss" in h["item"]]) == 1


ANSWERS = {
    "UpsertBucket": {
        "upsertBucket": {
            "bucket": {
                "id": "1", "name": "run", "displayName": "run", "historyLineCount": 0,
                "sweepName": None,
                "project": {"id": "1", "name": "p", "entity": {"id": "1", "name": "e"}},
            },
            "inserted": True,
        }
    },
    "Viewer": {
        "viewer": {
            "id": "1", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []},
        }
    },
    "ArtifactType": {"project": None},
    "CreateRunFiles": {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}},
    "CreateArtifact": {  # one that is there already
        "createArtifact": {
            "artifact": {
                "id": "1", "state": "COMMITTED",
                "artifactSequence": {
                    "id": "1", "latestArtifact": {"id": "1", "versionIndex": 0}
                },
            }
        }
    },
}  # fmt: skip


class Server:
    """A server of W&B's protocol that accepts everything, or is silent.

    Attributes:
        address: its URL.
        asked: the names of the operations that it was asked for.
        rows: the numbers of the rows of history that it was sent, of all runs.
        history: number → row, of the last run.
        silent: set while it answers nothing.
    """

    def __init__(self):
        self.asked, self.rows, self.history = [], [], {}
        self.silent, self.over = threading.Event(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if server.silent.is_set():
                    server.over.wait()
                    return
                text = json.dumps(server.answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.listening.server_port}"

    def answer(self, path, body):
        if path == "/graphql":
            operation = re.search(r"(?:query|mutation)\s+(\w+)", json.loads(body)["query"])
            self.asked.append(operation.group(1))
            if operation.group(1) == "RunResumeStatus":
                return {"data": {"model": self.resumed()}}
            return {"data": ANSWERS.get(operation.group(1), {})}
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"content": []})
            for number, line in enumerate(history["content"], history.get("offset", 0)):
                self.rows.append(number)
                self.history[number] = json.loads(line)
        return {}

    def resumed(self):
        """What it says of the last run to one that goes on with it."""
        last = [json.dumps(self.history[max(self.history)])] if self.history else []
        bucket = {
            "name": "run", "displayName": "run", "historyLineCount": len(self.history),
            "eventsLineCount": 0, "logLineCount": 0, "historyTail": json.dumps(last),
            "eventsTail": "[]", "summaryMetrics": json.dumps(self.history.get(len(last), {})),
            "config": "{}", "tags": [], "notes": "", "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        return {"name": "p", "entity": {"id": "1", "name": "e"}, "bucket": bucket}


@pytest.fixture
def server():
    server = Server()
    with server.listening:
        thread = threading.Thread(target=server.listening.serve_forever)
        thread.start()
        yield server
        server.over.set()
        server.listening.shutdown()
        thread.join()


def online(tmp_path, server):
    """The environment of a process that logs to this server."""
    return {**ENVIRONMENT, "HOME": str(tmp_path), "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": server.address, "PYTHONUNBUFFERED": "1"}  # fmt: skip


def begin_online(tmp_path, server, *settings):
    """Start a run that logs to this server."""
    return subprocess.Popen(
        [sys.executable, "train.py", "wandb=online", "doctor=off", "model=deep_mlp",
         "trainer.device=cpu", f"output_dir={tmp_path}", *settings],
        cwd=REPOSITORY, env=online(tmp_path, server), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def status(path):
    return records.load(path.read_text())["status"]


@pytest.mark.injects("W&B's server falls silent")
def test_a_server_that_falls_silent_costs_no_rows_and_little_time(tmp_path, server):
    process = begin_online(tmp_path, server, "wandb.init_timeout=5", "trainer.epochs=20")
    assert any("epoch  4 of 20" in line for line in process.stdout)
    server.silent.set()
    assert any("epoch 19 of 20" in line for line in process.stdout)
    trained = time.monotonic()
    shown, _ = process.communicate()
    assert time.monotonic() - trained < 5 + 10  # the process's own end takes some time too
    assert process.returncode == 0, shown
    assert shown.count("W&B has failed (") == 1
    assert "wandb sync --no-skip-online" in shown
    (facts,) = tmp_path.rglob("run.json")
    assert status(facts) == "finished"
    before = set(server.rows)
    server.silent.clear()
    (run,) = facts.parent.glob("wandb/run-*")
    synced = subprocess.run(
        [WANDB, "sync", "--no-skip-online", str(run)], cwd=tmp_path, env=online(tmp_path, server),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = len(list(json_lines.read(facts.with_name("metrics.jsonl"), "step")))
    assert len(before | set(server.rows)) == wanted == 20 * 23, synced.stderr


@pytest.mark.injects("W&B's server falls silent")
def test_a_run_that_is_told_to_stop_does_not_wait_for_a_silent_server(tmp_path, server):
    process = begin_online(tmp_path, server, "wandb.init_timeout=600", "trainer.epochs=500")
    assert any("epoch   0 of 500" in line for line in process.stdout)
    server.silent.set()
    process.terminate()
    shown, _ = process.communicate(timeout=60)  # a tenth of the time that it would wait otherwise
    assert process.returncode == 143, shown
    (facts,) = tmp_path.rglob("run.json")
    assert status(facts) == "interrupted"


WAITING = """
import time
from pathlib import Path
import torch

steps = 0

def loss(outputs, targets):
    global steps
    if outputs.requires_grad:
        steps += 1
        while steps > int(Path(__file__).with_name("allowed").read_text()):
            time.sleep(0.01)
    return torch.nn.functional.cross_entropy(outputs, targets)
"""


@pytest.mark.long
@pytest.mark.injects("a kill")
@pytest.mark.parametrize("checkpoint_every", [4, 10])
def test_a_killed_run_goes_on_online_with_all_rows_once(tmp_path, server, checkpoint_every):
    """What had not been uploaded comes, and what is trained again does not come again."""
    (tmp_path / "waiting.py").write_text(WAITING)
    allowed = tmp_path / "allowed"  # replaced, never empty: the loss reads it at any time
    environment = {**online(tmp_path, server), "PYTHONPATH": str(tmp_path),
                   "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5"}  # fmt: skip
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    command = [
        sys.executable, "train.py", "wandb=online", "model=deep_mlp", "model.hidden=[8]",
        "data.train_size=256", "trainer.epochs=10", "trainer.device=cpu", "doctor.every=3",
        "doctor.budget=0", "loss._target_=waiting.loss", f"output_dir={tmp_path}",
        f"trainer.checkpoint_every={checkpoint_every}", "trainer.checkpoint_seconds=0",
        "wandb.init_timeout=120",  # on a busy machine W&B takes longer than 30 s, and is given up
    ]  # fmt: skip

    def begin():
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    replace_text(allowed, str(4 * 3 + 1))  # three epochs, and the next step waits
    process = begin()
    assert any("epoch 2 of 10" in line for line in process.stdout)
    while not server.history:
        time.sleep(0.01)  # leaves the processor to what is waited for
    server.silent.set()
    before = len(server.history)
    replace_text(allowed, str(4 * 6 + 1))
    assert any("epoch 5 of 10" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    server.silent.clear()
    replace_text(allowed, "1000")
    shown, _ = begin().communicate()
    (facts,) = tmp_path.rglob("run.json")
    assert status(facts) == "finished", shown
    assert 0 < before < len(server.history)
    rows = [row for _, row in sorted(server.history.items())]
    assert [row["step"] for row in rows if "step/loss" in row] == list(range(40))
    assert [row["epoch"] for row in rows if "test/loss" in row] == list(range(10))
    layers = [row["step"] for row in rows if any(key.startswith("gradients/") for key in row)]
    assert layers == [*range(0, 31, 3), 36]


@pytest.mark.injects("W&B's server falls silent")
def test_the_runs_of_a_sweep_wait_once_for_a_server_that_is_silent_from_the_start(tmp_path, server):
    server.silent.set()
    shown = subprocess.run(
        [sys.executable, "train.py", "-m", "seed=0,1,2,3", "wandb=online", "wandb.init_timeout=10",
         "doctor=off", "model=regressor", "data=regression", "loss=mse", "trainer.epochs=1",
         f"output_dir={tmp_path}"],
        cwd=REPOSITORY, env=online(tmp_path, server),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.count("W&B cannot be reached (") == 1
    assert shown.stdout.count("the run goes on offline; later, `wandb sync ") == 4
    for facts in tmp_path.rglob("run.json"):
        assert status(facts) == "finished"
        (kept,) = facts.parent.glob("wandb/*run-*")  # nothing of the attempt
        assert kept.name.startswith("offline-run-")
        assert records.load(facts.read_text())["wandb_id"] in kept.name
        assert [h for h in read_back(facts.parent)["history"] if "test/loss" in h["item"]]


@pytest.mark.parametrize("home", ["/dev/null/nowhere", None])
@pytest.mark.injects("no home folder")
def test_without_a_home_a_run_finishes_and_the_key_is_written_nowhere(tmp_path, home):
    key = "0123456789abcdef" * 2 + "feedbeef"
    environment = {**ENVIRONMENT, "WANDB_API_KEY": key, "HOME": home}
    shown = subprocess.run(
        [sys.executable, "train.py", "wandb=offline", "wandb.checkpoint=true", "trainer.epochs=1",
         "model=deep_mlp", f"output_dir={tmp_path}"],
        cwd=REPOSITORY, env={n: value for n, value in environment.items() if value is not None},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "W&B" not in shown.stdout
    (facts,) = tmp_path.rglob("run.json")
    assert status(facts) == "finished"
    assert models_among(read_back(tmp_path))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert facts in written
    assert not [path for path in written if key.encode() in path.read_bytes()]
    assert key not in shown.stdout


def test_a_first_online_run_prints_its_own_lines_alone(tmp_path, prepared, server):
    """Not that credentials were found, and not that an artifact was."""
    shown = subprocess.run(
        [
            sys.executable, str(REPOSITORY / "train.py"), "wandb=online", *SHORT,
            f"data.cache={prepared}",
        ],
        cwd=tmp_path,
        env=online(tmp_path, server),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    if lines[0].startswith("data=digits: decoding once"):  # no test has done so before
        del lines[0]
    assert "seed=0" in lines[0].split()
    assert [line for line in lines[1:] if not line.startswith("  ")] == []
    assert {"UpsertBucket", "CreateArtifact"} <= set(server.asked)


def test_disabled_writes_nothing_of_wandbs(compose, tmp_path):
    config = compose("wandb=disabled", "trainer.epochs=1", "data.train_size=64")
    config.output_dir = str(tmp_path)
    assert not (execute(config, [], None) / "wandb").exists()


def test_a_diagnosis_is_a_table_a_summary_and_an_alert(compose, tmp_path):
    config = compose(
        "wandb=offline", "loss=bce_index", "trainer.epochs=2", "data.batch_size=32",
        "data.train_size=960", "model.blocks=[]", "model.hidden=[16]",
    )  # fmt: skip
    config.output_dir = str(tmp_path)
    directory = execute(config, ["loss=bce_index"], None)
    seen = read_back(directory)
    kept = records.load((directory / "findings.json").read_text())
    first = kept["findings"][0]
    assert (first["cause"], first["severity"], kept["healthy"]) == ("wrong_loss", "error", False)
    summary = {k: v for row in seen["summary"] for k, v in row.get("update", {}).items()}
    summary |= {k: v for h in seen["history"] for k, v in h["item"].items()}
    assert summary["doctor/cause"] == "wrong_loss"
    assert summary["doctor/healthy"] is False
    assert summary["doctor/reason"] == kept["reason"]
    assert summary["doctor/override"] == "loss=cross_entropy"
    assert "findings._type" in summary or "findings" in summary
    (alert,) = seen["alert"]
    assert alert["title"] == "wrong_loss"
    (table,) = directory.rglob("findings*.table.json")
    assert json.loads(table.read_text())["data"][0][:3] == ["error", "wrong_loss", "certain"]


@pytest.mark.injects("W&B's process dies")
def test_a_run_outlives_wandbs_process_and_the_next_run_has_another(tmp_path):
    """W&B's own process is killed in the middle of the first of two runs."""
    process = subprocess.Popen(
        [sys.executable, "train.py", "-m", "seed=0,1", "wandb=offline", "doctor=off",
         "model=deep_mlp", "trainer.epochs=12", "trainer.device=cpu", f"output_dir={tmp_path}"],
        cwd=REPOSITORY, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert any("epoch  4 of 12" in line for line in process.stdout)
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    for child in {int(word) for path in children for word in path.read_text().split()}:
        if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    assert shown.count("W&B has failed (") == 1
    assert "Traceback" not in shown
    facts = {path.parent.name: path for path in tmp_path.rglob("run.json")}
    for path in facts.values():
        assert records.load(path.read_text())["status"] == "finished"
        assert len(list(json_lines.read(path.with_name("metrics.jsonl"), "epoch"))) == 12
    assert [h for h in read_back(facts["seed=1"].parent)["history"] if "test/loss" in h["item"]]


@pytest.mark.injects("a kill")
def test_a_run_that_was_killed_is_one_offline_run_with_all_rows_once(compose, tmp_path):
    """`wandb sync` uploads nothing behind a piece that was cut off."""
    config = compose("model=deep_mlp", "model.hidden=[12]", "trainer.epochs=4", "wandb=offline",
                     "data.train_size=640", "doctor.every=4")  # fmt: skip
    config.output_dir = str(tmp_path)
    directory = kill_after_two_epochs(config, tmp_path)
    execute(config, ["killed"], None)
    history = [logged["item"] for logged in read_back(directory)["history"]]  # of one file
    for kind, key, axis in (
        ("step", "step/loss", "step"),
        ("epoch", "test/loss", "epoch"),
        ("layers", "gradients/fc1.weight/norm", "step"),
    ):
        rows = json_lines.read(directory / f"{'layers' if kind == 'layers' else 'metrics'}.jsonl")
        wanted = [row[axis] for row in rows if row["kind"] == kind]
        assert sorted(item[axis] for item in history if key in item) == wanted


@pytest.mark.parametrize("uploaded", [False, True])
def test_what_a_run_kept_is_logged_once_however_late_wandb_begins(compose, tmp_path, uploaded):
    rows = [Step(0, step, loss=1.0, accuracy=None, lr=0.1, grad_norm=1.0) for step in range(4)]
    kept = JsonLines(tmp_path)
    for row in rows[:2]:
        kept.write(row)
    kept.close(failed=True)
    piece = tmp_path / "wandb" / "offline-run-20200101_000000-killed"
    piece.mkdir(parents=True)
    if uploaded:
        (piece / "run-killed.wandb.synced").touch()
    settings = OmegaConf.to_container(compose("wandb.init_timeout=2"), resolve=True)
    with WandB._starting:  # by another run of this process, which takes longer than the timeout
        sink = WandB(tmp_path, config=settings, name="r", group="g", run_id="killed",
                     epochs=1, steps_per_epoch=5)  # fmt: skip
        sink.log_kept()
    sink._seconds = 60  # the end is waited for
    for row in rows[2:]:
        sink.write(row)
    sink.close(failed=False)
    history = [logged["item"] for logged in read_back(tmp_path)["history"]]
    assert [item["step"] for item in history] == ([2, 3] if uploaded else [0, 1, 2, 3])


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("uploaded", [False, True])
def test_a_run_that_ended_before_an_evaluation_has_all_rows_once(
    compose, tmp_path, uploaded, failed
):
    """The last step of an epoch waits for the epoch's numbers, which the next piece has."""
    rows = [Step(0, step, loss=1.0, accuracy=None, lr=0.1, grad_norm=1.0) for step in range(2)]
    settings = OmegaConf.to_container(compose("wandb=offline"), resolve=True)
    options = {"config": settings, "name": "r", "group": "g", "epochs": 1, "steps_per_epoch": 2}
    kept = JsonLines(tmp_path)
    first = WandB(tmp_path, run_id=None, **options)
    for row in rows:
        kept.write(row)
        first.write(row)
    first.close(failed)
    kept.close(failed)
    (piece,) = tmp_path.glob("wandb/offline-run-*")
    if uploaded:
        (piece / f"run-{first.id}.wandb.synced").touch()
    pieces = [read_back(tmp_path)["history"]]
    second = WandB(tmp_path, run_id=first.id, **options)
    second.log_kept()
    second.write(Epoch(0, 1, 1.0, 1.0, None, 2.0, None, 0.1))
    second.close(failed=False)
    if uploaded:
        shutil.rmtree(piece)
    else:
        pieces.clear()  # of a run that was never uploaded, the last piece has all
    pieces.append(read_back(tmp_path)["history"])
    history = [logged["item"] for piece in pieces for logged in piece]
    assert [(item["step"], item.get("test/loss")) for item in history] == [(0, None), (1, 2.0)]
