"""Convolutional networks that name the digits."""

from functools import partial

from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import StepLR

from debugnn.faults.datasets import digits, in_front, rough_places, textures
from debugnn.faults.nets import cnn
from debugnn.faults.program import Build, Setup

ce = nn.CrossEntropyLoss


def in_colours(seed: int) -> Setup:
    """A digit in the first channel, before another one in the last channel."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *cnn(24, 32, channels=3))
    return Setup(model, ce(), partial(Adam, lr=3e-3), *in_front(seed), epochs=8)


def pixels(seed: int) -> Setup:
    """Which pixels of an image belong to its rougher part."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )  # fmt: skip
    data = rough_places(seed)
    return Setup(model, nn.BCEWithLogitsLoss(), partial(Adam, lr=5e-3), *data, epochs=5)


def pixels_of_three_classes(seed: int) -> Setup:
    """Which texture each pixel of an image belongs to."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 3, 1),
    )  # fmt: skip
    return Setup(model, ce(), partial(Adam, lr=1e-2), *textures(seed), epochs=14)


TUNING: dict[str, Build] = {
    "cnn_of_textures": pixels_of_three_classes,
    "cnn": lambda seed: Setup(
        cnn(16, 32), ce(), partial(Adam, lr=3e-3), *digits(seed, 1, 8, 8), epochs=6
    ),
    "cnn_batch_norm": lambda seed: Setup(
        cnn(8, 16, 16, norm=nn.BatchNorm2d),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *digits(seed, 1, 8, 8),
        epochs=6,
    ),
    "cnn_tanh": lambda seed: Setup(
        cnn(12, 24, activation=nn.Tanh, pool=nn.AvgPool2d),
        ce(),
        partial(Adam, lr=1e-2),
        *digits(seed, 1, 8, 8),
        epochs=6,
    ),
    "cnn_in_colours": in_colours,
    "cnn_of_pixels": pixels,
}

HELD_OUT: dict[str, Build] = {
    "cnn_sgd": lambda seed: Setup(
        cnn(16, 32), ce(), partial(SGD, lr=0.05, momentum=0.9), *digits(seed, 1, 8, 8), epochs=6
    ),
    "cnn_group_norm": lambda seed: Setup(
        cnn(8, 16, norm=partial(nn.GroupNorm, 4), activation=nn.GELU),
        ce(),
        partial(AdamW, lr=5e-3),
        *digits(seed, 1, 8, 8),
        epochs=6,
    ),
    "cnn_step_schedule": lambda seed: Setup(
        cnn(16, 32, activation=nn.LeakyReLU, pool=nn.AvgPool2d),
        ce(),
        partial(RMSprop, lr=3e-3),
        *digits(seed, 1, 8, 8),
        make_scheduler=partial(StepLR, step_size=4, gamma=0.3),
    ),
}
