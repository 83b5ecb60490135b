"""A network that learns its training samples by heart."""

import torch

from debugnn.faults.cases import case
from debugnn.faults.edits import add_columns, shuffled_labels, widths
from debugnn.faults.nets import mlp
from debugnn.faults.program import Setup


def _first_samples(setup: Setup, samples: int, epochs: int) -> None:
    """Train on few samples, in batches of 16."""
    setup.train = setup.train[0][:samples], setup.train[1][:samples]
    setup.batch_size, setup.epochs = 16, epochs


def overfit(setup: Setup, samples: int, hidden: int, epochs: int, flipped: float = 0.0) -> None:
    """A large net and many epochs on few samples, part of them with a wrong label."""
    features, outputs = widths(setup)
    setup.model = mlp(features, hidden, hidden, outputs)
    _first_samples(setup, samples, epochs)
    shuffled_labels(setup, flipped)


def few_sequences(setup: Setup, samples: int, epochs: int, flipped: float) -> None:
    """A recurrent net and many epochs on few sequences with wrong labels among them."""
    _first_samples(setup, samples, epochs)
    shuffled_labels(setup, flipped)


def overfit_cnn(setup: Setup, samples: int, epochs: int, flipped: float) -> None:
    """A convolutional net and many epochs on few images with wrong labels among them."""
    _first_samples(setup, samples, epochs)
    shuffled_labels(setup, flipped)


def too_many_columns(setup: Setup, columns: int, samples: int, epochs: int) -> None:
    """Far more columns of noise than samples."""
    _first_samples(setup, samples, epochs)
    train, val = (torch.randn(len(x), columns) for x, _ in (setup.train, setup.val))
    add_columns(setup, train, val)


def copied_samples(setup: Setup, distinct: int, hidden: int, epochs: int) -> None:
    """A data set that looks large and consists of copies of few samples."""
    features, outputs = widths(setup)
    setup.model = mlp(features, hidden, outputs)
    x, y = setup.train
    copies = torch.arange(len(x)) % distinct
    setup.train, setup.epochs = (x[copies], y[copies]), epochs


TUNING = [
    case("few_informative", overfit, samples=60, hidden=256, epochs=60),
    case("mlp", overfit, ("bad_labels",), samples=60, hidden=256, epochs=60, flipped=0.2),
    case("diabetes", overfit, samples=60, hidden=256, epochs=80),
    case("noisy_line", overfit, samples=60, hidden=256, epochs=80),
    case("cancer", overfit, ("bad_labels",), samples=50, hidden=256, epochs=60, flipped=0.2),
    case("diabetes", overfit, samples=120, hidden=128, epochs=60),
    case("gru_clipped", few_sequences, ("bad_labels",), samples=80, epochs=60, flipped=0.2),
]

HELD_OUT = [
    case("cnn", overfit_cnn, ("bad_labels",), samples=80, epochs=40, flipped=0.2),
    case("few_informative", too_many_columns, columns=400, samples=120, epochs=40),
    case("friedman_sgd", too_many_columns, columns=400, samples=120, epochs=60),
    case("noisy_line", copied_samples, distinct=50, hidden=128, epochs=30),
    case("few_informative", copied_samples, distinct=60, hidden=128, epochs=20),
]
