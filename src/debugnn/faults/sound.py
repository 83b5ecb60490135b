"""Small training programs, sound and faulty, on which the doctor is evaluated.

A program is a base net of `BASES`, as it is (sound) or changed by one fault (faulty). A new sound
program is one entry of `BASES`; a new faulty one is one function and a line in `FAULTS`. All data
come with scikit-learn or are generated; a run takes about a second on one thread.

    for program in SOUND + FAULTY:
        doctor = train(program.build(seed), seed, Doctor)
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR

if TYPE_CHECKING:
    from debugnn import Doctor

Data = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Setup:
    """Everything that a training is made of; a fault is a small change of it."""

    model: nn.Module
    loss_fn: Loss
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    train: Data
    val: Data
    batch_size: int = 32
    epochs: int = 8
    make_scheduler: Callable[[Optimizer], LRScheduler] | None = None  # stepped after each epoch
    accumulate: int = 1  # batches per optimiser step
    clip: float | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None  # added to the loss
    loss_sign: float = 1.0
    zero_grad: bool = True
    calls_train: bool = True  # model.train() before each epoch
    calls_eval: bool = True  # model.eval() before each validation
    scores: list[float] = field(default_factory=list)  # of each validation, filled by `train`


@dataclass(frozen=True)
class Program:
    """One training to diagnose. `cause` is None where it is sound."""

    name: str
    cause: str | None
    half: Literal["tuning", "held_out"]
    build: Callable[[int], Setup]
    accepted: tuple[str, ...] = ()  # other causes that name the same thing


def train(
    setup: Setup, seed: int, make_doctor: Callable[[nn.Module, Optimizer, Loss], Doctor]
) -> Doctor:
    """The loop as users write it; returns the doctor, not yet closed."""
    torch.manual_seed(seed)
    shuffle = torch.Generator().manual_seed(seed)
    model, loss_fn = setup.model, setup.loss_fn
    optimizer = setup.make_optimizer(model.parameters())
    scheduler = setup.make_scheduler(optimizer) if setup.make_scheduler else None
    doctor = make_doctor(model, optimizer, loss_fn)
    inputs, targets = setup.train
    for _ in range(setup.epochs):
        if setup.calls_train:
            model.train()
        batches = torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size)
        for number, batch in enumerate(batches):
            x, y = inputs[batch], targets[batch]
            if setup.zero_grad and number % setup.accumulate == 0:
                optimizer.zero_grad()
            loss = setup.loss_sign * loss_fn(model(x), y)
            if setup.penalty:
                loss = loss + setup.penalty(model)
            (loss / setup.accumulate).backward()
            if setup.clip:
                nn.utils.clip_grad_norm_(model.parameters(), setup.clip)
            if (number + 1) % setup.accumulate == 0:
                optimizer.step()
            doctor.step(loss, x, y)
        if scheduler:
            scheduler.step()
        if setup.calls_eval:
            model.eval()
        with torch.no_grad():
            setup.scores.append(score(model(setup.val[0]), setup.val[1]))
        doctor.validate(*setup.val)
    return doctor


def score(outputs: Tensor, targets: Tensor) -> float:
    """Accuracy where the targets are classes (whole numbers, or 0.0 and 1.0), else R²."""
    if not targets.is_floating_point():
        return (outputs.argmax(dim=1) == targets).float().mean().item()
    outputs = outputs.reshape(targets.shape)
    if torch.isin(targets, torch.tensor([0.0, 1.0])).all():
        return ((outputs > 0) == (targets > 0.5)).float().mean().item()
    residual = (outputs - targets).square().sum()
    return (1 - residual / (targets - targets.mean(dim=0)).square().sum()).item()


# ---------------------------------------------------------------------------------------- data
# Each function gives (train, val), split anew by the seed.


def split(
    inputs: Any,
    targets: Any,
    seed: int,
    *,
    train_size: float = 0.7,
    standardise: Literal["features", "all", "none"] = "features",
) -> tuple[Data, Data]:
    """Standardised by the training part's statistics: each feature's own, or those of all."""
    x_train, x_val, y_train, y_val = train_test_split(
        torch.as_tensor(inputs), torch.as_tensor(targets), train_size=train_size, random_state=seed
    )
    if not y_train.is_floating_point():
        y_train, y_val = y_train.long(), y_val.long()
    if not x_train.is_floating_point():  # tokens
        return (x_train, y_train), (x_val, y_val)
    x_train, x_val = x_train.float(), x_val.float()
    if standardise != "none":
        dims = 0 if standardise == "features" else tuple(range(x_train.dim()))
        mean, std = x_train.mean(dims), x_train.std(dims)
        x_train, x_val = (x_train - mean) / std, (x_val - mean) / std
    return (x_train, y_train), (x_val, y_val)


@cache
def bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    return getattr(datasets, f"load_{name}")(return_X_y=True)


def digits(seed: int, *shape: int, standardise: str = "all") -> tuple[Data, Data]:
    """8×8 digits, flat or as images (1, 8, 8) or as sequences of rows (8, 8)."""
    pixels, labels = bundled("digits")
    pixels = pixels.reshape(-1, *(shape or (64,)))
    return split(pixels, labels, seed, train_size=1200 / 1797, standardise=standardise)


def table(name: str, seed: int) -> tuple[Data, Data]:
    """wine, iris or breast_cancer: classes as whole numbers."""
    return split(*bundled(name), seed)


def binary(data: tuple[Data, Data]) -> tuple[Data, Data]:
    """Classes 0 and 1 as a column, as BCEWithLogitsLoss wants them."""
    return tuple((x, y.float().unsqueeze(1)) for x, y in data)


def toy(name: str, seed: int) -> tuple[Data, Data]:
    """moons or circles."""
    make = {"moons": datasets.make_moons, "circles": partial(datasets.make_circles, factor=0.5)}
    return split(*make[name](700, noise=0.1, random_state=seed), seed)


def regression(inputs: np.ndarray, targets: np.ndarray, seed: int) -> tuple[Data, Data]:
    """Targets as a standardised column."""
    targets = ((targets - targets.mean()) / targets.std()).astype(np.float32)
    return split(inputs, targets.reshape(len(targets), -1), seed)


def friedman(seed: int) -> tuple[Data, Data]:
    return regression(*datasets.make_friedman1(800, noise=0.5, random_state=seed), seed)


def sine(seed: int) -> tuple[Data, Data]:
    x = np.random.default_rng(seed).uniform(-3, 3, (600, 1))
    return regression(x, np.sin(2 * x) + np.random.default_rng(seed).normal(0, 0.1, x.shape), seed)


def noisy_line(seed: int) -> tuple[Data, Data]:
    """A linear map under so much noise that the best R² is 0.4."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(900, 8))
    clean = x @ rng.normal(size=8)
    return regression(x, clean + rng.normal(0, clean.std() * 1.5**0.5, 900), seed)


