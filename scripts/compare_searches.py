"""Compare searches at an equal number of training steps: random and TPE, with and without pruning.

scripts/compare_searches.py               trains (about 15 minutes on one core), writes the table
scripts/compare_searches.py --table       the table from the trials that are kept

A search goes on as long as a whole run fits into what is left of its steps. What pruning saves buys
further trials. Each call starts anew.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import hydra
import pandas as pd
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from debugnn import config, json_lines, records
from debugnn.analysis import tables
from debugnn.analysis.searches import ARMS, comparison, provenance

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
KEPT = ROOT / "outputs" / "reference" / "search" / "trials.csv"
PAGE = ROOT / "outputs" / "reference" / "README.md"

# The MNIST net made narrow: a run takes about a second.
NETWORK = ("model=relu_net", "model.blocks=[[4,8]]", "model.hidden=[32]", "trainer.epochs=8",
           "trainer.device=cpu", "wandb=disabled", "doctor.budget=0")  # fmt: skip
RUNS = 20  # whole ones that the budget of a search is worth


@dataclass(frozen=True)
class Row:
    """A trial of a search."""

    search: str
    seed: int
    budget: int  # training steps of the whole search
    trial: int
    settings: str
    status: str
    steps: int
    seconds: float  # of the processor
    test_accuracy: float  # of the last epoch, in %


def search(arm: str, seed: int, output: Path) -> Iterator[Row]:
    """Search until no whole run fits into the budget, and yield the trials."""
    from debugnn.runs.execute import execute
    from debugnn.runs.naming import arm_of, directory_of
    from debugnn.search import Study, note_result
    from hydra_plugins.debugnn_search import space_of

    params = yaml.safe_load((CONF / "hydra" / "sweeper" / "optuna.yaml").read_text())["params"]
    sampler, pruned_by = ARMS[arm]
    folder = output / arm.replace(", ", "_")
    fixed = [*NETWORK, f"seed={seed}", f"output_dir={folder}", f"prune_on={pruned_by}",
             "overwrite=true"]  # fmt: skip
    fixed += [] if pruned_by == "doctor" else ["doctor=off"]
    parser = OverridesParser.create()
    space = space_of(parser.parse_overrides([f"{key}={value}" for key, value in params.items()]))
    path = folder / f"seed={seed}.jsonl"
    used, whole = 0, None
    with Study(
        path, space, {}, sampler=sampler, metric="test_accuracy", seed=seed, overwrite=True
    ) as study:
        while whole is None or used + whole <= RUNS * whole:
            trial = study.propose()
            overrides = [*fixed, *trial.overrides]
            settings = hydra.compose("config", overrides)
            began = time.process_time()
            execute(settings, overrides, None)
            seconds = time.process_time() - began
            directory = directory_of(settings, "adhoc", arm_of(overrides))
            note_result(study, trial, directory)
            facts = records.load((directory / "run.json").read_text(encoding="utf-8"))
            epochs = list(json_lines.read(directory / "metrics.jsonl", "epoch"))
            steps = epochs[-1]["step"] + 1
            whole = steps // len(epochs) * settings.trainer.epochs
            used += steps
            accuracy = round(epochs[-1]["test_accuracy"], 2)
            yield Row(arm, seed, RUNS * whole, trial.number, " ".join(trial.overrides),
                      facts["status"], steps, round(seconds, 2), accuracy)  # fmt: skip


def measure(seeds: Sequence[int], output: Path) -> pd.DataFrame:
    """Run all searches, and return their trials."""
    import torch

    torch.set_num_threads(1)
    config.register()
    rows: list[Row] = []
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for seed in seeds:
            for arm in ARMS:
                found = list(search(arm, seed, output))
                best, steps = max(r.test_accuracy for r in found), sum(r.steps for r in found)
                print(f"{arm} seed={seed}: {len(found)} trials, {steps} steps, {best}", flush=True)
                rows += found
    return pd.DataFrame([astuple(row) for row in rows], columns=[f.name for f in fields(Row)])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="trains nothing")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "searches")
    options = parser.parse_args()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not options.table:
        trials = measure([int(seed) for seed in options.seeds.split(",")], options.output)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        trials.to_csv(KEPT, index=False)
    trials = pd.read_csv(KEPT)
    tables.fill(PAGE, "search", f"{comparison(trials)}\n\n{provenance(trials)}")


if __name__ == "__main__":
    main()
