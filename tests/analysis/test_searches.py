"""Searches side by side, on trials written by hand."""

import pandas as pd
import pytest

from debugnn.analysis.searches import best_within, comparison, provenance

COLUMNS = ["search", "seed", "budget", "trial", "settings", "status", "steps", "seconds",
           "test_accuracy"]  # fmt: skip


@pytest.fixture
def trials():
    """Two runs' worth of steps: a dead run takes them all, or a quarter of its own."""
    rows = []
    for seed in (0, 1):
        rows += [
            ["random", seed, 200, 0, "lr=9", "finished", 100, 1.0, 10.0],
            ["random", seed, 200, 1, "lr=1", "finished", 100, 1.0, 80.0 + seed],
            ["random, pruned", seed, 200, 0, "lr=9", "pruned", 25, 0.5, 10.0],
            ["random, pruned", seed, 200, 1, "lr=1", "finished", 100, 1.0, 80.0 + seed],
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_what_counts_is_found_within_the_steps(trials):
    assert best_within(trials, "random", 0.5).tolist() == [10.0, 10.0]
    assert best_within(trials, "random", 1.0).tolist() == [80.0, 81.0]
    assert best_within(trials, "random, pruned", 0.5).tolist() == [0.0, 0.0]
    assert best_within(trials, "random, pruned", 0.7).tolist() == [80.0, 81.0]


def test_what_became_of_pruned_trials_is_told(trials):
    told = provenance(trials)
    assert "2 of the pruned trials were also trained whole" in told
    assert "the best of them ended at 10.0 %" in told
    assert "2 of 2 trials that were not pruned" in told
    table = comparison(trials).splitlines()
    assert table[2].startswith(
        "| random | 2 ± 0 | 0 ± 0 | 0.0 ± 0.0 | 10.0 ± 0.0 | 80.5 ± 0.7 |  |"
    )
    assert table[3].startswith("| random, pruned | 2 ± 0 | 1 ± 0 |")
    assert "+0.0 (+0.0 to +0.0)" in table[3]
