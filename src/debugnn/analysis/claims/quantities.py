"""What a claim measures of a run: one number from its tables.

A quantity of the epochs can be read from the article's recorded epochs too.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from debugnn.analysis.runs import Run
from debugnn.errors import ConfigError

LAYERS = ("conv1", "conv2", "fc1", "fc2")  # of the MNIST nets, from the input to the output


@dataclass(frozen=True)
class Quantity:
    """A number that is measured of a run.

    Attributes:
        name: what it is, with its unit.
        of_run: measures it. Raises ConfigError if the run did not record what it needs, or was
            too short for it.
        of_epochs: measures it of a table of epochs, if that is all it needs; None of a table that
            is too short.
    """

    name: str
    of_run: Callable[[Run], float]
    of_epochs: Callable[[pd.DataFrame], float | None] | None = None


def of_epochs(name: str, measure: Callable[[pd.DataFrame], float | None]) -> Quantity:
    """Return a quantity that needs nothing but the table of epochs."""

    def of_run(run: Run) -> float:
        table = run.epochs()
        value = measure(table)
        if value is None:
            raise ConfigError(f"{run.place}: {len(table)} epochs are too few for: {name}")
        return value

    return Quantity(name, of_run, measure)


# --- of the epochs ------------------------------------------------------------------------------


def accuracy_after(epochs: int, split: str = "test") -> Quantity:
    """The accuracy after a number of epochs, in %."""

    def measure(table: pd.DataFrame) -> float | None:
        column = table[f"{split}_accuracy"]
        return float(column.iloc[epochs - 1]) if len(column) >= epochs else None

    return of_epochs(f"{split} accuracy after epoch {epochs} (%)", measure)


def early_accuracy(epochs: int = 3) -> Quantity:
    """The mean test accuracy of the first epochs, in %: higher if a training is faster."""

    def measure(table: pd.DataFrame) -> float | None:
        first = table["test_accuracy"].head(epochs)
        return float(first.mean()) if len(first) == epochs else None

    return of_epochs(f"mean test accuracy of the first {epochs} epochs (%)", measure)


FINAL_ACCURACY = of_epochs(
    "test accuracy after the last epoch (%)", lambda table: float(table["test_accuracy"].iloc[-1])
)
FINAL_TEST_LOSS = of_epochs(
    "test loss after the last epoch", lambda table: float(table["test_loss"].iloc[-1])
)
TEST_LOSS_RISE = of_epochs(
    "test loss after the last epoch − its lowest",
    lambda table: float(table["test_loss"].iloc[-1] - table["test_loss"].min(skipna=False)),
)


def _last_to_first(table: pd.DataFrame) -> float:
    return float(table["last_batch_loss"].iloc[-1] / table["last_batch_loss"].iloc[0])


LOSS_LEFT = of_epochs("last batch's loss, last epoch / first epoch", _last_to_first)


def _nonfinite(table: pd.DataFrame) -> float:
    return float((~table["last_batch_loss"].map(math.isfinite)).sum())


NONFINITE_EPOCHS = of_epochs("epochs with a loss that is NaN or infinite", _nonfinite)


def _rises(table: pd.DataFrame) -> float:
    losses = table["last_batch_loss"].tolist()
    # `not <=` counts a NaN, which `>` would not.
    return float(sum(not after <= before for before, after in itertools.pairwise(losses)))


LOSS_RISES = of_epochs("epochs whose loss is above the previous one's, or NaN", _rises)


def fitted_loss(steps: int) -> Quantity:
    """The lowest loss, at or above 0, of a step with 99 % of its batch right; inf without one.

    For runs whose epoch is one step on one fixed batch. A loss below 0 has no meaning of "zero".
    """

    def measure(table: pd.DataFrame) -> float | None:
        first = table.head(steps)
        if len(first) < steps:
            return None
        losses = first["last_batch_loss"][(first["train_accuracy"] >= 99)]
        losses = losses[losses >= 0]
        return float(losses.min()) if len(losses) else math.inf

    return of_epochs(f"lowest loss of a fitted batch within {steps} steps", measure)


# --- of the first step --------------------------------------------------------------------------


def _initial_loss_error(run: Run) -> float:
    classes = run.facts["classes"]
    if not classes:
        raise ConfigError(f"{run.place}: the run's data set has no classes")
    uniform = math.log(classes)
    return float(abs(run.steps()["loss"].iloc[0] - uniform) / uniform)


INITIAL_LOSS_ERROR = Quantity(
    "relative distance of the first loss from −log(1/C)", _initial_loss_error
)


def _initial_norms(run: Run) -> pd.Series:
    """Return the gradient norm of each weight before the first update; the index is its layer."""
    table = run.layers("gradients")
    first = table[table["step"] == table["step"].min()]
    weights = first[first["layer"].str.endswith(".weight")]
    return weights.set_index(weights["layer"].str.removesuffix(".weight"))["norm"]


def _first_to_last(run: Run) -> float:
    norms = _initial_norms(run)
    return float(norms.iloc[0] / norms.iloc[-1])


GRADIENT_RATIO = Quantity("gradient norm, first layer / last layer, at step 0", _first_to_last)
GRADIENT_DECADES = Quantity(
    "decades between the gradient norms of the first and the last layer, at step 0",
    lambda run: abs(math.log10(_first_to_last(run))) if _first_to_last(run) > 0 else math.inf,
)
FIRST_GRADIENT = Quantity(
    "gradient norm of the first layer at step 0", lambda run: float(_initial_norms(run).iloc[0])
)


def _growth(run: Run) -> float:
    norms = _initial_norms(run)[list(LAYERS[:3])]
    return float(min(norms.iloc[0] / norms.iloc[1], norms.iloc[1] / norms.iloc[2]))


GRADIENT_GROWTH = Quantity(
    "smallest factor by which the gradient norm grows from a layer to the one before it, "
    "fc1 to conv2 to conv1, at step 0",
    _growth,
)


def _dead_units(run: Run) -> float:
    table = run.layers("activations").dropna(subset=["dead_units"])
    last = table[table["step"] == table["step"].max()]
    return float(100 * last["dead_units"].mean())


DEAD_UNITS = Quantity(
    "units that are 0 for a whole batch at the last record, mean over layers (%)", _dead_units
)


# --- of a range test ----------------------------------------------------------------------------


def _worst_test(run: Run, measure: Callable[[pd.DataFrame], float]) -> list[float]:
    return [measure(test) for _, test in run.lr_points().groupby("test")]


def _flatness(test: pd.DataFrame) -> float:
    start = test["loss"][test["lr"] < 1e-8].mean()
    low = test["loss"][(test["lr"] >= 1e-7) & (test["lr"] <= 1e-6)].mean()
    return float(abs(low / start - 1))


def _drop(test: pd.DataFrame) -> float:
    return float(1 - test["smoothed_loss"].min() / test["smoothed_loss"].iloc[0])


def _explosion(test: pd.DataFrame) -> float:
    after = test.iloc[test["smoothed_loss"].argmin() :]
    highest = after["loss"].max(skipna=False)
    return float(highest / after["smoothed_loss"].min()) if math.isfinite(highest) else math.inf


LOW_RATE_CHANGE = Quantity(
    "relative change of the loss from rates below 1e-8 to rates of 1e-7 to 1e-6, largest of a run",
    lambda run: max(_worst_test(run, _flatness)),
)
DROP = Quantity(
    "share of its first value by which the smoothed loss falls, smallest of a run",
    lambda run: min(_worst_test(run, _drop)),
)
EXPLOSION = Quantity(
    "highest loss after the minimum / the minimum, smallest of a run",
    lambda run: min(_worst_test(run, _explosion)),
)
