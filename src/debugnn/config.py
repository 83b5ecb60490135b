"""The fixed fields of the configuration, their types and their bounds.

Hydra merges `conf/` into these dataclasses, so that a misspelt key or a wrong type fails when the
configuration is composed. `model`, `optim` and `loss` stay open: whatever `_target_` takes, they
hold. torch is not imported here.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from debugnn.errors import ConfigError, one_line


@dataclass
class PretrainConfig:
    """A first training on another data set, whose layers are taken over."""

    data: dict[str, Any] = MISSING
    epochs: int = MISSING
    steps_per_epoch: int | None = None
    layers: list[str] = MISSING


def _untouched() -> dict[str, Any]:
    # Not null: a key of null could not be overridden by init.weight._target_=...
    return {"_target_": None}


@dataclass
class InitConfig:
    weight: dict[str, Any] = field(default_factory=_untouched)
    bias: dict[str, Any] = field(default_factory=_untouched)
    layers: str = "all"
    pretrain: PretrainConfig | None = None


@dataclass
class RegConfig:
    batch_norm: bool = False
    dropout: float = 0.0


@dataclass
class ClipConfig:
    max_norm: float | None = None
    rescale: bool = False


@dataclass
class DataConfig:
    name: str = MISSING
    reader: dict[str, Any] = MISSING
    root: str = MISSING
    cache: str = MISSING
    download: bool = True
    batch_size: int = MISSING
    mean: list[float] | None = None
    std: list[float] | None = None
    as_shape: list[int] | None = None
    train_size: int | None = None
    scale: str = "normalised"
    labels: str = "paired"
    imbalance: float = 1.0
    augment_shift: int = 0
    test_targets: str = "test"
    test_loss_scale: float = 1.0


@dataclass
class TrainerConfig:
    epochs: int = 10
    steps_per_epoch: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = True
    eval_every: int = 1
    eval_batch_size: int = 128
    read_every: int = 20
    checkpoint_every: int = 1
    stack: int = 1


@dataclass
class FinderConfig:
    """A learning-rate range test."""

    start_lr: float = 1e-9
    end_lr: float = 10.0
    iterations: int = 100
    smoothing: float = 0.05
    diverge_at: float = 8.0
    repeats: int = 1


@dataclass
class TaskConfig:
    name: str = "train"
    lr_from: str | None = None
    finder: FinderConfig = field(default_factory=FinderConfig)


@dataclass
class DoctorConfig:
    every: int | None = 20
    bins: int = 64
    budget: int = 200


@dataclass
class WandbConfig:
    mode: str = "offline"
    project: str = "debug-neural-nets"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    checkpoint: bool = False
    every: int | None = None  # steps between two rows of single steps; None for 1,000 rows a run
    init_timeout: float = 30.0


@dataclass
class FigureConfig:
    name: str = MISSING
    kind: str = MISSING
    title: str = MISSING
    arms: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReportConfig:
    """What an experiment is for. Read by the figures and tables, never by the training."""

    title: str = MISSING
    notebook: bool = False  # one of the article's seven notebooks
    claims: list[int] = field(default_factory=list)
    axis: str = "epoch"
    article: dict[str, str] = field(default_factory=dict)
    # What scripts/reproduce.py sets on embedded data and on the article's:
    # {embedded: [trainer.epochs=5], article: [data=mnist]}
    data: dict[str, list[str]] = field(default_factory=dict)
    figures: list[FigureConfig] = field(default_factory=list)


@dataclass
class Config:
    seed: int = 0
    overwrite: bool = False
    output_dir: str = "outputs"
    model: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    init: InitConfig = field(default_factory=InitConfig)
    reg: RegConfig = field(default_factory=RegConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    report: ReportConfig | None = None


# Settings that say where and how a run is kept, not what it computes: they may differ between a
# finished run and a request for the same one.
BOOKKEEPING = ("overwrite", "output_dir", "wandb", "report", "data.root", "data.cache",
               "data.download", "trainer.checkpoint_every", "trainer.read_every",
               "trainer.stack")  # fmt: skip

_CHOICES = {
    "init.layers": ("all", "conv"),
    "data.scale": ("normalised", "raw"),
    "data.labels": ("paired", "permuted"),
    "data.test_targets": ("test", "train"),
    "trainer.device": ("auto", "cpu", "cuda"),
    "trainer.precision": ("fp32", "bf16"),
    "task.name": ("train", "lr_find", "check", "fix"),
    "task.lr_from": (None, "minimum", "steepest", "valley"),
    "wandb.mode": ("offline", "online", "disabled"),
}

# The allowed interval of each number, in the notation of mathematics: ( and ) leave the end out.
_INTERVALS = {
    "seed": "[0, 2147483647]",
    "reg.dropout": "[0, 1)",
    "clip.max_norm": "(0, inf)",
    "data.batch_size": "[1, inf)",
    "data.train_size": "[1, inf)",
    "data.imbalance": "(0, 1]",
    "data.augment_shift": "[0, inf)",
    "data.test_loss_scale": "(0, inf)",
    "trainer.epochs": "[1, inf)",
    "trainer.steps_per_epoch": "[1, inf)",
    "trainer.eval_every": "[1, inf)",
    "trainer.eval_batch_size": "[1, inf)",
    "trainer.read_every": "[1, inf)",
    "trainer.checkpoint_every": "[1, inf)",
    "trainer.stack": "[1, inf)",
    "task.finder.start_lr": "(0, inf)",
    "task.finder.end_lr": "(0, inf)",
    "task.finder.iterations": "[3, inf)",
    "task.finder.smoothing": "(0, 1]",
    "task.finder.diverge_at": "(1, inf)",
    "task.finder.repeats": "[1, inf)",
    "doctor.every": "[1, inf)",
    "doctor.bins": "[2, inf)",
    "doctor.budget": "[0, inf)",
    "init.pretrain.epochs": "[1, inf)",
    "init.pretrain.steps_per_epoch": "[1, inf)",
    "optim.lr": "(0, inf)",
    "wandb.every": "[1, inf)",
    "wandb.init_timeout": "(0, inf)",
}


def register() -> None:
    """Make the schema known to Hydra, as `schema` in the defaults list of conf/config.yaml."""
    ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration under other overrides, within a job that Hydra has started.

    Raises:
        ConfigError: overrides that do not go together.
    """
    groups = HydraConfig.get().runtime.choices
    try:
        return hydra_compose("config", [_quoted(override, groups) for override in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(overrides)}: {one_line(error)}") from error


def _quoted(override: str, groups: Container[str]) -> str:
    """Hydra takes 4.0 for a number and refuses it as the name of a group's option."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if key in groups and value.replace(".", "", 1).isdigit() else override


def check(config: DictConfig) -> None:
    """Raise ConfigError at the first setting whose value cannot serve, naming what is allowed."""
    for name, allowed in _CHOICES.items():
        value = OmegaConf.select(config, name)
        if value not in allowed:
            options = ", ".join("null" if option is None else option for option in allowed)
            raise ConfigError(f"{name}={value}: allowed are {options}")
    for name, interval in _INTERVALS.items():
        value = OmegaConf.select(config, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name}={value}: allowed is a number in {interval}")
        if not _inside(value, interval):
            raise ConfigError(f"{name}={value}: allowed is {interval}")
    if config.task.finder.end_lr <= config.task.finder.start_lr:
        raise ConfigError(
            f"task.finder.end_lr={config.task.finder.end_lr}: it has to be above "
            f"task.finder.start_lr={config.task.finder.start_lr}"
        )
    if config.trainer.stack > 1 and config.task.name == "fix":
        raise ConfigError("trainer.stack: task=fix tries one run, and needs trainer.stack=1")
    if config.clip.rescale and config.clip.max_norm is None:
        raise ConfigError("clip.rescale=true: needs clip.max_norm, the norm to scale to")


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below