def prototypes(
    seed: int, *, classes: int = 100, samples: int = 3000, features: int = 32, noise: float = 0.5
) -> tuple[Data, Data]:
    """Each class is a random point, its samples lie around it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    points = rng.normal(size=(classes, features))
    return split(points[labels] + rng.normal(0, noise, (samples, features)), labels, seed)


def few_informative(seed: int) -> tuple[Data, Data]:
    """Two classes told apart by 3 features of 20, 2 % of the labels wrong."""
    inputs, labels = datasets.make_classification(
        2400,
        20,
        n_informative=3,
        n_redundant=0,
        class_sep=1.5,
        flip_y=0.04,  # drawn anew, so that half of them keep their label
        random_state=seed,
    )
    return split(inputs, labels, seed, train_size=0.5)


def tokens(seed: int, *, samples: int = 1500, length: int = 12) -> tuple[Data, Data]:
    """Sequences of 8 tokens; the class is the token that stands in 5 of the 12 places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(8, size=samples)
    sequences = rng.integers(8, size=(samples, length))
    places = rng.permuted(np.tile(np.arange(length), (samples, 1)), axis=1)[:, :5]
    np.put_along_axis(sequences, places, labels[:, None], axis=1)
    return split(sequences, labels, seed)


def autoencoding(seed: int) -> tuple[Data, Data]:
    return tuple((x, x.clone()) for x, _ in digits(seed))


# ---------------------------------------------------------------------------------------- nets


def mlp(
    *widths: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear layers of these widths, the input's and the output's included."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out), *([norm(fan_out)] if norm else []), activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def cnn(
    *widths: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
    classes: int = 10,
) -> nn.Sequential:
    """3×3 convolutions of these widths on (1, 8, 8); the first two are pooled."""
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(zip((1, *widths), widths, strict=False)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1)]
        layers += [*([norm(fan_out)] if norm else []), activation()]
        layers += [pool(2)] if number < 2 else []
    side = 8 // 2 ** min(len(widths), 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, classes))


class Functional(nn.Module):
    """An MLP whose activations are calls, not modules."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, outputs)
        self.activation = F.relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        return self.fc3(x)


class Recurrent(nn.Module):
    """An RNN, LSTM or GRU, and a linear head on its last output."""

    def __init__(
        self, cell: Callable[..., nn.RNNBase], features: int, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.rnn = cell(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.head(outputs[:, -1])


class Transformer(nn.Module):
    """An encoder with learned positions, its outputs averaged over the sequence."""

    def __init__(
        self,
        embed: nn.Module,
        length: int,
        outputs: int,
        *,
        width: int = 32,
        dropout: float = 0.0,
        depth: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    nhead=4,
                    dim_feedforward=2 * width,
                    dropout=dropout,
                    activation=activation,
                    batch_first=True,
                    norm_first=norm_first,
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.position).mean(dim=1))


class Residual(nn.Module):
    """x + gain · f(x), f a two-layer net; `zero` starts it as the identity."""

    def __init__(self, width: int, *, zero: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.body = mlp(width, width, width)
        if zero:
            nn.init.zeros_(self.body[-1].weight)
            nn.init.zeros_(self.body[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.body(x)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def residual_mlp(depth: int = 4, *, zero: bool = True) -> nn.Sequential:
    blocks = (Residual(32, zero=zero) for _ in range(depth))
    return nn.Sequential(nn.Linear(64, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 10))


# ------------------------------------------------------------------------------ sound programs


def only_trainable(
    make: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Leave the layers that are frozen on purpose out of the optimiser."""
    return lambda params: make([p for p in params if p.requires_grad])


def frozen_first_layer(seed: int) -> Setup:
    """Random features, kept as they are, under two trained layers."""
    model = mlp(64, 256, 64, 10)
    model[0].requires_grad_(False)
    optimizer = only_trainable(partial(Adam, lr=2e-3))
    return Setup(model, nn.CrossEntropyLoss(), optimizer, *digits(seed), epochs=6)


def fine_tuning(seed: int) -> Setup:
    """Features learnt on the digits 0 to 4, and a new head on them for 5 to 9."""
    images = digits(seed, 1, 8, 8)
    (x, y), _ = images
    model = cnn(16, 32, classes=5)
    optimizer = Adam(model.parameters(), lr=5e-3)
    for batch in torch.randperm(len(x)).repeat(3).split(64):
        old = batch[y[batch] < 5]
        optimizer.zero_grad()
        F.cross_entropy(model(x[old]), y[old]).backward()
        optimizer.step()
    model.requires_grad_(False)
    model[-1] = nn.Linear(128, 5)
    new = [(x[y >= 5], y[y >= 5] - 5) for x, y in images]
    head = only_trainable(partial(Adam, lr=5e-3))
    return Setup(model, nn.CrossEntropyLoss(), head, *new, epochs=10)


ce = nn.CrossEntropyLoss

