"""A data set on its device, the decisions made about it, and the batches drawn from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.data.readers import Arrays
from debugnn.errors import ConfigError


class Split(NamedTuple):
    """One half of a data set, as it lies in memory: uint8 images, or float features."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Data:
    """A data set on its device, and how its inputs become floats.

    `classes` is None for a regression. `mean` and `std` are per channel, (C, 1, 1), in units of
    the full pixel range [0, 1]; None leaves the inputs as they are.
    """

    name: str
    train: Split
    test: Split
    classes: int | None
    mean: Tensor | None
    std: Tensor | None
    augment_shift: int = 0
    permute_labels: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        return self.classes if self.classes is not None else self.train.targets.shape[1]

    def prepare(self, inputs: Tensor) -> Tensor:
        """Stored inputs as the float32 batch that the network sees."""
        if self.mean is None or self.std is None:
            return inputs.float()
        pixels = inputs.float() / 255
        return pixels.sub_(self.mean).div_(self.std)  # in place: no third and fourth batch

    def train_batches(
        self, batch_size: int, generator: torch.Generator, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of shuffled batches, at most `limit` of them; the last may be smaller.

        All randomness comes from `generator`: the epoch can be drawn again.
        """
        order = torch.randperm(len(self.train), generator=generator)
        device = self.train.inputs.device
        # To the device at once: a GPU is waited for at each copy.
        for index in order.to(device).split(batch_size)[:limit]:
            inputs = self.prepare(self.train.inputs[index])
            targets = self.train.targets[index]
            if self.augment_shift:
                inputs = shift_randomly(inputs, self.augment_shift, generator)
            if self.permute_labels:
                shuffled = torch.randperm(len(targets), generator=generator)
                targets = targets[shuffled.to(device, non_blocking=True)]
            yield inputs, targets

    def steps_per_epoch(self, batch_size: int, limit: int | None = None) -> int:
        """How many batches `train_batches` yields."""
        steps = -(-len(self.train) // batch_size)
        return steps if limit is None else min(steps, limit)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in its order."""
        for start in range(0, len(self.test), batch_size):
            chunk = slice(start, start + batch_size)
            yield self.prepare(self.test.inputs[chunk]), self.test.targets[chunk]

    def test_sample(self, size: int) -> tuple[Tensor, Tensor]:
        """At most `size` samples of the test set, evenly spread over it, always the same."""
        index = torch.linspace(0, len(self.test) - 1, min(size, len(self.test))).long()
        index = index.to(self.test.inputs.device)
        return self.prepare(self.test.inputs[index]), self.test.targets[index]


def shift_randomly(inputs: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) moved by up to `most` pixels a side, edges repeated."""
    height, width = inputs.shape[-2:]
    padded = F.pad(inputs, (most,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (2, len(inputs)), generator=generator)
    rows, columns = offsets.to(inputs.device, non_blocking=True).unsqueeze(2)
    rows = (rows + torch.arange(height, device=inputs.device))[:, :, None]
    columns = (columns + torch.arange(width, device=inputs.device))[:, None, :]
    samples = torch.arange(len(inputs), device=inputs.device)[:, None, None]
    # Advanced indices around a slice put the sliced axis last: (B, H, W, C).
    return padded[samples, :, rows, columns].permute(0, 3, 1, 2)


def assemble(
    arrays: Arrays,
    *,
    name: str,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    as_shape: Sequence[int] | None = None,
    train_size: int | None = None,
    scale: str = "normalised",
    labels: str = "paired",
    imbalance: float = 1.0,
    augment_shift: int = 0,
    test_targets: str = "test",
) -> Data:
    """A data set from its arrays, with the experiment's decisions applied.

    Args:
        seed: chooses the training subset where `train_size` or `imbalance` leaves samples out.
        mean, std: per channel, of pixels in [0, 1]; None takes the training images' own.
        as_shape: (C, H, W) that images are padded with zeros, and repeated or averaged, to.
        train_size: how many training samples are kept.
        scale: `normalised`, or `raw` pixels from 0 to 255.
        labels: `paired` with their inputs, or `permuted` anew within each batch, which detaches
            them from the inputs.
        imbalance: the rarest class's size as a share of the commonest's; the classes between
            fall off exponentially (Cui et al. 2019, arXiv:1901.05555).
        test_targets: `train` gives the test set the training targets, the notebook's mistake.

    Raises:
        ConfigError: a setting that these arrays cannot serve.
    """
    inputs = {"train": arrays.train_inputs, "test": arrays.test_inputs}
    images = inputs["train"].ndim == 4
    if as_shape is not None and (len(as_shape) != 3 or min(as_shape) < 1):
        raise ConfigError(f"data.as_shape={list(as_shape)}: allowed are three numbers, C, H and W")
    classes = _class_count(name, arrays)
    if not images and (as_shape or augment_shift):
        setting = "as_shape" if as_shape else "augment_shift"
        raise ConfigError(f"data.{setting}: data={name} holds no images")
    if classes is None and imbalance < 1:
        raise ConfigError(f"data.imbalance={imbalance}: data={name} holds no classes")

    keep = _subset(arrays.train_targets, seed, train_size, imbalance, name)
    if batch_size > len(keep):
        raise ConfigError(
            f"data.batch_size={batch_size}: allowed is at most {len(keep)}, the training samples "
            f"of data={name}"
        )
    if test_targets == "train" and len(arrays.train_targets) != len(arrays.test_targets):
        raise ConfigError("data.test_targets=train: the training and test sets differ in size")
    targets = {
        "train": arrays.train_targets[keep],
        "test": arrays.test_targets if test_targets == "test" else arrays.train_targets,
    }
    if len(keep) < len(inputs["train"]):
        inputs["train"] = inputs["train"][keep]

    splits = {}
    for half in ("train", "test"):
        tensor = _tensor(inputs[half])
        if as_shape:
            tensor = reshape_images(tensor, as_shape)
        splits[half] = Split(tensor.to(device), _tensor(targets[half]).to(device))

    normalised = images and scale == "normalised"
    if normalised:
        mean, std = _channel_moments(name, splits["train"].inputs, mean, std, bool(as_shape))
    column = (-1, 1, 1)
    return Data(
        name=name,
        train=splits["train"],
        test=splits["test"],
        classes=classes,
        mean=torch.tensor(list(mean), device=device).view(column) if normalised else None,
        std=torch.tensor(list(std), device=device).view(column) if normalised else None,
        augment_shift=augment_shift,
        permute_labels=labels == "permuted",
    )


def _tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor: one copy in memory, and of a memory-mapped file none."""
    return torch.from_numpy(array if isinstance(array, np.memmap) else np.array(array))


def reshape_images(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Images (N, C, H, W) centred on a black ground of `shape`, grey repeated or colour averaged.

    Raises:
        ConfigError: the images are larger than `shape`.
    """
    channels, height, width = shape
    down, right = height - images.shape[2], width - images.shape[3]
    if down < 0 or right < 0:
        raise ConfigError(
            f"data.as_shape={list(shape)}: smaller than the images, {tuple(images.shape[1:])}"
        )
    if images.shape[1] != channels:
        grey = images.float().mean(dim=1, keepdim=True).round().to(images.dtype)
        images = grey.expand(-1, channels, -1, -1)
    top, left = down // 2, right // 2
    return F.pad(images, (left, right - left, top, down - top)).contiguous()


def _class_count(name: str, arrays: Arrays) -> int | None:
    if arrays.train_targets.dtype.kind == "f":
        return None
    if arrays.train_targets.min() < 0 or arrays.test_targets.min() < 0:
        raise ConfigError(f"data={name}: a class below 0 among the labels")
    return int(max(arrays.train_targets.max(), arrays.test_targets.max())) + 1


def _subset(
    targets: np.ndarray, seed: int, size: int | None, imbalance: float, name: str
) -> np.ndarray:
    """Indices of the training samples that are kept, in their order."""
    keep = np.arange(len(targets))
    random = np.random.default_rng(seed)
    if imbalance < 1:
        labels = np.asarray(targets)
        counts = np.bincount(labels)
        last = max(len(counts) - 1, 1)
        parts = []
        for label, count in enumerate(counts):
            share = max(1, round(int(counts.max()) * imbalance ** (label / last)))
            parts.append(random.permutation(np.flatnonzero(labels == label))[: min(share, count)])
        keep = np.sort(np.concatenate(parts))
    if size is not None:
        if size > len(keep):
            raise ConfigError(
                f"data.train_size={size}: allowed is at most {len(keep)}, the training samples of "
                f"data={name}"
            )
        keep = np.sort(random.permutation(keep)[:size])
    return keep


def _channel_moments(
    name: str,
    images: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    reshaped: bool,
) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and standard deviation to normalise by, checked against the images."""
    if mean is None and std is None:
        return _moments(images)
    if mean is None or std is None:
        raise ConfigError("data.mean and data.std go together: both, or neither (null)")
    if reshaped and len(mean) not in (1, images.shape[1]):  # colours that became grey
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    for field, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[1]):
            raise ConfigError(
                f"data.{field}={list(values)}: the images of data={name} have {images.shape[1]} "
                "channels; a number for each is needed, or one for all"
            )
    if min(std) <= 0:
        raise ConfigError(f"data.std={list(std)}: allowed are numbers above 0")
    return mean, std


def _moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 images, in units of the full range."""
    if images.numel() > _AT_ONCE:
        return _moments_by_counts(images)
    flat = images.float().div(255).transpose(0, 1).flatten(1)
    return flat.mean(dim=1).tolist(), flat.std(dim=1).clamp_min(1e-8).tolist()


_AT_ONCE = 64 << 20  # pixels whose float copies are no matter


def _moments_by_counts(images: Tensor, chunk: int = 4096) -> tuple[list[float], list[float]]:
    """The same from how often each of the 256 values occurs: no float copy of the whole set."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64, device=images.device)
    for part in images.split(chunk):
        for channel in range(images.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    total = counts.sum(dim=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(dim=1) / (total - 1)
    return mean.tolist(), variance.sqrt().clamp_min(1e-8).tolist()
