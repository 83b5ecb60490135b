"""The readers, the cache of what they read, and the batches drawn from it."""

import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from debugnn.build import build_data
from debugnn.data import (
    Arrays,
    Data,
    assemble,
    dataset,
    decoded,
    digits,
    regression,
    shapes,
)
from debugnn.data.alterations import reshape_images, shift_randomly
from debugnn.data.archives import cifar10, mnist
from debugnn.errors import ConfigError

NAMES = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}  # fmt: skip


def counter(size: int) -> Data:
    """Return a data set whose samples are their own indices."""
    index = np.arange(size, dtype=np.float32)[:, None]
    return assemble(Arrays(index, index, index, index), name="index", seed=0, batch_size=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the readers of embedded data ---------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(compose):
    """Read the data set of a configuration as train.py does."""

    def read(*overrides: str, root: Path | None = None) -> Data:
        config = compose("data.download=false", *overrides)
        if root is not None:
            config.data.root = str(root)
        return build_data(config, config.data, torch.device("cpu"))

    return read


def test_digits_are_scikit_learns_split_where_the_writers_change(prepared):
    from sklearn.datasets import load_digits

    arrays = decoded(digits, "digits", "", str(prepared), False)
    assert arrays.train_inputs.shape == (1440, 1, 28, 28)
    assert arrays.test_inputs.shape == (357, 1, 28, 28)
    assert arrays.train_inputs.dtype == arrays.test_inputs.dtype == np.uint8
    assert arrays.train_targets.dtype == arrays.test_targets.dtype == np.int64
    original = load_digits()
    labels = np.concatenate([arrays.train_targets, arrays.test_targets])
    assert np.array_equal(labels, original.target)


def test_digits_are_enlarged_bicubically_within_a_frame(prepared):
    from sklearn.datasets import load_digits

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    # The weight of each of the 8 old pixels in each of the 20 new ones, with repeated edges.
    weights = np.zeros((20, 8))
    for new in range(20):
        centre = (new + 0.5) * 8 / 20 - 0.5
        for old in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[new, min(max(old, 0), 7)] += kernel(centre - old)
    arrays = decoded(digits, "digits", "", str(prepared), False)
    images = np.concatenate([arrays.train_inputs, arrays.test_inputs])[:, 0].astype(float)
    expected = 255 * np.clip(weights @ (load_digits().images / 16) @ weights.T, 0, 1)
    assert np.abs(images[:, 4:24, 4:24] - expected).max() <= 0.5 + 1e-3  # rounding to integers
    images[:, 4:24, 4:24] = 0
    assert not images.any()  # the frame


@pytest.mark.slow
def test_shapes_are_balanced_colour_images(prepared):
    arrays = decoded(shapes.read, "shapes", "", str(prepared), False)
    assert arrays.train_inputs.shape == (4000, 3, 32, 32)
    assert arrays.test_inputs.shape == (1000, 3, 32, 32)
    assert arrays.train_inputs.dtype == arrays.test_inputs.dtype == np.uint8
    assert np.array_equal(np.bincount(arrays.train_targets), [400] * 10)
    assert np.array_equal(np.bincount(arrays.test_targets), [100] * 10)
    train = {image.tobytes() for image in arrays.train_inputs}
    assert len(train) == 4000
    assert train.isdisjoint(image.tobytes() for image in arrays.test_inputs)


def test_the_regression_is_the_articles():
    from sklearn.datasets import make_regression

    inputs, targets = make_regression(n_samples=1000, n_features=20, noise=0.1, random_state=1)
    arrays = regression("", False)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert np.array_equal(arrays.train_inputs, inputs[:500].astype(np.float32))
    assert np.array_equal(arrays.test_inputs, inputs[500:].astype(np.float32))
    assert np.array_equal(arrays.train_targets, targets[:500, None].astype(np.float32))
    assert np.array_equal(arrays.test_targets, targets[500:, None].astype(np.float32))


def test_every_data_set_is_what_its_network_is_built_for(embedded, compose, each_data, request):
    needs_files = each_data in {"mnist", "cifar10"}
    root = request.getfixturevalue("real_data") if needs_files else None
    data = embedded(f"data={each_data}", root=root)
    batch_size = compose(f"data={each_data}").data.batch_size
    inputs, targets = next(data.train_batches(batch_size, generator(0)))
    assert inputs.shape == (batch_size, *data.input_shape)
    assert inputs.dtype == torch.float32
    if data.classes is None:
        assert targets.shape == (batch_size, data.outputs)
        assert targets.dtype == torch.float32
    else:
        assert targets.shape == (batch_size,)
        assert targets.dtype == torch.int64
        assert data.outputs == data.classes
        assert set(data.train.targets.tolist()) == set(range(data.classes))
    assert sum(len(batch) for batch, _ in data.test_batches(999)) == len(data.test)


# --- the readers of real files ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "moments"),
    [
        ("mnist", (1, 28, 28), ([0.1307], [0.3081])),
        pytest.param(
            "cifar10", (3, 32, 32), ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]), marks=pytest.mark.slow
        ),
    ],
)
def test_real_images_are_torchvisions(embedded, real_data, name, shape, moments):
    from torchvision import datasets, transforms

    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    data = embedded(f"data={name}", root=real_data)
    assert data.train.inputs.dtype == data.test.inputs.dtype == torch.uint8
    as_tensor = transforms.ToTensor()
    normalise = transforms.Compose([as_tensor, transforms.Normalize(*moments)])
    for split, train in ((data.train, True), (data.test, False)):
        reference = kind(real_data, train=train, download=False)
        assert split.inputs.shape == (len(reference), *shape)
        assert torch.equal(split.targets, torch.as_tensor(reference.targets))
        for index in np.random.default_rng(0).choice(len(reference), 300, replace=False).tolist():
            image, label = reference[index]
            assert label == split.targets[index]
            pixels = split.inputs[index]
            assert torch.equal(pixels.float() / 255, as_tensor(image))
            torch.testing.assert_close(
                data.prepare(pixels[None])[0], normalise(image), rtol=0, atol=1e-6
            )