BASES: dict[str, Callable[[int], Setup]] = {
    # MLPs on the digits
    "mlp": lambda seed: Setup(mlp(64, 64, 64, 10), ce(), partial(Adam, lr=2e-3), *digits(seed)),
    "mlp_sgd": lambda seed: Setup(
        mlp(64, 64, 64, 10), ce(), partial(SGD, lr=0.1), *digits(seed), epochs=10
    ),
    "mlp_momentum": lambda seed: Setup(
        mlp(64, 64, 10, activation=nn.LeakyReLU),
        F.cross_entropy,
        partial(SGD, lr=0.03, momentum=0.9),
        *digits(seed),
    ),
    "mlp_rmsprop": lambda seed: Setup(
        mlp(64, 48, 48, 10, activation=nn.ELU), ce(), partial(RMSprop, lr=1e-3), *digits(seed)
    ),
    "mlp_tanh": lambda seed: Setup(
        mlp(64, 64, 64, 10, activation=nn.Tanh), ce(), partial(AdamW, lr=2e-3), *digits(seed)
    ),
    "mlp_gelu_weight_decay": lambda seed: Setup(
        mlp(64, 96, 10, activation=nn.GELU),
        ce(),
        partial(AdamW, lr=3e-3, weight_decay=0.1),
        *digits(seed),
        batch_size=64,
    ),
    "mlp_selu": lambda seed: Setup(
        mlp(64, 48, 48, 48, 10, activation=nn.SELU),
        ce(),
        partial(SGD, lr=0.02, momentum=0.9, nesterov=True),
        *digits(seed),
        epochs=5,
    ),
    "mlp_shallow_sigmoid": lambda seed: Setup(
        mlp(64, 64, 10, activation=nn.Sigmoid), ce(), partial(Adam, lr=1e-2), *digits(seed)
    ),
    "mlp_batch_norm": lambda seed: Setup(
        mlp(64, 64, 64, 10, norm=nn.BatchNorm1d), ce(), partial(SGD, lr=0.1), *digits(seed)
    ),
    "mlp_layer_norm": lambda seed: Setup(
        mlp(64, 64, 64, 10, norm=nn.LayerNorm, activation=nn.GELU),
        ce(),
        partial(Adam, lr=2e-3),
        *digits(seed),
    ),
    "mlp_dropout": lambda seed: Setup(
        mlp(64, 128, 128, 10, dropout=0.4), ce(), partial(Adam, lr=3e-3), *digits(seed)
    ),
    "mlp_batch_of_8": lambda seed: Setup(
        mlp(64, 32, 10), ce(), partial(SGD, lr=0.05), *digits(seed), batch_size=8, epochs=4
    ),
    "mlp_batch_of_256": lambda seed: Setup(
        mlp(64, 64, 10), ce(), partial(Adam, lr=1e-2), *digits(seed), batch_size=256, epochs=25
    ),
    "mlp_label_smoothing": lambda seed: Setup(
        mlp(64, 64, 64, 10), ce(label_smoothing=0.1), partial(Adam, lr=2e-3), *digits(seed)
    ),
    "mlp_clipped": lambda seed: Setup(
        mlp(64, 64, 64, 10), ce(), partial(SGD, lr=0.3), *digits(seed), clip=0.5
    ),
    "mlp_cosine": lambda seed: Setup(
        mlp(64, 64, 64, 10),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *digits(seed),
        make_scheduler=partial(CosineAnnealingLR, T_max=8),
    ),
    "mlp_warm_up": lambda seed: Setup(
        mlp(64, 64, 64, 10, activation=nn.Tanh),
        ce(),
        partial(AdamW, lr=1e-3),
        *digits(seed),
        make_scheduler=partial(OneCycleLR, max_lr=1e-2, total_steps=10),
    ),
    "mlp_raw_pixels": lambda seed: Setup(  # 0 to 16, and it learns all the same
        mlp(64, 64, 64, 10), ce(), partial(Adam, lr=1e-3), *digits(seed, standardise="none")
    ),
    "mlp_accumulated": lambda seed: Setup(
        mlp(64, 64, 64, 10),
        ce(),
        partial(Adam, lr=3e-3),
        *digits(seed),
        batch_size=16,
        accumulate=2,
    ),
    "mlp_log_softmax": lambda seed: Setup(
        nn.Sequential(*mlp(64, 64, 10), nn.LogSoftmax(dim=1)),
        nn.NLLLoss(),
        partial(Adam, lr=3e-3),
        *digits(seed),
    ),
    "mlp_l2_by_hand": lambda seed: Setup(
        mlp(64, 64, 10),
        ce(),
        partial(Adam, lr=3e-3),
        *digits(seed),
        penalty=lambda model: 1e-4 * sum(p.square().sum() for p in model.parameters()),
    ),
    "functional": lambda seed: Setup(
        Functional(64, 64, 10), F.cross_entropy, partial(Adam, lr=2e-3), *digits(seed)
    ),
    "softmax_regression": lambda seed: Setup(
        nn.Linear(64, 10), ce(), partial(SGD, lr=0.1), *digits(seed)
    ),
    "residual_zero_init": lambda seed: Setup(
        residual_mlp(), ce(), partial(Adam, lr=2e-3), *digits(seed)
    ),
    "frozen_first_layer": frozen_first_layer,
    "fine_tuning": fine_tuning,
    # CNNs on the digits
    "cnn": lambda seed: Setup(
        cnn(16, 32), ce(), partial(Adam, lr=3e-3), *digits(seed, 1, 8, 8), epochs=6
    ),
    "cnn_sgd": lambda seed: Setup(
        cnn(16, 32), ce(), partial(SGD, lr=0.05, momentum=0.9), *digits(seed, 1, 8, 8), epochs=6
    ),
    "cnn_batch_norm": lambda seed: Setup(
        cnn(8, 16, 16, norm=nn.BatchNorm2d),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *digits(seed, 1, 8, 8),
        epochs=6,
    ),
    "cnn_group_norm": lambda seed: Setup(
        cnn(8, 16, norm=partial(nn.GroupNorm, 4), activation=nn.GELU),
        ce(),
        partial(AdamW, lr=5e-3),
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
    "cnn_step_schedule": lambda seed: Setup(
        cnn(16, 32, activation=nn.LeakyReLU, pool=nn.AvgPool2d),
        ce(),
        partial(RMSprop, lr=3e-3),
        *digits(seed, 1, 8, 8),
        make_scheduler=partial(StepLR, step_size=4, gamma=0.3),
    ),
    # sequences
    "lstm": lambda seed: Setup(
        Recurrent(nn.LSTM, 8, 32, 10), ce(), partial(Adam, lr=1e-2), *digits(seed, 8, 8)
    ),
    "gru_clipped": lambda seed: Setup(
        Recurrent(nn.GRU, 8, 32, 10), ce(), partial(Adam, lr=1e-2), *digits(seed, 8, 8), clip=1.0
    ),
    "rnn": lambda seed: Setup(
        Recurrent(nn.RNN, 8, 48, 10), ce(), partial(Adam, lr=3e-3), *digits(seed, 8, 8)
    ),
    "rnn_sgd_clipped": lambda seed: Setup(
        Recurrent(nn.RNN, 8, 48, 10),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *digits(seed, 8, 8),
        clip=1.0,
    ),
    "transformer": lambda seed: Setup(
        Transformer(nn.Linear(8, 32), 8, 10),
        ce(),
        partial(Adam, lr=1e-2),
        *digits(seed, 8, 8),
        batch_size=40,
        epochs=9,
    ),
    "transformer_tokens": lambda seed: Setup(
        Transformer(nn.Embedding(8, 32), 12, 8, dropout=0.1, norm_first=True),
        ce(),
        partial(AdamW, lr=3e-3),
        *tokens(seed),
    ),
    # tables: two classes, three, a hundred
    "cancer": lambda seed: Setup(  # 37 % and 63 %
        mlp(30, 16, 2), ce(), partial(Adam, lr=3e-3), *table("breast_cancer", seed), epochs=12
    ),
    "cancer_one_logit": lambda seed: Setup(
        mlp(30, 16, 1, activation=nn.Tanh),
        nn.BCEWithLogitsLoss(),
        partial(SGD, lr=0.1),
        *binary(table("breast_cancer", seed)),
        epochs=12,
    ),
    "wine": lambda seed: Setup(
        mlp(13, 32, 3), ce(), partial(Adam, lr=5e-3), *table("wine", seed), batch_size=16, epochs=12
    ),
    "iris": lambda seed: Setup(
        mlp(4, 24, 24, 3, activation=nn.Tanh),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *table("iris", seed),
        batch_size=16,
        epochs=15,
    ),
    "moons": lambda seed: Setup(
        mlp(2, 32, 32, 2), ce(), partial(Adam, lr=5e-3), *toy("moons", seed), epochs=15
    ),
    "circles_one_logit": lambda seed: Setup(
        mlp(2, 32, 32, 1),
        nn.BCEWithLogitsLoss(),
        partial(Adam, lr=5e-3),
        *binary(toy("circles", seed)),
        epochs=12,
    ),
    "functional_circles": lambda seed: Setup(
        Functional(2, 32, 2),
        F.cross_entropy,
        partial(Adam, lr=5e-3),
        *toy("circles", seed),
        epochs=12,
    ),
    "hundred_classes": lambda seed: Setup(
        mlp(32, 128, 100), ce(), partial(Adam, lr=5e-3), *prototypes(seed), epochs=6
    ),
    "ten_prototypes": lambda seed: Setup(
        mlp(32, 64, 10),
        ce(),
        partial(SGD, lr=0.1),
        *prototypes(seed, classes=10, noise=1.5),
        epochs=4,
    ),
    "few_informative": lambda seed: Setup(  # stops before it overfits
        mlp(20, 32, 2),
        ce(),
        partial(Adam, lr=5e-3),
        *few_informative(seed),
        epochs=6,
    ),
    # regression
    "friedman": lambda seed: Setup(
        mlp(10, 64, 64, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *friedman(seed), epochs=12
    ),
    "friedman_sgd": lambda seed: Setup(
        mlp(10, 64, 1, activation=nn.Tanh),
        F.mse_loss,
        partial(SGD, lr=0.02, momentum=0.9),
        *friedman(seed),
        epochs=20,
    ),
    "friedman_huber": lambda seed: Setup(
        mlp(10, 48, 48, 1, norm=nn.LayerNorm),
        nn.SmoothL1Loss(),
        partial(AdamW, lr=5e-3),
        *friedman(seed),
        epochs=12,
    ),
    "diabetes": lambda seed: Setup(
        mlp(10, 16, 1),
        nn.MSELoss(),
        partial(Adam, lr=3e-3),
        *regression(*bundled("diabetes"), seed),
        epochs=12,
    ),
    "sine": lambda seed: Setup(
        mlp(1, 32, 32, 1, activation=nn.Tanh),
        nn.MSELoss(),
        partial(Adam, lr=1e-2),
        *sine(seed),
        epochs=25,
    ),
    "noisy_line": lambda seed: Setup(
        mlp(8, 16, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *noisy_line(seed), epochs=8
    ),
    "autoencoder": lambda seed: Setup(
        mlp(64, 64, 24, 64, 64), nn.MSELoss(), partial(Adam, lr=5e-3), *autoencoding(seed)
    ),
}


# -------------------------------------------------------------------------------------- faults
# Each changes a setup in place. Helpers first.

HIDDEN = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.Tanh, nn.Sigmoid)


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers that have weights, in the order of the forward pass."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.RNNBase)]


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "weight" in name]


def replace_activations(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, HIDDEN):
                setattr(parent, name, make())


def change_data(setup: Setup, change: Callable[[Tensor, Tensor], Data]) -> None:
    setup.train, setup.val = change(*setup.train), change(*setup.val)


def change_inputs(setup: Setup, change: Callable[[Tensor], Tensor]) -> None:
    change_data(setup, lambda x, y: (change(x), y))


def widths(setup: Setup) -> tuple[int, int]:
    """How many features go in and how many outputs come out of a plain MLP."""
    return setup.model[0].in_features, setup.model[-1].out_features


# gradient


def deep_mlp(setup: Setup, activation: Callable[[], nn.Module], depth: int) -> None:
    """Many narrow layers of an activation whose slope is well below 1."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[32] * depth, outputs, activation=activation)


def flat_tanh() -> nn.Module:
    """A tanh whose slope is at most 0.3."""
    return Apply(lambda x: torch.tanh(0.3 * x))


def deep_cnn(setup: Setup, activation: Callable[[], nn.Module], depth: int) -> None:
    """Many convolutions of an activation whose slope is well below 1."""
    setup.model = cnn(*[8] * depth, activation=activation)


def pixel_rnn(setup: Setup, gain: float, nonlinearity: str = "tanh") -> None:
    """A plain RNN over the digit's 64 pixels, whose recurrence scales by `gain` at each of them."""
    change_inputs(setup, lambda x: x.flatten(1).unsqueeze(2))
    cell = partial(nn.RNN, nonlinearity=nonlinearity)
    setup.model = Recurrent(cell, 1, 32, 10)
    nn.init.orthogonal_(setup.model.rnn.weight_hh_l0, gain=gain)
    setup.clip = None
    setup.epochs = min(setup.epochs, 3)  # a step takes eight times as long


def gain_per_layer(setup: Setup, gain: float, depth: int) -> None:
    """Many layers that each scale the signal a little up: `gain` times what He et al. take."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[32] * depth, outputs)
    for layer in layers(setup.model)[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            layer.weight *= gain


def gain_per_convolution(setup: Setup, gain: float, depth: int) -> None:
    """Many convolutions that each scale the signal a little up."""
    setup.model = cnn(*[8] * depth)
    for layer in layers(setup.model)[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            layer.weight *= gain


def residual_growth(setup: Setup, depth: int, gain: float) -> None:
    """Residual blocks whose branches add up, without any normalisation."""
    features, outputs = widths(setup)
    blocks = (Residual(32, gain=gain) for _ in range(depth))
    setup.model = nn.Sequential(nn.Linear(features, 32), *blocks, nn.Linear(32, outputs))


def unscaled_targets(setup: Setup, factor: float) -> None:
    """Regression targets in their raw unit."""
    change_data(setup, lambda x, y: (x, y * factor + 3 * factor))


# activation


def negative_biases(setup: Setup, bias: float, only: int | None = None) -> None:
    """Biases that keep the hidden units, or those of one hidden layer, below zero."""
    hidden = layers(setup.model)[:-1]
    for layer in hidden if only is None else [hidden[only]]:
        nn.init.constant_(layer.bias, bias)


def negative_weights(setup: Setup) -> None:
    """Weights that are all negative, on inputs that are all positive."""
    change_inputs(setup, torch.abs)
    with torch.no_grad():
        for layer in layers(setup.model)[:-1]:
            layer.weight.copy_(-layer.weight.abs())
            layer.bias.copy_(-layer.bias.abs())


def large_biases(setup: Setup, bias: float) -> None:
    """Hidden biases of either sign, far in the tails of a sigmoid or tanh."""
    with torch.no_grad():
        for layer in layers(setup.model)[:-1]:
            layer.bias.copy_(bias * torch.randn_like(layer.bias).sign())


def steep(setup: Setup, kind: Callable[[], nn.Module], gain: float) -> None:
    """A hidden activation that is so steep that it is a step."""
    replace_activations(setup.model, lambda: nn.Sequential(Apply(lambda x: gain * x), kind()))


def saturated_gates(setup: Setup, bias: float) -> None:
    """Input and output gates that are shut by their biases."""
    with torch.no_grad():
        for name, p in setup.model.rnn.named_parameters():
            if "bias" in name:
                inputs, forget, cell, output = p.chunk(4)
                inputs.fill_(-bias)
                forget.fill_(bias)
                cell.fill_(bias)
                output.fill_(-bias)


def hidden_module(setup: Setup, make: Callable[[], nn.Module]) -> None:
    """An output's activation in the hidden layers."""
    replace_activations(setup.model, make)


def hidden_function(setup: Setup, function: Callable[[Tensor], Tensor]) -> None:
    """An output's activation in the hidden layers, as a function call."""
    setup.model.activation = function


def no_activation(setup: Setup) -> None:
    """The hidden layers' activations are left out."""
    if isinstance(setup.model, Functional):
        setup.model.activation = lambda x: x
    else:
        setup.model = nn.Sequential(*(m for m in setup.model if not isinstance(m, HIDDEN)))


def linear_cnn(setup: Setup) -> None:
    """Convolutions and average pools without an activation (a max-pool would be one)."""
    setup.model = cnn(16, 32, pool=nn.AvgPool2d)
    no_activation(setup)


# init


def constant_init(setup: Setup, value: float, bias: float = 0.0) -> None:
    """Every weight the same, so that all units of a layer stay the same."""
    for name, p in setup.model.named_parameters():
        nn.init.constant_(p, value if "weight" in name else bias)


def constant_per_layer(setup: Setup) -> None:
    """Every layer's weights the same number, another one in each layer."""
    for layer in layers(setup.model):
        nn.init.constant_(layer.weight, layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)


def scale_weights(setup: Setup, factor: float) -> None:
    with torch.no_grad():
        for p in weights(setup.model):
            p *= factor


def normal_weights(setup: Setup, std: float) -> None:
    for p in weights(setup.model):
        nn.init.normal_(p, std=std)


def uniform_weights(setup: Setup, low: float, high: float) -> None:
    """torch.rand in place of a centred distribution."""
    for p in weights(setup.model):
        nn.init.uniform_(p, low, high)


def small_init(setup: Setup, std: float, depth: int = 4) -> None:
    """Weights far too small in a net of some depth."""
    features, outputs = widths(setup)
    setup.model = mlp(features, *[64] * depth, outputs)
    normal_weights(setup, std)


# learning rate


def scale_lr(setup: Setup, factor: float) -> None:
    make = setup.make_optimizer
    setup.make_optimizer = partial(make, lr=factor * make.keywords["lr"])


# loss


def append(setup: Setup, make: Callable[[], nn.Module]) -> None:
    """A module behind the output layer that the loss does not expect."""
    setup.model = nn.Sequential(*setup.model, make())


def use_loss(setup: Setup, loss_fn: Loss) -> None:
    setup.loss_fn = loss_fn


def mse_on_one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).float())


