"""The fixed fields of the configuration: their types, defaults and allowed values.

Hydra merges `conf/` into these dataclasses, so a misspelt key or a wrong type fails when the
configuration is composed. The groups `model`, `optim` and `loss` are open: they hold whatever the
class or function that `_target_` names takes as arguments. What each field means stands in the
file of its group's default option, conf/<group>/<default>.yaml. This module does not import torch.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from debugnn.errors import ConfigError, one_line

# --- allowed values ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """Allowed numbers, in mathematical notation: `[1, inf)` includes 1, `(0, 1]` excludes 0."""

    text: str
    null: bool = True  # whether None, a setting that is switched off, is allowed too

    def fault(self, value: Any) -> str | None:
        """Return what is allowed if `value` is not."""
        if value is None and self.null:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"allowed is a number in {self.text}"
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        below = value <= high if self.text[-1] == "]" else value < high
        return None if above and below else f"allowed is {self.text}"


@dataclass(frozen=True)
class Choice:
    """Allowed words; None stands for null."""

    options: tuple[str | None, ...]

    def fault(self, value: Any) -> str | None:
        """Return what is allowed if `value` is not."""
        if value in self.options:
            return None
        words = ("null" if option is None else option for option in self.options)
        return f"allowed are {', '.join(words)}"


@dataclass(frozen=True)
class Text:
    """Allowed texts, or lists of them; None is a setting that is switched off.

    Attributes:
        pattern: a regular expression of the whole text.
        words: the same for a reader.
    """

    pattern: str
    words: str

    def fault(self, value: Any) -> str | None:
        """Return what is allowed if `value` is not."""
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        fit = all(item is None or re.fullmatch(self.pattern, item, re.DOTALL) for item in items)
        return None if fit else f"allowed is {self.words}"


# A name that becomes a part of a path. 60 characters have at most 240 of a file name's 255 bytes.
FILE_NAME = Text(
    r"(?!\.{0,2}$)[^/\\\x00-\x1f]{1,60}", "a name of 1 to 60 characters without / and \\"
)
FOLDER = Text(r".*\S.*", "the path of a folder")
WANDB_NAME = Text(r"[^/\\#?%:]{1,128}", r"a name of 1 to 128 characters without / \ # ? % :")
WANDB_TAG = Text(r".{1,64}", "a list of tags of 1 to 64 characters")


def number(default: float | None, interval: str) -> Any:
    """Declare a field whose value is a number in `interval`, or null where its type allows it."""
    return field(default=default, metadata={"allowed": Interval(interval)})


def choice(default: str | None, *others: str) -> Any:
    """Declare a field whose value is the default or one of the others."""
    return field(default=default, metadata={"allowed": Choice((default, *others))})


def text(default: Any, allowed: Text) -> Any:
    """Declare a field whose value is a text, or null where its type allows it."""
    return field(default=default, metadata={"allowed": allowed})


# --- the schema ----------------------------------------------------------------------------------


def _no_initialiser() -> dict[str, Any]:
    # Not null: Hydra cannot override a key within null, as init.weight._target_=... does.
    return {"_target_": None}


@dataclass
class DataConfig:
    name: str = text(MISSING, FILE_NAME)
    reader: dict[str, Any] = MISSING
    root: str = "${oc.env:DEBUGNN_DATA,data}"
    cache: str = text("data/prepared", FOLDER)
    download: bool = True
    batch_size: int = number(MISSING, "[1, inf)")
    mean: list[float] | None = None
    std: list[float] | None = None
    as_shape: list[int] | None = None
    train_size: int | None = number(None, "[1, inf)")
    scale: str = choice("normalised", "raw")
    labels: str = choice("paired", "permuted")
    imbalance: float = number(1.0, "(0, 1]")
    augment_shift: int = number(0, "[0, inf)")
    test_targets: str = choice("test", "train")
    test_loss_scale: float = number(1.0, "(0, inf)")


@dataclass
class PretrainConfig:
    """A first training on another data set, whose layers are taken over."""

    data: DataConfig = field(default_factory=DataConfig)
    layers: list[str] = MISSING
    epochs: int = number(MISSING, "[1, inf)")
    steps_per_epoch: int | None = number(None, "[1, inf)")


@dataclass
class InitConfig:
    weight: dict[str, Any] = field(default_factory=_no_initialiser)
    bias: dict[str, Any] = field(default_factory=_no_initialiser)
    layers: str = choice("all", "conv")
    pretrain: PretrainConfig | None = None


@dataclass
class RegConfig:
    batch_norm: bool = False
    dropout: float = number(0.0, "[0, 1)")


@dataclass
class ClipConfig:
    max_norm: float | None = number(None, "(0, inf)")
    rescale: bool = False


@dataclass
class TrainerConfig:
    epochs: int = number(10, "[1, inf)")
    steps_per_epoch: int | None = number(None, "[1, inf)")
    device: str = choice("auto", "cpu", "cuda")
    precision: str = choice("fp32", "bf16")
    channels_last: bool = True
    eval_every: int = number(1, "[1, inf)")
    eval_batch_size: int = number(128, "[1, inf)")
    read_every: int = number(20, "[1, inf)")
    checkpoint_every: int = number(1, "[1, inf)")
    checkpoint_seconds: float = number(5.0, "[0, inf)")
    checkpoint_minutes: float = number(5.0, "(0, inf)")


@dataclass
class FinderConfig:
    """A learning-rate range test."""

    start_lr: float = number(1e-9, "(0, inf)")
    end_lr: float = number(10.0, "(0, inf)")
    iterations: int = number(100, "[3, inf)")
    smoothing: float = number(0.05, "(0, 1]")
    diverge_at: float = number(8.0, "(1, inf)")
    repeats: int = number(1, "[1, inf)")


@dataclass
class TaskConfig:
    name: str = choice("train", "lr_find", "check", "fix")
    lr_from: str | None = choice(None, "minimum", "steepest", "valley")
    finder: FinderConfig = field(default_factory=FinderConfig)


@dataclass
class DoctorConfig:
    enabled: bool = True
    every: int = number(20, "[1, inf)")
    dense: int | None = number(10, "[1, inf)")
    bins: int = number(64, "[2, inf)")
    budget: int = number(200, "[0, inf)")
    keep: bool = True


@dataclass
class WandbConfig:
    mode: str = choice("offline", "online", "disabled")
    project: str = text("debug-neural-nets", WANDB_NAME)
    entity: str | None = text(None, WANDB_NAME)
    tags: list[str] = field(default_factory=list, metadata={"allowed": WANDB_TAG})
    checkpoint: bool = False
    every: int | None = number(None, "[1, inf)")
    init_timeout: float = number(30.0, "(0, inf)")


@dataclass
class FigureConfig:
    """A figure of an experiment.

    Attributes:
        name: of the file, before the data set's name.
        kind: a key of `debugnn.analysis.figures.KINDS`.
        caption: what to look for, in a sentence, for the page of results.
        arms: patterns `key=value,key=value` of the arms to draw; None draws all.
        options: what the kind takes besides.
    """

    name: str = MISSING
    kind: str = MISSING
    title: str = MISSING
    caption: str = ""
    arms: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReportConfig:
    """What an experiment is for. Figures and tables read it; the training does not.

    Attributes:
        notebook: True for the article's seven notebooks.
        claims: the numbers of the article's claims that it serves.
        axis: what its curves are drawn over.
        article: pattern `key=value,key=value` of an arm → the article's run that it repeats.
        data: what scripts/reproduce.py sets on embedded data and on the article's, such as
            {embedded: [trainer.epochs=5], article: [data=mnist]}.
    """

    title: str = MISSING
    notebook: bool = False
    claims: list[int] = field(default_factory=list)
    axis: str = "epoch"
    article: dict[str, str] = field(default_factory=dict)
    data: dict[str, list[str]] = field(default_factory=dict)
    figures: list[FigureConfig] = field(default_factory=list)


@dataclass
class Config:
    seed: int = number(0, "[0, 2147483647]")
    overwrite: bool = False
    only_failed: bool = False
    prune_on: str | None = choice(None, "doctor")
    output_dir: str = text("outputs", FOLDER)
    model: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(
        default_factory=dict,
        metadata={"keys": {"lr": Interval("(0, inf)", null=False)}},  # which every optimiser has
    )
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


# --- composing and checking ----------------------------------------------------------------------


def register() -> None:
    """Register the schema with Hydra as `schema`, which conf/config.yaml names in its defaults."""
    ConfigStore.instance().store(name="schema", node=Config)


def check(config: DictConfig) -> None:
    """Raise ConfigError at the first setting whose value is not allowed, naming what is."""
    config = OmegaConf.masked_copy(config, [entry.name for entry in dataclasses.fields(Config)])
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:  # a reference, such as ${optim.lrr}
        raise ConfigError(
            f"{error.full_key}: {one_line(error).partition(' full_key')[0]}"
        ) from None
    for name, allowed, value in _bounded(Config, settings, ""):
        fault = allowed.fault(value)
        if fault is not None:
            raise ConfigError(f"{name}={as_typed(value)}: {fault}")
    for name, leaf in leaves(settings):
        target, partial = leaf.get("_target_"), leaf.get("_partial_", True)
        switched_off = target is None and name.startswith("init.")
        if not switched_off and not re.fullmatch(_IMPORT_PATH, str(target)):
            raise ConfigError(
                f"{name}._target_={as_typed(target)}: allowed is the import path of a function or "
                "a class, such as torch.nn.ReLU"
            )
        if not isinstance(partial, bool):
            raise ConfigError(f"{name}._partial_={as_typed(partial)}: allowed are true and false")
    finder, clip = settings["task"]["finder"], settings["clip"]
    if finder["end_lr"] <= finder["start_lr"]:
        raise ConfigError(
            f"task.finder.end_lr={finder['end_lr']}: it has to be above "
            f"task.finder.start_lr={finder['start_lr']}"
        )
    if settings["prune_on"] == "doctor" and not settings["doctor"]["enabled"]:
        raise ConfigError("prune_on=doctor: needs doctor=on")
    if clip["rescale"] and clip["max_norm"] is None:
        raise ConfigError("clip.rescale=true: needs clip.max_norm, the norm to scale to")


_IMPORT_PATH = r"[^\W\d]\w*(\.[^\W\d]\w*)+"


def as_typed(value: Any) -> str:
    """Return a value as a user would type it, the beginning of a long one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _bounded(
    schema: type, settings: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Interval | Choice | Text, Any]]:
    """Yield dotted name, allowed values and value of each bounded setting.

    Raises:
        ConfigError: a setting has no value, or is not there: it was deleted, as by `~seed`.
    """
    for entry in dataclasses.fields(schema):
        name = f"{prefix}{entry.name}"
        if entry.name not in settings:
            raise ConfigError(f"{name}: has no value; a key of the configuration cannot be deleted")
        group, value = group_of(entry), settings[entry.name]
        if value == MISSING:
            raise ConfigError(f"{name}: has no value; set it, or choose an option of its group")
        if group is not None and value is not None:
            yield from _bounded(group, value, f"{name}.")
        if "allowed" in entry.metadata:
            yield name, entry.metadata["allowed"], value
        for key, allowed in entry.metadata.get("keys", {}).items():
            if key in value:
                yield f"{name}.{key}", allowed, value[key]


def leaves(
    settings: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield dotted name and settings of whatever is made by a function or a class."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            name = prefix + key
            if "_target_" in value or name in ("model", "optim", "loss", "data.reader"):
                yield name, value
            yield from leaves(value, f"{name}.")


def group_of(entry: dataclasses.Field) -> type | None:
    """Return the dataclass of a field that holds a group of its own, None for any other field."""
    kinds = get_args(entry.type) if isinstance(entry.type, UnionType) else (entry.type,)
    for kind in kinds:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None
