"""Overrides as they are typed on the command line, and the configuration that they make."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from debugnn.errors import ConfigError, one_line


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration under other overrides, within a job that Hydra has started.

    Raises:
        ConfigError: overrides that do not go together.
    """
    sources = HydraConfig.get().runtime.config_sources
    conf = next(Path(source.path) for source in sources if source.provider == "main")
    try:
        return hydra_compose("config", quote_numbers(overrides, conf))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(overrides)}: {one_line(error)}") from error


def quote_numbers(overrides: Sequence[str], conf: Path) -> list[str]:
    """Quote the options of config groups that look like numbers: clip=4.0 → clip='4.0'.

    Hydra 1.3 parses 4.0 as a float, true as a bool and null as none, and refuses them as the name
    of an option.

    Args:
        conf: the folder of the configuration, with a folder for each group.
    """
    quoted = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and os.path.isdir(conf / key.lstrip("+")):  # False for a name that is too long
            value = ",".join(v if _is_word(v) else f"'{v}'" for v in value.split(","))
        quoted.append(f"{key}{equals}{value}")
    return quoted


def fields_set(override: str) -> dict[str, str]:
    """Return the fields of a group that a value in braces sets; it leaves the group's option.

    >>> fields_set("task={lr_from:minimum,finder:{repeats:2}}")
    {'task.lr_from': 'minimum', 'task.finder.repeats': '2'}
    """
    parsed = OverridesParser.create().parse_override(override)
    return dict(_flat(parsed.key_or_group, parsed.value()))


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


def _is_word(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() not in ("true", "false", "null")
    return False
