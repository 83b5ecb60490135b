"""Fully connected networks that name the digits."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from debugnn.faults.datasets import digit_properties, digits
from debugnn.faults.loops import Batch, loss_alone, sharpness_aware, train_on, two_backward_passes
from debugnn.faults.nets import (
    Functional,
    Heads,
    KeptDropout,
    LowRank,
    Reversed,
    mlp,
    residual_mlp,
)
from debugnn.faults.program import Build, Loss, MakeObserver, Observer, Setup, score

ce = nn.CrossEntropyLoss


def digits_and_pixels_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Which digit it is, and how dark its image is on average, in one loss."""
    darkness = outputs["darkness"].squeeze(1)
    return F.cross_entropy(outputs["digit"], targets) + 0.1 * darkness.square().mean()


def several_tasks(seed: int) -> Setup:
    """Two heads on one body; the loss adds a penalty of the second one to the first one's loss."""
    body = nn.Sequential(*mlp(64, 64, 64), nn.ReLU())
    heads = {"digit": nn.Linear(64, 10), "darkness": nn.Linear(64, 1)}
    return Setup(
        Heads(body, heads), digits_and_pixels_loss, partial(Adam, lr=2e-3), *digits(seed),
        score=lambda outputs, targets: score(outputs["digit"], targets),
    )  # fmt: skip


def asked_of_images(
    asked: Callable[[Tensor, Tensor], dict[str, Tensor]],
) -> Callable[[Setup, int, MakeObserver], Observer]:
    """Return a loop whose targets are made from images and labels."""

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        inputs, labels = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                yield (inputs[chosen],), asked(inputs[chosen], labels[chosen])

        validation = (setup.val[0],), asked(*setup.val)
        return train_on(setup, batches, validation, False, seed, make_observer)

    return loop


