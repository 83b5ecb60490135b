"""From a composed configuration to the objects of a training."""

import inspect
import logging
from functools import partial

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from debugnn import data as data_sets
from debugnn.config import check
from debugnn.data import Data
from debugnn.errors import ConfigError, one_line
from debugnn.nn.inits import initialise
from debugnn.training import process
from debugnn.training.gradients import gradient_rule
from debugnn.training.loop import Training

log = logging.getLogger(__name__)


def build(config: DictConfig) -> Training:
    """Build data, model, initialisation, loss and optimiser, in this order, from the seed.

    Sets three things for the whole process: malloc keeps freed memory, small steps are computed in
    one thread, and cuDNN leaves TF32 alone.

    Raises:
        ConfigError: a setting is not allowed, or settings do not fit each other.
        OSError: a file cannot be read, or no file descriptors are left.
    """
    check(config)
    process.keep_freed_memory()
    try:
        return _build(config)
    except (ConfigError, OSError):  # the latter of a file or the machine, and of no setting
        raise
    except Exception as error:
        # A `_target_` may raise anything on the arguments that it is given.
        raise ConfigError(
            f"the configuration cannot be built, {type(error).__name__}: {one_line(error)} "
            "(HYDRA_FULL_ERROR=1 shows where)"
        ) from error


def _build(config: DictConfig) -> Training:
    torch.manual_seed(config.seed)
    device = choose_device(config.trainer.device)
    if config.trainer.precision == "bf16" and device.type == "cpu":
        from debugnn.training import bf16  # the default is fp32

        bf16.warn_if_slow()
    # TF32, PyTorch's default for convolutions on a GPU, rounds fp32 inputs to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    data = build_data(config, config.data, device)
    model = build_model(config, data)
    if config.init.pretrain is not None:
        from debugnn import pretraining  # few runs need it

        source_data = build_data(config, pretraining.source_section(config), device)
        source = assemble(config, build_model(config, source_data), source_data)
        pretraining.pretrain(source, config, data.input_shape)
        # Again, so that the initialiser's random numbers do not depend on the pre-training.
        torch.manual_seed(config.seed)
    filled = initialise(
        model,
        weight=initialiser("init.weight", config.init.weight),
        bias=initialiser("init.bias", config.init.bias),
        layers=config.init.layers,
    )
    if filled == 0 and (config.init.weight._target_ or config.init.bias._target_):
        log.warning("init: nothing to fill in the layers of init.layers=%s", config.init.layers)
    if config.init.pretrain is not None:
        pretraining.transfer(model, source.model, config.init.pretrain.layers)
    training = assemble(config, model, data)
    process.choose_threads(model, training.batch_size)
    try_one_batch(training, config)
    return training


def build_data(config: DictConfig, section: DictConfig, device: torch.device) -> Data:
    """Return the data set that a section of DataConfig's fields describes, on a device."""
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
    """Return the network of `config.model`, with its regularisers, for this data's shapes.

    Raises:
        ConfigError: `model.outputs` does not match the data, or an argument is not known.
    """
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
    """Put model and data together with the optimiser, the loss and the trainer's settings.

    Raises:
        ConfigError: the optimiser does not take its arguments, or needs a closure.
    """
    channels_last = bool(config.trainer.channels_last) and len(data.input_shape) == 3
    if channels_last:
        # Not before the initialisation: some functions of torch.nn.init need contiguous weights.
        model = model.to(memory_format=torch.channels_last)
    # Not before the initialisation either: one seed gives the same weights on every device.
    model = model.to(data.train.inputs.device)
    make = leaf("optim", config.optim)
    if isinstance(make.func, type) and not make.keywords.get("differentiable"):
        process.leave_dynamo_out(make.func)
    try:
        optimizer = fused(make)(params=model.parameters())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim: {one_line(error)}") from error
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ConfigError(
            f"optim={config.optim._target_}: its step needs a closure, which is not supported"
        )
    loss = leaf("loss", config.loss)
    is_class = isinstance(loss.func, type)  # as torch.nn's losses are; functional ones are not
    return Training(
        model=model,
        loss=loss() if is_class else loss,
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
    """Let SGD, Adam and AdamW update all parameters in one pass.

    This takes a third of the plain update's time, and differs from it by rounding alone. An
    optimiser whose settings choose an implementation is returned as it is.
    """
    plain = set(optimizer.keywords) & {"fused", "foreach", "differentiable"}
    if plain or optimizer.func not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return optimizer
    return partial(optimizer, fused=True)


def initialiser(name: str, section: DictConfig) -> partial | None:
    """Return what `leaf` does, or None for an initialiser whose `_target_` is null."""
    return None if section._target_ is None else leaf(name, section)


def leaf(name: str, section: DictConfig) -> partial:
    """Return the function or class that `_target_` names with its arguments bound.

    Args:
        name: of the section, for the error message.

    Raises:
        ConfigError: `_target_` is missing or cannot be imported.
    """
    if section.get("_target_") is None:
        raise ConfigError(f"{name}._target_: it has to name a function or a class")
    try:
        bound = instantiate(OmegaConf.to_container(section, resolve=True), _partial_=True)
    except HydraException as error:
        text = one_line(error).partition(", set env var")[0]
        raise ConfigError(f"{name}: {text}") from error
    # Hydra's own partial does more at every call, and a loss is called at every step.
    return partial(bound.func, *bound.args, **bound.keywords)


@torch.no_grad()
def try_one_batch(training: Training, config: DictConfig) -> None:
    """Compute one loss on two test samples, before anything is written.

    Evaluation mode without gradients draws no random number and changes no buffer.

    Raises:
        ConfigError: model, loss and data do not fit, or the loss is no scalar.
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
    """Return the device of `trainer.device`; `auto` is a GPU where torch sees one.

    Raises:
        ConfigError: `cuda` without a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda: torch sees no GPU here; allowed are auto and cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
