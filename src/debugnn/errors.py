"""The errors that a user's input can raise, and any error's text in a line."""


class ConfigError(ValueError):
    """A setting, a data file or a directory that cannot serve.

    The message is one line: the field, the value that was given, and what is allowed. The command
    line shows it without a traceback.
    """


class CheckFailedError(Exception):
    """A check before the training failed; what and why has been printed."""


def one_line(error: BaseException) -> str:
    """The error's own message without its line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the error's type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
