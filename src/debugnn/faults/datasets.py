"""Small data sets, bundled with scikit-learn or generated.

Each function returns (training, validation) pairs of inputs and targets; the seed decides which
samples go where, and draws what is generated.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from debugnn.faults.program import Data

Split = tuple[Data, Data]


def split(
    inputs: Any,
    targets: Any,
    seed: int,
    *,
    train_size: float = 0.7,
    standardise: Literal["features", "all", "none"] = "features",
) -> Split:
    """Split at random, and standardise by the statistics of the training part.

    Args:
        inputs: (N, …) floats, or whole numbers (tokens), which are not standardised.
        targets: (N,) classes as whole numbers, or (N, K) floats.
        seed: of the split.
        train_size: share of the samples.
        standardise: each feature by its own mean and standard deviation, or all by those of the
            whole training part.
    """
    x_train, x_val, y_train, y_val = train_test_split(
        torch.as_tensor(inputs), torch.as_tensor(targets), train_size=train_size, random_state=seed
    )
    if not y_train.is_floating_point():
        y_train, y_val = y_train.long(), y_val.long()
    if not x_train.is_floating_point():
        return (x_train, y_train), (x_val, y_val)
    x_train, x_val = x_train.float(), x_val.float()
    if standardise != "none":
        dims = 0 if standardise == "features" else tuple(range(x_train.dim()))
        mean, std = x_train.mean(dims), x_train.std(dims)
        x_train, x_val = (x_train - mean) / std, (x_val - mean) / std
    return (x_train, y_train), (x_val, y_val)


@cache
def bundled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (N, D) and targets (N,) of a data set that comes with scikit-learn."""
    return getattr(datasets, f"load_{name}")(return_X_y=True)


def digits(
    seed: int, *shape: int, standardise: Literal["features", "all", "none"] = "all"
) -> Split:
    """8×8 digits as (64,), as images (1, 8, 8) or as sequences of rows (8, 8)."""
    pixels, labels = bundled("digits")
    pixels = pixels.reshape(-1, *(shape or (64,)))
    return split(pixels, labels, seed, train_size=1200 / 1797, standardise=standardise)


def digit_properties(seed: int) -> Split:
    """The digits with five labels each: even, above 4, prime, a square, written with a loop."""
    groups = ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (2, 3, 5, 7), (0, 1, 4, 9), (0, 6, 8, 9))
    asked = torch.tensor([[float(digit in group) for group in groups] for digit in range(10)])
    (x, y), (x_val, y_val) = digits(seed)
    return (x, asked[y]), (x_val, asked[y_val])


def table(name: str, seed: int) -> Split:
    """wine, iris or breast_cancer, with classes as whole numbers."""
    return split(*bundled(name), seed)


def binary(data: Split) -> Split:
    """Turn classes 0 and 1 into a column of floats, as BCEWithLogitsLoss wants them."""
    (x, y), (x_val, y_val) = data
    return (x, y.float().unsqueeze(1)), (x_val, y_val.float().unsqueeze(1))


def toy(name: str, seed: int) -> Split:
    """moons or circles: two classes in the plane."""
    make = {"moons": datasets.make_moons, "circles": partial(datasets.make_circles, factor=0.5)}
    inputs, labels = make[name](700, noise=0.1, random_state=seed)
    return split(inputs, labels, seed)


def regression(inputs: np.ndarray, targets: np.ndarray, seed: int) -> Split:
    """Split, with the targets as a standardised column."""
    targets = ((targets - targets.mean()) / targets.std()).astype(np.float32)
    return split(inputs, targets.reshape(len(targets), -1), seed)


def friedman(seed: int) -> Split:
    """Friedman's first problem: a nonlinear function of 5 features of 10."""
    inputs, targets = datasets.make_friedman1(800, noise=0.5, random_state=seed)
    return regression(inputs, targets, seed)


def prices(seed: int) -> Split:
    """Friedman's first problem, with targets that are all positive."""
    return tuple((x, y + 4) for x, y in friedman(seed))  # type: ignore[return-value]


def sine(seed: int) -> Split:
    """sin(2x) with noise, for x from -3 to 3."""
    x = np.random.default_rng(seed).uniform(-3, 3, (600, 1))
    return regression(x, np.sin(2 * x) + np.random.default_rng(seed).normal(0, 0.1, x.shape), seed)