def mse_on_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return mse_on_one_hot(logits.softmax(dim=1), labels)


def mse_on_argmax(logits: Tensor, labels: Tensor) -> Tensor:
    """The class number as a regression target of the best logit."""
    return F.mse_loss(logits.amax(dim=1), labels.float())


def softmax_over_batch(logits: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(dim=0), labels)


def flipped_sign(setup: Setup) -> None:
    """The loss is maximised."""
    setup.loss_sign = -1.0


def flat_targets(setup: Setup) -> None:
    """(B, 1) outputs against (B,) targets, which broadcast to (B, B)."""
    change_data(setup, lambda x, y: (x, y.flatten()))


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).sum()


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum()


def summed(setup: Setup, loss_fn: Loss, batch_size: int, lr: float) -> None:
    """The batch's summed loss at a learning rate that suits its mean."""
    setup.loss_fn, setup.batch_size = loss_fn, batch_size
    setup.make_optimizer = partial(setup.make_optimizer, lr=lr)


# loop


def no_zero_grad(setup: Setup) -> None:
    setup.zero_grad = False


def optimise(setup: Setup, choose: Callable[[nn.Module], Iterable[nn.Parameter]]) -> None:
    """Hand the optimiser other parameters than the model's."""
    make = setup.make_optimizer
    setup.make_optimizer = lambda _: make(choose(setup.model))


