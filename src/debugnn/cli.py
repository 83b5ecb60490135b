"""The command line around Hydra: what Hydra cannot parse, and errors as one line."""

import atexit
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from debugnn import config
from debugnn.errors import CheckFailedError, ConfigError, one_line

# Errors of a command or of a file in conf/.
WRONG_COMMAND = (ConfigError, HydraException, OmegaConfBaseException, yaml.MarkedYAMLError)

# Launchers whose jobs run in this process; others start processes for them.
_IN_PROCESS = ("BasicLauncher", "StackedLauncher")

# `--experiment x`, which Hydra takes for its own --experimental-rerun.
_FLAG_FOR_OVERRIDE = re.compile(r"--(experiment|model|init|reg|clip|data|optim|loss|task)\b(?!-)")
_OPEN_GROUPS = ("model", "optim", "loss")  # take further keys, as arguments of their _target_

# A group in the help page: its name, and its options in one or more lines of the same indent.
_GROUP = re.compile(r"^  (?P<name>\w+) +(?P<options>\S.*\n(?: {14}\S.*\n)*)", re.MULTILINE)

_exit_codes: set[int] = set()  # of the jobs that ran in this process
_failed: list[str] = []  # those of a sweep whose traceback was printed, each with its error
_verbose = False  # HYDRA_FULL_ERROR=1: tracebacks too


def start(main: Callable[[], None], conf: Path) -> None:
    """Run `launch`, then end the process with its exit code.

    If torch was imported, the process ends without unloading torch's libraries one by one.
    Under a profiler, a debugger or `python -i`, which go on after the script, and with
    `DEBUGNN_PLAIN_PROCESS=1`, Python ends in its usual way.

    It buys 64 MB of peak memory (717 MB, 781 MB without, which torch's unloading reads) and 0.1 s
    of processor time, measured as for `training.process.keep_freed_memory`.
    """
    code: list[int] = []
    # Exit functions run in the reverse order of registration: this one after those of W&B and of
    # everything else that `main` imports, and after Python has waited for all threads.
    atexit.register(_end_quickly, code)
    try:
        launch(main, conf)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Python would flush again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as stop:
        if isinstance(stop.code, int | None):
            code.append(stop.code or 0)
        raise
    code.append(0)


def _end_quickly(code: list[int]) -> None:
    """End the process at once, unless its code is unknown or something waits for its usual end."""
    alone = sys.orig_argv[1:2] == sys.argv[:1]
    if not code or not alone or "torch" not in sys.modules:
        return
    from debugnn.training.process import plain  # imports torch, which is there already

    if plain():
        return
    logging.shutdown()  # registered before this function, so it would run after it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code[0])


def launch(main: Callable[[], None], conf: Path) -> None:
    """Run a Hydra main function on `sys.argv`.

    Exits with 2 where the command is at fault, with 1 where a file, a run or a check is.
    """
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(help_text(conf))
        return
    if slip := next((a for a in sys.argv[1:] if _FLAG_FOR_OVERRIDE.match(a)), None):
        name = slip.strip("-").partition("=")[0]
        print(f"error: {slip}: overrides have no dashes: {name}=…", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = config.quote_numbers(sys.argv[1:], conf)
    # Without it, Hydra prints an error itself, in several lines, and raises nothing.
    global _verbose
    _verbose = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except BrokenPipeError:
        raise
    except (*WRONG_COMMAND, OSError) as error:
        if _verbose:
            traceback.print_exc()
        print(f"error: {explain(error)}", file=sys.stderr)
        if isinstance(error, ConfigError):
            sys.exit(error.exit_code)
        # Hydra's missing option is an OSError too.
        sys.exit(2 if isinstance(error, WRONG_COMMAND) else 1)
    except KeyboardInterrupt as stop:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))  # of a run that was told to stop
    if _failed:
        arms = "arm has" if len(_failed) == 1 else "arms have"
        print(f"{len(_failed)} {arms} failed; the same command runs them again:", file=sys.stderr)
        print(*(f"  {failed}" for failed in _failed), sep="\n", file=sys.stderr)
    if _exit_codes:
        sys.exit(max(_exit_codes))