def walks(seed: int, *, samples: int = 900, length: int = 12, axes: int = 1) -> Split:
    """Steps of random walks (length, axes), half of them left out, and where each walk ends."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(samples, length, axes)) * (rng.random((samples, length, axes)) < 0.5)
    return split(steps, steps.sum(axis=1).astype(np.float32) / length**0.5, seed)


def parts_of_walks(seed: int, *, walks: int = 30, parts: int = 20, length: int = 8) -> Split:
    """Walks on a spring, cut into parts; the targets are the places after each step.

    The first `walks` samples are the first parts of all, the next ones the parts that follow. For
    validation there are first parts of other walks.
    """
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(3 * walks, parts * length, 1)).astype(np.float32)
    places, place = np.zeros_like(steps), np.zeros_like(steps[:, 0])
    for time in range(parts * length):
        place = places[:, time] = 0.95 * place + 0.3 * steps[:, time]
    x, y = torch.from_numpy(steps), torch.from_numpy(places)
    train = tuple(torch.cat(t[:walks].split(length, dim=1)) for t in (x, y))
    return (train[0], train[1]), (x[walks:, :length], y[walks:, :length])


def vibrations(
    seed: int, *, machines: int = 80, length: int = 192, window: int = 48, step: int = 16
) -> Split:
    """Overlapping windows (window, 1) of the vibrations of machines; the target is a machine's
    natural frequency, as a standardised column. Those of one machine in four are for validation.
    """
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.3, 1.5, machines)
    push = rng.normal(size=(machines, length + 50))
    swings = np.zeros_like(push)
    for time in range(2, length + 50):
        swings[:, time] = push[:, time] - 0.95 * swings[:, time - 2]
        swings[:, time] += 2 * 0.95**0.5 * np.cos(rates) * swings[:, time - 1]
    swings = swings[:, 50:] / swings[:, 50:].std(axis=1, keepdims=True)
    starts = range(0, length - window + 1, step)
    parts = np.stack([swings[:, start : start + window] for start in starts], axis=1)
    x = torch.from_numpy(parts.astype(np.float32)).unsqueeze(3)
    y = torch.from_numpy((rates - rates.mean()) / rates.std()).float()
    y = y[:, None, None].expand(machines, len(starts), 1)
    first = 3 * machines // 4
    (x, x_val), (y, y_val) = ((t[:first].flatten(0, 1), t[first:].flatten(0, 1)) for t in (x, y))
    return (x, y), (x_val, y_val)


def noisy_line(seed: int) -> Split:
    """A linear map of 8 features with so much noise that the best R² is 0.4."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(900, 8))
    clean = x @ rng.normal(size=8)
    return regression(x, clean + rng.normal(0, clean.std() * 1.5**0.5, 900), seed)


def prototypes(
    seed: int, *, classes: int = 100, samples: int = 3000, features: int = 32, noise: float = 0.5
) -> Split:
    """Classes that are random points, with samples scattered around each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    points = rng.normal(size=(classes, features))
    return split(points[labels] + rng.normal(0, noise, (samples, features)), labels, seed)


def mixture(
    seed: int,
    shares: Sequence[float],
    *,
    features: int = 20,
    samples: int = 6000,
    distance: float = 2.4,
) -> Split:
    """Classes of unequal shares, scattered by 1 around points in all directions.

    Args:
        seed: of the points and the samples.
        shares: of the classes, in both sets.
        features: axes of the space.
        samples: in both sets together.
        distance: of the points from the origin.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), samples, p=shares)
    points = rng.normal(size=(len(shares), features))
    points *= distance / np.linalg.norm(points, axis=1, keepdims=True)
    return split(points[labels] + rng.normal(size=(samples, features)), labels, seed)


def few_informative(seed: int) -> Split:
    """Two classes that differ in 3 features of 20, with 2 % of the labels wrong."""
    inputs, labels = datasets.make_classification(
        2400,
        20,
        n_informative=3,
        n_redundant=0,
        class_sep=1.5,
        flip_y=0.04,  # share of labels that are drawn again, so that half of them stay right
        random_state=seed,
    )
    return split(inputs, labels, seed, train_size=0.5)


