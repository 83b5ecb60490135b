"""A NaN or infinite number."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import change_inputs, insert, layers, use_loss
from debugnn.faults.nets import Transformer
from debugnn.faults.program import Setup

nan, inf = float("nan"), float("inf")


def poison_inputs(setup: Setup, value: float, samples: int = 1) -> None:
    """One feature of a few training samples is not a finite number."""
    x = setup.train[0].clone()
    x[torch.randperm(len(x))[:samples], ..., -1] = value
    setup.train = x, setup.train[1]


def poison_parameter(setup: Setup, layer: int) -> None:
    """A weight is NaN from the start, as in a damaged checkpoint."""
    with torch.no_grad():
        layers(setup.model)[layer].weight[0, 0] = nan


def penalise_norms(setup: Setup) -> None:
    """A group lasso whose square root has an infinite slope at biases that start at zero."""
    for layer in layers(setup.model):
        nn.init.zeros_(layer.bias)
    setup.penalty = lambda model: 1e-4 * sum(p.square().sum().sqrt() for p in model.parameters())


def log_of_relu(x: Tensor) -> Tensor:
    """log 0 for a unit that is not active."""
    return torch.log(torch.relu(x))


def sqrt_of_square(x: Tensor) -> Tensor:
    """Finite, but 0 · ∞ in the backward pass where a unit is 0, as a dropped one is."""
    return x.square().sqrt()


def over_its_norm(x: Tensor) -> Tensor:
    """0 / 0 for a sample that has no active unit."""
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
    """The mean over each class's samples: 0 / 0 for a class that the batch lacks."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    members = F.one_hot(labels, logits.shape[1]).float()
    return ((losses @ members) / members.sum(dim=0)).mean()


def poison_targets(setup: Setup) -> None:
    """A training sample has no target."""
    y = setup.train[1].clone()
    y[len(y) // 2] = nan
    setup.train = setup.train[0], y


def constant_features_standardised(setup: Setup) -> None:
    """Features are divided by their standard deviation, which is 0 for some pixels."""
    mean, std = setup.train[0].mean(dim=0), setup.train[0].std(dim=0)
    change_inputs(setup, lambda x: (x - mean) / std)


class MaskedAttention(nn.Module):
    """A transformer that reads a sequence by one attention, which leaves out the padding."""

    def __init__(self, transformer: Transformer, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.embed = nn.Embedding(padding + 1, transformer.position.shape[1])
        self.position, self.blocks = transformer.position, transformer.blocks
        self.query = nn.Linear(transformer.position.shape[1], 1)
        self.head = transformer.head

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.embed(x) + self.position)
        scores = self.query(features).squeeze(2).masked_fill(x == self.padding, -inf)
        return self.head((scores.softmax(dim=1).unsqueeze(2) * features).sum(dim=1))


def all_padding(setup: Setup, samples: int) -> None:
    """Some sequences are empty, so that the softmax of the attention has only -∞ to weigh."""
    assert isinstance(setup.model, Transformer)
    x = setup.train[0].clone()
    padding = int(x.max()) + 1
    x[torch.randperm(len(x))[:samples]] = padding
    setup.train = x, setup.train[1]
    setup.model = MaskedAttention(setup.model, padding)


def logarithmic_error(setup: Setup) -> None:
    """The squared difference of log(1 + x), on targets and outputs that can be below -1."""

    def squared_log_error(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(torch.log1p(outputs), torch.log1p(targets))

    setup.loss_fn = squared_log_error


def half_precision(setup: Setup) -> None:
    """All in half precision, in which Adam's eps of 1e-8 is 0."""
    setup.model.half()
    change_inputs(setup, torch.Tensor.half)


def nothing_labelled(setup: Setup, samples: int) -> None:
    """Some samples have no label, and small batches of them have none at all."""
    y = setup.train[1].clone()
    y[torch.randperm(len(y))[:samples]] = -100
    setup.train, setup.batch_size = (setup.train[0], y), 4
    setup.epochs = max(1, setup.epochs // 4)


TUNING = [
    case("mlp", half_precision),
    case("mlp", poison_inputs, value=nan),
    case("cnn", poison_inputs, value=inf),
    case("mlp_sgd", poison_parameter, layer=1),
    case("mlp", insert, function=log_of_relu, position=2),
    case("mlp_dropout", insert, function=sqrt_of_square, position=3),
    case("mlp_layer_norm", insert, function=over_its_norm, position=4),
    case("friedman", use_loss, loss_fn=relative_error),
    case("cnn", use_loss, loss_fn=log_of_softmax),
    case("mlp_tanh", use_loss, loss_fn=per_class_mean),
    case("mlp_momentum", penalise_norms),
]

HELD_OUT = [
    case("mlp_sgd", nothing_labelled, samples=700),
    case("friedman_sgd", poison_targets),
    case("mlp_rmsprop", constant_features_standardised),
    case("transformer_tokens", all_padding, samples=3),
    case("friedman_huber", logarithmic_error),
]
