"""A model in the wrong mode."""

from functools import partial

import torch.nn.functional as F
from torch import nn

from debugnn.faults.cases import case
from debugnn.faults.edits import Apply, sequential
from debugnn.faults.program import Setup


def trained_in_eval_mode(setup: Setup) -> None:
    """model.train() is never called on a model in evaluation mode."""
    setup.model.eval()
    setup.calls_train = False


def validated_in_train_mode(setup: Setup) -> None:
    """model.eval() is not called before a validation."""
    setup.calls_eval = False


def never_back_to_train(setup: Setup) -> None:
    """model.train() is not called again after the first validation."""
    setup.calls_train = False


def metric_leaves_eval_mode(setup: Setup) -> None:
    """A metric that is computed after each step puts the model into evaluation mode."""

    def compute_metric(model: nn.Module) -> None:
        model.eval()

    setup.after_step = compute_metric


def dropout_without_mode(setup: Setup) -> None:
    """`F.dropout(x, p)`, which is active by default in evaluation mode too."""
    model = sequential(setup)
    for position, module in enumerate(model):
        if isinstance(module, nn.Dropout):
            model[position] = Apply(partial(F.dropout, p=module.p))


def slow_statistics(setup: Setup, momentum: float) -> None:
    """Batch norm's momentum, the weight of the new batch, is too small: its averages lag."""
    for module in setup.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = momentum


def momentum_of_the_old(setup: Setup, batch_size: int) -> None:
    """Batch norm gets other libraries' momentum, the weight of the old average, and few samples."""
    setup.batch_size, setup.epochs = batch_size, max(1, setup.epochs // 4)
    for module in setup.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.99


def statistics_set_back(setup: Setup) -> None:
    """Batch norm's running statistics are set back after each step."""

    def set_back(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_running_stats()

    setup.after_step = set_back


TUNING = [
    case("cnn_batch_norm", slow_statistics, momentum=1e-4),
    case("mlp_batch_norm", momentum_of_the_old, ("train_test_mismatch",), batch_size=4),
    case("mlp_batch_norm", trained_in_eval_mode),
    case("mlp_dropout", trained_in_eval_mode),
    case("mlp_dropout", validated_in_train_mode),
    case("cnn_batch_norm", validated_in_train_mode),
    case("transformer_tokens", validated_in_train_mode),
]

HELD_OUT = [
    case("cnn_batch_norm", statistics_set_back),
    case("cnn_batch_norm", never_back_to_train),
    case("mlp_batch_norm", never_back_to_train),
    case("cnn_batch_norm", metric_leaves_eval_mode),
    case("mlp_dropout", metric_leaves_eval_mode),
    case("mlp_dropout", dropout_without_mode),
]