def tokens(seed: int, *, samples: int = 1500, length: int = 12) -> Split:
    """Sequences over 8 tokens; the class is the token that fills 5 of the 12 places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(8, size=samples)
    sequences = rng.integers(8, size=(samples, length))
    places = rng.permuted(np.tile(np.arange(length), (samples, 1)), axis=1)[:, :5]
    np.put_along_axis(sequences, places, labels[:, None], axis=1)
    return split(sequences, labels, seed)


def weighed(seed: int, *, symbols: int = 10, length: int = 11, samples: int = 1400) -> Split:
    """Sequences of symbols, each of which weighs something; the target is what all weigh
    together."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=symbols)
    sequences = rng.integers(symbols, size=(samples, length))
    return split(
        sequences, (weights[sequences].sum(1) / length**0.5).astype(np.float32)[:, None], seed
    )


def text(seed: int, *, tokens: int = 20, samples: int = 900, length: int = 16) -> Split:
    """Sequences in which three successors of each token are about equally likely; the targets are
    the inputs shifted by one. Some tokens are rare."""
    rng = np.random.default_rng(seed)
    popularity = 1 / (1 + np.arange(tokens))
    successors = np.stack(
        [
            rng.choice(tokens, 3, replace=False, p=popularity / popularity.sum())
            for _ in range(tokens)
        ]
    )
    stream = np.zeros((samples, length + 1), dtype=int)
    stream[:, 0] = rng.integers(tokens, size=samples)
    for place in range(length):
        stream[:, place + 1] = successors[stream[:, place], rng.integers(3, size=samples)]
    return split(stream[:, :-1], stream[:, 1:], seed)


def tangled_pairs(seed: int, *, samples: int = 1600) -> Split:
    """Two digits side by side (2, 64); the target is 1 where they are of different classes."""
    pixels, labels = bundled("digits")
    rng = np.random.default_rng(seed)
    first = rng.integers(len(labels), size=samples)
    second = rng.integers(len(labels), size=samples)
    equal = rng.random(samples) < 0.5
    for index in np.flatnonzero(equal):
        second[index] = rng.choice(np.flatnonzero(labels == labels[first[index]]))
    different = (labels[first] != labels[second]).astype(np.float32)
    return split(np.stack([pixels[first], pixels[second]], 1), different, seed, standardise="all")


def triplets(seed: int, *, samples: int = 1500) -> Split:
    """An anchor, another digit of its class and one of another class (3, 64); the target is the
    anchor's class, which the loss does not read."""
    pixels, labels = bundled("digits")
    rng = np.random.default_rng(seed)
    anchors = rng.integers(len(labels), size=samples)
    rows = []
    for anchor in anchors:
        same = labels == labels[anchor]
        rows.append([anchor, rng.choice(np.flatnonzero(same)), rng.choice(np.flatnonzero(~same))])
    return split(pixels[np.array(rows)], labels[anchors], seed, standardise="all")


def fuzzy(seed: int) -> Split:
    """A probability for each sample, where others have a label: a column between 0 and 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1200, 12))
    shares = 1 / (1 + np.exp(2.5 - 2.5 * x[:, 0] - x[:, 1] * x[:, 2]))
    return split(x, shares.astype(np.float32)[:, None], seed)


def events(seed: int) -> Split:
    """Events, about six in a hundred, that are as much a matter of chance as of two features: a
    column of 0 and 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4000, 10))
    chances = 1 / (1 + np.exp(4.2 - 1.2 * x[:, 0] - np.abs(x[:, 1])))
    return split(x, (rng.random(4000) < chances).astype(np.float32)[:, None], seed)


def rare_counts(seed: int) -> Split:
    """Counts, nine of ten of them 0, of which chance makes more than the inputs do."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6000, 6))
    rates = np.exp(-2.6 + 0.8 * x[:, 0] + 0.5 * np.abs(x[:, 1]))
    return split(x, rng.poisson(rates).astype(np.float32)[:, None], seed)


def counts(seed: int) -> Split:
    """Counts whose rate depends on the inputs, as a column."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1200, 8))
    rates = np.exp(1.0 + 0.8 * x[:, 0] - 0.5 * np.abs(x[:, 1]))
    return split(x, rng.poisson(rates).astype(np.float32)[:, None], seed)