def help_text(conf: Path) -> str:
    """Return what Hydra prints for --help, without the 0.6 s in which it lists all groups.

    Options that a user has added to a group stand behind those that the page names.
    """
    page = yaml.safe_load((conf / "hydra" / "help" / "newcomer.yaml").read_text(encoding="utf-8"))
    return _GROUP.sub(lambda found: found[0] + _own_options(conf, found), page["template"])


def _own_options(conf: Path, group: re.Match[str]) -> str:
    """Return lines with the options in the group's folder that the page does not name."""
    known = group["options"].split()
    own = sorted(path.stem for path in (conf / group["name"]).glob("*.yaml"))
    text = " ".join(name for name in own if name not in known)
    return textwrap.indent(textwrap.fill(text, 66) + "\n", " " * 14) if text else ""


def guarded(job: Callable[[], object], arm: Sequence[str], launcher: str, sweep: bool) -> None:
    """Run one job of a sweep; report its error at once, so that the other jobs run.

    In a launcher's own process the error is raised instead, which is how it gets back to this one.

    Args:
        job: what to run.
        arm: the job's overrides, which name it in the message.
        launcher: the import path of the launcher's class.
        sweep: False for a single run, whose error needs no name.
    """
    try:
        job()
    except CheckFailedError:
        if not launcher.endswith(_IN_PROCESS):
            raise
        _exit_codes.add(1)
    except ConfigError as error:
        if not launcher.endswith(_IN_PROCESS):
            raise
        report(error, arm if sweep else ())
    except WRONG_COMMAND:  # of the whole sweep, found as a job reads its settings
        raise
    except (Exception, SystemExit) as error:
        if not sweep or not launcher.endswith(_IN_PROCESS):
            raise
        traceback.print_exception(error)  # of a network or a loss of the user's own, say
        _failed.append(f"{' '.join(arm)}: {type(error).__name__}: {one_line(error)}")
        _exit_codes.add(1)


def report(error: ConfigError, arm: Sequence[str]) -> None:
    """Print a job's error, and let the command end with its exit code after the other jobs."""
    if _verbose:
        traceback.print_exception(error)
    where = f"{' '.join(arm)}: " if arm else ""
    print(f"error: {where}{explain(error)}", file=sys.stderr)
    _exit_codes.add(error.exit_code)


def explain(error: BaseException) -> str:
    """Return the error as one line that names the field, the value and what is allowed."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name.strip()}, line {mark.line + 1}: {error.problem}"
    text = one_line(error)
    cause = one_line(error.__cause__) if error.__cause__ else ""
    if isinstance(error, ConfigError):
        return text
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror} (set by output_dir, data.root or data.cache)"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"{error.override}: an override is key=value, such as model=cnn"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be parsed, {text.partition(' See https')[0]}"
    if several := re.search(r"Ambiguous value for argument '(.+?)'", text):
        return f"{several.group(1)}: several values are a sweep: python train.py -m …"
    if option := re.search(r"Could not find '(.+)/(.+?)' Available options in '.+?': (.*)", text):
        group, value, allowed = option.groups()
        allowed = allowed.partition(" Config search path")[0].replace(" ", ", ")
        return f"{group}={value}: no such option; there are {allowed}"
    if key := re.search(r"Could not override '(.+?)'\. (Did you mean .+?\?)?", text):
        name = key.group(1)
        hint = f" {key.group(2)}" if key.group(2) else ""
        if name.partition(".")[0] in _OPEN_GROUPS and "." in name:
            hint += f"; +{name}=… adds an argument of its _target_"
        return f"{name}: no such key; `python train.py --cfg job` prints all of them{hint}"
    if value := re.search(r"Error merging override (\S+)", text):
        reason = re.sub(r" full_key:.*", "", cause)
        return f"{value.group(1)}: {reason[:1].lower()}{reason[1:]}"
    return f"{text} {cause}".strip() if cause not in text else text