def idx(array: np.ndarray) -> bytes:
    """Return the array as an idx file, the format of MNIST."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fake_mnist(tmp_path, image_arrays):
    """Return a folder with MNIST's four files, and the few random images in them."""
    return write_mnist(tmp_path, image_arrays((1, 28, 28), train=12, test=10))


def write_mnist(folder: Path, arrays: Arrays) -> tuple[Path, Arrays]:
    raw = folder / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half, inputs, targets in (
        ("train", arrays.train_inputs, arrays.train_targets),
        ("t10k", arrays.test_inputs, arrays.test_targets),
    ):
        (raw / f"{half}-images-idx3-ubyte").write_bytes(idx(inputs[:, 0]))
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(idx(targets))
    assert {path.name for path in raw.iterdir()} == NAMES
    return raw, arrays


def read_mnist(raw: Path, download: bool = False) -> Arrays:
    return mnist(str(raw.parent.parent), download)


def refused(read, *named: str) -> None:
    """Assert that `read()` raises a ConfigError of one line with the given words."""
    with pytest.raises(ConfigError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    for word in named:
        assert word in message


def test_the_mnist_reader_takes_any_number_of_images(fake_mnist):
    raw, arrays = fake_mnist
    for got, wanted in zip(read_mnist(raw), arrays, strict=True):
        assert np.array_equal(got, wanted)
        assert got.dtype == wanted.dtype


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.injects("a damaged data file")
def test_a_missing_or_renamed_mnist_file_is_refused(fake_mnist, name):
    raw, _ = fake_mnist
    (raw / name).rename(raw / name.replace("-idx", ".idx"))  # as other sites distribute it
    refused(lambda: read_mnist(raw), "data=mnist", str(raw), "prepare_data.py mnist")
    (raw / name.replace("-idx", ".idx")).unlink()
    refused(lambda: read_mnist(raw), "data=mnist", str(raw), "data=digits")


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.injects("a damaged data file")
def test_an_mnist_file_cut_off_anywhere_is_refused(fake_mnist, name):
    raw, _ = fake_mnist
    whole = (raw / name).read_bytes()
    sizes = {*range(0, 20, 3), 16, len(whole) // 2, len(whole) - 1}
    for size in sorted(sizes & set(range(len(whole)))):
        (raw / name).write_bytes(whole[:size])
        refused(lambda: read_mnist(raw), "data=mnist", str(raw.parent.parent))


@pytest.mark.parametrize("position", range(16))
@pytest.mark.injects("a damaged data file")
def test_a_wrong_byte_in_an_mnist_header_is_refused(fake_mnist, position):
    raw, _ = fake_mnist
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    for value in {0, 1, 2, 4, 9, 10, 13, 14, 128, 255} - {whole[position]}:
        path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
        refused(lambda: read_mnist(raw), "data=mnist", str(raw.parent.parent))


def damage_swapped(raw: Path) -> None:
    (raw / "train-images-idx3-ubyte").rename(raw / "x")
    (raw / "train-labels-idx1-ubyte").rename(raw / "train-images-idx3-ubyte")
    (raw / "x").rename(raw / "train-labels-idx1-ubyte")


def damage_size(raw: Path) -> None:
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((10, 20, 20))))