def spreading(seed: int) -> Split:
    """A curve whose noise grows along it, as a column."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (1200, 1))
    y = np.sin(3 * x) + (0.05 + 0.15 * (x + 2)) * rng.normal(size=x.shape)
    return split(x, y.astype(np.float32), seed)


def lifetimes(seed: int) -> Split:
    """Lifetimes that end with an event or are censored; targets (2,) are the time, in whole weeks,
    and 1 for an event."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1600, 8))
    risk = 0.9 * x[:, 0] + 0.8 * np.abs(x[:, 1]) - 0.6 * x[:, 2] * (x[:, 3] > 0)
    life = 40 * (rng.exponential(size=1600) * np.exp(-risk)) ** (1 / 1.5)
    censored = rng.uniform(5, 80, 1600)
    time, event = np.ceil(np.minimum(life, censored)), life <= censored
    return split(x, np.stack([time, event], axis=1).astype(np.float32), seed)


def likes(seed: int, *, users: int = 200, items: int = 120, samples: int = 16000) -> Split:
    """Numbers of a user and of an item (2,), and whether the user likes the item: a column of 0 and
    1 that follows from four tastes of each, by chance."""
    rng = np.random.default_rng(seed)
    tastes, traits = rng.normal(size=(users, 4)), rng.normal(size=(items, 4))
    user, item = rng.integers(users, size=samples), rng.integers(items, size=samples)
    chances = 1 / (1 + np.exp(-2 * (tastes[user] * traits[item]).sum(axis=1)))
    liked = (rng.random(samples) < chances).astype(np.float32)[:, None]
    return split(np.stack([user, item], axis=1), liked, seed)


def ageing_machines(seed: int, *, machines: int = 1500, past: int = 14, ahead: int = 5) -> Split:
    """Rows (past + ahead, 3) of what a machine gives, of its load, and of its age in units of 5000
    hours; the targets are what it gives in the last rows, where 0 stands in their place.

    What a load does depends on the age.
    """
    rng = np.random.default_rng(seed)
    age = rng.uniform(0, 1, (machines, 1))
    load = rng.normal(size=(machines, past + ahead))
    given = np.zeros_like(load)
    given[:, 0] = rng.normal(size=machines)
    for time in range(1, past + ahead):
        given[:, time] = 0.8 * given[:, time - 1] + 0.6 * load[:, time] * np.cos(3 * age[:, 0])
        given[:, time] += 0.15 * rng.normal(size=machines)
    targets = given[:, past:].astype(np.float32)
    given[:, past:] = 0
    rows = np.stack([given, load, np.broadcast_to(age, load.shape)], axis=2)
    return split(rows, targets, seed, standardise="none")


