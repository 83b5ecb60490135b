"""Convolutional networks that name the digits."""

from functools import partial

from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import StepLR

from debugnn.faults.datasets import digits
from debugnn.faults.nets import cnn
from debugnn.faults.program import Build, Setup

ce = nn.CrossEntropyLoss


TUNING: dict[str, Build] = {
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