def of_a_copy(model: nn.Module) -> list[nn.Parameter]:
    return list(copy.deepcopy(model).parameters())


def of_another_net(model: nn.Module) -> list[nn.Parameter]:
    return list(mlp(64, 64, 64, 10).parameters())


def of_last_layer(model: nn.Module) -> list[nn.Parameter]:
    return list(layers(model)[-1].parameters())


def of_first_layer(model: nn.Module) -> list[nn.Parameter]:
    return list(layers(model)[0].parameters())


def late_head(setup: Setup) -> None:
    """The output layer is replaced after the optimiser was made."""
    make = setup.make_optimizer

    def make_then_replace(params: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = make(params)
        old = setup.model[-1]
        setup.model[-1] = nn.Linear(old.in_features, old.out_features)
        return optimizer

    setup.make_optimizer = make_then_replace


def reinitialised(setup: Setup) -> None:
    """Every layer's weight becomes a new Parameter after the optimiser was made."""
    make = setup.make_optimizer

    def make_then_reset(params: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = make(params)
        for layer in layers(setup.model):
            layer.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty_like(layer.weight)))
            layer.bias = nn.Parameter(torch.zeros_like(layer.bias))
        return optimizer

    setup.make_optimizer = make_then_reset


def detach_before(setup: Setup, position: int) -> None:
    """A detach() in the forward pass cuts off the layers before it."""
    setup.model.insert(position % len(setup.model), Apply(torch.Tensor.detach))


def through_numpy(setup: Setup) -> None:
    """An activation that is computed in NumPy."""
    setup.model.activation = lambda x: torch.from_numpy(np.maximum(x.detach().numpy(), 0))


def frozen_by_accident(setup: Setup, keep: int = 1) -> None:
    """requires_grad False in all but the last layers, all of them handed to the optimiser."""
    for layer in layers(setup.model)[:-keep]:
        layer.requires_grad_(False)


class NoGradBody(nn.Module):
    """A body under no_grad and a head that learns."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.body(x)
        return self.head(x)


def no_grad_body(setup: Setup) -> None:
    """torch.no_grad() around all but the output layer."""
    setup.model = NoGradBody(setup.model[:-1], setup.model[-1])


def trained_in_eval_mode(setup: Setup) -> None:
    setup.model.eval()
    setup.calls_train = False


def never_back_to_train(setup: Setup) -> None:
    """model.train() is not called again after the first validation."""
    setup.calls_train = False


def validated_in_train_mode(setup: Setup) -> None:
    setup.calls_eval = False


def time_before_batch(setup: Setup) -> None:
    """The RNN takes the batch for the time."""
    setup.model.rnn.batch_first = False


def attention_over_batch(setup: Setup) -> None:
    """The attention takes the batch for the sequence."""
    for block in setup.model.blocks:
        block.self_attn.batch_first = False


def reshape_for_transpose(setup: Setup) -> None:
    """reshape where the axes were to be swapped: a sample's rows come from several samples."""
    mix = Apply(lambda x: x.reshape(x.shape[1], len(x), -1).transpose(0, 1))
    setup.model = nn.Sequential(mix, setup.model)


def channels_before_batch(setup: Setup) -> None:
    """Flattened after the channel axis was moved to the front."""
    flatten = Apply(lambda x: x.transpose(0, 1).reshape(len(x), -1))
    setup.model = nn.Sequential(*setup.model[:-2], flatten, setup.model[-1])


def normalised_by_hand(setup: Setup, position: int) -> None:
    """Statistics of the batch at hand, in training and in evaluation."""
    norm = Apply(lambda x: (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-5))
    setup.model.insert(position, norm)


def gated_over_batch(setup: Setup, position: int) -> None:
    """A gate whose softmax goes over the samples."""
    setup.model.insert(position, Apply(lambda x: x * x.softmax(dim=0) * len(x)))


# data


def scale_inputs(setup: Setup, factor: float = 1.0, offset: float = 0.0) -> None:
    change_inputs(setup, lambda x: x * factor + offset)


def scale_features(setup: Setup, decades: float) -> None:
    """Features whose scales differ by this many powers of ten."""
    features = setup.train[0].shape[1]
    change_inputs(setup, lambda x: x * torch.logspace(0, decades, features))


def raw_units(setup: Setup, name: str) -> None:
    """The table's features in their own units."""
    inputs = torch.as_tensor(bundled(name)[0]).float()
    change_inputs(setup, lambda x: x * inputs.std(dim=0) + inputs.mean(dim=0))


def zero_inputs(setup: Setup) -> None:
    change_inputs(setup, torch.zeros_like)


def constant_inputs(setup: Setup, value: float) -> None:
    change_inputs(setup, lambda x: torch.full_like(x, value))


def repeated_sample(setup: Setup) -> None:
    """A loader that gives the first sample under every label."""
    change_inputs(setup, lambda x: x[:1].expand_as(x).clone())


def mean_sample(setup: Setup) -> None:
    """Inputs averaged over the wrong axis."""
    change_inputs(setup, lambda x: x.mean(dim=0, keepdim=True).expand_as(x).clone())


def shuffled_labels(setup: Setup, share: float = 1.0) -> None:
    """The training labels, or a share of them, in random order."""
    x, y = setup.train
    places = torch.randperm(len(y))[: int(share * len(y))]
    y = y.clone()
    y[places] = y[places[torch.randperm(len(places))]]
    setup.train = x, y


