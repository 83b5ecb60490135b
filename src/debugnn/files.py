"""Atomic replacement of files: a reader sees the old file or the new one, and nothing between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a draft, which replaces `path` when the block ends without an error."""
    draft = path.with_name(f"{path.name}.tmp")
    yield draft
    os.replace(draft, path)


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
