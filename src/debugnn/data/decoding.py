"""Decoding a data set into the cache, in a subprocess or in this process."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from debugnn.data.cache import HASHES, damage_of, files_of, folder_of, parts_of
from debugnn.data.readers import Arrays, Reader
from debugnn.errors import ConfigError
from debugnn.files import digest

log = logging.getLogger(__name__)

REFUSED = 3  # the exit code of debugnn.data.decode after a ConfigError

# Temporary folders, and the file in each that is locked as long as it is in use.
_DRAFT, _LOCK = ".draft-", ".lock"


def decode(reader: Reader, name: str, root: str, cache: str, download: bool) -> Arrays | None:
    """Write what the reader returns into the cache; return it if that is not possible.

    The arguments are those of `cache.decoded`.

    Raises:
        ConfigError: the files are missing or damaged.
    """
    log.info("data=%s: decoding once, into %s", name, cache)
    _clear_drafts(Path(cache))
    _fill_in_subprocess(reader, name, root, cache, download)
    if damage_of(folder_of(reader, name, root, cache)) is None:
        return None
    arrays = read(reader, name, root, download)
    try:
        write(arrays, reader, name, root, cache)
    except OSError as error:
        log.warning("data.cache=%s cannot be written (%s): decoding anew", cache, error)
        return arrays
    return None


def _fill_in_subprocess(reader: Reader, name: str, root: str, cache: str, download: bool) -> None:
    """Fill the cache in a subprocess, if the reader is one that imports torchvision.

    Saves 110 MB for the rest of the training: torchvision imports torch.compile's front end,
    whose memory ends with the subprocess. During the decoding, the two processes together hold
    340 MB more than one would. If the subprocess cannot be started, or cannot write the cache,
    nothing happens, and the caller decodes.

    Raises:
        ConfigError: what the reader raised.
    """
    function, *arguments = parts_of(reader)
    if files_of(function) is None or any(arguments) or "torchvision" in sys.modules:
        return
    above = Path(cache).absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        return
    program = [sys.executable, "-P", "-m", "debugnn.data.decode"]
    command = [*program, function.__name__, name, root, cache]
    if download:
        command.append("--download")
    # This process may have found the package on a path that only it knows.
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        # Not subprocess.run, which after a Ctrl-C kills the child before it has cleaned up.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            answer, _ = child.communicate()
    except OSError as error:
        log.debug("data=%s: no subprocess to decode in: %s", name, error)
        return
    if child.returncode == REFUSED:
        raise ConfigError(answer)


def read(reader: Reader, name: str, root: str, download: bool) -> Arrays:
    """Return what the reader returns.

    Raises:
        ConfigError: the files are missing or damaged, or the reader does not return four arrays.
    """
    arrays = reader(root=root, download=download)
    if not isinstance(arrays, tuple) or len(arrays) != len(Arrays._fields):
        raise ConfigError(f"data.reader: data={name} is read by a function without four arrays")
    return Arrays(*arrays)


def write(arrays: Arrays, reader: Reader, name: str, root: str, cache: str) -> Path:
    """Write the arrays that the reader returned into the cache.

    Returns:
        The folder that holds them.

    Raises:
        OSError: the cache cannot be written.
    """
    folder = folder_of(reader, name, root, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder.parent) as scratch:
        # A folder inside, because the temporary one can be read by its owner alone.
        draft = scratch / folder.name
        draft.mkdir()
        for part, array in arrays._asdict().items():
            np.save(draft / f"{part}.npy", array)
        hashes = [digest(draft / f"{part}.npy") for part in Arrays._fields]
        (draft / HASHES).write_text("".join(f"{digest}\n" for digest in hashes))
        try:
            draft.rename(folder)  # atomic: another process sees the complete folder or none
        except OSError:
            if not folder.is_dir() or damage_of(folder):
                raise
            # Otherwise another process has written the same arrays.
    return folder


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """Yield a temporary folder in the cache, locked as long as this process uses it."""
    with (
        tempfile.TemporaryDirectory(prefix=_DRAFT, dir=cache, ignore_cleanup_errors=True) as path,
        FileLock(Path(path) / _LOCK),
    ):
        yield Path(path)


def _clear_drafts(cache: Path) -> None:
    """Remove the temporary folders of processes that were killed."""
    for scratch in cache.glob(f"{_DRAFT}*"):
        lock = FileLock(scratch / _LOCK)
        with suppress(OSError, Timeout):  # of a cache that cannot be written, or one in use
            lock.acquire(blocking=False)
            lock.release()
            shutil.rmtree(scratch, ignore_errors=True)
