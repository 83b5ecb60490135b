"""Layers that are taken over from a network that was trained on other data (`init.pretrain`)."""

import logging
from collections.abc import Iterable

import torch
from omegaconf import DictConfig
from torch import nn

from debugnn.errors import ConfigError, one_line
from debugnn.records import Epoch
from debugnn.training.loop import Training, fit

log = logging.getLogger(__name__)


def source_section(config: DictConfig) -> DictConfig:
    """Return `init.pretrain.data` with the folders and the image shape of the run's own data."""
    section = config.init.pretrain.data.copy()
    for key in ("root", "cache", "download"):
        section[key] = config.data[key]
    if section.as_shape is None:
        section.as_shape = config.data.as_shape
    return section


def pretrain(training: Training, config: DictConfig, input_shape: tuple[int, ...]) -> None:
    """Train on the source data, from PyTorch's default initialisation.

    Args:
        training: of the same network, on the data of `source_section`.
        input_shape: of the run's own data, which the source data has to have too.

    Raises:
        ConfigError: the source data has another shape.
    """
    found = training.data
    if found.input_shape != input_shape:  # checked before minutes of training
        raise ConfigError(
            f"init.pretrain.data={found.name}: its inputs are {found.input_shape}, those of "
            f"data={config.data.name} are {input_shape}; data.as_shape={list(found.input_shape)} "
            "brings them together"
        )
    training.steps_per_epoch = config.init.pretrain.steps_per_epoch
    for record in fit(training, config.init.pretrain.epochs):
        if isinstance(record, Epoch):
            accuracy = record.test_accuracy
    log.info("  pre-trained on %s: test accuracy %.1f %%", found.name, accuracy)


@torch.no_grad()
def transfer(model: nn.Module, source: nn.Module, layers: Iterable[str]) -> None:
    """Copy the parameters of the named layers from a network of the same architecture, in place.

    Args:
        model: the network to copy to.
        source: the network to copy from.
        layers: names of child modules that have parameters.

    Raises:
        ConfigError: a network has no such layer, or the layer's shapes differ.
    """
    for name in layers:
        targets = dict(model.named_children())
        if name not in targets or not list(targets[name].parameters()):
            known = [n for n, m in targets.items() if list(m.parameters())]
            raise ConfigError(f"init.pretrain.layers={name}: no such layer; there are {known}")
        try:
            targets[name].load_state_dict(source.get_submodule(name).state_dict())
        except (RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"init.pretrain.layers={name}: the two networks differ there: " + one_line(error)
            ) from None