def damage_count(raw: Path) -> None:
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(9)))


def damage_none_left(raw: Path) -> None:
    (raw / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 28, 28))))
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(0)))


def damage_page(raw: Path) -> None:
    (raw / "train-images-idx3-ubyte").write_text("<html>404 Not Found</html>")


def damage_label(raw: Path) -> None:
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.array([200] * 12)))


@pytest.mark.parametrize(
    "damage",
    [damage_swapped, damage_size, damage_count, damage_none_left, damage_page, damage_label],
)
@pytest.mark.injects("a damaged data file")
def test_mnist_files_that_are_not_mnists_are_refused(fake_mnist, damage):
    raw, _ = fake_mnist
    damage(raw)
    refused(lambda: read_mnist(raw), "data=mnist", str(raw.parent.parent))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.injects("no data files")
def test_missing_files_are_named_with_what_to_do(tmp_path, compose, name):
    config = compose(f"data={name}", "data.download=false")
    config.data.root = str(tmp_path / "nothing here")
    folder = {"mnist": "nothing here/MNIST/raw", "cifar10": "nothing here/cifar-10-batches-py"}
    refused(
        lambda: build_data(config, config.data, torch.device("cpu")),
        f"data={name}: the files are missing", str(tmp_path / folder[name]),
        "DEBUGNN_DATA", f"prepare_data.py {name}", "data=digits", "data=shapes",
    )  # fmt: skip


BATCHES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})],
    ids=["empty", "cut off", "other images"],
)
@pytest.mark.parametrize("files", [BATCHES, BATCHES[:3]], ids=["all", "some"])
def test_cifar_files_that_are_not_cifars_are_refused_and_kept(tmp_path, content, files):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(content)
    # Existing files are never overwritten, even if downloading is allowed.
    for download in (False, True):
        refused(
            lambda download=download: cifar10(str(tmp_path), download),
            "data=cifar10: the files are damaged", str(folder), "prepare_data.py cifar10",
        )  # fmt: skip
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict.fromkeys(
        files, content
    )


# --- the cache ----------------------------------------------------------------------------------


def cached_mnist(raw: Path, cache: Path) -> Arrays:
    return decoded(mnist, "mnist", str(raw.parent.parent), str(cache), False)


def test_a_second_call_reads_the_arrays_from_the_cache(fake_mnist, tmp_path):
    raw, arrays = fake_mnist
    cache = tmp_path / "cache"
    cached_mnist(raw, cache)
    (folder,) = cache.iterdir()
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for got, wanted in zip(cached_mnist(raw, cache), arrays, strict=True):
        assert isinstance(got, np.memmap)
        assert Path(got.filename).parent == folder
        assert np.array_equal(got, wanted)
        assert got.dtype == wanted.dtype
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert list(cache.iterdir()) == [folder]