def shifted_labels(setup: Setup) -> None:
    """Each training sample has the label of the one before it."""
    x, y = setup.train
    setup.train = x, y.roll(1, dims=0)


def other_label_code(setup: Setup, classes: int) -> None:
    """The validation's classes are numbered from 1, where 0 is the last."""
    x, y = setup.val
    setup.val = x, (y + 1) % classes


def labels_from_one(setup: Setup) -> None:
    """Classes coded 1 and 2 where the loss wants 0 and 1."""
    change_data(setup, lambda x, y: (x, y + 1))


def thin_out(setup: Setup, classes: tuple[int, ...], keep: float) -> None:
    """Of these classes, training has a small share of the samples; validation has all."""
    x, y = setup.train
    kept = torch.ones(len(y), dtype=torch.bool)
    for label in classes:
        places = (y.flatten() == label).nonzero().flatten()
        kept[places[max(2, int(keep * len(places))) :]] = False
    setup.train = x[kept], y[kept]
    setup.epochs = setup.epochs * len(x) // int(kept.sum())  # as many steps as before


def change_val(setup: Setup, change: Callable[[Tensor], Tensor]) -> None:
    setup.val = change(setup.val[0]), setup.val[1]


def val_scaled(setup: Setup, factor: float = 1.0, offset: float = 0.0) -> None:
    """The validation inputs are not standardised as the training's."""
    change_val(setup, lambda x: x * factor + offset)


def val_permuted(setup: Setup) -> None:
    """The validation's features come in another order."""
    order = torch.randperm(setup.val[0].shape[1])
    change_val(setup, lambda x: x[:, order])


def val_inverted(setup: Setup) -> None:
    """Black and white are swapped in validation."""
    change_val(setup, lambda x: x.amax() + x.amin() - x)


def val_transposed(setup: Setup) -> None:
    """Rows and columns are swapped in validation."""
    change_val(setup, lambda x: x.transpose(-2, -1).contiguous())


def leak(setup: Setup, classes: int | None, *, in_val: bool) -> None:
    """The label, one-hot or as it is, is among the features; in validation it may be missing."""

    def with_label(x: Tensor, y: Tensor, there: bool = True) -> Data:
        label = F.one_hot(y, classes).float() if classes else y.reshape(len(y), 1).float()
        return torch.cat([x, 2 * label * there], dim=1), y

    setup.train, setup.val = with_label(*setup.train), with_label(*setup.val, there=in_val)
    old = setup.model[0]
    setup.model[0] = nn.Linear(setup.train[0].shape[1], old.out_features)


def leaky_pixel(setup: Setup, *, in_val: bool) -> None:
    """The corner pixel's brightness is the label."""

    def mark(x: Tensor, y: Tensor) -> Data:
        x = x.clone()
        x[:, 0, 0, 0] = y - 4.5
        return x, y

    setup.train = mark(*setup.train)
    if in_val:
        setup.val = mark(*setup.val)


# generalisation


def overfit(setup: Setup, samples: int, hidden: int, epochs: int, flipped: float = 0.0) -> None:
    """A large net and many epochs on few samples, part of them with a wrong label."""
    features, outputs = widths(setup)
    setup.model = mlp(features, hidden, hidden, outputs)
    setup.train = setup.train[0][:samples], setup.train[1][:samples]
    shuffled_labels(setup, flipped)
    setup.batch_size, setup.epochs = 16, epochs


def overfit_cnn(setup: Setup, samples: int, epochs: int, flipped: float) -> None:
    """A convolutional net and many epochs on few samples with wrong labels among them."""
    setup.train = setup.train[0][:samples], setup.train[1][:samples]
    shuffled_labels(setup, flipped)
    setup.batch_size, setup.epochs = 16, epochs


def decay(setup: Setup, weight_decay: float) -> None:
    setup.make_optimizer = partial(setup.make_optimizer, weight_decay=weight_decay)


def drop(setup: Setup, p: float) -> None:
    """A dropout that leaves next to nothing."""
    for module in setup.model:
        if isinstance(module, nn.Dropout):
            module.p = p


def drop_after_activations(setup: Setup, p: float) -> None:
    """Dropout that leaves next to nothing behind every activation."""
    modules = ([m, nn.Dropout(p)] if isinstance(m, HIDDEN) else [m] for m in setup.model)
    setup.model = nn.Sequential(*(m for group in modules for m in group))


def penalise(setup: Setup, factor: float, power: int) -> None:
    """An L1 or L2 penalty in the loss that outweighs the data."""
    setup.penalty = lambda model: factor * sum(p.abs().pow(power).sum() for p in model.parameters())


# numerics


def poison_inputs(setup: Setup, value: float, samples: int = 1) -> None:
    """One feature of a few training samples is not a number."""
    x = setup.train[0].clone()
    x[torch.randperm(len(x))[:samples], ..., -1] = value
    setup.train = x, setup.train[1]


def poison_parameter(setup: Setup, layer: int) -> None:
    """A weight that is not a number from the start, as of a damaged checkpoint."""
    with torch.no_grad():
        layers(setup.model)[layer].weight[0, 0] = float("nan")


