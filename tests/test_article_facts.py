"""What the article's notebooks recorded happens in the networks built here."""

import math

import pytest
import torch
from omegaconf import DictConfig

from debugnn.build import build
from debugnn.records import Epoch, Layers, Step
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import Training, evaluate, fit

pytestmark = pytest.mark.slow


@pytest.fixture(params=["digits", "mnist"])
def on(request, compose):
    """Compose for the embedded digits, and for MNIST if its files are present."""

    def composed(*overrides: str) -> DictConfig:
        config = compose(f"data={request.param}", "data.download=false", *overrides)
        if request.param == "mnist":
            config.data.root = str(request.getfixturevalue("real_data"))
        return config

    return composed


class ProbeAt(LayerProbe):
    """A probe that records the given steps only."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__(every=1)
        self.steps = steps

    def due(self, step: int) -> bool:
        return step in self.steps


def gradient_norms(training: Training, *steps: int) -> list[dict[str, float]]:
    """Return each layer's weight-gradient norm at the given steps."""
    seen = []
    for record in fit(training, 1000, ProbeAt(steps)):
        if isinstance(record, Layers):
            norms = {name: stats.norm for name, stats in record.gradients.items()}
            seen.append({n.removesuffix(".weight"): norms[n] for n in norms if "weight" in n})
        if len(seen) == len(steps):
            return seen
    raise AssertionError(f"no statistics of steps {steps}")


def test_a_sigmoid_nets_gradient_vanishes_toward_the_input_and_goes_on_to(on):
    training = build(
        on("model=sigmoid_net", "data.batch_size=16")
    )  # saves three quarters of the time
    first, later = gradient_norms(training, 0, 20)
    ratio = first["conv1"] / first["fc2"]
    assert ratio < 1e-2
    assert later["conv1"] / later["fc2"] < ratio / 10
    assert first["conv1"] < first["conv2"] < min(first["fc1"], first["fc2"])


def test_a_relu_nets_gradient_reaches_the_input(on):
    (first,) = gradient_norms(build(on("model=relu_net")), 0)
    assert first["conv1"] / first["fc2"] > 0.05


def test_weights_of_100_explode_the_gradient_toward_the_input(on):
    training = build(on("model=relu_net", "model.bias=true", "init=const100"))
    (first,) = gradient_norms(training, 0)
    assert first["conv1"] > first["conv2"] > first["fc1"] > 1e3


@pytest.mark.parametrize("model", ["sigmoid_net", "relu_net"])
def test_at_default_initialisation_the_loss_is_the_logarithm_of_the_classes(on, model):
    step = next(fit(build(on(f"model={model}")), 1))
    assert isinstance(step, Step)
    assert step.loss == pytest.approx(math.log(10), rel=0.15)


def test_every_classifier_starts_near_the_logarithm_of_the_classes(compose, each_model):
    config = compose(f"model={each_model}", "data=digits")
    if config.model.outputs == 1:
        pytest.skip("a regression has no classes")
    step = next(fit(build(config), 1))
    assert step.loss == pytest.approx(math.log(10), rel=0.15)


# --- the NaN notebook ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nan_notebook(compose):
    """Train an arm of the experiment, and return its steps and epochs."""

    def train(epochs: int, *overrides: str) -> tuple[list[Step], list[Epoch]]:
        records = list(fit(build(compose("experiment=nan_loss", *overrides)), epochs))
        steps = [record for record in records if isinstance(record, Step)]
        return steps, [record for record in records if isinstance(record, Epoch)]

    return train


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_unclipped_regression_is_nan_within_its_first_epoch(nan_notebook, seed):
    steps, (epoch,) = nan_notebook(1, "clip=off", f"seed={seed}")
    assert len(steps) == 16
    assert math.isfinite(steps[0].loss)
    assert math.isnan(steps[-1].loss)
    assert math.isnan(epoch.train_loss)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_clipped_regression_falls_to_a_thousandth(nan_notebook, seed):
    steps, epochs = nan_notebook(100, "clip=4.0", f"seed={seed}", "trainer.eval_every=100")
    assert all(math.isfinite(step.loss) for step in steps)
    losses = [epoch.train_loss for epoch in epochs]
    assert losses[10] < losses[0] / 2
    assert losses[-1] < losses[0] / 1000


def test_the_notebooks_test_set_has_the_training_targets_and_its_own_divisor(compose):
    faulty = build(compose("experiment=nan_loss", "data=regression_notebook"))
    mended = build(compose("experiment=nan_loss", "data=regression"))
    for kept in ("inputs", "targets"):
        assert torch.equal(getattr(faulty.data.train, kept), getattr(mended.data.train, kept))
    assert torch.equal(faulty.data.test.inputs, mended.data.test.inputs)
    assert torch.equal(faulty.data.test.targets, faulty.data.train.targets)
    assert not torch.equal(mended.data.test.targets, mended.data.train.targets)
    assert mended.test_loss_scale == 1
    assert faulty.test_loss_scale == pytest.approx(16 / 500, rel=1e-12)

    # A sum of 16 batch means over 500 samples; the last batch holds 20 samples, not 32.
    model, means = faulty.model.eval(), []
    for inputs, targets in faulty.data.test_batches(32):
        means.append((model(inputs) - targets).square().mean().item())
    assert len(means) == 16
    assert evaluate(faulty)[0] == pytest.approx(sum(means) / 500, rel=0.02)


def test_the_notebooks_test_loss_measures_nothing(nan_notebook):
    # It ends about where it began, near the recorded 1,390, while the training loss falls.
    last = {}
    for data in ("regression_notebook", "regression"):
        _, epochs = nan_notebook(100, "clip=4.0", f"data={data}", "trainer.eval_every=100")
        last[data] = epochs[-1].test_loss
    assert 1_000 < last["regression_notebook"] < 2_000
    assert last["regression"] < 100
