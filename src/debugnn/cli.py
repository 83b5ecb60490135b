"""The command line around Hydra: what Hydra cannot parse, and errors as one line."""

import argparse
import atexit
import errno
import logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from debugnn import config
from debugnn.errors import CheckFailedError, ConfigError, WorkerDiedError, one_line
from debugnn.overrides import quote_numbers
from debugnn.runs import arms
from debugnn.runs.arms import Arm, End

# Errors of a command or of a file in conf/.
WRONG_COMMAND = (ConfigError, HydraException, OmegaConfBaseException, yaml.MarkedYAMLError)

# Launchers whose jobs run in this process, or that `record` what jobs return in other processes.
# Under any other launcher an arm's error is raised, which is how it gets back to this process.
_RECORDING = ("BasicLauncher", "StackedLauncher", "WorkersLauncher", "SlurmLauncher",
              "SlurmLocalLauncher", "RayLauncher")  # fmt: skip

# `--experiment x`, which Hydra takes for its own --experimental-rerun.
_FLAG_FOR_OVERRIDE = re.compile(r"--(experiment|model|init|reg|clip|data|optim|loss|task)\b(?!-)")
_OF_SWEEPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.")
_OPEN_GROUPS = ("model", "optim", "loss")  # take further keys, as arguments of their _target_

# A group in the help page: its name, which may be a line, and its options in one or more lines of
# the same indent.
_GROUP = re.compile(
    r"^  (?P<name>[\w/]+)(?: +|\n {14})(?P<options>\S.*\n(?: {14}\S.*\n)*)", re.MULTILINE
)

_exit_codes: set[int] = set()  # of the jobs of this command
_arms: list[Arm] = []  # of its sweep, as they ended
_verbose = False  # HYDRA_FULL_ERROR=1: tracebacks too


def start(main: Callable[[], None], conf: Path) -> None:
    """Run `launch`, then end the process with its exit code.

    If torch was imported, the process ends without unloading torch's libraries one by one.
    Under a profiler, a debugger or `python -i`, which go on after the script, and with
    `DEBUGNN_PLAIN_PROCESS=1`, Python ends in its usual way.

    It buys 64 MB of peak memory (717 MB, 781 MB without, which torch's unloading reads) and 0.1 s
    of processor time, measured as for `training.process.keep_freed_memory`.
    """
    _open_closed_streams()
    logging.raiseExceptions = False  # a message that cannot be written, as after `| head`, is lost
    code: list[int] = []
    # Exit functions run in the reverse order of registration: this one after those of W&B and of
    # everything else that `main` imports, and after Python has waited for all threads.
    atexit.register(_end_quickly, code)
    try:
        try:
            launch(main, conf)
        finally:
            _flush_output()
    except BrokenPipeError:
        pass  # the reader, such as `head`, has what it wanted
    except SystemExit as stop:
        if isinstance(stop.code, int | None):
            code.append(stop.code or 0)
        raise
    code.append(0)


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that the process was started without (`>&-`).

    Otherwise, the first files that it opens would get these streams' numbers, and what W&B's
    process and other libraries print would end up in them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            stream = open(os.devnull, "r" if number == 0 else "w")  # noqa: SIM115, kept open
            setattr(sys, name, stream)