def poison_targets(setup: Setup) -> None:
    """A missing target among the training samples."""
    y = setup.train[1].clone()
    y[len(y) // 2] = float("nan")
    setup.train = setup.train[0], y


def insert(setup: Setup, function: Callable[[Tensor], Tensor], position: int) -> None:
    """A function in the forward pass that is not finite, or has no finite slope, everywhere."""
    setup.model.insert(position, Apply(function))


def penalise_norms(setup: Setup) -> None:
    """A group lasso whose square root has no slope at biases that start at zero."""
    for layer in layers(setup.model):
        nn.init.zeros_(layer.bias)
    setup.penalty = lambda model: 1e-4 * sum(p.square().sum().sqrt() for p in model.parameters())


def log_of_relu(x: Tensor) -> Tensor:
    return torch.log(torch.relu(x))


def sqrt_of_square(x: Tensor) -> Tensor:
    """Finite, but in the backward pass 0 · inf where a unit is 0, as a dropped one is."""
    return x.square().sqrt()


def over_its_norm(x: Tensor) -> Tensor:
    """0 / 0 for a sample none of whose units is active."""
    active = torch.relu(x - x.mean() - 2 * x.std())
    return active / active.norm(dim=1, keepdim=True)


def relative_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Division by targets of which some are 0."""
    return ((outputs - targets) / targets.round()).square().mean()


def log_of_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """A softmax that underflows to 0 before its logarithm is taken."""
    sharp = (500 * logits).softmax(dim=1)
    return -sharp[torch.arange(len(labels)), labels].log().mean()


def per_class_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over each class's samples, 0 / 0 for a class that the batch lacks."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    members = F.one_hot(labels, logits.shape[1]).float()
    return ((losses @ members) / members.sum(dim=0)).mean()


# ----------------------------------------------------------------------------- faulty programs


@dataclass(frozen=True)
class Case:
    """A base and the fault that spoils it."""

    base: str
    fault: Callable[..., None]
    options: dict[str, Any]
    accepted: tuple[str, ...]

    @property
    def name(self) -> str:
        said = ",".join(f"{key}={plain(value)}" for key, value in self.options.items())
        return f"{self.base}+{self.fault.__name__}" + (f"({said})" if said else "")

    def build(self, seed: int) -> Setup:
        setup = sound(self.base, seed)
        self.fault(setup, **self.options)
        return setup


def case(
    base: str, fault: Callable[..., None], accepted: tuple[str, ...] = (), **options: Any
) -> Case:
    return Case(base, fault, options, accepted)


def plain(value: Any) -> str:
    """A name for an option's value, the same in every process."""
    if isinstance(value, partial):
        said = [str(v) for v in value.args] + [f"{k}={v}" for k, v in value.keywords.items()]
        return f"{plain(value.func)}({','.join(said)})"
    if isinstance(value, nn.Module):  # a loss
        return f"{type(value).__name__}({value.reduction})"
    return getattr(value, "__name__", None) or str(value).replace(" ", "")


def sound(base: str, seed: int) -> Setup:
    torch.manual_seed(seed)
    return BASES[base](seed)


softmax = partial(nn.Softmax, dim=1)
nan, inf = float("nan"), float("inf")

FAULTS: dict[str, list[Case]] = {
    "vanishing_gradient": [
        case("mlp", deep_mlp, activation=nn.Sigmoid, depth=6),
        case("wine", deep_mlp, activation=nn.Sigmoid, depth=8),
        case("cnn_sgd", deep_cnn, activation=nn.Sigmoid, depth=5),
        case("mlp_momentum", deep_mlp, activation=flat_tanh, depth=10),
        case("cancer_one_logit", deep_mlp, activation=nn.Sigmoid, depth=5),
        case("friedman", deep_mlp, activation=nn.Sigmoid, depth=10),
        case("rnn", pixel_rnn, gain=0.3),
    ],
    "exploding_gradient": [
        case("mlp_sgd", gain_per_layer, ("init_scale_too_large",), gain=1.8, depth=20),
        case("friedman_sgd", gain_per_layer, ("init_scale_too_large",), gain=1.6, depth=16),
        case("cnn_sgd", gain_per_convolution, ("init_scale_too_large",), gain=2.0, depth=12),
        case("rnn_sgd_clipped", pixel_rnn, gain=2.0, nonlinearity="relu"),
        case("rnn_sgd_clipped", pixel_rnn, gain=3.0),
        case("mlp_momentum", residual_growth, depth=20, gain=3.0),
        case("friedman_sgd", unscaled_targets, ("lr_too_high",), factor=1000.0),
    ],
    "dead_relu": [
        case("mlp", negative_biases, bias=-10.0),
        case("cnn", negative_biases, bias=-8.0),
        case("mlp_sgd", negative_biases, bias=-15.0, only=1),
        case("friedman", negative_biases, bias=-10.0),
        case("functional", negative_biases, bias=-12.0),
        case("mlp_sgd", negative_weights),
    ],
    "saturated_activation": [
        case("mlp_tanh", large_biases, bias=20.0),
        case("mlp_shallow_sigmoid", large_biases, bias=30.0),
        case("mlp_sgd", steep, kind=nn.Tanh, gain=100.0),
        case("cnn_tanh", large_biases, bias=15.0),
        case("friedman_sgd", large_biases, bias=20.0),
        case("friedman", steep, kind=nn.Sigmoid, gain=100.0),
        case("lstm", saturated_gates, bias=10.0),
    ],
    "wrong_hidden_activation": [
        case("mlp", hidden_module, make=softmax),
        case("functional", hidden_function, function=partial(F.softmax, dim=1)),
        case("mlp_tanh", hidden_module, make=partial(nn.LogSoftmax, dim=1)),
        case("cnn", hidden_module, make=softmax),
        case("friedman", hidden_module, make=softmax),
        case("functional", hidden_function, function=partial(F.log_softmax, dim=1)),
        case("moons", hidden_module, make=softmax),
    ],
    "no_nonlinearity": [
        case("moons", no_activation),
        case("circles_one_logit", no_activation),
        case("mlp", no_activation),
        case("cnn", linear_cnn),
        case("functional_circles", no_activation),
        case("friedman", no_activation),
        case("sine", no_activation),
    ],
    "symmetric_init": [
        case("mlp", constant_init, value=0.1),
        case("mlp_sgd", constant_init, value=0.0),
        case("cnn", constant_init, value=0.1),
        case("lstm", constant_init, value=0.1),
        case("wine", constant_init, value=0.5),
        case("friedman", constant_init, value=0.0),
        case("mlp_tanh", constant_per_layer),
    ],
    "init_scale_too_large": [
        case("mlp_sgd", scale_weights, factor=30.0),
        case("mlp", normal_weights, std=3.0),
        case("cnn_sgd", scale_weights, factor=10.0),
        case("friedman", normal_weights, std=2.0),
        case("mlp_rmsprop", normal_weights, std=2.0),
        case("cancer", scale_weights, factor=100.0),
        case("mlp_sgd", uniform_weights, low=0.0, high=1.0),
    ],
    "init_scale_too_small": [
        case("mlp_sgd", scale_weights, factor=0.01),
        case("mlp_sgd", small_init, std=1e-3),
        case("mlp_momentum", small_init, std=1e-4),
        case("cnn_sgd", scale_weights, factor=0.01),
        case("friedman_sgd", small_init, std=1e-3),
        case("mlp", small_init, std=1e-4, depth=6),
    ],
    "lr_too_high": [
        case("mlp", scale_lr, factor=500.0),
        case("mlp_sgd", scale_lr, factor=100.0),
        case("cnn", scale_lr, factor=100.0),
        case("lstm", scale_lr, factor=100.0),
        case("friedman_sgd", scale_lr, factor=100.0),
        case("transformer", scale_lr, factor=100.0),
        case("mlp_momentum", scale_lr, factor=100.0),
    ],
    "lr_too_low": [
        case("mlp", scale_lr, factor=1e-3),
        case("mlp_sgd", scale_lr, factor=1e-3),
        case("cnn", scale_lr, factor=1e-3),
        case("lstm", scale_lr, factor=1e-3),
        case("friedman", scale_lr, factor=1e-3),
        case("cnn_batch_norm", scale_lr, factor=1e-4),
        case("transformer", scale_lr, factor=1e-3),
    ],
    "wrong_loss": [
        case("mlp_sgd", append, make=softmax),
        case("mlp", use_loss, loss_fn=softmax_over_batch),
        case("mlp", use_loss, loss_fn=mse_on_one_hot),
        case("cnn", flipped_sign),
        case("friedman", flat_targets),
        case("mlp", use_loss, loss_fn=F.nll_loss),
        case("cancer_one_logit", append, make=nn.Sigmoid),
        case("friedman", append, make=nn.ReLU),
        # The softmax over one logit is 1, and the loss 0 whatever the net says.
        case("cancer_one_logit", use_loss, loss_fn=F.cross_entropy),
        case("cnn", append, make=softmax),
        case("diabetes", flat_targets),
        case("friedman", flipped_sign),
        case("mlp", use_loss, loss_fn=mse_on_argmax),
        case("mlp_sgd", use_loss, loss_fn=mse_on_softmax),
        case("mlp", append, make=partial(nn.Softmax, dim=0)),
        case("friedman", append, make=nn.Sigmoid),
    ],
    "loss_reduction": [
        case("mlp_sgd", summed, loss_fn=ce(reduction="sum"), batch_size=64, lr=0.1),
        case("cnn_sgd", summed, loss_fn=cross_entropy_sum, batch_size=64, lr=0.05),
        case("friedman_sgd", summed, loss_fn=nn.MSELoss(reduction="sum"), batch_size=64, lr=0.02),
        case("mlp_momentum", summed, loss_fn=cross_entropy_sum, batch_size=128, lr=0.03),
        case(
            "cancer_one_logit",
            summed,
            loss_fn=nn.BCEWithLogitsLoss(reduction="sum"),
            batch_size=128,
            lr=1.0,
        ),
        case("friedman_sgd", summed, loss_fn=squared_errors, batch_size=32, lr=0.02),
    ],
    "missing_zero_grad": [
        case("mlp_sgd", no_zero_grad),
        case("mlp", no_zero_grad),
        case("mlp_momentum", no_zero_grad),
        case("cnn_sgd", no_zero_grad),
        case("lstm", no_zero_grad),
        case("friedman", no_zero_grad),
        case("cnn", no_zero_grad),
    ],
    "optimizer_mismatch": [
        case("mlp", optimise, choose=of_another_net),
        case("mlp_sgd", optimise, choose=of_a_copy),
        case("cnn", optimise, choose=of_last_layer),
        case("mlp_momentum", late_head),
        case("lstm", optimise, choose=of_a_copy),
        case("friedman", optimise, choose=of_first_layer),
        case("mlp", reinitialised),
    ],
    "frozen_parameters": [
        case("mlp", detach_before, position=-1),
        case("cnn", detach_before, position=3),
        case("mlp_sgd", frozen_by_accident),
        case("lstm", frozen_by_accident),
        case("functional", through_numpy),
        case("friedman", no_grad_body),
        case("cnn_batch_norm", frozen_by_accident, keep=2),
    ],
    "train_eval_mode": [
        case("mlp_batch_norm", trained_in_eval_mode),
        case("cnn_batch_norm", never_back_to_train),
        case("mlp_dropout", validated_in_train_mode),
        case("cnn_batch_norm", validated_in_train_mode),
        case("mlp_dropout", trained_in_eval_mode),
        case("mlp_batch_norm", never_back_to_train),
        case("transformer_tokens", validated_in_train_mode),
    ],
    "batch_mixing": [
        case("lstm", time_before_batch),
        case("transformer", attention_over_batch),
        case("gru_clipped", reshape_for_transpose),
        case("cnn", channels_before_batch),
        case("mlp", normalised_by_hand, position=1),
        case("mlp", gated_over_batch, position=1),
        case("gru_clipped", time_before_batch),
        case("cnn", normalised_by_hand, position=1),
    ],
    "input_scale": [
        case("mlp_sgd", scale_inputs, factor=255.0),
        case("cnn_sgd", scale_inputs, factor=1000.0),
        case("mlp_sgd", scale_inputs, offset=100.0),
        case("mlp_momentum", scale_inputs, factor=1e-3),
        case("wine", raw_units, name="wine"),
        case("iris", scale_features, decades=4.0),
        case("friedman_sgd", scale_inputs, factor=255.0),
        case("lstm", scale_inputs, factor=1e-3),
    ],
    "constant_input": [
        case("mlp", zero_inputs),
        case("cnn", repeated_sample),
        case("friedman", constant_inputs, value=1.0),
        case("lstm", zero_inputs),
        case("cancer", mean_sample),
        case("transformer", repeated_sample),
    ],
    "bad_labels": [
        case("mlp", shuffled_labels),
        case("cnn", shifted_labels),
        case("mlp_sgd", shuffled_labels, share=0.5),
        case("ten_prototypes", other_label_code, ("train_test_mismatch",), classes=10),
        case("friedman", shifted_labels),
        case("cancer_one_logit", labels_from_one),
        case("lstm", shuffled_labels),
        case("mlp_momentum", other_label_code, ("train_test_mismatch",), classes=10),
    ],
    "class_imbalance": [
        case("few_informative", thin_out, classes=(1,), keep=0.02),
        case("ten_prototypes", thin_out, classes=(1, 2, 3, 4, 5, 6, 7, 8, 9), keep=0.02),
        case("moons", thin_out, classes=(0,), keep=0.02),
        case("mlp_sgd", thin_out, classes=(5, 6, 7, 8, 9), keep=0.02),
        case("circles_one_logit", thin_out, classes=(1,), keep=0.03),
        case("cnn", thin_out, classes=(0, 1, 2, 3, 4, 5, 6, 8), keep=0.01),
    ],
    "train_test_mismatch": [
        case("mlp", val_scaled, offset=-3.0),
        case("wine", val_permuted),
        case("cnn", val_inverted),
        case("lstm", val_transposed),
        case("friedman", val_scaled, factor=0.1),
        case("cancer", val_scaled, offset=4.0),
        case("mlp_raw_pixels", val_scaled, factor=1 / 16),
    ],
    "label_leak": [
        case("ten_prototypes", leak, classes=10, in_val=True),
        case("few_informative", leak, classes=2, in_val=False),
        case("cnn", leaky_pixel, in_val=True),
        case("friedman", leak, classes=None, in_val=True),
        case("diabetes", leak, classes=None, in_val=False),
        case("cnn_tanh", leaky_pixel, in_val=False),
        case("noisy_line", leak, classes=None, in_val=True),
    ],
    "overfitting": [
        case("few_informative", overfit, samples=60, hidden=256, epochs=60),
        case("mlp", overfit, ("bad_labels",), samples=60, hidden=256, epochs=60, flipped=0.2),
        case("diabetes", overfit, samples=60, hidden=256, epochs=80),
        case("noisy_line", overfit, samples=60, hidden=256, epochs=80),
        case("cancer", overfit, ("bad_labels",), samples=50, hidden=256, epochs=60, flipped=0.2),
        case("cnn", overfit_cnn, ("bad_labels",), samples=80, epochs=40, flipped=0.2),
        case("diabetes", overfit, samples=120, hidden=128, epochs=60),
    ],
    "over_regularised": [
        case("mlp_sgd", decay, weight_decay=1.0),
        case("mlp_gelu_weight_decay", decay, weight_decay=100.0),
        case("mlp_dropout", drop, p=0.98),
        case("mlp", penalise, factor=0.1, power=1),
        case("friedman", penalise, factor=1.0, power=2),
        case("cnn", decay, weight_decay=1.0),
        case("cnn", drop_after_activations, p=0.95),
    ],
    "non_finite": [
        case("mlp", poison_inputs, value=nan),
        case("cnn", poison_inputs, value=inf),
        case("mlp_sgd", poison_parameter, layer=1),
        case("mlp", insert, function=log_of_relu, position=2),
        case("mlp_dropout", insert, function=sqrt_of_square, position=3),
        case("friedman", use_loss, loss_fn=relative_error),
        case("cnn", use_loss, loss_fn=log_of_softmax),
        case("mlp_tanh", use_loss, loss_fn=per_class_mean),
        case("mlp_layer_norm", insert, function=over_its_norm, position=4),
        case("friedman_sgd", poison_targets),
        case("mlp_momentum", penalise_norms),
    ],
}


def half(position: int) -> Literal["tuning", "held_out"]:
    return "held_out" if position % 2 else "tuning"


SOUND = [
    Program(base, None, half(position), partial(sound, base)) for position, base in enumerate(BASES)
]
FAULTY = [
    Program(f"{cause}/{case.name}", cause, half(position), case.build, case.accepted)
    for cause, cases in FAULTS.items()
    for position, case in enumerate(cases)
]
