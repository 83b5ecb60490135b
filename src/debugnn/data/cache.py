"""The cache of decoded arrays: .npy files that every later run maps into memory."""

import hashlib
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from debugnn.data.readers import Arrays, Reader, cifar10, mnist
from debugnn.errors import ConfigError, first_line

log = logging.getLogger(__name__)

REFUSED = 3  # the exit code of debugnn.data.decode after a ConfigError

_HASHES = "sha256"  # the file beside the arrays with their hashes, in the arrays' order

# Temporary folders, and the file in each that is locked as long as it is in use.
_DRAFT, _LOCK = ".draft-", ".lock"

# The readers that import torchvision, and the folders below data.root that they read.
_TORCHVISION = {mnist: "MNIST/raw", cifar10: "cifar-10-batches-py"}


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
    _clear_drafts(Path(cache))
    folder = _folder(reader, name, root, cache)
    if folder.is_dir() and (damage := _damage(folder)):
        log.warning("data.cache: %s is damaged (%s): made anew", folder, damage)
        shutil.rmtree(folder, ignore_errors=True)  # where it stays, writing fails
    if not folder.is_dir():
        log.info("data=%s: decoding once, into %s", name, cache)
        _fill_in_subprocess(reader, name, root, cache, download)
        folder = _folder(reader, name, root, cache)  # its name depends on the files
    if not folder.is_dir() or _damage(folder):
        arrays = read(reader, name, root, download)
        try:
            folder = write(arrays, reader, name, root, cache)
        except OSError as error:
            log.warning("data.cache=%s cannot be written (%s): decoding anew", cache, error)
            return arrays
    return Arrays(*(_memory_map(folder / f"{part}.npy") for part in Arrays._fields))


_whole: set[tuple] = set()  # the folders that this process has checked, with the files' times


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a folder of the cache, None if it is as it was written.

    It is read once a process, at about 1 GB a second.
    """
    paths = [folder / f"{part}.npy" for part in Arrays._fields]
    try:
        state = [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
        mark = (folder.absolute(), *state)
        hashes = (folder / _HASHES).read_text(encoding="utf-8", errors="replace").split()
        if mark not in _whole:
            for path, written in zip(paths, hashes, strict=True):
                if _digest(path) != written:
                    return f"{path.name} has changed"
            _whole.add(mark)
    except (OSError, ValueError) as error:
        return first_line(error)
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill_in_subprocess(reader: Reader, name: str, root: str, cache: str, download: bool) -> None:
    """Fill the cache in a subprocess, if the reader is one that imports torchvision.

    Saves 110 MB for the rest of the training: torchvision imports torch.compile's front end,
    whose memory ends with the subprocess. During the decoding, the two processes together hold
    340 MB more than one would. If the subprocess cannot be started, or cannot write the cache,
    nothing happens, and the caller decodes.

    Raises:
        ConfigError: what the reader raised.
    """
    function, *arguments = _parts(reader)
    if function not in _TORCHVISION or any(arguments) or "torchvision" in sys.modules:
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
    folder = _folder(reader, name, root, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder.parent) as scratch:
        # A folder inside, because the temporary one can be read by its owner alone.
        draft = scratch / folder.name
        draft.mkdir()
        for part, array in arrays._asdict().items():
            np.save(draft / f"{part}.npy", array)
        hashes = [_digest(draft / f"{part}.npy") for part in Arrays._fields]
        (draft / _HASHES).write_text("".join(f"{digest}\n" for digest in hashes))
        try:
            draft.rename(folder)  # atomic: another process sees the complete folder or none
        except OSError:
            if not folder.is_dir() or _damage(folder):
                raise
            # Otherwise another process has written the same arrays.
    return folder


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """Yield a temporary folder in the cache, locked as long as this process uses it."""
    with ExitStack() as opened:
        while True:
            scratch = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=cache))
            opened.callback(shutil.rmtree, scratch, ignore_errors=True)
            try:
                opened.enter_context(FileLock(scratch / _LOCK, blocking=False))
                break
            except (Timeout, FileNotFoundError):
                continue  # another process took it for one that was left behind
        yield scratch


def _clear_drafts(cache: Path) -> None:
    """Remove the temporary folders of processes that were killed."""
    for scratch in cache.glob(f"{_DRAFT}*"):
        lock = FileLock(scratch / _LOCK)
        with suppress(OSError, Timeout):  # of a cache that cannot be written, or one in use
            lock.acquire(blocking=False)
            lock.release()
            shutil.rmtree(scratch, ignore_errors=True)


def _memory_map(path: Path) -> np.ndarray:
    """Map a .npy file into memory, and ask the kernel to read it ahead."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return np.load(path, mmap_mode="c")  # copy on write: torch warns about read-only arrays


def _folder(reader: Reader, name: str, root: str, cache: str) -> Path:
    return Path(cache) / f"{name}-{_fingerprint(reader, root)}"


def _fingerprint(reader: Reader, root: str) -> str:
    """Hash the source code of the reader's module and the sizes and times of the files it reads."""
    function, positional, keywords = _parts(reader)
    module = None if inspect.isbuiltin(function) else inspect.getsourcefile(function)
    code = Path(module).read_bytes() if module else b""
    marks: list = [
        function.__qualname__, repr((positional, keywords)), hashlib.sha256(code).hexdigest(),
    ]  # fmt: skip
    if function in _TORCHVISION:
        for path in sorted((Path(root) / _TORCHVISION[function]).glob("*")):
            status = path.stat()
            marks.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12]


def _parts(reader: Reader) -> tuple[Callable, tuple, dict]:
    """Split a reader, which a configuration gives as a partial, into function and arguments."""
    arguments = getattr(reader, "args", ()), getattr(reader, "keywords", {})
    return getattr(reader, "func", reader), *arguments