def _flush_output() -> None:
    """Flush the standard output; let it end in the null device if its reader has gone."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python would flush again at its end, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_quickly(code: list[int]) -> None:
    """End the process at once, unless its code is unknown or something waits for its usual end."""
    alone = sys.orig_argv[1:2] == sys.argv[:1]
    if not code or not alone or "torch" not in sys.modules:
        return
    from debugnn.training.process import plain  # imports torch, which is there already

    if plain():
        return
    logging.shutdown()  # registered before this function, so it would run after it
    _flush_output()
    with suppress(OSError):
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
    try:
        sys.argv[1:] = quote_numbers(_flags_last(sys.argv[1:]), conf)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    # Without it, Hydra prints an error itself, in several lines, and raises nothing.
    show_tracebacks(os.environ.get("HYDRA_FULL_ERROR") == "1")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with _untyped_as_config_errors():
            main()
    except BrokenPipeError:
        raise
    except (*WRONG_COMMAND, OSError) as error:
        summarise(_arms)
        if _verbose:
            traceback.print_exc()
        print(f"error: {explain(error)}", file=sys.stderr)
        if isinstance(error, ConfigError):
            sys.exit(error.exit_code)
        # Hydra's missing option is an OSError too.
        sys.exit(2 if isinstance(error, WRONG_COMMAND) else 1)
    except KeyboardInterrupt as stop:
        if any(arm.end == End.FAILED for arm in _arms):
            summarise(_arms)
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))  # of a run that was told to stop
    summarise(_arms)
    if code := max(_exit_codes, default=0):
        sys.exit(code)


class _Flags(argparse.ArgumentParser):
    """Hydra's parser of flags, with its error as one line."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        hint = ": no such flag; overrides have no dashes: key=value"
        raise ConfigError(unknown[1] + hint if unknown else message)


def _flags_last(words: Sequence[str]) -> list[str]:
    """Return the words of a command with all overrides before all flags, as Hydra needs them.

    `--failed` is an override in other words.

    Raises:
        ConfigError: a flag is not known, or has another value than its own.
    """
    parser = _Flags(parents=[get_args_parser()], add_help=False)
    words = ["only_failed=true" if word == "--failed" else word for word in words]
    overrides = parser.parse_intermixed_args(words).overrides
    left = list(overrides)
    flags = []
    for word in words:
        if left and word == left[0]:
            del left[0]
        else:
            flags.append(word)
    return [*overrides, *flags]


@contextmanager
def _untyped_as_config_errors() -> Iterator[None]:
    """Turn what Hydra raises about settings, without a type of its own, into a ConfigError."""
    try:
        yield
    except AssertionError as error:
        # Hydra's, of a key inside a group that is null.
        groups = ("report", "init.pretrain") if "NoneType" in str(error) else ()
        for word in sys.argv[1:]:
            for group in groups:
                if word.lstrip("+~").startswith(f"{group}."):
                    chooser = "experiment" if group == "report" else "init"
                    raise ConfigError(
                        f"{word}: {group} is null here; it comes with an option of {chooser}"
                    ) from error
        raise


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


def run_job(settings: DictConfig, job: HydraConf) -> Arm:
    """Run what Hydra asks for: a run alone, or an arm of a sweep, whose error ends this arm alone.

    Raises:
        HydraException, OmegaConfBaseException: a mistake in the command that was found as an arm
            reads its settings.
        Interrupted: the run was told to stop.
        Exception: any other error, of a run alone or under a launcher that records no arms.
    """
    overrides: Any = OmegaConf.to_container(job.overrides.task)  # ${…} in them as typed
    experiment = job.runtime.choices.get("experiment")
    sweep = job.mode == RunMode.MULTIRUN
    for word in () if sweep else job.overrides.hydra:
        if word.lstrip("+~").startswith(_OF_SWEEPS):
            print(f"warning: {word} has no effect on a run alone; add -m", file=sys.stderr)
    try:
        arm = run_arm(settings, overrides, experiment)
    except (Exception, SystemExit) as error:
        expected = isinstance(error, ConfigError | CheckFailedError) or _is_the_machines(error)
        of_the_command = isinstance(error, WRONG_COMMAND) and not expected
        recorded = job.launcher._target_.endswith(_RECORDING) and not of_the_command
        if not (recorded if sweep else expected):
            raise
        try:
            place = arms.place_of(settings, overrides, experiment)
        except WRONG_COMMAND:  # the setting at fault is one that names the place
            place = None
        arm = failed(error, overrides, place, name=" ".join(overrides) if sweep else "")
    if sweep:
        record(arm)
    elif arm.end == End.LEFT_OUT:
        print("left out: this run has not failed (--failed)")
    _exit_codes.add(arm.exit_code)
    return arm


