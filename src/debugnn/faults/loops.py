"""Sound programs whose loop is not the plain one, or whose samples do not lie along the first axis.

Each function builds a `Setup` whose `loop` takes the place of the plain loop. A fault changes the
setup's parts, as it does with any other.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from debugnn.faults.datasets import digits, toy
from debugnn.faults.nets import ConditionalAutoencoder, Heads, mlp
from debugnn.faults.program import MakeObserver, Observer, Setup, begin, score

Batch = tuple[Any, Any]  # the model's arguments, a tuple, and the targets
Loop = Callable[[Setup, int, MakeObserver], Observer]


def train_on(
    setup: Setup,
    batches: Callable[[torch.Generator], Iterator[Batch]],
    validation: Batch | None,
    alone: bool,
    seed: int,
    make_observer: MakeObserver,
) -> Observer:
    """Train on batches of several arguments.

    Args:
        batches: gives those of an epoch.
        validation: a batch; None where there is no validation.
        alone: hand over the loss and nothing else.
    """
    shuffle = torch.Generator().manual_seed(seed)
    model, optimizer, observer = begin(setup, make_observer)
    for _ in range(setup.epochs):
        model.train()
        for arguments, targets in batches(shuffle):
            optimizer.zero_grad()
            loss = setup.loss_fn(model(*arguments), targets)
            loss.backward()
            optimizer.step()
            if alone:
                observer.step(loss)
            else:
                observer.step(loss, arguments, targets)
        if validation is not None:
            model.eval()
            observer.validate(*validation)
    return observer


def taking(arguments: Callable[[Tensor], tuple[Tensor, ...]]) -> Loop:
    """Return the plain loop of a model that takes several arguments.

    Args:
        arguments: makes them of the rows of a batch.
    """

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        rows, targets = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(rows), generator=shuffle).split(setup.batch_size):
                yield arguments(rows[chosen]), targets[chosen]

        validation = arguments(setup.val[0]), setup.val[1]
        observer = train_on(setup, batches, validation, False, seed, make_observer)
        with torch.no_grad():
            setup.scores.append(score(setup.model(*validation[0]), validation[1]))
        return observer

    return loop


# --- pairs ----------------------------------------------------------------------------------------


class Matching(nn.Module):
    """Similarities (B, B) of the samples of two views: the others are each sample's negatives."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.left, self.right = mlp(features, 64, 24), mlp(features, 64, 24)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        embedded = (
            F.normalize(net(x), dim=1) for net, x in ((self.left, one), (self.right, other))
        )
        left, right = embedded
        return 8 * left @ right.T


