"""The sound programs: trainings that work, with the habits that people have.

Each is a function from a seed to a `Setup`. They are also the bases into which faults are put.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from debugnn.faults.datasets import (
    Split,
    autoencoding,
    binary,
    bundled,
    copying,
    counts,
    digits,
    few_informative,
    friedman,
    fuzzy,
    noisy_line,
    prices,
    prototypes,
    regression,
    ring,
    sine,
    spreading,
    successors,
    table,
    tangled_pairs,
    text,
    tokens,
    toy,
    triplets,
)
from debugnn.faults.loops import (
    carrying,
    contrastive,
    graph,
    loss_alone,
    packed,
    sentences,
    sharpness_aware,
    siamese,
)
from debugnn.faults.nets import (
    CausalAttention,
    Convolved,
    Functional,
    Heads,
    LanguageModel,
    NextSymbol,
    Reader,
    Recurrent,
    ThroughCode,
    Transformer,
    VariationalAutoencoder,
    cnn,
    mlp,
    residual_mlp,
)
from debugnn.faults.program import Setup, score

ce = nn.CrossEntropyLoss


def only_trainable(
    make: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Give the optimiser only the parameters that are not frozen."""
    return lambda params: make([p for p in params if p.requires_grad])


def frozen_first_layer(seed: int) -> Setup:
    """Two trained layers on a fixed random layer."""
    model = mlp(64, 256, 64, 10)
    model[0].requires_grad_(False)
    optimizer = only_trainable(partial(Adam, lr=2e-3))
    return Setup(model, nn.CrossEntropyLoss(), optimizer, *digits(seed), epochs=6)


def fine_tuning(seed: int) -> Setup:
    """A new head for the digits 5 to 9 on frozen features that were learnt on 0 to 4."""
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
    train, val = ((x[y >= 5], y[y >= 5] - 5) for x, y in images)
    head = only_trainable(partial(Adam, lr=5e-3))
    return Setup(model, nn.CrossEntropyLoss(), head, train, val, epochs=10)


def next_token_loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of a language model's logits; its state is left alone."""
    return F.cross_entropy(outputs[0].flatten(0, 1), targets.flatten())


def next_token_score(outputs: tuple[Tensor, Tensor], targets: Tensor) -> float:
    """Return the share of tokens that are predicted."""
    return (outputs[0].argmax(dim=2) == targets).float().mean().item()


def language_model(seed: int) -> Setup:
    """A language model that returns its state beside the logits."""
    return Setup(
        LanguageModel(20), next_token_loss, partial(Adam, lr=5e-3), *text(seed), clip=1.0,
        score=next_token_score,
    )  # fmt: skip


