"""The report in W&B tells the page's story: read back offline, and sent to a server on loopback."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb_workspaces.reports.v2 as wr
from test_runs import epoch, stats, write_run
from wandb_workspaces.reports.v2.internal import ReportViewspec

import report as report_script
from conftest import REPOSITORY
from debugnn import records
from debugnn.analysis import wandb_report
from debugnn.analysis.wandb_report import as_text
from debugnn.errors import ConfigError
from debugnn.records import Layers, LrPoint, Step

# Each of these signs means something in Markdown, in HTML or in W&B's filters.
HOSTILE = "a|b <i>*c*</i> `d` [e](f) = \"g\" 'h' \\"
FIGURE = {"kind": "curves", "name": "curves", "title": "Loss", "caption": f"Look at {HOSTILE}.",
          "columns": ["train_loss"], "arms": None}  # fmt: skip
ENVIRONMENT = {name: value for name, value in os.environ.items() if "WANDB" not in name}


def training(accuracy: float | None, epochs: int = 3) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for step in (0, 10):
        gradients = {f"{layer}.weight": stats(rng.normal(size=50)) for layer in ("conv1", "fc1")}
        yield Layers(0, step, {**gradients, "fc1.bias": stats(rng.normal(size=5))}, {}, {})
        yield Step(0, step, 2.3, 50.0, 1e-3, 1.0)
    for number in range(epochs):
        yield epoch(number, 1.0 / (number + 1), accuracy)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Four experiments: on the article's data, on a stand-in, a range test, and a hostile one."""
    root = tmp_path_factory.mktemp("runs")
    for data in ("mnist", "digits"):
        for seed in (0, 1):
            for model in ("relu_net", "sigmoid_net"):
                directory = write_run(
                    root, {"data": data, "model": model}, training(90.0), seed=seed, data=data,
                    experiment="vanishing_gradient", figures=[FIGURE],
                )  # fmt: skip
                cause = {"relu_net": "healthy", "sigmoid_net": "vanishing_gradient"}[model]
                report = {"main_cause": cause, "reason": "", "findings": []}
                (directory / "findings.json").write_text(records.dump(report))
    points = [LrPoint(0, i, 10.0 ** (i - 9), 1.0, 2.3, 2.3 + i) for i in range(9)]
    write_run(root, {"task": "lr_find"}, points, experiment="lr_finder", data="mnist",
              task="lr_find")  # fmt: skip
    for clip in ("off", HOSTILE):
        odd = write_run(root, {"clip": clip}, training(None), experiment="odd", data="regression")
        facts = records.load((odd / "run.json").read_text())
        (odd / "run.json").write_text(records.dump({**facts, "experiment": HOSTILE}))
    write_run(root, {"reg": "bn"}, status="failed", experiment="broken")
    return root


def command(runs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "scripts" / "report.py")
    return subprocess.run(
        [sys.executable, script, str(runs), *arguments],
        env={**ENVIRONMENT, "HOME": str(runs), **environment}, timeout=300,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- offline --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(runs) -> wr.Report:
    """What a dry run writes, read back by W&B's library."""
    shown = command(runs, "--wandb", "someone/a-project", "--dry-run",
                    WANDB_BASE_URL="http://127.0.0.1:9")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert shown.stdout == f"{runs / 'wandb_report.json'}\n"
    text = (runs / "wandb_report.json").read_text(encoding="utf-8")
    return wr.Report._from_model(ReportViewspec.model_validate_json(text))


def divided(report: wr.Report) -> dict[str, list[Any]]:
    """Return title of a section → its blocks, with a number behind a title that comes again."""
    sections: dict[str, list[Any]] = {}
    for block in report.blocks:
        if isinstance(block, wr.H2):
            title = block.text if block.text not in sections else f"{block.text} 2"
            sections[title] = []
        elif sections:
            sections[title].append(block)
    return sections


def grid(blocks: list[Any]) -> wr.PanelGrid:
    (found,) = (block for block in blocks if isinstance(block, wr.PanelGrid))
    return found


def markdown(blocks: list[Any]) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, wr.MarkdownBlock))