def contrastive(seed: int, both_ways: bool = False) -> Setup:
    """The left halves of digits find their right halves among those of the batch.

    Args:
        both_ways: the right halves find their left halves too.
    """
    (x, _), (x_val, _) = digits(seed, 8, 8)

    def loss_fn(scores: Tensor, own: Tensor) -> Tensor:
        loss = F.cross_entropy(scores, own)
        return (loss + F.cross_entropy(scores.T, own)) / 2 if both_ways else loss

    def halves(images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        inputs, _ = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                yield halves(inputs[chosen]), torch.arange(len(chosen))

        return train_on(setup, batches, None, False, seed, make_observer)

    return Setup(
        Matching(32), loss_fn, partial(Adam, lr=3e-3), (x, torch.arange(len(x))),
        (x_val, torch.arange(len(x_val))), batch_size=48, epochs=8, loop=loop,
    )  # fmt: skip


def siamese(seed: int) -> Setup:
    """Two passes of one net a step, with two images that show the same digit or not."""
    (x, y), val = digits(seed)

    def loss_fn(pair: Any, same: Tensor) -> Tensor:
        distance = F.pairwise_distance(*pair)
        return torch.where(same, distance.square(), F.relu(1.5 - distance).square()).mean()

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        shuffle = torch.Generator().manual_seed(seed)
        model, optimizer, observer = begin(setup, make_observer)
        inputs, labels = setup.train
        for _ in range(setup.epochs * 25):
            one, other = torch.randint(len(inputs), (2, setup.batch_size), generator=shuffle)
            like = torch.rand(len(one), generator=shuffle) < 0.4
            ranked = labels.argsort()
            near = ranked[torch.searchsorted(labels[ranked], labels[one])]
            other = torch.where(like, near, other)
            optimizer.zero_grad()
            same = labels[one] == labels[other]
            loss = setup.loss_fn((model(inputs[one]), model(inputs[other])), same)
            loss.backward()
            optimizer.step()
            observer.step(loss)
        return observer

    return Setup(
        mlp(64, 64, 16), loss_fn, partial(Adam, lr=2e-3), (x, y), val, batch_size=40, loop=loop
    )  # fmt: skip


# --- steps ----------------------------------------------------------------------------------------


def sharpness_aware(seed: int) -> Setup:
    """Two passes and two backward passes a step, the second at weights that were moved uphill."""

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        shuffle = torch.Generator().manual_seed(seed)
        model, optimizer, observer = begin(setup, make_observer)
        inputs, targets = setup.train
        for _ in range(setup.epochs):
            model.train()
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                x, y = inputs[chosen], targets[chosen]
                optimizer.zero_grad()
                loss = setup.loss_fn(model(x), y)
                loss.backward()
                moves = uphill(model, 0.03)
                optimizer.zero_grad()
                setup.loss_fn(model(x), y).backward()
                with torch.no_grad():
                    for parameter, move in zip(model.parameters(), moves, strict=True):
                        parameter.sub_(move)
                optimizer.step()
                observer.step(loss, x, y)
            model.eval()
            observer.validate(*setup.val)
        return observer

    return Setup(
        mlp(2, 32, 32, 2), nn.CrossEntropyLoss(), partial(SGD, lr=0.1, momentum=0.9),
        *toy("moons", seed), epochs=15, loop=loop,
    )  # fmt: skip


def uphill(model: nn.Module, distance: float) -> list[Tensor]:
    """Move the weights along their gradients by this distance in all, and return the moves."""
    with torch.no_grad():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm() + 1e-12
        moves = [distance * g / norm for g in gradients]
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter.add_(move)
    return moves


def two_backward_passes(seed: int) -> Setup:
    """Two heads on one body, for the digit and for its pixels, with a backward pass for each loss.

    `setup.zero_grad` is called before either pass, with its number.
    """
    body = nn.Sequential(*mlp(64, 64, 48), nn.ReLU())
    heads = {"digit": nn.Linear(48, 10), "pixels": nn.Linear(48, 64)}

    def losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        digit = F.cross_entropy(outputs["digit"], targets["digit"])
        return digit, F.mse_loss(outputs["pixels"], targets["pixels"])

    def loss_fn(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        digit, pixels = losses(outputs, targets)
        return digit + pixels

    def clear_once(optimizer: Optimizer, number: int) -> None:
        if number == 0:
            optimizer.zero_grad()

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        shuffle = torch.Generator().manual_seed(seed)
        model, optimizer, observer = begin(setup, make_observer)
        inputs, labels = setup.train
        for _ in range(setup.epochs):
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                x, targets = inputs[chosen], {"digit": labels[chosen], "pixels": inputs[chosen]}
                found = losses(model(x), targets)
                for number, loss in enumerate(found):
                    setup.zero_grad(optimizer, number)
                    loss.backward(retain_graph=number == 0)
                optimizer.step()
                observer.step(sum(found), x, targets)
        return observer

    return Setup(
        Heads(body, heads), loss_fn,
        partial(Adam, lr=2e-3), *digits(seed), zero_grad=clear_once, loop=loop,
    )  # fmt: skip


def loss_alone(seed: int) -> Setup:
    """A plain training of which only the loss is handed over."""
    train, val = digits(seed)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        inputs, targets = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                yield (inputs[chosen],), targets[chosen]

        return train_on(setup, batches, None, True, seed, make_observer)

    return Setup(
        mlp(64, 64, 10), nn.CrossEntropyLoss(), partial(Adam, lr=2e-3), train, val, loop=loop
    )


def told_the_class(seed: int) -> Setup:
    """A conditional autoencoder of digits that makes its own loss; nothing is handed over but it
    and the model's arguments."""
    (x, y), (x_val, y_val) = digits(seed)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        images, labels = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(images), generator=shuffle).split(setup.batch_size):
                yield (images[chosen], labels[chosen]), None

        observer = train_on(setup, batches, None, False, seed, make_observer)
        with torch.no_grad():
            rebuilt = setup.model(*setup.val)["rebuilt"]
        setup.scores.append(score(rebuilt, setup.val[0]))
        return observer

    def loss_fn(outputs: dict[str, Tensor], _: None) -> Tensor:
        return outputs["loss"]

    return Setup(
        ConditionalAutoencoder(64, 10, 64, 6, 1.0), loss_fn, partial(AdamW, lr=4e-3),
        (x, y), (x_val, y_val), epochs=12, loop=loop,
    )  # fmt: skip