def digit_and_darkness(seed: int) -> Setup:
    """Two heads with a target each: which digit it is, and how dark its image is on average."""
    (x, y), (x_val, y_val) = digits(seed)
    body = nn.Sequential(*mlp(64, 64, 64), nn.ReLU())
    heads = {"digit": nn.Linear(64, 10), "darkness": nn.Linear(64, 1)}

    def asked(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"digit": labels, "darkness": 8 * images.mean(dim=1, keepdim=True)}

    def loss_fn(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        named = F.cross_entropy(outputs["digit"], targets["digit"])
        return named + F.mse_loss(outputs["darkness"], targets["darkness"])

    return Setup(
        Heads(body, heads), loss_fn, partial(Adam, lr=2e-3), (x, y), (x_val, y_val),
        loop=asked_of_images(asked),
    )  # fmt: skip


def digit_whatever_the_darkness(seed: int) -> Setup:
    """Two heads: which digit it is, and whether its image is dark; the body is trained against the
    second one, so that it learns nothing in the end."""
    (x, y), (x_val, y_val) = digits(seed)
    body = nn.Sequential(*mlp(64, 64, 64), nn.ReLU())
    dark = nn.Sequential(Reversed(1.0), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    middle = x.mean(dim=1).median()

    def asked(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"digit": labels, "dark": (images.mean(dim=1) > middle).long()}

    def loss_fn(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        named = F.cross_entropy(outputs["digit"], targets["digit"])
        return named + F.cross_entropy(outputs["dark"], targets["dark"])

    heads = {"digit": nn.Linear(64, 10), "dark": dark}
    return Setup(
        Heads(body, heads), loss_fn, partial(Adam, lr=2e-3), (x, y), (x_val, y_val),
        loop=asked_of_images(asked),
    )  # fmt: skip


def distilled(seed: int) -> Setup:
    """A net learns the logits of a linear teacher, at a temperature of 2."""
    (x, y), (x_val, _) = digits(seed)
    wanted = F.one_hot(y, 10).float() - 0.1
    teacher = torch.linalg.lstsq(x.T @ x + 20 * torch.eye(64), x.T @ wanted).solution * 12

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        student, guide = (logits.div(2).log_softmax(dim=1) for logits in (outputs, targets))
        return 4 * F.kl_div(student, guide, reduction="batchmean", log_target=True)

    return Setup(
        mlp(64, 32, 10), loss_fn, partial(Adam, lr=3e-3), (x, x @ teacher),
        (x_val, x_val @ teacher),
        score=lambda outputs, targets: score(outputs, targets.argmax(dim=1)),
    )  # fmt: skip


def low_rank(seed: int) -> Setup:
    """Random layers that stay as they are, each with an update of rank 12."""
    model = mlp(64, 96, 10)
    for position, module in enumerate(model):
        if isinstance(module, nn.Linear):
            model[position] = LowRank(module, 12)
    return Setup(model, ce(), partial(AdamW, lr=4e-3), *digits(seed))


def class_by_class(seed: int, loss_fn: Loss) -> Setup:
    """Each of ten outputs is to be 1 for its class and 0 for the others. It trains as well as a
    choice among the classes (Hui & Belkin 2020, arXiv:2006.07322)."""
    train, val = ((x, F.one_hot(y, 10).float()) for x, y in digits(seed))
    return Setup(
        mlp(64, 64, 10), loss_fn, partial(Adam, lr=3e-3), train, val,
        score=lambda outputs, targets: score(outputs, targets.argmax(dim=1)),
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "squared_error_of_classes": partial(class_by_class, loss_fn=F.mse_loss),
    "binary_loss_of_classes": partial(class_by_class, loss_fn=F.binary_cross_entropy_with_logits),
    "low_rank": low_rank,
    "two_backward_passes": two_backward_passes,
    "mlp": lambda seed: Setup(mlp(64, 64, 64, 10), ce(), partial(Adam, lr=2e-3), *digits(seed)),
    "digit_and_darkness": digit_and_darkness,
    "digit_whatever_the_darkness": digit_whatever_the_darkness,
    "averaged_passes": lambda seed: Setup(
        nn.Sequential(*mlp(64, 96), nn.ReLU(), KeptDropout(0.1), nn.Linear(96, 10)),
        ce(),
        partial(Adam, lr=3e-3),
        *digits(seed),
    ),
    "distilled": distilled,
    "mlp_momentum": lambda seed: Setup(
        mlp(64, 64, 10, activation=nn.LeakyReLU),
        F.cross_entropy,
        partial(SGD, lr=0.03, momentum=0.9),
        *digits(seed),
    ),
    "mlp_tanh": lambda seed: Setup(
        mlp(64, 64, 64, 10, activation=nn.Tanh), ce(), partial(AdamW, lr=2e-3), *digits(seed)
    ),
    "mlp_selu": lambda seed: Setup(
        mlp(64, 48, 48, 48, 10, activation=nn.SELU),
        ce(),
        partial(SGD, lr=0.02, momentum=0.9, nesterov=True),
        *digits(seed),
        epochs=5,
    ),
    "mlp_batch_norm": lambda seed: Setup(
        mlp(64, 64, 64, 10, norm=nn.BatchNorm1d), ce(), partial(SGD, lr=0.1), *digits(seed)
    ),
    "mlp_dropout": lambda seed: Setup(
        mlp(64, 128, 128, 10, dropout=0.4), ce(), partial(Adam, lr=3e-3), *digits(seed)
    ),
    "mlp_batch_of_256": lambda seed: Setup(
        mlp(64, 64, 10), ce(), partial(Adam, lr=1e-2), *digits(seed), batch_size=256, epochs=25
    ),
    "mlp_clipped": lambda seed: Setup(
        mlp(64, 64, 64, 10), ce(), partial(SGD, lr=0.3), *digits(seed), clip=0.5
    ),
    "mlp_warm_up": lambda seed: Setup(
        mlp(64, 64, 64, 10, activation=nn.Tanh),
        ce(),
        partial(AdamW, lr=1e-3),
        *digits(seed),
        make_scheduler=partial(OneCycleLR, max_lr=1e-2, total_steps=10),
    ),
    "mlp_accumulated_by_8": lambda seed: Setup(
        mlp(64, 48, 10, activation=nn.Tanh),
        ce(),
        partial(SGD, lr=0.3, momentum=0.9),
        *digits(seed),
        batch_size=8,
        accumulate=8,
    ),
    "mlp_accumulated": lambda seed: Setup(
        mlp(64, 64, 64, 10),
        ce(),
        partial(Adam, lr=3e-3),
        *digits(seed),
        batch_size=16,
        accumulate=2,
    ),
    "mlp_l2_by_hand": lambda seed: Setup(
        mlp(64, 64, 10),
        ce(),
        partial(Adam, lr=3e-3),
        *digits(seed),
        penalty=lambda model: 1e-4 * sum(p.square().sum() for p in model.parameters()),
    ),
    "softmax_regression": lambda seed: Setup(
        nn.Linear(64, 10), ce(), partial(SGD, lr=0.1), *digits(seed)
    ),
    "sharpness_aware": sharpness_aware,
    "loss_alone": loss_alone,
    "properties": lambda seed: Setup(
        mlp(64, 64, 5), nn.BCEWithLogitsLoss(), partial(Adam, lr=3e-3), *digit_properties(seed)
    ),
}

HELD_OUT: dict[str, Build] = {
    "mlp_sgd": lambda seed: Setup(
        mlp(64, 64, 64, 10), ce(), partial(SGD, lr=0.1), *digits(seed), epochs=10
    ),
    "mlp_rmsprop": lambda seed: Setup(
        mlp(64, 48, 48, 10, activation=nn.ELU), ce(), partial(RMSprop, lr=1e-3), *digits(seed)
    ),
    "mlp_gelu_weight_decay": lambda seed: Setup(
        mlp(64, 96, 10, activation=nn.GELU),
        ce(),
        partial(AdamW, lr=3e-3, weight_decay=0.1),
        *digits(seed),
        batch_size=64,
    ),
    "mlp_shallow_sigmoid": lambda seed: Setup(
        mlp(64, 64, 10, activation=nn.Sigmoid), ce(), partial(Adam, lr=1e-2), *digits(seed)
    ),
    "mlp_layer_norm": lambda seed: Setup(
        mlp(64, 64, 64, 10, norm=nn.LayerNorm, activation=nn.GELU),
        ce(),
        partial(Adam, lr=2e-3),
        *digits(seed),
    ),
    "mlp_batch_of_8": lambda seed: Setup(
        mlp(64, 32, 10), ce(), partial(SGD, lr=0.05), *digits(seed), batch_size=8, epochs=4
    ),
    "mlp_label_smoothing": lambda seed: Setup(
        mlp(64, 64, 64, 10), ce(label_smoothing=0.1), partial(Adam, lr=2e-3), *digits(seed)
    ),
    "mlp_cosine": lambda seed: Setup(
        mlp(64, 64, 64, 10),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *digits(seed),
        make_scheduler=partial(CosineAnnealingLR, T_max=8),
    ),
    "mlp_raw_pixels": lambda seed: Setup(  # 0 to 16, and it learns all the same
        mlp(64, 64, 64, 10), ce(), partial(Adam, lr=1e-3), *digits(seed, standardise="none")
    ),
    "mlp_log_softmax": lambda seed: Setup(
        nn.Sequential(*mlp(64, 64, 10), nn.LogSoftmax(dim=1)),
        nn.NLLLoss(),
        partial(Adam, lr=3e-3),
        *digits(seed),
    ),
    "functional": lambda seed: Setup(
        Functional(64, 64, 10), F.cross_entropy, partial(Adam, lr=2e-3), *digits(seed)
    ),
    "residual_zero_init": lambda seed: Setup(
        residual_mlp(), ce(), partial(Adam, lr=2e-3), *digits(seed)
    ),
    "several_tasks": several_tasks,
}