@pytest.mark.slow
def test_every_experiment_is_a_section_with_its_runs(report) -> None:
    assert (report.entity, report.project) == ("someone", "a-project")
    filters = {}
    for title, blocks in divided(report).items():
        if title != "Runs that are not shown":
            (runset,) = grid(blocks)._to_model().metadata.run_sets
            filters[title] = [(f["key"]["section"], f["key"]["name"], f["op"], f["value"])
                              for f in runset.filters["filters"]]  # fmt: skip
    data = ("config", "data.value.name", "IN")
    vanishing = ("run", "group", "=", "vanishing_gradient")
    assert filters == {
        "About lr_finder": [("run", "group", "=", "lr_finder"), (*data, ["mnist"])],
        "About vanishing_gradient": [vanishing, (*data, ["mnist"])],
        "About vanishing_gradient 2": [vanishing, (*data, ["digits"])],
        "About odd": [("run", "group", "=", HOSTILE), (*data, ["regression"])],
    }


@pytest.mark.slow
def test_claims_stand_with_their_verdicts_and_arms_with_their_causes(report) -> None:
    text = markdown(divided(report)["About vanishing_gradient"])
    assert "| 5d | ReLU solves it: the same net with ReLUs learns within 10 epochs. | " \
           "not enough runs |" in text  # fmt: skip
    assert "| ×1 (×1 to ×1), 2 seeds" in text  # the evidence of 5a
    assert r"| sigmoid\_net | 2 | 90.0 (90.0 to 90.0) | vanishing\_gradient 2 |" in text
    assert r"| relu\_net | 2 | 90.0 (90.0 to 90.0) | healthy 2 |" in text


@pytest.mark.slow
def test_stand_ins_are_called_so_and_nothing_else_is(report) -> None:
    stand_ins = {
        title: [block.text for block in blocks if isinstance(block, wr.CalloutBlock)]
        for title, blocks in divided(report).items()
    }
    (told,) = stand_ins.pop("About vanishing_gradient 2")
    assert "stand-in" in told
    assert not any(stand_ins.values())


@pytest.mark.slow
def test_panels_show_the_keys_that_the_runs_log(report) -> None:
    sections = divided(report)
    names = {title: keys(grid(blocks)) for title, blocks in sections.items()
             if title != "Runs that are not shown"}  # fmt: skip
    losses = {("epoch", "train/loss"), ("epoch", "test/loss"), ("step", "step/loss")}
    gradients = {("step", "gradients/conv1.weight"), ("step", "gradients/fc1.weight")}
    accuracies = {("epoch", "train/accuracy"), ("epoch", "test/accuracy")}
    assert names["About vanishing_gradient"] == losses | gradients | accuracies
    assert names["About odd"] == losses | gradients  # a regression
    assert names["About lr_finder"] == {("lr_finder/0/lr", "lr_finder/0/smoothed_loss")}
    boxes = [panel.layout for panel in grid(sections["About vanishing_gradient"]).panels]
    assert len({(box.x, box.y) for box in boxes}) == len(boxes)


def keys(panels: wr.PanelGrid) -> set[tuple[str, ...]]:
    """Return the keys of each panel, the one of the x axis first."""
    axes = [(panel.x, *panel.y) for panel in panels.panels]
    return {tuple(getattr(key, "name", key) for key in panel) for panel in axes}


@pytest.mark.slow
def test_what_runs_hold_is_text(report) -> None:
    blocks = divided(report)["About odd"]
    row = next(line for line in markdown(blocks).splitlines() if "a\\|b" in line)
    cells = re.split(r"(?<!\\)\|", row)[1:-1]
    assert len(cells) == 4
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cells[0].strip()).endswith(HOSTILE)
    assert not re.search(r"(?<!\\)[<`*\[\]]", row)
    first = next(block for block in divided(report)["About vanishing_gradient"]
                 if isinstance(block, wr.UnorderedList))  # fmt: skip
    assert first.items == [FIGURE["caption"]]


