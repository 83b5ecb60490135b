"""The settings of a run as plain values, from the config.yaml in its directory."""

from pathlib import Path
from typing import Any

import yaml

# libyaml's parser takes 1 ms for a run's settings, Python's 12 ms.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> dict[str, Any]:
    """Return the settings that a run has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; the message says what is the matter.
    """
    try:
        kept = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(kept, dict) or not kept:
        raise ValueError("no mapping of settings")
    return kept
