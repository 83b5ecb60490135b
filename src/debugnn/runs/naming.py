"""What a run is called: its directory, its arm, and the article's run that it repeats.

A run's directory is named by what the run is: `<output_dir>/<experiment>/<arm>/seed=<n>/`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from debugnn.config import FILE_NAME
from debugnn.errors import ConfigError
from debugnn.records import BOOKKEEPING

# Overrides that are left out of an arm's name: the directory names them elsewhere, or they do not
# change what is computed.
_NOT_IN_ARM = ("experiment", "seed", "hydra", *BOOKKEEPING)

_LONGEST_LABEL = 120  # bytes; file names end at 255


def arm_of(overrides: Sequence[str]) -> dict[str, str]:
    """Return the overrides that make a run what it is, sorted by key, in a short form.

    >>> arm_of(["model.activation._target_=torch.nn.SELU", "seed=1", "clip='4.0'"])
    {'clip': '4.0', 'model.activation': 'SELU'}

    Args:
        overrides: as typed, `key=value` each.
    """
    settings = dict[str, str]()
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith("{"):
            from debugnn.overrides import fields_set  # few are written in this way

            settings |= fields_set(override)
        else:
            settings[key] = value
    arm = {}
    for key, value in settings.items():
        key = key.lstrip("+~")
        if any(key == name or key.startswith(f"{name}.") for name in _NOT_IN_ARM):
            continue
        value = _plain_number(value.strip().strip("'\""))
        if key.endswith("._target_"):
            key, value = key.removesuffix("._target_"), value.rpartition(".")[2]
        arm[key] = value
    return dict(sorted(arm.items()))


def _plain_number(value: str) -> str:
    # 1e-3 and 0.001 are one arm: Hydra rewrites numbers in a sweep, but not in a single run.
    try:
        return value if value.lstrip("+-").isdigit() else str(float(value))
    except ValueError:
        return value


def label(arm: Mapping[str, str]) -> str:
    """Return the arm as one word that can name a directory."""
    text = ",".join(f"{key}={value}" for key, value in arm.items()) or "default"
    safe = re.sub(r"[^\w.,=+-]", "_", text)
    encoded = safe.encode()
    if len(encoded) > _LONGEST_LABEL:  # two long arms must stay two
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        safe = f"{encoded[: _LONGEST_LABEL - 13].decode(errors='ignore')}-{digest}"
    return safe


def directory_of(config: DictConfig, experiment: str, arm: Mapping[str, str]) -> Path:
    """Return the path of the run's directory.

    Raises:
        ConfigError: the experiment's option, such as `../data/digits`, is no name of a folder.
    """
    if fault := FILE_NAME.fault(experiment):
        raise ConfigError(f"experiment={experiment}: {fault}")
    return Path(config.output_dir) / experiment / label(arm) / f"seed={config.seed}"


def article_run(config: DictConfig, arm: Mapping[str, str]) -> str | None:
    """Return the name of the article's run that this arm repeats, None without one.

    Of the article's runs whose settings are all among the arm's, it is the one with most settings.
    """
    if config.report is None:
        return None
    fitting: dict[int, str] = {}  # number of settings → run
    for pattern, run in config.report.article.items():
        wanted = dict(item.split("=", 1) for item in pattern.split(",") if item != "default")
        if wanted.items() <= arm.items():
            fitting.setdefault(len(wanted), run)
    return fitting[max(fitting)] if fitting else None
