"""Errors that a user's input can raise, and the text of any error in one line."""


class ConfigError(ValueError):
    """A setting, a data file or a directory cannot be used.

    The message is one line that names the field, the given value and the allowed values. The
    command line shows it without a traceback.
    """

    exit_code = 2


class RunError(ConfigError):
    """A run's directory is in use, or what is in it cannot be used.

    The message is one line that names the file and says what to do.
    """

    exit_code = 1


START_OVER = "overwrite=true starts over"  # what to do about a run whose files are damaged


class CheckFailedError(Exception):
    """A check before the training failed; the reasons have been printed already."""


class WorkerDiedError(Exception):
    """The process of a call ended before the call did."""


def one_line(error: BaseException) -> str:
    """Return the error's message without line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or the error's type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
