"""A network that learns its training samples by heart."""

import torch

from debugnn.faults.cases import case
from debugnn.faults.edits import add_columns, change_inputs, shuffled_labels, widths
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


def rich_basis(setup: Setup, columns: int, frequency: float, samples: int, epochs: int) -> None:
    """Few samples in far more random Fourier features of high frequency.

    The features are those of Rahimi and Recht (2007), "Random Features for Large-Scale Kernel
    Machines".
    """
    _, outputs = widths(setup)
    inputs = setup.train[0].shape[1]
    frequencies, phases = frequency * torch.randn(inputs, columns), 6.28 * torch.rand(columns)
    change_inputs(setup, lambda x: torch.cos(x @ frequencies + phases))
    setup.model = mlp(columns, 64, outputs)
    _first_samples(setup, samples, epochs)


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
    case("sine", rich_basis, columns=300, frequency=40.0, samples=60, epochs=60),
    case("friedman", rich_basis, columns=300, frequency=1.0, samples=80, epochs=60),
]

HELD_OUT = [
    case("cnn", overfit_cnn, ("bad_labels",), samples=80, epochs=40, flipped=0.2),
    case("few_informative", too_many_columns, columns=400, samples=120, epochs=40),
    case("friedman_sgd", too_many_columns, columns=400, samples=120, epochs=60),
    case("noisy_line", copied_samples, distinct=50, hidden=128, epochs=30),
    case("few_informative", copied_samples, distinct=60, hidden=128, epochs=20),
]
