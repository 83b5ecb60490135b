"""From a composed configuration to the objects of a training."""

import inspect
import logging
from collections.abc import Callable
from functools import cache, partial

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from debugnn import data as data_sets
from debugnn.config import check
from debugnn.data import Data
from debugnn.errors import ConfigError, one_line
from debugnn.nn.inits import initialise, transfer
from debugnn.training import process
from debugnn.training.clipping import gradient_rule
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import Training, fit

log = logging.getLogger(__name__)


def build(config: DictConfig) -> Training:
    """Build data, model, initialisation, loss and optimiser, in this order, from the seed.

    Sets two things for the whole process: malloc keeps freed memory, and cuDNN leaves TF32 alone.

    Raises:
        ConfigError: a setting that cannot serve, or settings that do not fit each other.
    """
    check(config)
    process.keep_freed_memory()
    try:
        return _build(config)
    except ConfigError:
        raise
    except Exception as error:
        # Whatever a `_target_` raises on the arguments that it was given.
        raise ConfigError(
            f"the configuration cannot be built, {type(error).__name__}: {one_line(error)} "
            "(HYDRA_FULL_ERROR=1 shows where)"
        ) from error


def _build(config: DictConfig) -> Training:
    torch.manual_seed(config.seed)
    device = choose_device(config.trainer.device)
    if config.trainer.precision == "bf16" and device.type == "cpu" and not process.has_bf16():
        warn_of_slow_bf16()
    # fp32 is fp32: in TF32, PyTorch's choice for convolutions on a GPU, inputs have 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    data = build_data(config, config.data, device)
    model = build_model(config, data)
    if config.init.pretrain is not None:
        # Before the initialiser, whose random numbers then do not depend on the pre-training.
        source = pretrained(config, device, data.input_shape)
        torch.manual_seed(config.seed)
    filled = initialise(
        model,
        weight=leaf("init.weight", config.init.weight),
        bias=leaf("init.bias", config.init.bias),
        layers=config.init.layers,
    )
    if filled == 0 and (config.init.weight._target_ or config.init.bias._target_):
        log.warning("init: nothing to fill in the layers of init.layers=%s", config.init.layers)
    if config.init.pretrain is not None:
        transfer(model, source, config.init.pretrain.layers)
    training = assemble(config, model, data)
    try_one_batch(training, config)
    return training


@cache  # once a process, not for each run of a sweep
def warn_of_slow_bf16() -> None:
    log.warning(
        "trainer.precision=bf16: this processor has no bfloat16 instructions, and is faster in fp32"
    )


def build_data(config: DictConfig, section: DictConfig, device: torch.device) -> Data:
    """The data set of a `data` section."""
    reader = leaf("data.reader", section.reader)
    arrays = data_sets.decoded(reader, section.name, section.root, section.cache, section.download)
    return data_sets.assemble(
        arrays,
        name=section.name,
        seed=config.seed,
        device=device,
        **{key: section[key] for key in (
            "batch_size", "mean", "std", "as_shape", "train_size", "scale", "labels", "imbalance",
            "augment_shift", "test_targets",
        )},
    )  # fmt: skip


def build_model(config: DictConfig, data: Data) -> nn.Module:
    """The network of `config.model` for this data, its regularisers in place."""
    settings = dict(config.model)
    outputs = settings.pop("outputs", None)
    if outputs is not None and outputs != data.outputs:
        wanted = f"{data.classes} classes" if data.classes else "one value"
        raise ConfigError(
            f"model.outputs={outputs}: data={data.name} needs {wanted}; "
            + ("use data=regression" if data.classes else "use model=regressor")
        )
    make = leaf("model", OmegaConf.create(settings))
    try:
        model = make(
            input_shape=data.input_shape,
            outputs=data.outputs,
            batch_norm=config.reg.batch_norm,
            dropout=config.reg.dropout,
        )
    except TypeError as error:
        raise ConfigError(f"model: {one_line(error)}") from error
    return model