def ring(seed: int) -> Split:
    """Noise, and beside it points (2,) of a ring that a generator is to draw from it."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, 1500)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) + 0.05 * rng.normal(size=(1500, 2))
    return split(rng.normal(size=(1500, 6)), points.astype(np.float32), seed, standardise="none")


def successors(seed: int, *, symbols: int = 12, length: int = 16, samples: int = 1500) -> Split:
    """Windows of a chain of symbols, and the symbols that follow each, (N, length) both.

    Three in four symbols are the usual successor of the one before.
    """
    rng = np.random.default_rng(seed)
    usual, chain = rng.permutation(symbols), rng.integers(symbols, size=(samples, length + 1))
    for place in range(1, length + 1):
        follows = rng.random(samples) < 0.75
        chain[follows, place] = usual[chain[follows, place - 1]]
    (x, _), (x_val, _) = split(chain, np.zeros(samples, dtype=int), seed)
    return (x[:, :-1], x[:, 1:]), (x_val[:, :-1], x_val[:, 1:])


def copying(seed: int) -> Split:
    """Sequences of eight symbols whose targets are their own inputs."""
    (x, _), (x_val, _) = successors(seed, symbols=6, length=8)
    return (x, x.clone()), (x_val, x_val.clone())


def autoencoding(seed: int) -> Split:
    """Digits whose targets are their own inputs."""
    (x, _), (x_val, _) = digits(seed)
    return (x, x.clone()), (x_val, x_val.clone())


def black_and_white(seed: int, *shape: int) -> Split:
    """Digits of pixels 0 and 1, which are inputs and targets at once."""
    (x, _), (x_val, _) = digits(seed, *shape, standardise="none")
    train, val = ((images > 7).float() for images in (x, x_val))
    return (train, train.clone()), (val, val.clone())


def waves(seed: int, *, samples: int = 1400, length: int = 32) -> Split:
    """Waves (1, length) of any frequency from 1 to 4, phase and height, whose targets are their own
    inputs."""
    rng = np.random.default_rng(seed)
    frequency, phase = rng.uniform(1, 4, (samples, 1, 1)), rng.uniform(0, 1, (samples, 1, 1))
    turns = frequency * np.arange(length) / length + phase
    shown = rng.uniform(0.5, 1.5, (samples, 1, 1)) * np.sin(2 * np.pi * turns)
    noisy = shown + rng.normal(0, 0.05, shown.shape)
    (x, _), (x_val, _) = split(noisy, np.zeros(samples, dtype=int), seed, standardise="all")
    return (x, x.clone()), (x_val, x_val.clone())


def pressures(seed: int, *, samples: int = 900, length: int = 40) -> Split:
    """Pressures (1, length) that come back after six steps, with new noise; the targets are the
    next ones."""
    rng = np.random.default_rng(seed)
    heard = rng.normal(size=(samples, length + 7))
    for time in range(6, length + 7):
        heard[:, time] = 0.75 * heard[:, time - 6] - 0.4 * heard[:, time - 1] + 0.5 * heard[:, time]
    heard = heard[:, 6:, None].transpose(0, 2, 1)
    return split(heard[:, :, :-1], heard[:, :, 1:].astype(np.float32), seed, standardise="none")


def bids(seed: int, *, words: int = 60, samples: int = 2400) -> Split:
    """Rows of a word's number, what it has cost and how often it was shown, on logarithmic scales;
    and whether it was bought: a column of 0 and 1."""
    rng = np.random.default_rng(seed)
    word, cost, shown = rng.integers(words, size=samples), *rng.normal(size=(2, samples))
    liking = rng.normal(size=words)[word] + 1.5 * cost - np.abs(shown)
    bought = (rng.random(samples) < 1 / (1 + np.exp(-2 * liking))).astype(np.float32)[:, None]
    return split(np.stack([word, cost, shown], axis=1), bought, seed, standardise="none")


def in_front(seed: int, *, samples: int = 1600) -> Split:
    """Images (3, 8, 8) with a digit in the first channel, which is the class, another one in the
    last, and noise between them."""
    pixels, labels = bundled("digits")
    rng = np.random.default_rng(seed)
    front, behind = rng.integers(len(labels), size=(2, samples))
    shown = pixels.reshape(-1, 8, 8)
    between = rng.uniform(0, 16, size=(samples, 8, 8))
    images = np.stack([shown[front], between, shown[behind]], axis=1)
    return split(images, labels[front], seed, standardise="all")


def lines(seed: int, *, samples: int = 1400, digits: int = 3) -> Split:
    """Images (8, 30) of digits in a row with gaps between them; the targets are their names, each
    one more than the digit."""
    pixels, labels = bundled("digits")
    rng = np.random.default_rng(seed)
    shown = pixels.reshape(-1, 8, 8)
    chosen = rng.integers(len(labels), size=(samples, digits))
    images = np.zeros((samples, 8, 10 * digits))
    for place in range(digits):
        start = 10 * place + rng.integers(0, 3, size=samples)
        for row in range(samples):
            images[row, :, start[row] : start[row] + 8] = shown[chosen[row, place]]
    return split(images, labels[chosen] + 1, seed, standardise="all")


def textures(seed: int, *, samples: int = 500, side: int = 14) -> Split:
    """Images (1, side, side) with a chequered rectangle and a flat one in noise; the targets are
    classes (side, side): 0 noise, 1 chequered, 2 flat."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(samples, 1, side, side))
    classes = np.zeros((samples, side, side), np.int64)
    chequered = 2.0 * (np.indices((side, side)).sum(axis=0) % 2) - 1
    for image, names in zip(images, classes, strict=True):
        for name, drawn in ((1, chequered), (2, np.zeros_like(chequered))):
            top, left = rng.integers(0, side - 6, size=2)
            height, width = rng.integers(4, 7, size=2)
            where = np.s_[top : top + height, left : left + width]
            image[0][where] = drawn[where] + 0.2 * rng.normal(size=(height, width))
            names[where] = name
    return split(images, classes, seed, standardise="all")


def rough_places(seed: int, *, samples: int = 700, side: int = 12) -> Split:
    """Images (1, side, side) of noise, which is rougher in a rectangle; the targets are 1 there."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((samples, 1, side, side), np.float32)
    for mask in masks:
        top, left = rng.integers(0, side - 6, size=2)
        height, width = rng.integers(4, 7, size=2)
        mask[0, top : top + height, left : left + width] = 1
    images = rng.normal(size=masks.shape) * (0.4 + masks)
    return split(images, masks, seed, standardise="all")
