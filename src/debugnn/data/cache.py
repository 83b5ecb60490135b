"""The cache of decoded arrays: .npy files that every later run maps into memory."""

import hashlib
import inspect
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from debugnn.data.readers import Arrays, Reader, cifar10, mnist
from debugnn.errors import ConfigError, first_line

log = logging.getLogger(__name__)

REFUSED = 3  # the exit code of debugnn.data.decode after a ConfigError

# The readers that import torchvision, and the folders below data.root that they read.
_TORCHVISION = {mnist: "MNIST/raw", cifar10: "cifar-10-batches-py"}


def decoded(reader: Reader, name: str, root: str, cache: str, download: bool) -> Arrays:
    """Return the arrays of a reader, from the cache if it holds them.

    A cached copy is used only if it was made by the same reader, with the same arguments, from
    the same files. If the cache cannot be written, the arrays are decoded and not cached.

    Args:
        reader: returns four arrays for `root` and `download`; a function, or a partial of one.
        name: the data set's name, for messages and for the name of its folder in the cache.
        root: the folder that holds the data set's files.
        cache: the folder of the cache.
        download: whether the reader may download missing files.

    Returns:
        Memory-mapped arrays; a write to them stays in memory (copy on write).

    Raises:
        ConfigError: the files are missing or damaged, or the cached arrays are.
    """
    folder = _folder(reader, name, root, cache)
    if not folder.is_dir():
        log.info("data=%s: decoding once, into %s", name, cache)
        _fill_in_subprocess(reader, name, root, cache, download)
        folder = _folder(reader, name, root, cache)  # its name depends on the files
    if not folder.is_dir():
        arrays = read(reader, name, root, download)
        try:
            folder = write(arrays, reader, name, root, cache)
        except OSError as error:
            log.warning("data.cache=%s cannot be written (%s): decoding anew", cache, error)
            return arrays
    try:
        return Arrays(*(_memory_map(folder / f"{part}.npy") for part in Arrays._fields))
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"data.cache: {folder} is damaged ({first_line(error)}); delete it: it is made anew"
        ) from None


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
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        # A folder inside, because the temporary one can be read by its owner alone.
        draft = Path(scratch) / folder.name
        draft.mkdir()
        for part, array in arrays._asdict().items():
            np.save(draft / f"{part}.npy", array)
        try:
            draft.rename(folder)  # atomic: another process sees the complete folder or none
        except OSError:
            if not folder.is_dir():  # otherwise another process has written the same arrays
                raise
    return folder


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