@pytest.mark.slow
def test_runs_that_failed_are_listed(report, runs) -> None:
    (listed,) = divided(report)["Runs that are not shown"]
    (item,) = listed.items
    assert str(runs / "broken") in item
    assert "failed" in item


def test_markdown_of_a_value_is_one_line_without_a_meaning() -> None:
    assert as_text("a\n| b") == r"a \| b"
    assert as_text("$x$ <b>") == r"\$x\$ \<b\>"
    assert as_text("10 % (0.5 to 1), p = 0.1") == "10 % (0.5 to 1), p = 0.1"


# --- online ---------------------------------------------------------------------------------------

PROJECT = {"id": "1", "internalId": "7", "name": "p", "entity": {"id": "1", "name": "e"}}
ARTIFACT = {
    "__typename": "Artifact", "id": "A", "versionIndex": 0, "artifactType": {"name": "report"},
    "artifactSequence": {"__typename": "ArtifactSequence", "name": "report", "project": PROJECT},
    "description": None, "metadata": None, "ttlDurationSeconds": 0, "ttlIsInherited": True,
    "tags": [], "historyStep": None, "state": "COMMITTED", "size": 1, "digest": "d",
    "commitHash": "c", "fileCount": 1, "createdAt": "2026-01-01T00:00:00", "updatedAt": None,
    "aliases": [],
}  # fmt: skip


