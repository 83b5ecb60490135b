"""The cache of decoded arrays: .npy files, memory-mapped by every run after the first."""

import hashlib
import inspect
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from debugnn.data.readers import Arrays, cifar10, mnist
from debugnn.errors import ConfigError, first_line

log = logging.getLogger(__name__)


def decoded(
    reader: Callable[..., Arrays], name: str, root: str, cache: str, download: bool
) -> Arrays:
    """What `reader` returns, from the cache where the source files are those it was made from.

    Returns memory-mapped arrays, copied on write. A cache that cannot be written is done without.
    """
    folder = _folder(reader, name, root, cache)
    if not folder.is_dir():
        log.info("data=%s: decoding once, into %s", name, cache)
        _decode_apart(reader, name, root, cache, download)
        folder = _folder(reader, name, root, cache)  # named after the files that it read
    if not folder.is_dir():
        arrays = _read(reader, name, root, download)
        folder = _folder(reader, name, root, cache)  # again: they may have been downloaded
        try:
            _write(folder, arrays)
        except OSError as error:
            log.warning("data.cache=%s cannot be written (%s): decoding anew", cache, error)
            return arrays
    try:
        return Arrays(*(_mapped(folder / f"{part}.npy") for part in Arrays._fields))
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"data.cache: {folder} is damaged ({first_line(error)}); delete it: it is made anew"
        ) from None


# What it prints goes to stderr: its standard output is the answer.
_CHILD = """
import logging, os, pickle, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
sys.path[:] = pickle.load(sys.stdin.buffer)
logging.basicConfig(level=logging.INFO, format="%(message)s")
from debugnn.data import cache as data
reader, name, root, cache, download = pickle.load(sys.stdin.buffer)
refusal = None
try:
    arrays = data._read(reader, name, root, download)
    data._write(data._folder(reader, name, root, cache), arrays)
except data.ConfigError as error:
    refusal = error
except OSError:
    sys.exit(1)
pickle.dump(refusal, answer)
"""


def _decode_apart(reader: Callable, name: str, root: str, cache: str, download: bool) -> None:
    """Let a process of its own fill the cache, where the reader is one of torchvision's.

    torchvision imports torch.compile's front end: 110 MB that the training would carry along. The
    process takes them with it; while it decodes, the two hold 340 MB more than one would. Where
    there can be no such process, or no cache, nothing is done.

    Raises:
        ConfigError: as the reader's own.
    """
    if _function(reader) not in (mnist, cifar10) or "torchvision" in sys.modules:
        return
    above = Path(cache).absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        return
    try:
        request = pickle.dumps(sys.path) + pickle.dumps((reader, name, root, cache, download))
        child = subprocess.run(
            [sys.executable, "-c", _CHILD], input=request, stdout=subprocess.PIPE, check=True
        )
        refusal = pickle.loads(child.stdout)
    except (OSError, subprocess.CalledProcessError, pickle.PickleError, EOFError) as error:
        log.debug("data=%s: not decoded apart: %s", name, error)
        return
    if refusal is not None:
        raise refusal


def _read(reader: Callable, name: str, root: str, download: bool) -> Arrays:
    arrays = reader(root=root, download=download)
    if not isinstance(arrays, tuple) or len(arrays) != len(Arrays._fields):
        raise ConfigError(f"data.reader: data={name} is read by a function without four arrays")
    return Arrays(*arrays)


def _mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, read by the kernel as it is used, and in advance as it can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return np.load(path, mmap_mode="c")  # torch takes no read-only array


def _write(folder: Path, arrays: Arrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        draft = Path(scratch) / folder.name  # inside, for its permissions are the user's own
        draft.mkdir()
        for part, array in arrays._asdict().items():
            np.save(draft / f"{part}.npy", array)
        try:
            draft.rename(folder)  # atomic: a reader sees the whole folder or none
        except OSError:
            if not folder.is_dir():  # unless another process was first
                raise


def _folder(reader: Callable, name: str, root: str, cache: str) -> Path:
    return Path(cache) / f"{name}-{_fingerprint(reader, root)}"


def _fingerprint(reader: Callable, root: str) -> str:
    """A hash of the reader's module and of its source files' sizes and times."""
    function = _function(reader)
    code = Path(inspect.getsourcefile(function)).read_bytes()
    arguments = repr((getattr(reader, "args", ()), getattr(reader, "keywords", {})))
    marks: list = [function.__qualname__, arguments, hashlib.sha256(code).hexdigest()]
    for folder in _SOURCES.get(function.__name__, ()):
        for path in sorted((Path(root) / folder).glob("*")):
            status = path.stat()
            marks.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:12]


def _function(reader: Callable) -> Callable:
    return getattr(reader, "func", reader)  # a configured reader comes as a partial


_SOURCES = {"mnist": ("MNIST/raw",), "cifar10": ("cifar-10-batches-py",)}
