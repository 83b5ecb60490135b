"""Training and evaluation mode, and layers that behave differently in them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
           nn.FeatureAlphaDropout)  # fmt: skip
BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMALISATIONS = (BATCH_NORM, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def layers_with_a_rate(model: nn.Module) -> list[nn.RNNBase | nn.MultiheadAttention]:
    """Return recurrent and attention layers: their dropout is an attribute, `dropout`, no layer."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention)
        and isinstance(module.dropout, int | float)
    ]


def dropout_rates(model: nn.Module) -> list[float]:
    """Return the rates of all dropout in the model's layers."""
    layers = [float(m.p) for m in model.modules() if isinstance(m, DROPOUT)]
    return [*layers, *(float(m.dropout) for m in layers_with_a_rate(model))]


def turn_dropout_off(model: nn.Module) -> None:
    """Set all dropout rates of the model to 0."""
    for module in model.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
    for module in layers_with_a_rate(model):
        module.dropout = 0.0


@contextmanager
def without_dropout(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model in training or evaluation mode for a while, with its dropout off.

    Modes and rates are restored afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    # Set by rate, not by mode: cuDNN's recurrent layers have no backward pass in evaluation.
    rates = [(m, m.dropout) for m in layers_with_a_rate(model)] if training else []
    try:
        model.train(training)
        for module in model.modules():
            if isinstance(module, DROPOUT):
                module.eval()
        for module, _ in rates:
            module.dropout = 0.0
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, rate in rates:
            module.dropout = rate
