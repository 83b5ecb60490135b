"""A training that was saved after any step goes on as if it had not stopped."""

from itertools import islice

import pytest
import torch

from debugnn.build import build
from debugnn.records import Epoch, Layers, Pause, Step
from debugnn.training import checkpoint
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import fit
from debugnn.training.restoring import restore

EPOCHS = 2


def rows(records):
    """The records by kind and step, without what a clock measured: a pause moves steps, which are
    read together, before the layers of a later one."""
    found = [record for record in records if isinstance(record, Step | Epoch | Layers)]
    found.sort(key=lambda record: (record.kind, record.step))
    return [
        {name: getattr(record, name) for name in record.__slots__ if name != "seconds"}
        for record in found
    ]


def paused_after(training, steps, path):
    """Train until `steps` steps are made, save there, and return what was recorded."""
    found = []
    for record in fit(training, EPOCHS, LayerProbe(3), pause=lambda: training.step == steps):
        if isinstance(record, Pause):
            assert record.step == steps
            checkpoint.write(path, checkpoint.state_of(training))
            return found
        found.append(record)
    raise AssertionError("no pause")


def assert_goes_on(make, steps, path):
    whole = make()
    expected = rows(fit(whole, EPOCHS, LayerProbe(3)))
    first = paused_after(make(), steps, path)
    torch.manual_seed(77)  # another process's random numbers
    resumed = make()
    restore(path, resumed, EPOCHS)
    assert rows([*first, *fit(resumed, EPOCHS, LayerProbe(3))]) == expected
    for one, other in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("steps", range(1, 7))
def test_after_every_step_of_an_epoch_and_of_the_next(small_training, tmp_path, steps):
    """With dropout and batch norm; an epoch has three steps, the last of fewer samples."""
    assert_goes_on(small_training, steps, tmp_path / "checkpoint.pt")


def test_the_losses_that_are_read_together_are_all_recorded(small_training, tmp_path):
    assert_goes_on(lambda: small_training(read_every=100), 2, tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    "setting",
    ["data.augment_shift=2", "data.labels=permuted", "data.imbalance=0.5",
     "clip=scaling", "data=regression model=regressor loss=mse"],
)  # fmt: skip
def test_with_batches_that_draw_random_numbers(compose, tmp_path, setting):
    net = [] if "regressor" in setting else ["model=relu_net", "model.blocks=[[4,6]]"]
    config = compose(*net, "reg=bn_dropout", "data.train_size=60", "data.batch_size=16",
                     *setting.split())  # fmt: skip
    assert_goes_on(lambda: build(config), 2, tmp_path / "checkpoint.pt")


def test_with_each_optimiser(compose, each_optim, tmp_path):
    config = compose("model=deep_mlp", "data.train_size=60", "data.batch_size=16",
                     f"optim={each_optim}")  # fmt: skip
    assert_goes_on(lambda: build(config), 6, tmp_path / "checkpoint.pt")


def test_an_epochs_seconds_are_those_of_all_its_pieces(small_training, tmp_path):
    path, training, resumed = tmp_path / "checkpoint.pt", small_training(), small_training()
    paused_after(training, 2, path)
    state = torch.load(path, weights_only=True)
    checkpoint.write(path, {**state, "tally": {**state["tally"], "seconds": 100.0}})
    restore(path, resumed, EPOCHS)
    (epoch,) = islice((r for r in fit(resumed, EPOCHS) if isinstance(r, Epoch)), 1)
    assert 100 < epoch.seconds < 160