def test_a_cached_set_is_streamed_from_its_file_and_gives_the_same_batches(fake_mnist, tmp_path):
    raw, arrays = fake_mnist
    cached = cached_mnist(raw, tmp_path / "cache")
    settings = {"name": "mnist", "seed": 0, "batch_size": 2, "mean": [0.1], "std": [0.3]}
    streamed, copied = assemble(cached, **settings), assemble(arrays, **settings)
    assert streamed.train.inputs.data_ptr() == cached.train_inputs.ctypes.data
    assert copied.train.inputs.data_ptr() != arrays.train_inputs.ctypes.data
    drawn = [
        [*data.train_batches(2, torch.Generator().manual_seed(0)), *data.test_batches(2)]
        for data in (streamed, copied)
    ]
    for (inputs, targets), (wanted, wanted_targets) in zip(*drawn, strict=True):
        assert torch.equal(inputs, wanted)
        assert torch.equal(targets, wanted_targets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_preparing_a_batch_leaves_the_stored_images_alone(image_data, dtype):
    data = image_data(mean=[0.4], std=[0.2])
    stored = data.train.inputs.to(dtype)
    before = stored.clone()
    prepared = data.prepare(stored)
    assert torch.equal(stored, before)
    assert torch.equal(prepared, (before.float() / 255 - data.mean) / data.std)


def test_a_large_sets_moments_are_those_of_its_float_copy(image_arrays, monkeypatch):
    images = torch.from_numpy(image_arrays((3, 9, 7), train=5000).train_inputs)
    mean, std = dataset._moments(images)
    monkeypatch.setattr(dataset, "_MAX_FLOAT_COPY", 1000)
    counted_mean, counted_std = dataset._moments(images)
    assert counted_mean == pytest.approx(mean, rel=1e-5)
    assert counted_std == pytest.approx(std, rel=1e-5)


def test_a_source_file_of_another_time_or_size_is_decoded_anew(fake_mnist, tmp_path):
    raw, arrays = fake_mnist
    cache = tmp_path / "cache"
    cached_mnist(raw, cache)
    path = raw / "train-labels-idx1-ubyte"
    status = path.stat()

    path.write_bytes(idx(arrays.train_targets[::-1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    second = cached_mnist(raw, cache)
    assert np.array_equal(second.train_targets, arrays.train_targets[::-1])
    assert len(list(cache.iterdir())) == 2

    path.write_bytes(idx(arrays.train_targets[:4]))
    (raw / "train-images-idx3-ubyte").write_bytes(idx(arrays.train_inputs[:4, 0]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert np.array_equal(cached_mnist(raw, cache).train_targets, arrays.train_targets[:4])
    assert len(list(cache.iterdir())) == 3


def test_another_reader_has_another_cache(tmp_path):
    first = decoded(regression, "a", str(tmp_path), str(tmp_path / "cache"), False)
    other = decoded(halved, "a", str(tmp_path), str(tmp_path / "cache"), False)
    assert np.array_equal(other.train_inputs, first.train_inputs / 2)


def halved(root: str, download: bool) -> Arrays:
    return Arrays(*(array / 2 for array in regression(root, download)))


def test_a_configured_reader_is_cached_too(tmp_path):
    reader = partial(halved)
    for _ in range(2):
        arrays = decoded(reader, "halved", "", str(tmp_path), False)
        assert np.array_equal(arrays.test_inputs, regression("", False).test_inputs / 2)
    assert len(list(tmp_path.iterdir())) == 1


def scaled(root: str, download: bool, factor: float) -> Arrays:
    return Arrays(*(array * np.float32(factor) for array in regression(root, download)))


def test_other_arguments_of_a_reader_have_another_cache(tmp_path):
    for factor in (2, 4):
        arrays = decoded(partial(scaled, factor=factor), "scaled", "", str(tmp_path), False)
        assert np.array_equal(arrays.train_inputs, factor * regression("", False).train_inputs)


def test_without_a_writable_cache_the_reader_is_called(fake_mnist, tmp_path, caplog):
    raw, arrays = fake_mnist
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for got, wanted in zip(cached_mnist(raw, blocked / "cache"), arrays, strict=True):
        assert np.array_equal(got, wanted)
    assert f"data.cache={blocked / 'cache'} cannot be written" in caplog.text
    assert blocked.read_text() == "in the way"


# Without `if __name__ == "__main__"`: a subprocess that ran the caller's script again would never
# end.
DECODE = """
import multiprocessing, sys
import numpy as np
from debugnn.data import decoded
from debugnn.data.archives import mnist
from debugnn.errors import ConfigError

def decode(root, cache, output=None):
    try:
        arrays = decoded(mnist, "mnist", root, cache, False)
    except ConfigError as error:
        print(error)
        return
    if output:
        np.save(output, arrays.train_inputs)
    print("torchvision" in sys.modules)

root, *rest = sys.argv[1:]
decode(root, "cache", "cached.npy")
if rest:
    decode(rest[0], "cache of damaged files")
    sys.stdout.flush()  # or the daemon prints these lines again
    daemon = multiprocessing.get_context("fork").Process(
        target=decode, args=(root, "cache of a daemon"), daemon=True
    )
    daemon.start()
    daemon.join()
    decode(root, "file/cache", "not_cached.npy")
"""


@pytest.fixture(scope="module")
def decoding(tmp_path_factory, image_arrays) -> tuple[subprocess.CompletedProcess, Path, Arrays]:
    """What a process said that decoded several times, its folder, and the arrays of its files."""
    folder = tmp_path_factory.mktemp("decoding")
    raw, arrays = write_mnist(folder, image_arrays((1, 28, 28), train=12, test=10))
    damaged = shutil.copytree(raw.parent.parent, folder / "damaged")
    (damaged / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"cut off")
    (folder / "file").write_text("in the way")
    (folder / "decode.py").write_text(DECODE)
    ended = subprocess.run(
        [sys.executable, "decode.py", str(raw.parent.parent), str(damaged)],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 4
    return ended, folder, arrays


@pytest.mark.slow
def test_a_process_that_decodes_does_not_carry_torchvision_along(decoding):
    ended, folder, arrays = decoding
    assert ended.stdout.splitlines()[0] == "False"
    assert np.array_equal(np.load(folder / "cached.npy"), arrays.train_inputs)
    assert len(list((folder / "cache").iterdir())) == 1


@pytest.mark.slow
def test_an_error_of_the_subprocess_is_raised_in_the_same_words(decoding):
    ended, folder, _ = decoding
    with pytest.raises(ConfigError) as caught:
        mnist(str(folder / "damaged"), False)  # in this process
    assert ended.stdout.splitlines()[1] == str(caught.value)
    assert not (folder / "cache of damaged files").exists()


@pytest.mark.slow
def test_where_the_subprocess_cannot_write_this_process_decodes(decoding):
    ended, folder, arrays = decoding
    assert ended.stdout.splitlines()[3] == "True"  # torchvision was imported here
    (line,) = ended.stderr.splitlines()
    assert "cannot be written" in line
    assert np.array_equal(np.load(folder / "not_cached.npy"), arrays.train_inputs)


@pytest.mark.slow
def test_a_process_that_may_have_no_workers_decodes_too(decoding):
    ended, folder, _ = decoding
    assert ended.stdout.splitlines()[2] == "False"
    assert len(list((folder / "cache of a daemon").iterdir())) == 1


@pytest.mark.slow
def test_an_interrupted_decoding_leaves_nothing_behind(real_data, tmp_path):
    (tmp_path / "decode.py").write_text(DECODE)
    started = subprocess.Popen(
        [sys.executable, "decode.py", str(real_data)], cwd=tmp_path, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    drafts = tmp_path / "cache"
    while not list(drafts.glob(".draft-*")) and started.poll() is None:
        time.sleep(0.001)  # leaves the processor to what is waited for
    os.killpg(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert said.count("Traceback") <= 1  # the parent's own
    assert list(drafts.glob(".draft-*")) == []


@pytest.mark.injects("a second process on a data cache")
def test_of_two_that_decode_at_once_the_second_leaves_nothing_behind(tmp_path):
    calls = []

    def reader(root: str, download: bool) -> Arrays:
        calls.append(root)
        if len(calls) == 1:  # during this call, another one decodes and finishes first
            decoded(reader, "raced", root, str(tmp_path), download)
        return regression(root, download)

    arrays = decoded(reader, "raced", "", str(tmp_path), False)
    assert len(calls) == 2
    assert np.array_equal(arrays.train_inputs, regression("", False).train_inputs)
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["raced"]


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["train_inputs.npy", "test_targets.npy"])
@pytest.mark.injects("a damaged data cache")
def test_a_damaged_cache_is_made_anew(tmp_path, caplog, name, damage):
    arrays = decoded(regression, "regression", "", str(tmp_path), False)
    (folder,) = tmp_path.iterdir()
    os.utime(folder / name, (2**32, 2**32))  # a clock that was wrong changes nothing
    again = decoded(regression, "regression", "", str(tmp_path), False)
    assert "is damaged (" not in caplog.text
    assert np.array_equal(again.train_inputs, arrays.train_inputs)
    damage(folder / name)
    with caplog.at_level("INFO"):
        again = decoded(regression, "regression", "", str(tmp_path), False)
    assert caplog.text.count(f"data.cache: {folder} is damaged (") == 1
    for got, wanted in zip(again, regression("", False), strict=True):
        assert np.array_equal(got, wanted)
    caplog.clear()
    decoded(regression, "regression", "", str(tmp_path), False)
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == [folder]


KILLED = """
import os, sys
from debugnn.data import decoded, decoding, regression
decoding.np.save = lambda path, array: (print(path, flush=True), sys.stdin.read())
decoded(regression, "killed", "", sys.argv[1], False)
"""


@pytest.mark.injects("a kill")
@pytest.mark.slow
def test_what_a_killed_decoding_leaves_is_removed_at_the_next_start_and_not_before(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    draft = Path(process.stdout.readline()).parent.parent
    decoded(halved, "other", "", str(tmp_path), False)
    assert draft.is_dir()  # it may still be written
    process.kill()
    process.communicate()
    decoded(regression, "killed", "", str(tmp_path), False)
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"other", "killed"}


# --- batches ------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_an_epoch_visits_every_sample_once(size, batch_size, seed):
    data = counter(size)
    batches = list(data.train_batches(batch_size, generator(seed)))
    sizes = [len(inputs) for inputs, _ in batches]
    full, rest = divmod(size, batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0)
    assert data.steps_per_epoch(batch_size) == len(sizes)
    visited = [int(x) for inputs, _ in batches for x in inputs]
    assert sorted(visited) == list(range(size))
    assert all(torch.equal(inputs, targets) for inputs, targets in batches)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 12), st.integers(0, 2**31))
def test_a_limited_epoch_is_the_beginning_of_the_whole_one(size, batch_size, limit, seed):
    data = counter(size)
    whole = list(data.train_batches(batch_size, generator(seed)))
    limited = list(data.train_batches(batch_size, generator(seed), limit))
    assert len(limited) == min(limit, len(whole)) == data.steps_per_epoch(batch_size, limit)
    for (a, _), (b, _) in zip(limited, whole, strict=False):
        assert torch.equal(a, b)


def test_the_order_is_the_generators():
    data = counter(50)
    first, again, other = (
        torch.cat([inputs for inputs, _ in data.train_batches(8, generator(seed))])
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.sort(first, dim=0).values)


def test_drawing_batches_leaves_the_global_random_numbers_alone(image_data):
    data = image_data(augment_shift=2, labels="permuted")
    before = torch.get_rng_state()
    for _ in data.train_batches(8, generator(0)):
        pass
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 40), st.integers(1, 50))
def test_the_test_set_comes_whole_and_in_order(size, batch_size):
    batches = [inputs for inputs, _ in counter(size).test_batches(batch_size)]
    assert torch.equal(torch.cat(batches).flatten(), torch.arange(size).float())
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_permuted_labels_are_the_batchs_own_in_another_order(image_data):
    paired, permuted = image_data(), image_data(labels="permuted")
    moved = []
    for seed in range(3):
        batches = zip(
            paired.train_batches(16, generator(seed)), permuted.train_batches(16, generator(seed)),
            strict=True,
        )  # fmt: skip
        for (inputs, labels), (same_inputs, other_labels) in batches:
            assert torch.equal(inputs, same_inputs)
            assert Counter(labels.tolist()) == Counter(other_labels.tolist())
            moved.append((labels != other_labels).float().mean().item())
    assert min(moved) > 0.5
    for (_, labels), (_, same) in zip(
        paired.test_batches(8), permuted.test_batches(8), strict=True
    ):
        assert torch.equal(labels, same)


# --- augmentation -------------------------------------------------------------------------------


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7), st.integers(0, 4),
    st.integers(0, 1000),
)  # fmt: skip
def test_shifting_images_is_what_plain_loops_compute(batch, channels, height, width, most, seed):
    images = torch.rand(batch, channels, height, width, generator=generator(seed))
    offsets = torch.randint(0, 2 * most + 1, (2, batch), generator=generator(seed)) - most
    shifted = shift_randomly(images, most, generator(seed))
    assert shifted.shape == images.shape
    for sample in range(batch):
        down, right = offsets[:, sample].tolist()
        for y in range(height):
            for x in range(width):
                source_y = min(max(y + down, 0), height - 1)
                source_x = min(max(x + right, 0), width - 1)
                assert torch.equal(shifted[sample, :, y, x], images[sample, :, source_y, source_x])


def test_every_shift_within_the_bound_occurs():
    centre = torch.zeros(500, 1, 9, 9)
    centre[:, :, 4, 4] = 1
    shifted = shift_randomly(centre, 2, generator(0))
    places = {tuple(place[2:]) for place in shifted.nonzero().tolist()}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_training_images_are_shifted_anew_each_epoch_and_test_images_never(image_data):
    plain, shifting = image_data(), image_data(augment_shift=2)

    def one_epoch(data: Data, seed: int) -> torch.Tensor:
        return torch.cat([inputs for inputs, _ in data.train_batches(44, generator(seed))])

    first, second = one_epoch(shifting, 0), one_epoch(shifting, 1)
    back = [torch.randperm(44, generator=generator(seed)).argsort() for seed in (0, 1)]
    assert not torch.equal(first[back[0]], second[back[1]])
    assert torch.equal(one_epoch(plain, 0)[back[0]], one_epoch(plain, 1)[back[1]])
    for (a, _), (b, _) in zip(plain.test_batches(8), shifting.test_batches(8), strict=True):
        assert torch.equal(a, b)


# --- decisions about the data -------------------------------------------------------------------


@given(
    st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]),
    st.integers(0, 4), st.integers(0, 4), st.integers(0, 1000),
)  # fmt: skip
def test_reshaped_images_are_centred_on_black(channels, height, width, wanted, down, right, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, channels, height, width), np.uint8)
    shape = (wanted, height + down, width + right)
    got = reshape_images(torch.from_numpy(images), shape).numpy()
    expected = np.zeros((2, *shape), np.uint8)
    for sample in range(2):
        for channel in range(wanted):
            for y in range(height):
                for x in range(width):
                    if channels == wanted:
                        value = images[sample, channel, y, x]
                    else:
                        value = round(sum(images[sample, :, y, x].tolist()) / channels)
                    expected[sample, channel, y + down // 2, x + right // 2] = value
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


def test_images_larger_than_their_canvas_are_refused(image_data):
    for shape in ([1, 11, 12], [3, 12, 11]):
        with pytest.raises(ConfigError, match=r"data\.as_shape=.*smaller than the images"):
            image_data((1, 12, 12), as_shape=shape)


def test_as_shape_serves_both_halves_and_the_normalisation(image_data):
    data = image_data((1, 12, 12), as_shape=[3, 16, 14], mean=[0.25], std=[0.5])
    assert data.input_shape == (3, 16, 14)
    assert data.test.inputs.shape[1:] == (3, 16, 14)
    inputs, _ = next(data.test_batches(4))
    assert inputs.shape == (4, 3, 16, 14)
    assert (inputs[:, :, 0, 0] == -0.5).all()  # black
    grey = image_data((3, 12, 12), as_shape=[1, 12, 12], mean=[0.1, 0.2, 0.6], std=[0.5] * 3)
    torch.testing.assert_close(grey.mean, torch.full((1, 1, 1), 0.3))


@given(st.integers(2, 6), st.floats(0.01, 1), st.integers(0, 1000))
def test_imbalanced_classes_fall_off_exponentially(classes, imbalance, seed):
    assume(imbalance < 1)
    targets = np.random.default_rng(seed).permutation(np.arange(30 * classes) % classes)
    index = np.arange(len(targets), dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = assemble(
        Arrays(index, targets, index, targets), name="index", seed=seed, batch_size=1,
        imbalance=imbalance, scale="raw",
    )  # fmt: skip
    counts = Counter(data.train.targets.tolist())
    for label in range(classes):
        assert counts[label] == max(1, round(30 * imbalance ** (label / (classes - 1))))
    # Each sample at most once, in its order, and with its own label.
    kept = data.train.inputs.flatten().numpy()
    assert (np.diff(kept.astype(int)) > 0).all()
    assert np.array_equal(data.train.targets.numpy(), targets[kept])
    assert len(data.test) == len(targets)


def test_the_imbalanced_decision_keeps_2_percent_of_the_rarest(embedded):
    data = embedded("data=shapes", "decision=imbalanced")
    counts = np.bincount(data.train.targets)
    assert (counts[0], counts[9]) == (400, 8)
    assert (np.diff(counts) < 0).all()
    assert np.array_equal(np.bincount(data.test.targets), [100] * 10)


def test_a_smaller_training_set_is_a_subset_that_the_seed_chooses(image_data):
    subsets = {}
    whole = {image.numpy().tobytes(): int(t) for image, t in zip(*image_data().train, strict=True)}
    for seed in (0, 0, 1):
        data = image_data(train_size=20, seed=seed)
        chosen = [image.numpy().tobytes() for image in data.train.inputs]
        assert len(set(chosen)) == 20
        assert [whole[image] for image in chosen] == data.train.targets.tolist()
        assert len(data.test) == 23
        assert subsets.setdefault(seed, chosen) == chosen
    assert subsets[0] != subsets[1]


def test_pixels_are_normalised_by_the_training_images_own_moments_where_none_are_given(image_data):
    data = image_data((3, 12, 12), train_size=20)
    inputs, _ = next(data.train_batches(20, generator(0)))
    for channel in range(3):
        values = inputs[:, channel].double()
        assert values.mean().item() == pytest.approx(0, abs=1e-5)
        assert values.std().item() == pytest.approx(1, abs=1e-5)


def test_given_moments_normalise_by_channel(image_data):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    data = image_data((3, 12, 12), mean=mean, std=std)
    inputs, _ = next(data.test_batches(23))
    for channel in range(3):
        pixels = data.test.inputs[:, channel].double() / 255
        expected = (pixels - mean[channel]) / std[channel]
        torch.testing.assert_close(inputs[:, channel].double(), expected, rtol=0, atol=1e-6)


def test_unscaled_images_are_raw_pixels(image_data):
    data = image_data(scale="raw", mean=[0.5], std=[0.5])
    inputs, _ = next(data.test_batches(23))
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, data.test.inputs.float())
    assert inputs.max() > 250


def test_features_are_left_as_they_are():
    data = assemble(regression("", False), name="regression", seed=0, batch_size=32)
    inputs, targets = next(data.test_batches(500))
    assert torch.equal(inputs, torch.from_numpy(regression("", False).test_inputs))
    assert (data.classes, data.outputs, data.input_shape) == (None, 1, (20,))
    assert targets.shape == (500, 1)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"train_size": 45}, r"data\.train_size=45: allowed is at most 44"),
        ({"batch_size": 45}, r"data\.batch_size=45: allowed is at most 44"),
        ({"batch_size": 9, "train_size": 8}, r"data\.batch_size=9: allowed is at most 8"),
        ({"imbalance": 0.01, "train_size": 44}, r"data\.train_size=44: allowed is at most \d+"),
        ({"test_targets": "train"}, r"data\.test_targets=train: .*differ in size"),
        ({"as_shape": [20, 20]}, r"data\.as_shape=\[20, 20\]"),
        ({"as_shape": []}, r"data\.as_shape=\[\]: allowed are three numbers"),
        ({"mean": [0.1, 0.2], "std": [0.1, 0.2]}, r"data\.mean"),
        ({"mean": [0.5], "std": [0.0]}, r"data\.std"),
    ],
)
def test_decisions_that_the_images_cannot_serve_are_refused(image_data, decisions, message):
    with pytest.raises(ConfigError, match=message) as caught:
        image_data(**decisions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"as_shape": [3, 32, 32]}, r"data\.as_shape.*no images"),
        ({"augment_shift": 2}, r"data\.augment_shift.*no images"),
        ({"imbalance": 0.5}, r"data\.imbalance=0\.5.*no classes"),
        ({"train_size": 501}, r"data\.train_size=501"),
        ({"batch_size": 501}, r"data\.batch_size=501"),
    ],
)
def test_decisions_that_a_regression_cannot_serve_are_refused(decisions, message):
    settings = {"name": "regression", "seed": 0, "batch_size": 32, **decisions}
    with pytest.raises(ConfigError, match=message):
        assemble(regression("", False), **settings)


def test_a_class_below_zero_is_refused(image_arrays):
    arrays = image_arrays()
    arrays = arrays._replace(train_targets=arrays.train_targets - 1)
    with pytest.raises(ConfigError, match="a class below 0"):
        assemble(arrays, name="shifted", seed=0, batch_size=8)