def negative_elbo(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    """Squared error and KL divergence, both summed over pixels, codes and samples."""
    rebuilt, mean, log_variance = outputs
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return 0.5 * (rebuilt - targets).square().sum() + kl


def rebuilt_score(outputs: tuple[Tensor, ...], targets: Tensor) -> float:
    """Return R² of a variational autoencoder's rebuilt inputs."""
    return score(outputs[0], targets)


def variational_autoencoder(seed: int) -> Setup:
    """A variational autoencoder of digits by the textbook's summed bound."""
    return Setup(
        VariationalAutoencoder(64, 64, 6), negative_elbo, partial(Adam, lr=2e-3),
        *autoencoding(seed), score=rebuilt_score,
    )  # fmt: skip


def triplet_loss(embedded: Tensor, _: Tensor) -> Tensor:
    """Push a sample's neighbour of its own class nearer to it than one of another class."""
    anchor, own, other = embedded.unbind(dim=1)
    return F.triplet_margin_loss(anchor, own, other)


def triplet_score(embedded: Tensor, _: Tensor) -> float:
    """Return the share of triplets whose own class is nearer."""
    anchor, own, other = embedded.unbind(dim=1)
    nearer = (anchor - own).norm(dim=1) < (anchor - other).norm(dim=1)
    return nearer.float().mean().item()


def contrastive_loss(embedded: Tensor, different: Tensor) -> Tensor:
    """Hadsell's loss of pairs: near where they are of one class, a margin apart otherwise."""
    distance = (embedded[:, 0] - embedded[:, 1]).norm(dim=1)
    apart = (1 - distance).clamp_min(0)
    return torch.where(different > 0.5, apart.square(), distance.square()).mean()


def contrastive_score(embedded: Tensor, different: Tensor) -> float:
    """Return the share of pairs that a distance of one half tells apart."""
    distance = (embedded[:, 0] - embedded[:, 1]).norm(dim=1)
    return ((distance > 0.5) == (different > 0.5)).float().mean().item()


def generator(seed: int, hinge: bool = False) -> Setup:
    """A generator of points of a ring; the critic that its loss calls trains after each step."""
    maker, critic = mlp(6, 48, 48, 2), mlp(2, 48, 48, 1, activation=partial(nn.LeakyReLU, 0.2))
    if hinge:
        for layer in (critic[0], critic[2]):
            spectral_norm(layer)
    moves = Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    train, val = ring(seed)
    draws = torch.Generator().manual_seed(seed)

    def loss_fn(fake: Tensor, _: Tensor) -> Tensor:
        return -critic(fake).mean() if hinge else F.softplus(-critic(fake)).mean()

    def outside(fake: Tensor, _: Tensor) -> float:
        return (fake.norm(dim=1) > 0.5).float().mean().item()

    def train_critic(model: nn.Module) -> None:
        chosen = torch.randint(len(train[0]), (32,), generator=draws)
        with torch.no_grad():
            fake = model(train[0][chosen])
        true = train[1][chosen]
        bound = F.relu if hinge else F.softplus
        margin = 1.0 if hinge else 0.0
        moves.zero_grad()
        (bound(margin - critic(true)) + bound(margin + critic(fake))).mean().backward()
        moves.step()

    return Setup(
        maker, loss_fn, partial(Adam, lr=1e-3, betas=(0.5, 0.9)), train, val,
        after_step=train_critic, score=outside,
    )  # fmt: skip


def soft_label_score(outputs: Tensor, targets: Tensor) -> float:
    """Return R² of probabilities that come as logits."""
    return score(outputs.sigmoid(), targets)


def rate_score(outputs: Tensor, targets: Tensor) -> float:
    """Return R² of rates that come as logarithms."""
    return score(outputs.exp(), targets)


def gaussian_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """The Gaussian's negative log-likelihood, which may fall below zero."""
    deviation = outputs["log_variance"].clamp(-8, 8).exp()
    return F.gaussian_nll_loss(outputs["mean"], targets, deviation)


def mean_score(outputs: dict[str, Tensor], targets: Tensor) -> float:
    """Return R² of the means."""
    return score(outputs["mean"], targets)


def heteroscedastic(seed: int) -> Setup:
    """Mean and log-variance of a curve whose noise grows along it."""
    heads = {"mean": nn.Linear(32, 1), "log_variance": nn.Linear(32, 1)}
    body = nn.Sequential(*mlp(1, 32, 32), nn.Tanh())
    return Setup(
        Heads(body, heads), gaussian_loss, partial(Adam, lr=1e-2), *spreading(seed), epochs=15,
        score=mean_score,
    )  # fmt: skip


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


def oversampled(data: Split) -> Split:
    """Repeat the training samples of class 1 twice, as for a class that is rare."""
    (x, y), val = data
    again = (y == 1).nonzero().flatten().repeat(2)
    return (torch.cat([x, x[again]]), torch.cat([y, y[again]])), val


Build = Callable[[int], Setup]

# What the thresholds of the doctor were set on.
TUNING: dict[str, Build] = {
    # MLPs on the digits
    "mlp": lambda seed: Setup(mlp(64, 64, 64, 10), ce(), partial(Adam, lr=2e-3), *digits(seed)),
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
    "frozen_first_layer": frozen_first_layer,
    # CNNs on the digits
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
    # sequences
    "lstm": lambda seed: Setup(
        Recurrent(nn.LSTM, 8, 32, 10), ce(), partial(Adam, lr=1e-2), *digits(seed, 8, 8)
    ),
    "rnn": lambda seed: Setup(
        Recurrent(nn.RNN, 8, 48, 10), ce(), partial(Adam, lr=3e-3), *digits(seed, 8, 8)
    ),
    "transformer": lambda seed: Setup(
        Transformer(nn.Linear(8, 32), 8, 10),
        ce(),
        partial(Adam, lr=1e-2),
        *digits(seed, 8, 8),
        batch_size=40,
        epochs=9,
    ),
    "next_symbol_gru": lambda seed: Setup(
        NextSymbol(12, Reader()), ce(), partial(Adam, lr=1e-2), *successors(seed)
    ),
    "next_symbol_attention": lambda seed: Setup(
        NextSymbol(12, CausalAttention(16)), ce(), partial(Adam, lr=5e-3), *successors(seed)
    ),
    # tables: two classes, three, a hundred
    "cancer": lambda seed: Setup(  # 37 % and 63 %
        mlp(30, 16, 2), ce(), partial(Adam, lr=3e-3), *table("breast_cancer", seed), epochs=12
    ),
    "wine": lambda seed: Setup(
        mlp(13, 32, 3), ce(), partial(Adam, lr=5e-3), *table("wine", seed), batch_size=16, epochs=12
    ),
    "moons": lambda seed: Setup(
        mlp(2, 32, 32, 2), ce(), partial(Adam, lr=5e-3), *toy("moons", seed), epochs=15
    ),
    "functional_circles": lambda seed: Setup(
        Functional(2, 32, 2),
        F.cross_entropy,
        partial(Adam, lr=5e-3),
        *toy("circles", seed),
        epochs=12,
    ),
    "ten_prototypes": lambda seed: Setup(
        mlp(32, 64, 10),
        ce(),
        partial(SGD, lr=0.1),
        *prototypes(seed, classes=10, noise=1.5),
        epochs=4,
    ),
    # regression
    "friedman": lambda seed: Setup(
        mlp(10, 64, 64, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *friedman(seed), epochs=12
    ),
    "friedman_huber": lambda seed: Setup(
        mlp(10, 48, 48, 1, norm=nn.LayerNorm),
        nn.SmoothL1Loss(),
        partial(AdamW, lr=5e-3),
        *friedman(seed),
        epochs=12,
    ),
    "sine": lambda seed: Setup(
        mlp(1, 32, 32, 1, activation=nn.Tanh),
        nn.MSELoss(),
        partial(Adam, lr=1e-2),
        *sine(seed),
        epochs=25,
    ),
    "autoencoder": lambda seed: Setup(
        mlp(64, 64, 24, 64, 64), nn.MSELoss(), partial(Adam, lr=5e-3), *autoencoding(seed)
    ),
    "friedman_prices": lambda seed: Setup(
        mlp(10, 64, 64, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *prices(seed), epochs=12
    ),
    # other tasks
    "forty_classes": lambda seed: Setup(
        mlp(32, 128, 40), ce(), partial(Adam, lr=5e-3), *prototypes(seed, classes=40), epochs=6
    ),
    "language_model": language_model,
    "variational_autoencoder": variational_autoencoder,
    "triplet_net": lambda seed: Setup(
        mlp(64, 64, 16),
        triplet_loss,
        partial(Adam, lr=2e-3),
        *triplets(seed),
        epochs=6,
        score=triplet_score,
    ),
    "soft_labels": lambda seed: Setup(
        mlp(12, 32, 1),
        nn.BCEWithLogitsLoss(),
        partial(Adam, lr=1e-2),
        *fuzzy(seed),
        epochs=10,
        score=soft_label_score,
    ),
    "generator": generator,
    # loops of their own, and samples that are not the first axis
    "carried_lstm": partial(carrying, cell=nn.LSTM, flat=False),
    "packed": packed,
    "graph_dense": partial(graph, form="dense"),
    "graph_edges": partial(graph, form="edges"),
    "contrastive": contrastive,
    "sharpness_aware": sharpness_aware,
    "loss_alone": loss_alone,
}

# What nobody looked at when the thresholds were set.
HELD_OUT: dict[str, Build] = {
    # MLPs on the digits
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
    "fine_tuning": fine_tuning,
    # CNNs on the digits
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
    # sequences
    "gru_clipped": lambda seed: Setup(
        Recurrent(nn.GRU, 8, 32, 10), ce(), partial(Adam, lr=1e-2), *digits(seed, 8, 8), clip=1.0
    ),
    "rnn_sgd_clipped": lambda seed: Setup(
        Recurrent(nn.RNN, 8, 48, 10),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *digits(seed, 8, 8),
        clip=1.0,
    ),
    "transformer_tokens": lambda seed: Setup(
        Transformer(nn.Embedding(8, 32), 12, 8, dropout=0.1, norm_first=True),
        ce(),
        partial(AdamW, lr=3e-3),
        *tokens(seed),
    ),
    "next_symbol_convolution": lambda seed: Setup(
        NextSymbol(12, Convolved()), ce(), partial(AdamW, lr=1e-2), *successors(seed)
    ),
    "symbols_through_a_code": lambda seed: Setup(
        NextSymbol(6, ThroughCode(8)), ce(), partial(Adam, lr=1e-2), *copying(seed), epochs=20
    ),
    # tables: two classes, three, a hundred
    "cancer_one_logit": lambda seed: Setup(
        mlp(30, 16, 1, activation=nn.Tanh),
        nn.BCEWithLogitsLoss(),
        partial(SGD, lr=0.1),
        *binary(table("breast_cancer", seed)),
        epochs=12,
    ),
    "iris": lambda seed: Setup(
        mlp(4, 24, 24, 3, activation=nn.Tanh),
        ce(),
        partial(SGD, lr=0.05, momentum=0.9),
        *table("iris", seed),
        batch_size=16,
        epochs=15,
    ),
    "circles_one_logit": lambda seed: Setup(
        mlp(2, 32, 32, 1),
        nn.BCEWithLogitsLoss(),
        partial(Adam, lr=5e-3),
        *binary(toy("circles", seed)),
        epochs=12,
    ),
    "hundred_classes": lambda seed: Setup(
        mlp(32, 128, 100), ce(), partial(Adam, lr=5e-3), *prototypes(seed), epochs=6
    ),
    "oversampled": lambda seed: Setup(  # after the split
        mlp(20, 32, 2), ce(), partial(Adam, lr=3e-3), *oversampled(few_informative(seed)), epochs=4
    ),
    "few_informative": lambda seed: Setup(  # stops before it overfits
        mlp(20, 32, 2),
        ce(),
        partial(Adam, lr=5e-3),
        *few_informative(seed),
        epochs=6,
    ),
    # regression
    "friedman_sgd": lambda seed: Setup(
        mlp(10, 64, 1, activation=nn.Tanh),
        F.mse_loss,
        partial(SGD, lr=0.02, momentum=0.9),
        *friedman(seed),
        epochs=20,
    ),
    "diabetes": lambda seed: Setup(
        mlp(10, 16, 1),
        nn.MSELoss(),
        partial(Adam, lr=3e-3),
        *regression(*bundled("diabetes"), seed),
        epochs=12,
    ),
    "noisy_line": lambda seed: Setup(
        mlp(8, 16, 1), nn.MSELoss(), partial(Adam, lr=3e-3), *noisy_line(seed), epochs=8
    ),
    # other tasks
    "siamese_net": lambda seed: Setup(
        mlp(64, 64, 8),
        contrastive_loss,
        partial(Adam, lr=2e-3),
        *tangled_pairs(seed),
        epochs=6,
        score=contrastive_score,
    ),
    "counts": lambda seed: Setup(
        mlp(8, 32, 1),
        nn.PoissonNLLLoss(),
        partial(Adam, lr=5e-3),
        *counts(seed),
        epochs=10,
        score=rate_score,
    ),
    "heteroscedastic": heteroscedastic,
    "several_tasks": several_tasks,
    "generator_with_hinge": partial(generator, hinge=True),
    # loops of their own, and samples that are not the first axis
    "carried_gru": partial(carrying, cell=nn.GRU, flat=True),
    "sentences": sentences,
    "graph_sparse": partial(graph, form="sparse"),
    "graph_held": partial(graph, form="held"),
    "siamese": siamese,
}


def sound(name: str, seed: int) -> Setup:
    """Build a sound program by its name."""
    torch.manual_seed(seed)
    return (TUNING | HELD_OUT)[name](seed)
