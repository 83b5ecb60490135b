"""The command line around Hydra: what it cannot parse, and errors as one line."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from debugnn.errors import ConfigError

CONF = Path("conf")


def launch(job: Callable[[], None], conf: Path) -> None:
    """Run a Hydra main function on `sys.argv`; exit with 2 for the user's error, 1 for ours."""
    sys.argv[1:] = quote_numbers(sys.argv[1:], conf)
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra prints several lines and a traceback of its own, unless it is told to raise.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        job()
    except (ConfigError, HydraException, OmegaConfBaseException, OSError) as error:
        if show_all:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def quote_numbers(arguments: Sequence[str], conf: Path) -> list[str]:
    """Quote the options of config groups that look like numbers: clip=4.0 → clip='4.0'.

    Hydra 1.3 parses 4.0 as a float and refuses it as the name of an option.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and (conf / key.lstrip("+")).is_dir():
            value = ",".join(f"'{v}'" if _is_number(v) else v for v in value.split(","))
        quoted.append(f"{key}{equals}{value}")
    return quoted


def one_line(error: BaseException) -> str:
    """The error's message, with that of its cause, without Hydra's headings and hints."""
    lines = []
    for text in (str(error), str(error.__cause__ or "")):
        for line in text.splitlines():
            line = line.strip()
            noise = not line or line.startswith(
                ("Set the environment", "See https", "object_type=")
            )
            if not noise and line not in lines:
                lines.append(line.removeprefix("full_key: ") if False else line)
    return " ".join(lines)


def report_failure(error: ConfigError, overrides: Sequence[str]) -> None:
    """Name a failing arm at once: of several in a sweep, Hydra shows the first alone."""
    logging.getLogger(__name__).error("failed: %s: %s", " ".join(overrides), error)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
