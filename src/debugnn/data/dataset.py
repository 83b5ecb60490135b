"""A data set on its device, the settings applied to it, and the batches drawn from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from debugnn.data.readers import Arrays
from debugnn.errors import ConfigError


class Split(NamedTuple):
    """The training or the test samples as stored: uint8 images or float features, and targets."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Data:
    """A data set on its device, and the preprocessing of its inputs.

    Attributes:
        classes: number of classes; None for a regression.
        mean, std: per channel (C, 1, 1), of pixels scaled to [0, 1]; None leaves the inputs as they
            are.
        augment_shift: training images are shifted by up to this many pixels in each direction.
        permute_labels: the labels are permuted within each training batch.
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
        """Shape of one sample: (C, H, W) or (features,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of outputs that a network for this data needs."""
        return self.classes if self.classes is not None else self.train.targets.shape[1]

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return stored inputs as the float32 batch that the network is given."""
        if self.mean is None or self.std is None:
            return inputs.float()
        pixels = inputs.float() / 255
        return pixels.sub_(self.mean).div_(self.std)  # in place, to save memory

    def train_batches(
        self, batch_size: int, generator: torch.Generator, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of shuffled batches; the last may be smaller.

        Args:
            batch_size: number of samples in a batch.
            generator: the source of all randomness: the same state gives the same epoch.
            limit: yield at most this many batches.

        Yields:
            Inputs (B, …), float32, and targets (B,) or (B, 1).
        """
        if self.augment_shift:
            from debugnn.data.alterations import shift_randomly
        order = torch.randperm(len(self.train), generator=generator)
        device = self.train.inputs.device
        # One copy to the device for the whole epoch: each copy synchronises with a GPU.
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
        """Return how many batches `train_batches` yields."""
        steps = -(-len(self.train) // batch_size)
        return steps if limit is None else min(steps, limit)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the whole test set in its order, in batches as in `train_batches`."""
        for start in range(0, len(self.test), batch_size):
            chunk = slice(start, start + batch_size)
            yield self.prepare(self.test.inputs[chunk]), self.test.targets[chunk]

    def test_sample(self, size: int) -> tuple[Tensor, Tensor]:
        """Return at most `size` samples, evenly spaced over the test set, the same at each call."""
        index = torch.linspace(0, len(self.test) - 1, min(size, len(self.test))).long()
        index = index.to(self.test.inputs.device)
        return self.prepare(self.test.inputs[index]), self.test.targets[index]


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
    """Make a data set from its arrays, with the settings of `conf/data` and `conf/decision`.

    Args:
        arrays: what the reader returned.
        name: the data set's name, for messages.
        seed: selects the training subset if `train_size` or `imbalance` leaves samples out.
        batch_size: only checked against the number of training samples.
        device: where the tensors are stored.
        mean, std: per channel, of pixels in [0, 1]; None computes those of the training images.
        as_shape: (C, H, W) that images are converted to: padded with zeros, grey channels
            repeated, colours averaged.
        train_size: number of training samples to keep; None keeps all.
        scale: `normalised`, or `raw` for pixels from 0 to 255.
        labels: `paired` with their inputs, or `permuted` at random within each training batch, so
            that they are independent of the inputs.
        imbalance: the smallest class's size as a share of the largest's. The sizes of the classes
            between fall off exponentially (Cui et al. 2019, arXiv:1901.05555).
        augment_shift: shift training images by up to this many pixels in each direction.
        test_targets: `train` gives the test set the training targets, the notebook's mistake.

    Raises:
        ConfigError: the arrays do not allow one of the settings.
    """
    inputs = {"train": arrays.train_inputs, "test": arrays.test_inputs}
    images = inputs["train"].ndim == 4
    classes = _class_count(name, arrays)
    if not images and (as_shape or augment_shift):
        setting = "as_shape" if as_shape else "augment_shift"
        raise ConfigError(f"data.{setting}: data={name} holds no images")
    if classes is None and imbalance < 1:
        raise ConfigError(f"data.imbalance={imbalance}: data={name} holds no classes")

    keep = np.arange(len(arrays.train_targets))
    if train_size is not None or imbalance < 1:
        from debugnn.data.alterations import subset

        keep = subset(arrays.train_targets, seed, train_size, imbalance, name)
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
        if as_shape is not None:
            from debugnn.data.alterations import reshape_images

            tensor = reshape_images(tensor, as_shape)
        splits[half] = Split(tensor.to(device), _tensor(targets[half]).to(device))

    moments: list[Tensor | None] = [None, None]
    if images and scale == "normalised":
        pixels = splits["train"].inputs
        if mean is None and std is None:
            found = _moments(pixels)
        else:
            from debugnn.data.alterations import given_moments

            found = given_moments(name, pixels.shape[1], mean, std, bool(as_shape))
        moments = [torch.tensor(values, device=device).view(-1, 1, 1) for values in found]
    return Data(
        name=name,
        train=splits["train"],
        test=splits["test"],
        classes=classes,
        mean=moments[0],
        std=moments[1],
        augment_shift=augment_shift,
        permute_labels=labels == "permuted",
    )


def _tensor(array: np.ndarray) -> Tensor:
    """Return the array as a tensor, copied unless it is a memory-mapped file."""
    return torch.from_numpy(array if isinstance(array, np.memmap) else np.array(array))


def _class_count(name: str, arrays: Arrays) -> int | None:
    if arrays.train_targets.dtype.kind == "f":
        return None
    if arrays.train_targets.min() < 0 or arrays.test_targets.min() < 0:
        raise ConfigError(f"data={name}: a class below 0 among the labels")
    return int(max(arrays.train_targets.max(), arrays.test_targets.max())) + 1


def _moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images, scaled to [0, 1]."""
    if images.numel() > _MAX_FLOAT_COPY:
        from debugnn.data.large_sets import moments_by_counts

        return moments_by_counts(images)
    flat = images.float().div(255).transpose(0, 1).flatten(1)
    return flat.mean(dim=1).tolist(), flat.std(dim=1).clamp_min(1e-8).tolist()


_MAX_FLOAT_COPY = 64 << 20  # pixels; a float copy of more (256 MiB) is avoided
