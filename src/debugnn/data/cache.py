"""The cache of decoded arrays: .npy files that every later run maps into memory."""

import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from debugnn.data.readers import Arrays, Reader
from debugnn.errors import first_line
from debugnn.files import digest

log = logging.getLogger(__name__)

HASHES = "sha256"  # the file beside the arrays with their hashes, in the arrays' order

# The readers that import torchvision, by module and name, and the folders below data.root that they
# read. They are named here and not imported, because a run that finds its data needs neither.
_FOLDERS = {
    ("debugnn.data.archives", "mnist"): "MNIST/raw",
    ("debugnn.data.archives", "cifar10"): "cifar-10-batches-py",
}


def decoded(reader: Reader, name: str, root: str, cache: str, download: bool) -> Arrays:
    """Return the arrays of a reader, from the cache if it holds them.

    A cached copy is used only if it was made by the same reader, with the same arguments, from
    the same files, and is as it was written: a damaged one is made anew. If the cache cannot be
    written, the arrays are decoded and not cached.

    Args:
        reader: returns four arrays for `root` and `download`; a function, or a partial of one.
        name: the data set's name, for messages and for the name of its folder in the cache.
        root: the folder that holds the data set's files.
        cache: the folder of the cache.
        download: whether the reader may download missing files.

    Returns:
        Memory-mapped arrays; a write to them stays in memory (copy on write).

    Raises:
        ConfigError: the files are missing or damaged.
    """
    folder = folder_of(reader, name, root, cache)
    if damage := damage_of(folder):
        if folder.is_dir():
            log.warning("data.cache: %s is damaged (%s): made anew", folder, damage)
            shutil.rmtree(folder, ignore_errors=True)  # where it stays, writing fails
        from debugnn.data.decoding import decode  # most runs find their data in the cache

        arrays = decode(reader, name, root, cache, download)
        if arrays is not None:
            return arrays
        folder = folder_of(reader, name, root, cache)  # its name depends on the files
    return Arrays(*(_memory_map(folder / f"{part}.npy") for part in Arrays._fields))


_whole: set[tuple] = set()  # the folders that this process has checked, with the files' times


def damage_of(folder: Path) -> str | None:
    """Return what is wrong with a folder of the cache, None if it is as it was written.

    It is read once a process, at about 1 GB a second.
    """
    paths = [folder / f"{part}.npy" for part in Arrays._fields]
    try:
        state = [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
        mark = (folder.absolute(), *state)
        hashes = (folder / HASHES).read_text(encoding="utf-8", errors="replace").split()
        if mark not in _whole:
            for path, written in zip(paths, hashes, strict=True):
                if digest(path) != written:
                    return f"{path.name} has changed"
            _whole.add(mark)
    except (OSError, ValueError) as error:
        return first_line(error)
    return None


def _memory_map(path: Path) -> np.ndarray:
    """Map a .npy file into memory, and ask the kernel to read it ahead."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return np.load(path, mmap_mode="c")  # copy on write: torch warns about read-only arrays


def folder_of(reader: Reader, name: str, root: str, cache: str) -> Path:
    """Return the path of the folder that holds the reader's arrays, or will."""
    return Path(cache) / f"{name}-{_fingerprint(reader, root)}"


def _fingerprint(reader: Reader, root: str) -> str:
    """Hash the source code of the reader's module and the sizes and times of the files it reads."""
    function, positional, keywords = parts_of(reader)
    module = None if inspect.isbuiltin(function) else inspect.getsourcefile(function)
    code = Path(module).read_bytes() if module else b""
    marks: list = [
        function.__qualname__, repr((positional, keywords)), hashlib.sha256(code).hexdigest(),
    ]  # fmt: skip
    if folder := files_of(function):
        for path in sorted((Path(root) / folder).glob("*")):
            status = path.stat()
            marks.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12]


def parts_of(reader: Reader) -> tuple[Callable, tuple, dict]:
    """Split a reader, which a configuration gives as a partial, into function and arguments."""
    arguments = getattr(reader, "args", ()), getattr(reader, "keywords", {})
    return getattr(reader, "func", reader), *arguments


def files_of(function: Callable) -> str | None:
    """Return the folder below data.root whose files torchvision reads; None for other readers."""
    return _FOLDERS.get((function.__module__, function.__qualname__))
