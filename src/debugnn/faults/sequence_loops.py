"""Sound programs on sequences that lie along the first axis, or are of several lengths."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim import Adam, AdamW

from debugnn.faults.datasets import ageing_machines, digits, pressures
from debugnn.faults.loops import Batch, taking, train_on
from debugnn.faults.nets import Forecaster
from debugnn.faults.program import MakeObserver, Observer, Setup, begin

# --- sequences, time first ------------------------------------------------------------------------


class Carrying(nn.Module):
    """A recurrent language model over (T, B) symbols that is handed its state."""

    def __init__(self, cell: Callable[..., nn.RNNBase], symbols: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.cell = cell(width, width)
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, state = self.cell(self.embedding(x), state)
        return self.head(outputs), state


def melody(seed: int, length: int, symbols: int) -> Tensor:
    """Return symbols of which each follows from the two before it, one time in eight by chance."""
    draw = torch.Generator().manual_seed(seed)
    chance = torch.rand(length, generator=draw) < 0.125
    free = torch.randint(symbols, (length,), generator=draw).tolist()
    heard = free[:2]
    for place in range(2, length):
        heard.append(
            free[place] if chance[place] else (2 * heard[-1] + heard[-2] + place % 2) % symbols
        )
    return torch.tensor(heard)


def carrying(
    seed: int, cell: Callable[..., nn.RNNBase], *, flat: bool, window: int = 20, streams: int = 12
) -> Setup:
    """Windows of parallel streams, (T, B), with a state that goes on from window to window.

    Args:
        flat: targets are (T·B,), else (T, B).
    """
    symbols, width = 11, 32
    heard = melody(seed, streams * 401, symbols).reshape(streams, -1).T.contiguous()

    def loss_fn(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0].flatten(0, 1), targets.flatten())

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        model, optimizer, observer = begin(setup, make_observer)
        inputs, targets = setup.train
        for _ in range(setup.epochs):
            model.train()
            state = None
            for start in range(0, len(inputs) - window + 1, window):
                x, t = inputs[start : start + window], targets[start : start + window]
                t = t.reshape(-1) if flat else t
                optimizer.zero_grad()
                given = (x, state)
                outputs, state = model(*given)
                loss = setup.loss_fn((outputs, state), t)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                observer.step(loss, given, t)
                kept = [part.detach() for part in (state if isinstance(state, tuple) else [state])]
                state = tuple(kept) if len(kept) > 1 else kept[0]
        return observer

    data = heard[:-1], heard[1:]
    model = Carrying(cell, symbols, width)
    return Setup(model, loss_fn, partial(Adam, lr=1e-2), data, data, epochs=8, loop=loop)


# --- what comes next ------------------------------------------------------------------------------


def forecaster(seed: int, ahead: int = 5) -> Setup:
    """What machines give in the next steps, from the past, the loads ahead and their age, each an
    argument of its own."""

    def arguments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return rows[:, :-ahead, :2], rows[:, -ahead:, :2], rows[:, -1, 2:]

    return Setup(
        Forecaster(2, 24), nn.MSELoss(), partial(AdamW, lr=1e-2),
        *ageing_machines(seed, ahead=ahead), epochs=12, loop=taking(arguments),
    )  # fmt: skip


class Echo(nn.Module):
    """Says the next value of (B, 1, T) at each position, from a convolution of what came before.

    Attributes:
        before, after: zeros that the sequence is padded with.
    """

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.before, self.after = reach - 1, 0
        self.reads, self.says = nn.Conv1d(1, width, reach), nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.says(F.relu(self.reads(F.pad(x, (self.before, self.after)))))


def echo(seed: int) -> Setup:
    """The next pressure in a pipe with an echo, channels before time."""
    return Setup(Echo(24, 9), nn.SmoothL1Loss(), partial(Adam, lr=1e-2), *pressures(seed), epochs=8)


# --- sequences of several lengths -----------------------------------------------------------------


class Pooling(nn.Module):
    """A recurrent net on packed sequences, whose outputs are weighed by how much each matters."""

    def __init__(self, features: int, width: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRU(features, width, batch_first=True)
        self.weight, self.head = nn.Linear(width, 1), nn.Linear(width, outputs)
        self.over = 1  # the axis that the weights sum to 1 over

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=8)
        padding = torch.arange(hidden.shape[1]) >= lengths[:, None]
        weights = self.weight(hidden).masked_fill(padding[:, :, None], -30.0).softmax(self.over)
        return self.head((weights * hidden).sum(dim=1))


def packed(seed: int) -> Setup:
    """Digits as sequences of rows, of which the last one to three are cut off."""
    (x, y), (x_val, y_val) = digits(seed, 8, 8)
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 9, (len(x),), generator=draw)
    own = torch.randint(5, 9, (len(x_val),), generator=draw)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        inputs, targets = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                yield (inputs[chosen], lengths[chosen]), targets[chosen]

        validation = (setup.val[0], own), setup.val[1]
        return train_on(setup, batches, validation, False, seed, make_observer)

    return Setup(
        Pooling(8, 32, 10), F.cross_entropy, partial(Adam, lr=1e-2), (x, y), (x_val, y_val),
        loop=loop,
    )  # fmt: skip


def sentences(seed: int) -> Setup:
    """One sentence of its own length at a time, (T, 1); each word's tag needs the next word too."""
    draw = torch.Generator().manual_seed(seed)
    texts = [
        torch.randint(9, (int(n), 1), generator=draw)
        for n in torch.randint(6, 15, (160,), generator=draw)
    ]
    tags = [((t + t.roll(-1, 0)) % 3)[:, 0] for t in texts]

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 24)
            self.cell = nn.LSTM(24, 32, bidirectional=True)
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(self.embedding(x))[0].squeeze(1))

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for i in torch.randperm(len(texts), generator=shuffle).tolist():
                yield (texts[i],), tags[i]

        return train_on(setup, batches, None, False, seed, make_observer)

    data = torch.cat(texts), torch.cat(tags)
    return Setup(
        Tagger(), F.cross_entropy, partial(Adam, lr=5e-3), data, data, epochs=4, loop=loop
    )  # fmt: skip
