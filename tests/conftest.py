"""What the tests share: composed configurations, the real data, and a training small enough to run.

A test that takes an argument `each_<group>` runs once for every option of `conf/<group>`, so that
a new file there is tested without a new test.
"""

import copy
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hypothesis import settings
from omegaconf import DictConfig
from torch import nn

from debugnn import config
from debugnn.data import Arrays, Data, assemble
from debugnn.nn.losses import cross_entropy
from debugnn.nn.networks import network
from debugnn.overrides import quote_numbers
from debugnn.training.loop import Training

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"

# The same examples at every run: a failure can be seen again.
settings.register_profile("debugnn", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("debugnn")

# The tests run side by side, and their tensors are small.
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave Lightning's and Transformers' tests out before they are imported: all are slow, and the
    libraries take seconds to load in every worker."""
    slow = collection_path.name == "integrations"
    return True if slow and config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in metafunc.fixturenames:
        if name.startswith("each_"):
            folder = CONF / name.removeprefix("each_")
            metafunc.parametrize(name, sorted(path.stem for path in folder.glob("*.yaml")))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's cache of decoded arrays, one for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    return base / "prepared"


@pytest.fixture(scope="session")
def compose(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """`compose("model=cnn", "clip=4.0", …)`: what train.py would run, on the CPU, without W&B."""
    config.register()

    @cache  # a composition takes 0.1 s
    def load(*overrides: str) -> DictConfig:
        # However fast this machine is, the same checkpoints are written.
        given = ["wandb=disabled", "trainer.device=cpu", "trainer.checkpoint_seconds=0", *overrides]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return hydra.compose("config", quote_numbers(given, CONF))

    def composed(*overrides: str) -> DictConfig:
        result = copy.deepcopy(load(*overrides))
        result.output_dir = str(tmp_path_factory.mktemp("outputs"))
        result.data.cache = str(prepared)
        if result.init.pretrain is not None:
            result.init.pretrain.data.cache = str(prepared)
        return result

    return composed


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds MNIST and CIFAR-10 as torchvision lays them out."""
    root = Path(os.environ.get("DEBUGNN_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (root / "MNIST" / "raw").is_dir() or not (root / "cifar-10-batches-py").is_dir():
        pytest.skip("MNIST and CIFAR-10 are not here: DEBUGNN_DATA names the folder that has both")
    return root


@pytest.fixture(scope="session")
def image_arrays() -> Callable[..., Arrays]:
    """`image_arrays((C, H, W))`: random images, the classes in turn."""

    def make(
        shape: tuple[int, int, int] = (1, 12, 12),
        train: int = 44,
        test: int = 23,
        classes: int = 10,
        seed: int = 0,
    ) -> Arrays:
        random = np.random.default_rng(seed)
        return Arrays(
            random.integers(0, 256, (train, *shape), dtype=np.uint8),
            np.arange(train) % classes,
            random.integers(0, 256, (test, *shape), dtype=np.uint8),
            np.arange(test) % classes,
        )

    return make


@pytest.fixture(scope="session")
def image_data(image_arrays) -> Callable[..., Data]:
    """`image_data((C, H, W), batch_size=…, …)`: random images with the decisions of `assemble`."""

    def make(shape: tuple[int, int, int] = (1, 12, 12), **decisions: object) -> Data:
        return assemble(
            image_arrays(shape), **{"name": "random", "seed": 0, "batch_size": 8, **decisions}
        )

    return make


@pytest.fixture(scope="session")
def small_training(image_data) -> Callable[..., Training]:
    """`small_training(seed=…, …)`: a convolutional net with batch norm and dropout, and Adam."""

    def make(
        seed: int = 0,
        batch_norm: bool = True,
        dropout: float = 0.3,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        lr: float = 1e-2,
        **others: object,
    ) -> Training:
        data = image_data()
        torch.manual_seed(seed)
        model = network(
            data.input_shape, data.outputs, activation=nn.ReLU, blocks=[[4, 6]], hidden=[12],
            batch_norm=batch_norm, dropout=dropout,
        )  # fmt: skip
        return Training(
            **{
                "model": model,
                "loss": cross_entropy,
                "optimizer": optimizer(model.parameters(), lr=lr),
                "data": data,
                "batch_size": 16,
                "seed": seed,
                **others,
            }
        )

    return make