def run_arm(settings: DictConfig, overrides: Sequence[str], experiment: str | None) -> Arm:
    """Run one arm, unless it is to run only if it failed before.

    Args:
        settings: the composed configuration.
        overrides: as typed, `key=value` each; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Raises:
        Exception: whatever ends the run.
    """
    logging.raiseExceptions = False  # as in `start`; this may be another process
    config.check(settings)  # before names in it become paths
    place = arms.place_of(settings, overrides, experiment)
    before = arms.status_in(place)
    if arms.left_out(settings, before):
        return Arm(tuple(overrides), End.LEFT_OUT, place)
    # Imported here, because torch takes seconds: --help and --cfg do not need it.
    from debugnn import arguments
    from debugnn.runs.execute import execute

    arguments.check(settings)
    execute(settings, overrides, experiment)
    return Arm(tuple(overrides), arms.end_of(settings, before, place), place)


def failed(error: BaseException, overrides: Sequence[str], place: Path | None, name: str) -> Arm:
    """Print an arm's error in one line, keep its traceback, and return the arm as failed.

    Args:
        error: what ended it.
        overrides: of the arm.
        place: the run's directory, where the traceback of an unexpected error is kept.
        name: what the line begins with; empty for a run alone.
    """
    if isinstance(error, CheckFailedError):  # which has been printed
        return Arm(tuple(overrides), End.FAILED, None, "a check found an error", 1)
    if isinstance(error, KeyboardInterrupt):  # a worker was told, and not this process
        return Arm(tuple(overrides), End.INTERRUPTED, place, f"stopped by {error}", 1)
    mistake, died = isinstance(error, WRONG_COMMAND), isinstance(error, WorkerDiedError)
    said = mistake or _is_the_machines(error)  # in one line, without a place in the code
    kept = None if said else arms.keep_traceback(error, place)
    if _verbose or not (said or died or kept):
        traceback.print_exception(error)
    reason = explain(error)
    if not (mistake or died or isinstance(error, OSError)):
        reason = f"{type(error).__name__}: {reason}"
    print(f"error: {name}: {reason}" if name else f"error: {reason}", file=sys.stderr)
    code = getattr(error, "exit_code", 2 if mistake else 1)  # a ConfigError has its own
    there = place if place is not None and place.exists() else None
    return Arm(tuple(overrides), End.FAILED, kept or there, reason, code)


_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)


def _is_the_machines(error: BaseException) -> bool:
    """Return whether a file or a folder cannot be used, or what the machine has is used up."""
    named = isinstance(error, OSError) and error.filename is not None
    return named or (isinstance(error, OSError) and error.errno in _EXHAUSTED)


def lost(error: BaseException, settings: DictConfig, overrides: Sequence[str]) -> Arm:
    """Return the arm of a sweep whose process gave nothing back, as `failed` does.

    Args:
        error: what its call raised, or what became of the process.
        settings: the arm's, with Hydra's own.
        overrides: of the arm.
    """
    experiment = settings.hydra.runtime.choices.get("experiment")
    place = arms.place_of(settings, overrides, experiment)
    return failed(error, overrides, place, name=" ".join(overrides))


def shows_tracebacks() -> bool:
    """Return whether the user asked for tracebacks, by HYDRA_FULL_ERROR=1."""
    return _verbose


def show_tracebacks(shown: bool) -> None:
    """Let a worker process print tracebacks if the command does."""
    global _verbose
    _verbose = shown


def record(arm: Arm) -> None:
    """Add an arm of this command's sweep, which ends with a list of those that failed."""
    _arms.append(arm)
    _exit_codes.add(arm.exit_code)


def summarise(ended: Sequence[Arm]) -> None:
    """Say how the arms of a sweep ended: the failed ones one by one, the others as numbers."""
    if any(arm.exit_code for arm in ended):
        print(f"\n{arms.table(ended)}", file=sys.stderr)
    elif ended:
        print(arms.counts(ended))


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
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return f"{error.strerror} (ulimit -a and df show how many there may be)"
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
