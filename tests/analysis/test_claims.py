"""Claims are judged by their criteria, on the arms that the experiments have."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir

import reproduce
from conftest import CONF
from debugnn import config
from debugnn.analysis.archive import InMemory
from debugnn.analysis.claims import CLAIMS
from debugnn.analysis.claims.claim import (
    Arm,
    Claim,
    Difference,
    Outcome,
    Share,
    Spread,
    combine,
)
from debugnn.analysis.claims.quantities import FINAL_ACCURACY, NONFINITE_EPOCHS, accuracy_after
from debugnn.analysis.runs import Run
from debugnn.runs.naming import arm_of

HOLDS, FAILS, DEPENDS, UNDECIDED = Outcome


def trained(arm, seed, accuracies, data="mnist", experiment="trial", losses=None):
    """A run of which nothing is known but its epochs."""
    epochs = pd.DataFrame(
        {
            "epoch": range(len(accuracies)),
            "test_accuracy": np.asarray(accuracies, float),
            "last_batch_loss": 1.0 if losses is None else losses,
        }
    )
    settings = {
        "task": {"name": "train"},
        "report": {"data": {"embedded": ["trainer.epochs=3"], "article": ["data=mnist"]}},
    }
    told = dict(item.split("=") for item in f"data={data},{arm}".split(","))
    return Run(f"{arm}/{seed}", experiment, told, seed, data, None, settings, {},
               InMemory({"epoch": epochs}, {}, None))  # fmt: skip


def of_arm(arm, finals, **more):
    return [trained(arm, seed, [10.0, final], **more) for seed, final in enumerate(finals)]


def judged(part, runs, seeds=5, **how):
    (result,) = Claim("0", "", "trial", seeds, (part,)).judge(runs, **how).results
    return result


LEARNS = Share("", Arm("reg=bn"), FINAL_ACCURACY, above=50.0)


@pytest.mark.parametrize(
    ("learnt", "n", "outcome"),
    [(5, 5, HOLDS), (0, 5, FAILS), (4, 5, UNDECIDED), (4, 4, UNDECIDED),
     (20, 20, HOLDS), (15, 20, HOLDS), (14, 20, DEPENDS), (10, 20, DEPENDS), (6, 20, DEPENDS),
     (5, 20, FAILS), (0, 20, FAILS)],
)  # fmt: skip
def test_a_share_is_supported_where_its_interval_leaves_one_half(learnt, n, outcome):
    result = judged(LEARNS, of_arm("reg=bn", [90.0] * learnt + [20.0] * (n - learnt)))
    assert result.outcome is outcome
    assert result.estimate.value == learnt / n
    assert bool(result.why) is (n < 5)


def test_nan_is_neither_above_nor_below():
    runs = of_arm("reg=bn", [math.nan] * 5)
    assert judged(LEARNS, runs).outcome is FAILS
    assert judged(Share("", Arm("reg=bn"), FINAL_ACCURACY, below=50.0), runs).outcome is FAILS


BETTER = Difference("", Arm("reg=bn"), Arm("reg=none"), FINAL_ACCURACY, margin=1.0)
NO_WORSE = Difference("", Arm("reg=bn"), Arm("reg=none"), FINAL_ACCURACY, margin=1.0, no_worse=True)
NOISE = np.array([0.1, -0.2, 0.0, 0.2, -0.1])


@pytest.mark.parametrize(
    ("part", "difference", "outcome"),
    [(BETTER, 3.0, HOLDS), (BETTER, 0.0, FAILS), (BETTER, -3.0, FAILS),
     (BETTER, 0.5, FAILS),  # a difference, and too small to matter
     (NO_WORSE, 3.0, HOLDS), (NO_WORSE, 0.0, HOLDS), (NO_WORSE, -0.5, HOLDS),
     (NO_WORSE, -3.0, FAILS)],
)  # fmt: skip
def test_a_difference_is_judged_against_its_margin(part, difference, outcome):
    runs = of_arm("reg=none", [70.0] * 5) + of_arm("reg=bn", 70.0 + difference + NOISE)
    result = judged(part, runs)
    assert result.outcome is outcome
    assert result.estimate.value == pytest.approx(difference)


@pytest.mark.parametrize("part", [BETTER, NO_WORSE])
def test_a_difference_that_the_seeds_do_not_show_is_undecided(part):
    runs = of_arm("reg=none", [70.0] * 5) + of_arm("reg=bn", [60.0, 85.0, 72.0, 74.0, 63.0])
    assert judged(part, runs).outcome is UNDECIDED


def test_differences_are_taken_within_a_seed():
    """Seeds differ by 20 points and the arms by 2: only pairs can show it."""
    levels = np.array([50.0, 55.0, 60.0, 65.0, 70.0])
    runs = of_arm("reg=none", levels) + of_arm("reg=bn", levels + 2 + NOISE)[::-1]
    assert judged(BETTER, runs).outcome is HOLDS
    # A seed that one arm lacks is left out.
    assert judged(BETTER, runs[:-1]).why == "4 of 5 seeds"


def test_p_values_are_adjusted_for_the_number_of_parts():
    values = np.array([0.4, 2.9, 1.2, 1.8, 0.6])
    runs = of_arm("reg=none", [70.0] * 5) + of_arm("reg=bn", 70.0 + values)
    alone = Claim("0", "", "trial", 5, (BETTER,)).judge(runs)
    among = Claim("0", "", "trial", 5, (BETTER,) * 3).judge(runs)
    assert alone.outcome is HOLDS
    assert among.results[0].p == pytest.approx(3 * alone.results[0].p)
    assert among.outcome is UNDECIDED


def test_a_ratio_is_a_difference_of_decades():
    part = Difference("", Arm("reg=bn"), Arm("reg=none"), FINAL_ACCURACY, margin=2.0, ratio=True)
    runs = of_arm("reg=none", [1.0, 2.0, 4.0, 8.0, 9.0])
    runs += of_arm("reg=bn", [11.0, 20.0, 40.0, 80.0, 90.0])
    result = judged(part, runs)
    assert result.outcome is HOLDS
    assert result.estimate.value == pytest.approx(1.0, abs=0.01)
    assert judged(part, runs[:5] + of_arm("reg=bn", [0.0] * 5)).why.startswith(
        "a value that is not"
    )


def test_a_spread_is_the_distance_of_the_best_arm_from_the_worst():
    arms = [("init=a", [50.0, 60.0]), ("init=b", [55.0, 40.0]), ("init=c", [52.0, 58.0])]
    runs = [run for arm, finals in arms for run in of_arm(arm, finals)]
    spread = Spread(tuple(Arm(arm) for arm, _ in arms))
    assert spread.measure(runs, False, FINAL_ACCURACY).values == {0: 5.0, 1: 20.0}
    missing = Spread((Arm("init=a"), Arm("init=d")))
    assert missing.measure(runs, False, FINAL_ACCURACY).why == "no run of init=d"


def test_a_claim_about_an_epoch_stands_beside_the_articles_run_of_that_length():
    """Its two runs of the sigmoid net are one program: 10 epochs ended at 9.7 %, 40 at 95.0 %."""
    runs = [replace(trained("model=sigmoid_net", 0, [10.0] * 40), article_run="VG_Converge")]
    found = {n: Arm("model=sigmoid_net").measure(runs, False, accuracy_after(n)) for n in (10, 40)}
    assert found[10].article == pytest.approx(9.74)
    assert found[40].article == pytest.approx(94.95)


def test_a_run_with_a_further_setting_is_of_another_arm():
    runs = of_arm("reg=bn", [90.0] * 5) + of_arm("reg=bn,optim.lr=1.0", [10.0] * 5)
    assert judged(LEARNS, runs).outcome is HOLDS


def test_embedded_runs_are_judged_apart():
    real = of_arm("reg=bn", [90.0] * 5)
    toy = [trained("reg=bn,trainer.epochs=3", seed, [10.0], "digits") for seed in range(5)]
    assert judged(LEARNS, real + toy).outcome is HOLDS
    assert judged(LEARNS, real + toy, embedded=True).outcome is FAILS
    assert judged(LEARNS, toy).why == "no run of reg=bn"


def test_a_run_that_is_too_short_or_lacks_a_table_decides_nothing():
    runs = of_arm("reg=bn", [90.0] * 5)
    late = Share("", Arm("reg=bn"), accuracy_after(10), above=50.0)
    assert judged(late, runs).outcome is UNDECIDED
    assert judged(late, runs).why.startswith("reg=bn/0: 2 epochs are too few for: ")
    empty = Run("there", "trial", {"data": "mnist", "reg": "bn"}, 0, "mnist", None,
                runs[0].config, {}, InMemory({}, {}, None))  # fmt: skip
    assert judged(LEARNS, [empty]).why == "there: no rows of kind epoch"


def test_a_lost_loss_is_counted():
    runs = [trained("clip=off", seed, [0.0, 0.0], losses=[1.0, math.nan]) for seed in range(5)]
    part = Share("", Arm("clip=off"), NONFINITE_EPOCHS, above=0.5)
    assert judged(part, runs).outcome is HOLDS


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [([HOLDS, HOLDS], HOLDS), ([FAILS, FAILS], FAILS), ([HOLDS, FAILS], DEPENDS),
     ([HOLDS, FAILS, UNDECIDED], DEPENDS), ([HOLDS, DEPENDS], DEPENDS),
     ([HOLDS, UNDECIDED], UNDECIDED), ([UNDECIDED], UNDECIDED)],
)  # fmt: skip
def test_parts_make_a_claims_outcome(parts, outcome):
    assert combine(parts) is outcome


# --- the article's claims -------------------------------------------------------------------------


def test_every_claim_of_the_article_is_there_in_its_order():
    numbers = [int("".join(filter(str.isdigit, claim.name))) for claim in CLAIMS]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 15))
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


@pytest.fixture(scope="module")
def arms():
    """Experiment and kind of data → the arms that its sweep has."""
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = {claim.experiment for claim in CLAIMS}
        return {
            (name, data): [arm_of(arm) for arm in reproduce.arms(name, data)]
            for name in names
            for data in ("article", "embedded")
        } | {(name, "report"): compose("config", [f"experiment={name}"]).report for name in names}


def looked_at(claim):
    for part in claim.parts:
        for side in (part.arm, part.than) if isinstance(part, Difference) else (part.arm,):
            yield from side.arms if isinstance(side, Spread) else (side,)


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
@pytest.mark.parametrize("data", ["article", "embedded"])
def test_a_claims_arms_are_those_of_its_experiment(claim, data, arms):
    report = {
        "data": {key: list(value) for key, value in arms[claim.experiment, "report"].data.items()}
    }
    runs = [
        Run("", claim.experiment, arm, 0, "", None, {"report": report}, {}, InMemory({}, {}, None))
        for arm in arms[claim.experiment, data]
    ]
    for arm in looked_at(claim):
        found = arm.measure(runs, data == "embedded", accuracy_after(1)).why
        assert found == ": no rows of kind epoch", f"{arm}: {found}"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_says_what_it_says_and_by_what(claim):
    assert claim.statement.endswith(".")
    for part in claim.parts:
        assert part.criterion().startswith(f"{part.label}: ")
        if isinstance(part, Share):
            assert (part.above is None) is not (part.below is None)
    experiment = yaml.safe_load((CONF / "experiment" / f"{claim.experiment}.yaml").read_text())
    assert int("".join(filter(str.isdigit, claim.name))) in experiment["report"]["claims"]