def assemble(config: DictConfig, model: nn.Module, data: Data) -> Training:
    """The training of a built model on built data."""
    channels_last = bool(config.trainer.channels_last) and len(data.input_shape) == 3
    if channels_last:
        # After the initialisation: some of torch.nn.init need contiguous weights.
        model = model.to(memory_format=torch.channels_last)
    # After it, too: one seed gives the same weights on every device.
    model = model.to(data.train.inputs.device)
    optimizer = leaf("optim", config.optim)
    if isinstance(optimizer.func, type) and not optimizer.keywords.get("differentiable"):
        process.leave_dynamo_out(optimizer.func)
    try:
        optimizer = fused(optimizer)(params=model.parameters())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim: {one_line(error)}") from error
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ConfigError(f"optim={config.optim._target_}: optimisers with a closure do not serve")
    loss = leaf("loss", config.loss)
    if isinstance(loss.func, type):  # torch.nn's losses are classes, torch.nn.functional's are not
        loss = loss()
    return Training(
        model=model,
        loss=loss,
        optimizer=optimizer,
        data=data,
        batch_size=config.data.batch_size,
        seed=config.seed,
        steps_per_epoch=config.trainer.steps_per_epoch,
        eval_every=config.trainer.eval_every,
        eval_batch_size=config.trainer.eval_batch_size,
        read_every=config.trainer.read_every,
        gradient_rule=gradient_rule(config.clip.max_norm, config.clip.rescale),
        bf16=config.trainer.precision == "bf16",
        channels_last=channels_last,
        test_loss_scale=config.data.test_loss_scale,
    )


def fused(optimizer: partial) -> partial:
    """The optimiser with its update in one pass over the parameters, where it has such a one.

    A third of the time of the plain update, and equal to it but for the rounding. Settings that
    choose another implementation are left to it.
    """
    plain = set(optimizer.keywords) & {"fused", "foreach", "differentiable"}
    if plain or optimizer.func not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return optimizer
    return partial(optimizer, fused=True)


def pretrained(config: DictConfig, device: torch.device, input_shape: tuple[int, ...]) -> nn.Module:
    """The same network trained on `init.pretrain.data`, from PyTorch's default initialisation."""
    section = config.init.pretrain
    shared = {key: config.data[key] for key in ("root", "cache", "download")}
    if section.data.as_shape is None:
        shared["as_shape"] = config.data.as_shape
    data = build_data(config, OmegaConf.merge(section.data, shared), device)
    if data.input_shape != input_shape:  # said before minutes of training
        raise ConfigError(
            f"init.pretrain.data={data.name}: its inputs are {data.input_shape}, those of "
            f"data={config.data.name} are {input_shape}; data.as_shape={list(data.input_shape)} "
            "brings them together"
        )
    training = assemble(config, build_model(config, data), data)
    training.steps_per_epoch = section.steps_per_epoch
    *_, last = fit(training, section.epochs, LayerProbe(every=None))
    log.info("  pre-trained on %s: test accuracy %.1f %%", data.name, last.test_accuracy)
    return training.model


def leaf(name: str, section: DictConfig) -> Callable | None:
    """The function or class that a `_target_` names, with its arguments bound; None for none.

    Raises:
        ConfigError: a `_target_` that cannot be imported, or arguments that it does not take.
    """
    if section.get("_target_") is None:
        return None
    try:
        bound = instantiate({**OmegaConf.to_container(section, resolve=True), "_partial_": True})
    except HydraException as error:
        text = one_line(error).partition(", set env var")[0]
        raise ConfigError(f"{name}: {text}") from error
    # Hydra's own partial checks its policy at every call; a loss is called every step.
    return partial(bound.func, *bound.args, **bound.keywords)


@torch.no_grad()
def try_one_batch(training: Training, config: DictConfig) -> None:
    """Ask model, data and loss for one loss before anything is written.

    In evaluation mode and without gradients: no random number is drawn, no buffer changes.
    """
    training.model.eval()
    inputs, targets = next(training.data.test_batches(2))
    try:
        loss = training.loss(training.outputs(inputs), targets)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"model={config.model._target_}, loss={config.loss._target_} and "
            f"data={config.data.name} do not fit: {one_line(error)}"
        ) from error
    finally:
        training.model.train()
    if loss.dim() != 0:
        raise ConfigError(f"loss={config.loss._target_}: it returns {tuple(loss.shape)}, no scalar")


def choose_device(name: str) -> torch.device:
    """The device of `trainer.device`; `auto` takes a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: torch sees no GPU here; allowed are auto and cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
