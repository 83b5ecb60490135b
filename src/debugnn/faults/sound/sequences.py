"""Networks that read sequences: those that name each one, and those that name its next symbols."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from debugnn.faults.datasets import (
    copying,
    digits,
    lines,
    parts_of_walks,
    successors,
    text,
    tokens,
    vibrations,
    walks,
    weighed,
)
from debugnn.faults.nets import (
    CausalAttention,
    Convolved,
    LanguageModel,
    LineReader,
    NextSymbol,
    Notebook,
    OneByOne,
    Reader,
    Recurrent,
    Stepwise,
    ThroughCode,
    Tracker,
    Transformer,
)
from debugnn.faults.program import Build, Data, Setup
from debugnn.faults.sequence_loops import carrying, echo, forecaster, packed, sentences

ce = nn.CrossEntropyLoss


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


def line_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The likelihood of the symbols of a line, whatever their positions."""
    return line_loss_of(outputs.log_softmax(dim=2), targets)


def line_loss_of(logarithms: Tensor, targets: Tensor) -> Tensor:
    """Return the same of logarithms of probabilities (T, B, symbols)."""
    columns, batch, _ = logarithms.shape
    widths = torch.full((batch,), columns)
    lengths = torch.full((batch,), targets.shape[1])
    return F.ctc_loss(logarithms, targets, widths, lengths)


def line_score(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of lines that are read without a mistake."""
    read = [said.unique_consecutive() for said in outputs.argmax(dim=2).T]
    right = [torch.equal(r[r > 0], t) for r, t in zip(read, targets, strict=True)]
    return sum(right) / len(right)


def written_lines(seed: int) -> Setup:
    """Lines of digits, of which it is not said where in the line they are."""
    return Setup(
        LineReader(8, 64, 11), line_loss, partial(Adam, lr=4e-3), *lines(seed), epochs=10,
        score=line_score,
    )  # fmt: skip


def truncated(step: int, state: Tensor) -> Tensor:
    """Hand a state on whose gradient goes back four steps, to save memory."""
    return state if step % 4 else state.detach()


def stepwise(seed: int, **options: Any) -> Setup:
    """A recurrence written out in Python, over the rows of digits."""
    model = Stepwise(nn.Identity(), 8, 48, 10, **options)
    return Setup(model, ce(), partial(Adam, lr=1e-2), *digits(seed, 8, 8))


def as_codes(symbols: Tensor) -> Tensor:
    """Turn symbols, of which there are ten, into one-hot codes."""
    return F.one_hot(symbols, 10).float()


def reset_every(batches: int, model: Tracker | Notebook) -> Callable[[Tensor, Tensor], Data]:
    """Return a function that resets a model every `batches` calls, and returns its arguments."""
    seen = itertools.count()

    def reset(inputs: Tensor, targets: Tensor) -> Data:
        if next(seen) % batches == 0:
            model.reset()
        return inputs, targets

    return reset


def tracker(seed: int) -> Setup:
    """The net keeps its state in an attribute, and the loop resets it before each batch."""
    model = Tracker(nn.LSTM, 1, 24)
    return Setup(
        model, nn.MSELoss(), partial(Adam, lr=1e-2), *walks(seed), batch_size=30, epochs=10,
        change_batch=reset_every(1, model),
    )  # fmt: skip


def notebook(seed: int) -> Setup:
    """The net keeps its state in a buffer, and the loop clears it before each batch."""
    model = Notebook(2, 32, 30)
    return Setup(
        model, nn.SmoothL1Loss(), partial(AdamW, lr=1e-2), *walks(seed, axes=2), batch_size=30,
        epochs=10, change_batch=reset_every(1, model),
    )  # fmt: skip


def tracker_in_order(seed: int) -> Setup:
    """Each batch goes on where the one before has stopped, and the state is kept on purpose."""
    model = Tracker(nn.LSTM, 1, 24, each_step=True)
    return Setup(
        model, nn.MSELoss(), partial(Adam, lr=1e-2), *parts_of_walks(seed), batch_size=30,
        epochs=12, shuffles=False, change_batch=reset_every(20, model),
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "one_by_one_tokens": lambda seed: Setup(
        OneByOne(nn.Embedding(8, 12), nn.GRUCell, 12, 40, 8),
        ce(),
        partial(AdamW, lr=1e-2),
        *tokens(seed),
        clip=1.0,
    ),
    "stepwise": stepwise,
    "stepwise_truncated": partial(stepwise, hand_on=truncated),
    "one_by_one": lambda seed: Setup(
        OneByOne(as_codes, nn.LSTMCell, 10, 32, 1),
        nn.MSELoss(),
        partial(Adam, lr=1e-2),
        *weighed(seed),
    ),
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
    "language_model": language_model,
    "carried_lstm": partial(carrying, cell=nn.LSTM, flat=False),
    "packed": packed,
    "forecaster": forecaster,
    "echo": echo,
    "written_lines": written_lines,
    "tracker": tracker,
    "tracker_in_order": tracker_in_order,
    "gru_vibrations": lambda seed: Setup(
        Recurrent(nn.GRU, 1, 24, 1),
        nn.MSELoss(),
        partial(Adam, lr=1e-2),
        *vibrations(seed),
        epochs=12,
    ),
}

HELD_OUT: dict[str, Build] = {
    "stepwise_tokens": lambda seed: Setup(
        Stepwise(nn.Embedding(8, 16), 16, 48, 8), ce(), partial(AdamW, lr=5e-3), *tokens(seed)
    ),
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
    "carried_gru": partial(carrying, cell=nn.GRU, flat=True),
    "sentences": sentences,
    "notebook": notebook,
}
