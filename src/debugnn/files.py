"""Atomic replacement of files: a reader sees the old file or the new one, and nothing between."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a draft, which replaces `path` when the block ends without an error.

    Raises:
        OSError: with the path, also where the system names none, as on a full disk.
    """
    draft = path.with_name(f"{path.name}.tmp")
    try:
        with naming(path):
            yield draft
            os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the block the path of the file that it is about, if it has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
