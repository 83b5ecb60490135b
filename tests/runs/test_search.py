"""Searches: what is pruned and what is not, and a study that survives being killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from conftest import CONF, REPOSITORY
from debugnn import records
from debugnn.analysis.directories import scan_runs
from debugnn.errors import ConfigError, RunError
from debugnn.overrides import quote_numbers
from debugnn.runs.execute import execute
from debugnn.search import Choice, Range, Study
from hydra_plugins.debugnn_search import space_of
from left_by_runs import facts, rows
from test_cli import launch

SMALL = ("model=relu_net", "model.blocks=[]", "model.hidden=[16]", "data.train_size=256",
         "data.batch_size=16", "doctor.budget=0", "trainer.epochs=4")  # fmt: skip
DEAD = "optim.lr=30"
SEARCH = ("-m", "hydra/sweeper=optuna")


@pytest.fixture
def run(compose, tmp_path):
    """`run("optim.lr=…", prune_on="doctor")`: the directory of a run."""

    def make(*overrides, prune_on, output="runs"):
        config = compose(*SMALL, *overrides)
        config.output_dir = str(tmp_path / output)
        config.prune_on = prune_on
        return execute(config, overrides, None)

    return make


def findings(directory):
    return records.load((directory / "findings.json").read_text())


def assert_same_weights(one, other):
    states = [
        torch.load(directory / "checkpoint.pt", weights_only=True)["model"]
        for directory in (one, other)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# --- pruning ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dead_run_is_pruned_and_goes_on_bit_for_bit_without_pruning(run, tmp_path, caplog):
    whole = run(DEAD, prune_on=None, output="whole")
    directory = run(DEAD, prune_on="doctor")
    told = facts(directory)
    assert told["status"] == "pruned"
    assert told["pruned"]["step"] == 32  # two of the four epochs
    assert "no gradient reaches fc1.weight, fc2.weight" in told["pruned"]["reason"]
    assert rows(directory) == rows(whole)[: len(rows(directory))]
    assert findings(directory)["steps"] == 32
    (unusable,) = scan_runs(tmp_path / "runs")
    assert unusable.reason.startswith("was pruned after 32 steps: since step")
    with caplog.at_level("INFO"):
        run(DEAD, prune_on="doctor")
    assert "pruned before, skipped" in caplog.text
    assert facts(directory) == told

    # Killed after the last checkpoint, before it was pruned.
    (directory / "run.json").write_text(records.dump({**told, "status": "running"}))
    before = findings(directory)
    run(DEAD, prune_on="doctor")
    assert facts(directory)["pruned"] == told["pruned"]
    assert rows(directory) == rows(whole)[: len(rows(directory))]
    assert findings(directory) == before

    run(DEAD, prune_on=None)
    assert facts(directory)["status"] == "finished"
    assert rows(directory) == rows(whole)
    assert_same_weights(directory, whole)


@pytest.mark.slow
def test_a_run_that_may_learn_is_the_one_without_pruning(run):
    """With dropout, and an epoch of 52 steps, so that the doctor is asked inside it too."""
    settings = ("optim.lr=1e-3", "reg=dropout", "data.train_size=832", "trainer.epochs=2")
    pruning = run(*settings, prune_on="doctor", output="pruning")
    alone = run(*settings, prune_on=None, output="alone")
    assert facts(pruning)["status"] == facts(alone)["status"] == "finished"
    assert rows(pruning) == rows(alone)
    assert findings(pruning) == findings(alone)
    assert_same_weights(pruning, alone)


def test_pruning_needs_the_doctor(compose):
    with pytest.raises(ConfigError, match="prune_on=doctor: needs doctor=on"):
        execute(compose(*SMALL, "prune_on=doctor", "doctor=off"), [], None)


# --- a search -----------------------------------------------------------------------------------


def searching(output, prepared):
    """The command of a search over rates of which some are deadly."""
    return (*SEARCH, *SMALL, "trainer.epochs=3", "optim.lr=tag(log,interval(1e-4,100))",
            "init=kaiming,xavier", "reg=none", "clip=off", "prune_on=doctor",
            "hydra.sweeper.n_trials=3", "wandb=disabled", "trainer.device=cpu",
            f"data.cache={prepared}", f"output_dir={output}")  # fmt: skip


def trials_in(output):
    """The trials of the only study: number, settings, state and value of each."""
    (path,) = output.rglob("*.jsonl.lock")
    trials, states = [], {}
    for line in path.with_suffix("").read_text().splitlines():
        entry = records.load(line)
        if entry["op_code"] == 4:  # a trial begins
            trials.append(entry["params"])
        if entry["op_code"] == 6:  # a trial ends
            assert entry["trial_id"] not in states
            states[entry["trial_id"]] = entry["state"], entry["values"]
    return [(params, *states.get(number, (None, None))) for number, params in enumerate(trials)]


@pytest.mark.slow
@pytest.mark.injects("a kill")
def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(
    monkeypatch, capsys, tmp_path, prepared
):
    """A real process, killed inside its second run, against a search that was left alone."""
    code, shown, _ = launch(monkeypatch, capsys, *searching(tmp_path / "whole", prepared))
    assert code == 0
    whole = trials_in(tmp_path / "whole")
    assert len(whole) == 3
    assert {state for _, state, _ in whole} == {1, 2}  # Optuna's COMPLETE and PRUNED
    assert "best: test_accuracy" in shown
    assert "3 arms: 1 finished, 2 pruned" in shown or "3 arms: 2 finished, 1 pruned" in shown

    output = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *searching(output, prepared)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    begun = 0
    for line in process.stdout:
        begun += "Launching" in line
        if begun == 2 and "epoch 0" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [state is None for _, state, _ in trials_in(output)] == [False, True]
    code, again, _ = launch(monkeypatch, capsys, *searching(output, prepared))
    assert code == 0
    assert again.count("Launching") == 2
    assert trials_in(output) == whole
    kept = {str(path.relative_to(output)) for path in output.rglob("run.json")}
    assert kept == {
        str(path.relative_to(tmp_path / "whole")) for path in tmp_path.rglob("whole/**/run.json")
    }
    assert len(kept) == 3

    code, more, _ = launch(monkeypatch, capsys, *searching(output, prepared))
    assert (code, more.count("Launching")) == (0, 0)
    assert "3 trials" in more


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: allowed is [1, inf)"),
        (["hydra.sweeper.sampler=grid"], "allowed are tpe, random"),
        (["seed=0,1"], "seed: the trials of a search have one seed"),
        (["init=kaiming,nope"], "init=nope: no such option"),
        (["optim.lr=interval(-1,1)"], "optim.lr=-1.0: allowed is (0, inf)"),
        (["prune_on=doctor", "doctor=off"], "prune_on=doctor: needs doctor=on"),
        (["optim.lr=1", "init=default", "reg=none", "clip=off"], "nothing is searched over"),
    ],
)
def test_a_mistake_is_one_line_and_begins_no_search(
    monkeypatch, capsys, tmp_path, arguments, message
):
    code, _, err = launch(monkeypatch, capsys, *SEARCH, f"output_dir={tmp_path}", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
    assert not list(tmp_path.rglob("run.json"))


def space(*overrides):
    return space_of(OverridesParser.create().parse_overrides(list(overrides)))


def test_what_is_searched_over_is_written_as_hydra_writes_sweeps():
    assert space(
        "optim.lr=tag(log,interval(1e-6,10))", "reg.dropout=interval(0,0.5)", "seed=3",
        "data.batch_size=tag(log,int(interval(8,64)))", "clip=off,'4.0'", "init=choice(a,b)",
        "trainer.epochs=range(1,6,2)",
    ) == {
        "optim.lr": Range(1e-6, 10.0, log=True),
        "reg.dropout": Range(0.0, 0.5),
        "data.batch_size": Range(8, 64, log=True),
        "clip": Choice(("off", "'4.0'")),
        "init": Choice(("a", "b")),
        "trainer.epochs": Choice(("1", "3", "5")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=interval(1,0.1)", r"optim\.lr: interval\(1.0,0.1\): the first must be below"),
        ("optim.lr=tag(log,interval(0,1))", "the first must be above 0"),
        ("optim.lr=tag(even,interval(0,1))", "optim.lr: tag even of a range; allowed is log"),
    ],
)
def test_a_range_that_is_none_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        space(override)


def test_without_optuna_a_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "debugnn.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = launch(monkeypatch, capsys, *SEARCH)
    assert code == 2
    assert "hydra/sweeper=optuna: needs `pip install '.[search]'`" in err


# --- a study ------------------------------------------------------------------------------------

SPACE = {"lr": Range(1e-6, 10.0, log=True), "init": Choice(("a", "b", "c"))}


@pytest.fixture
def study(tmp_path):
    """`study(…)`: opens the same study again and again."""

    def make(settings=None, **options):
        given = {"sampler": "tpe", "metric": "test_accuracy", "seed": 0} | options
        return Study(tmp_path / "study.jsonl", SPACE, settings or {"model": "cnn"}, **given)

    return make


def score(trial):
    return float(trial.overrides[0].partition("=")[2])


def test_a_search_proposes_the_same_in_one_process_and_in_several(study, tmp_path):
    with study() as whole:
        for _ in range(14):  # TPE draws its first ten at random
            trial = whole.propose()
            whole.finish(trial, score(trial))
        expected = [trial.overrides for trial in map(whole.trial, range(14))]
        assert whole.best().value == max(score(whole.trial(n)) for n in range(14))
    (tmp_path / "study.jsonl").unlink()
    for number in range(14):
        with study() as piece:
            begun = piece.propose()
        with study() as piece:
            assert piece.unfinished() == [begun]
            piece.finish(begun, score(begun))
        assert (begun.number, begun.overrides) == (number, expected[number])
    assert len(set(expected)) == 14


def test_a_line_that_was_cut_off_is_written_again(study, tmp_path):
    with study() as first:
        first.finish(first.propose(), 1.0)
        trial = first.propose()
    path = tmp_path / "study.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with study() as second:
        assert (second.begun, second.unfinished()) == (1, [])
        assert second.propose() == trial


def test_an_invalid_value_is_the_worst(study):
    with study() as opened:
        opened.finish(opened.propose(), float("nan"))
        opened.prune(opened.propose())
        opened.finish(opened.propose(), 10.0)
        assert opened.best().value == 10.0
        assert opened.count() == {"finished": 2, "pruned": 1, "without a result": 0}


def test_a_study_has_one_process_and_one_search(study, tmp_path):
    with study() as opened:
        opened.finish(opened.propose(), 1.0)
        with pytest.raises(RunError, match="another process is searching there"):
            study()
    for options, named in (
        ({"settings": {"model": "tanh"}}, "model=cnn, and model=tanh is asked for"),
        ({"sampler": "random"}, "sampler=tpe, and sampler=random is asked for"),
    ):
        with pytest.raises(RunError, match=named):
            study(**options)
    with study(sampler="random", overwrite=True) as opened:
        assert opened.begun == 0
    (tmp_path / "study.jsonl").write_text("what is this\n")
    with pytest.raises(RunError, match=r"study\.jsonl: not a study .*; overwrite=true"):
        study()


# --- W&B's agents -------------------------------------------------------------------------------


def test_the_sweep_of_wandb_searches_the_same_space(compose):
    file = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    params = yaml.safe_load((CONF / "hydra" / "sweeper" / "optuna.yaml").read_text())["params"]
    found = {}
    for key, entry in file["parameters"].items():
        if "values" in entry:
            texts = quote_numbers([f"{key}={value}" for value in entry["values"]], CONF)
            found[key] = Choice(tuple(text.partition("=")[2] for text in texts))
        else:
            logarithmic = entry["distribution"] == "log_uniform_values"
            found[key] = Range(entry["min"], entry["max"], log=logarithmic)
    assert found == space(*(f"{key}={sweep}" for key, sweep in params.items()))

    chosen = {"optim.lr": 0.02, "init": "const100", "reg": "bn", "clip": "4.0"}
    arguments = {key: {"value": value} for key, value in chosen.items()}
    words = create_sweep_command_args({"args": arguments})
    typed = [word for part in file["command"] if part not in ("${env}", "python", "${program}")
             for word in words.get(part.strip("${}"), [part])]  # fmt: skip
    assert Path(REPOSITORY, file["program"]).exists()
    config = compose(*typed)
    assert (config.prune_on, config.wandb.mode) == ("doctor", "online")
    assert (config.optim.lr, config.clip.max_norm, config.reg.batch_norm) == (0.02, 4.0, True)