def answer(operation: str, variables: dict[str, Any], address: str) -> dict[str, Any]:
    """Return what W&B's server answers to an operation, as far as its client reads it."""
    match operation:
        case "Viewer":
            return {"viewer": {"id": "1", "entity": "e", "username": "u", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        case "UpsertBucket":
            bucket = {"id": "1", "name": "r", "displayName": "report", "historyLineCount": 0,
                      "sweepName": None, "project": PROJECT}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        case "GetProjects":
            node = {
                "__typename": "Project", "id": "1", "name": "p", "entityName": "e",
                "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None,
            }  # fmt: skip
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": node}]}}
        case "ProjectInternalId":
            return {"project": PROJECT}
        case "upsertView":
            view = {
                "id": "Vm", "name": "n", "displayName": variables["displayName"],
                "spec": variables["spec"], "project": {"name": "p", "entityName": "e"},
            }  # fmt: skip
            return {"upsertView": {"view": view, "inserted": True}}
        case "CreateRunFiles":
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        case "ArtifactType":
            return {"project": None}
        case "CreateArtifact":
            sequence = {"id": "1", "latestArtifact": None}
            artifact = {"id": "A", "state": "PENDING", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": artifact}}
        case "CreateArtifactManifest" | "UpdateArtifactManifest":
            file = {"id": "F", "name": "manifest", "displayName": "manifest",
                    "uploadUrl": f"{address}/manifest", "uploadHeaders": []}  # fmt: skip
            key = f"{operation[0].lower()}{operation[1:]}"
            return {key: {"artifactManifest": {"id": "M", "file": file}}}
        case "CreateArtifactFiles":
            nodes = [
                {"id": "F", "name": spec["name"], "displayName": spec["name"], "storagePath": "s",
                 "uploadUrl": f"{address}/{spec['name']}", "uploadHeaders": [],
                 "uploadMultipartUrls": None, "artifact": {"id": "A"}}
                for spec in variables["input"]["artifactFiles"]
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": [{"node": n} for n in nodes]}}}
        case "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "A", "digest": "d"}}}
        case "ArtifactByID":
            return {"artifact": ARTIFACT}
    return {}


class Server(ThreadingHTTPServer):
    """W&B's API on loopback; `refused` is the operation that it answers with an error."""

    def __init__(self, refused: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refused = refused
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.uploaded: dict[str, bytes] = {}

    def of(self, operation: str) -> list[dict[str, Any]]:
        return [variables for name, variables in self.asked if name == operation]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self._body()
        told: dict[str, Any] = {}
        if self.path == "/graphql":
            sent = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            assert operation is not None
            name, variables = operation[1], sent.get("variables") or {}
            self.server.asked.append((name, variables))
            if name == self.server.refused:
                told = {"data": None, "errors": [{"message": "permission denied"}]}
            else:
                told = {"data": answer(name, variables, self.server.address)}
        self._reply(json.dumps(told).encode())

    def do_PUT(self) -> None:
        self.server.uploaded[self.path.removeprefix("/")] = self._body()
        self._reply(b"")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, text: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(request) -> Iterator[Server]:
    with Server(getattr(request, "param", None)) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def publish(runs: Path, address: str, key: str = "0" * 40) -> subprocess.CompletedProcess[str]:
    return command(runs, "--wandb", "e/p", WANDB_API_KEY=key, WANDB_BASE_URL=address,
                   WANDB_INIT_TIMEOUT="3")  # fmt: skip


@pytest.mark.slow
def test_the_report_is_saved_and_its_files_are_artifacts(server, runs) -> None:
    shown = publish(runs, server.address)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert shown.stdout == f"{server.address}/e/p/reports/" \
                           "Debugging-neural-networks:-what-the-runs-say--Vm\n"  # fmt: skip
    (view,) = server.of("upsertView")
    assert (view["entityName"], view["projectName"], view["type"]) == ("e", "p", "runs")
    grids = [block for block in json.loads(view["spec"])["blocks"] if block["type"] == "panel-grid"]
    projects = [runset["project"] for grid in grids for runset in grid["metadata"]["runSets"]]
    assert projects == [{"id": "7", "name": "p", "entityName": "e"}] * 4
    first = server.of("UpsertBucket")[0]
    assert (first["entity"], first["project"], first["jobType"]) == ("e", "p", "report")
    created = [variables["input"] for variables in server.of("CreateArtifact")]
    kinds = [(one["artifactCollectionName"], one["artifactTypeName"]) for one in created]
    assert kinds == [("report", "report"), ("figures", "figures")]
    page = (runs / "report.html").read_bytes()
    assert server.uploaded["report.html"] == page
    pictures = {path.name: path.read_bytes() for path in (runs / "figures").glob("*.png")}
    assert set(pictures) == {"curves_mnist.png", "curves_digits.png"}
    assert pictures.items() <= server.uploaded.items()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["upsertView"], indirect=True)
def test_a_refusal_is_one_line(server, runs) -> None:
    shown = publish(runs, server.address)
    assert (shown.returncode, shown.stdout) == (1, "")
    (line,) = shown.stderr.splitlines()
    assert line.startswith("error: W&B: e/p was not published: ")
    assert "permission denied" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "said"), [("0" * 40, "connection refused"), ("", "wandb login")],
    ids=["no server", "no account"],
)  # fmt: skip
def test_what_cannot_be_reached_is_one_line(runs, key, said) -> None:
    shown = publish(runs, "http://127.0.0.1:9", key)
    assert (shown.returncode, shown.stdout) == (1, "")
    (line,) = shown.stderr.splitlines()
    assert line.startswith("error: W&B: e/p was not published: ")
    assert said in line


@pytest.mark.parametrize("name", ["project", "/p", "e/", "e/p/q", "a b/p", "e/p?"])
def test_a_malformed_name_is_refused(name) -> None:
    with pytest.raises(ConfigError, match="wanted is ENTITY/PROJECT"):
        wandb_report.target(name)


def test_a_mistake_is_one_line(monkeypatch, capsys, runs) -> None:
    given = ["report.py", str(runs), "--wandb", "project", "--dry-run"]
    monkeypatch.setattr(sys, "argv", given)
    assert report_script.main() == 1
    shown, errors = capsys.readouterr()
    assert shown == ""
    (line,) = errors.splitlines()
    assert line.startswith("error: --wandb=project: wanted is ENTITY/PROJECT")
