"""Searches side by side: how good a run they find within the same number of training steps."""

import pandas as pd

from debugnn.analysis import statistics
from debugnn.analysis.tables import markdown

# Name of a search → Optuna's sampler, and what prunes.
ARMS = {
    "random": ("random", "null"),
    "random, pruned": ("random", "doctor"),
    "tpe": ("tpe", "null"),
    "tpe, pruned": ("tpe", "doctor"),
}
BASE = "random"
_SHARES = (0.25, 0.5, 1.0)  # shares of the budget after which searches are compared


def comparison(trials: pd.DataFrame) -> str:
    """Return the searches, one row each; means ± standard deviations over the seeds.

    Args:
        trials: the columns of scripts/compare_searches.py.
    """
    shown = [f"after {100 * share:.0f} % of the steps" for share in _SHARES]
    heads = ["search", "trials", "pruned", *shown, f"− {BASE}", "seconds"]
    rows = []
    for name in ARMS:
        own = trials[trials["search"] == name]
        by_seed = own.groupby("seed")
        pruned = (own["status"] == "pruned").groupby(own["seed"]).sum()
        best = [best_within(trials, name, share) for share in _SHARES]
        rows.append(
            [
                name,
                _spread(by_seed.size(), ".0f"),
                _spread(pruned, ".0f"),
                *(_spread(found, ".1f") for found in best),
                "" if name == BASE else _difference(best[-1], best_within(trials, BASE, 1.0)),
                _spread(by_seed["seconds"].sum(), ".0f"),
            ]
        )
    return markdown(heads, rows)


def provenance(trials: pd.DataFrame) -> str:
    """Return what the table rests on, and what became of pruned trials where nothing pruned."""
    seeds, budget = trials["seed"].nunique(), int(trials["budget"].iloc[0])
    whole = int(trials["steps"].max())
    keys = ["sampler", "seed", "trial", "settings"]
    both = trials.assign(sampler=trials["search"].map(lambda name: ARMS[name][0]))
    pruning = both["search"].map(lambda name: ARMS[name][1] != "null")
    pairs = both[pruning].merge(both[~pruning], on=keys, suffixes=("", "_whole"))
    pruned = pairs[pairs["status"] == "pruned"]
    others = pairs[pairs["status"] == "finished"]
    same = int((others["test_accuracy"] == others["test_accuracy_whole"]).sum())
    return (
        f"Best test accuracy (%) of {seeds} seeds, each search with {budget} training steps, which "
        f"{budget // whole} whole runs take; the difference to {BASE} search is paired by seed, "
        "with Student's 95 % interval; seconds are those of the processor. "
        f"{len(pruned)} of the pruned trials were also trained whole, by the search without "
        f"pruning: the best of them ended at {pruned['test_accuracy_whole'].max():.1f} %. "
        f"{same} of {len(others)} trials that were not pruned ended with the accuracy that they "
        "have without pruning."
    )


def best_within(trials: pd.DataFrame, search: str, share: float) -> pd.Series:
    """Return the best test accuracy, in %, that a search found within a share of its budget.

    Returns:
        A value a seed; 0 where no run ended within the share.
    """
    own = trials[trials["search"] == search].sort_values(["seed", "trial"])
    used = own.groupby("seed")["steps"].cumsum()
    within = own[(used <= share * own["budget"]) & (own["status"] == "finished")]
    best = within.groupby("seed")["test_accuracy"].max()
    return best.reindex(sorted(own["seed"].unique()), fill_value=0.0)


def _spread(values: pd.Series, form: str) -> str:
    return f"{values.mean():{form}} ± {values.std():{form}}"


def _difference(values: pd.Series, base: pd.Series) -> str:
    found = statistics.mean((values - base).tolist())
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
