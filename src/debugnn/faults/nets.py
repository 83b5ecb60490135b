"""The small networks that the programs train."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal


def mlp(
    *widths: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build linear layers of the given widths, which include the input's and the output's."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out), *([norm(fan_out)] if norm else []), activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def cnn(
    *widths: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
    classes: int = 10,
    channels: int = 1,
) -> nn.Sequential:
    """Build 3×3 convolutions for images (C, 8, 8), with a pool after each of the first two."""
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(zip((channels, *widths), widths, strict=False)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1)]
        layers += [*([norm(fan_out)] if norm else []), activation()]
        layers += [pool(2)] if number < 2 else []
    side = 8 // 2 ** min(len(widths), 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, classes))


class Functional(nn.Module):
    """An MLP that calls its activation as a function instead of holding a module."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, outputs)
        self.activation: Callable[[Tensor], Tensor] = F.relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        return self.fc3(x)


class Recurrent(nn.Module):
    """An RNN, LSTM or GRU with a linear head on its last output."""

    def __init__(
        self, cell: Callable[..., nn.RNNBase], features: int, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.rnn = cell(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.head(outputs[:, -1])


class Stepwise(nn.Module):
    """A gated recurrence written out in Python, with a linear head on its last state.

    Args:
        embed: turns the inputs into vectors of `features`.
        hand_on: is given the step and the state before it, and returns what the step starts from.
    """

    def __init__(
        self,
        embed: nn.Module,
        features: int,
        hidden: int,
        outputs: int,
        hand_on: Callable[[int, Tensor], Tensor] = lambda step, state: state.clone(),
    ) -> None:
        super().__init__()
        self.embed = embed
        self.update = nn.Linear(features + hidden, 2 * hidden)
        self.head = nn.Linear(hidden, outputs)
        self.hidden, self.hand_on = hidden, hand_on

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.embed(x)
        state = vectors.new_zeros(len(vectors), self.hidden)
        for step, now in enumerate(vectors.unbind(dim=1)):
            before = self.hand_on(step, state)
            gate, proposal = self.update(torch.cat([now, before], dim=1)).chunk(2, dim=1)
            state = before + gate.sigmoid() * (proposal.tanh() - before)
        return self.head(state)


class OneByOne(nn.Module):
    """An LSTM or GRU cell in a loop over symbols (B, T), each of which is read in its own step.

    Args:
        read: turns the symbols of a step, (B,), into vectors of `features`.
        hand_on: is given what a cell keeps, tensor by tensor, before each step.
    """

    def __init__(
        self,
        read: Callable[[Tensor], Tensor],
        cell: Callable[..., nn.RNNCellBase],
        features: int,
        hidden: int,
        outputs: int,
        hand_on: Callable[[Tensor], Tensor] = lambda state: state,
    ) -> None:
        super().__init__()
        self.read, self.hand_on = read, hand_on
        self.cell, self.head = cell(features, hidden), nn.Linear(hidden, outputs)

    def forward(self, symbols: Tensor) -> Tensor:
        parts = 2 if isinstance(self.cell, nn.LSTMCell) else 1
        state = self.head.weight.new_zeros(parts, len(symbols), self.cell.hidden_size)
        kept: tuple[Tensor, ...] = tuple(state)
        for step in range(symbols.shape[1]):
            kept = tuple(self.hand_on(part) for part in kept)
            after = self.cell(self.read(symbols[:, step]), kept if parts == 2 else kept[0])
            kept = after if parts == 2 else (after,)
        return self.head(kept[0])


class Tracker(nn.Module):
    """A recurrent net that goes on from where its last call has stopped, until it is reset.

    Args:
        each_step: it has an output for each step, not for the last one alone.
    """

    def __init__(
        self, cell: Callable[..., nn.RNNBase], axes: int, hidden: int, *, each_step: bool = False
    ) -> None:
        super().__init__()
        self.rnn, self.head = cell(axes, hidden, batch_first=True), nn.Linear(hidden, axes)
        self.each_step = each_step
        self.carried: tuple[Tensor, ...] | None = None

    def reset(self) -> None:
        """Forget what the last call has left."""
        self.carried = None

    def forward(self, x: Tensor) -> Tensor:
        if self.carried is not None and self.carried[0].shape[1] != len(x):
            self.reset()
        outputs, state = self.rnn(x, self.carried)
        self.carried = tuple(part.detach() for part in state)
        return self.head(outputs if self.each_step else outputs[:, -1])


class Notebook(nn.Module):
    """A gated cell whose notes lie in a buffer, one row for each sample of a batch."""

    notes: Tensor

    def __init__(self, axes: int, hidden: int, batch: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(axes, hidden), nn.Linear(hidden, axes)
        self.register_buffer("notes", torch.zeros(batch, hidden))

    def reset(self) -> None:
        """Clear the notes."""
        self.notes.zero_()

    def forward(self, x: Tensor) -> Tensor:
        fits = len(x) == len(self.notes)
        state = self.notes.clone() if fits else self.notes.new_zeros(len(x), self.notes.shape[1])
        for step in x.unbind(dim=1):
            state = self.cell(step, state)
        if fits:
            self.notes.copy_(state.detach())
        return self.head(state)


class Transformer(nn.Module):
    """An encoder with learned positions and a linear head on the mean over the sequence."""

    def __init__(
        self,
        embed: nn.Module,
        length: int,
        outputs: int,
        *,
        width: int = 32,
        dropout: float = 0.0,
        depth: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "gelu",
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    nhead=4,
                    dim_feedforward=2 * width,
                    dropout=dropout,
                    activation=activation,
                    batch_first=True,
                    norm_first=norm_first,
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x) + self.position).mean(dim=1))


class NextSymbol(nn.Module):
    """Scores of a symbol for each position, (B, symbols, T), from those read so far, (B, T)."""

    def __init__(self, symbols: int, body: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.body = body
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x))).transpose(1, 2)


class Reader(nn.Module):
    """A GRU that gives its outputs at all positions; in both directions they are added."""

    def __init__(self, width: int = 32, *, both: bool = False) -> None:
        super().__init__()
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return outputs.unflatten(-1, (-1, x.shape[-1])).sum(dim=2)


class CausalAttention(nn.Module):
    """A transformer block in which a position attends to those before it, if `causal`."""

    def __init__(self, length: int, width: int = 32, *, causal: bool = True) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        return self.block(x + self.position, src_mask=mask)


class Convolved(nn.Module):
    """A convolution over positions with its padding on the left, or on both sides."""

    def __init__(self, width: int = 32, *, kernel: int = 5, centred: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel)
        self.padding = (kernel // 2, kernel // 2) if centred else (kernel - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), self.padding)
        return torch.relu(self.convolution(padded)).transpose(1, 2) + x


class ThroughCode(nn.Module):
    """The whole sequence goes through one code, from which each position is read."""

    def __init__(self, length: int, width: int = 32, code: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(length * width, code), nn.Tanh())
        self.decoder = nn.Linear(code, length * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)).reshape(x.shape)


class Residual(nn.Module):
    """x + gain · f(x) with a two-layer net f. With `zero`, f is 0 at the start."""

    def __init__(self, width: int, *, zero: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.body = mlp(width, width, width)
        if zero:
            for p in self.body[-1].parameters():
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.body(x)


class Gated(nn.Module):
    """x + gate · f(x) with a two-layer net f and a gate that is learnt and starts closed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.body = nn.Parameter(torch.zeros(1)), mlp(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate * self.body(x)


class Coupling(nn.Module):
    """One half of the features is moved by a net of the other half, whose last layer starts at 0;
    the halves change places."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        half = features // 2
        self.body = mlp(half, hidden, half, activation=nn.SiLU)
        for parameter in self.body[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = x.chunk(2, dim=1)
        return torch.cat([moved + self.body(kept), kept], dim=1)


class LanguageModel(nn.Module):
    """A GRU over tokens (B, T) that returns logits (B, T, tokens) and its last state."""

    def __init__(self, tokens: int, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.rnn = nn.GRU(16, width, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.rnn(self.embed(x))
        return self.head(outputs), state


class VariationalAutoencoder(nn.Module):
    """Returns rebuilt inputs, and the mean and the log-variance of the code that they come from."""

    def __init__(self, features: int, hidden: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, code), nn.Linear(hidden, code)
        self.decoder = mlp(code, hidden, features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(code), mean, log_variance


def past_the_choice(code: Tensor, chosen: Tensor) -> Tensor:
    """Return what was chosen for a code, with the gradient of the code: straight through."""
    return code + (chosen - code).detach()


class QuantisedAutoencoder(nn.Module):
    """Rebuilds signals (1, length) from the entries of a codebook that are nearest to its codes.

    Returns the rebuilt signals, and the codes and the entries, (B, length/4, width).

    Args:
        hand_on: is given codes and entries, and returns what the decoder is given.
    """

    def __init__(
        self,
        entries: int,
        width: int,
        hidden: int,
        hand_on: Callable[[Tensor, Tensor], Tensor] = past_the_choice,
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(1, hidden, 4, stride=2, padding=1), nn.BatchNorm1d(hidden), nn.GELU(),
            nn.Conv1d(hidden, hidden, 4, stride=2, padding=1), nn.GELU(),
            nn.Conv1d(hidden, width, 1),
        )  # fmt: skip
        self.codebook = nn.Parameter(0.5 * torch.randn(entries, width))
        self.decoder = nn.Sequential(
            nn.ConvTranspose1d(width, hidden, 4, stride=2, padding=1), nn.GELU(),
            nn.ConvTranspose1d(hidden, 1, 4, stride=2, padding=1),
        )  # fmt: skip
        self.hand_on = hand_on

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.encoder(x).transpose(1, 2)
        distances = (codes.unsqueeze(2) - self.codebook).square().sum(dim=3)
        chosen = self.codebook[distances.argmin(dim=2)]
        return self.decoder(self.hand_on(codes, chosen).transpose(1, 2)), codes, chosen


class RoundedAutoencoder(nn.Module):
    """Rebuilds its inputs from a code of whole numbers from −4 to 4 (arXiv:2309.15505).

    Args:
        hand_on: is given a code and the same in whole numbers, and returns what the decoder gets.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        code: int,
        hand_on: Callable[[Tensor, Tensor], Tensor] = past_the_choice,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(features, hidden, code), mlp(code, hidden, features)
        self.hand_on = hand_on

    def forward(self, x: Tensor) -> Tensor:
        code = 4 * self.encoder(x).tanh()
        return self.decoder(self.hand_on(code, code.round()))


class ConditionalAutoencoder(nn.Module):
    """Rebuilds images whose class it is told, and makes its own loss, a variational bound.

    Args:
        weight: of the divergence, which the loop may change.
        draw: draws a code.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int,
        code: int,
        weight: float,
        draw: Callable[[Normal], Tensor] = Normal.rsample,
    ) -> None:
        super().__init__()
        self.draw = draw
        self.named = nn.Embedding(classes, 12)
        self.encoder = mlp(features + 12, hidden, 2 * code, activation=nn.GELU)
        self.decoder = mlp(code + 12, hidden, features, activation=nn.GELU)
        self.weight = weight

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        told = self.named(label)
        mean, spread = self.encoder(torch.cat([image, told], dim=1)).chunk(2, dim=1)
        code, prior = Normal(mean, F.softplus(spread)), Normal(0.0, 1.0)
        rebuilt = self.decoder(torch.cat([self.draw(code), told], dim=1))
        error = 0.5 * (rebuilt - image).square().sum(dim=1)
        divergence = torch.distributions.kl_divergence(code, prior).sum(dim=1)
        return {"rebuilt": rebuilt, "loss": (error + self.weight * divergence).mean()}


class LowRank(nn.Module):
    """A linear layer that stays as it is, and an update of low rank that starts at zero (Hu et al.
    2021, LoRA, arXiv:2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Products(nn.Module):
    """A score of pairs of numbers (B, 2): the product of their embeddings, and a bias of each.

    Args:
        std: standard deviation of the initial embeddings.
    """

    def __init__(self, users: int, items: int, width: int, std: float) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=std)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        user, item = pairs.unbind(dim=1)
        alike = (self.user(user) * self.item(item)).sum(dim=1, keepdim=True)
        return alike + self.user_bias(user) + self.item_bias(item)


class Forecaster(nn.Module):
    """Reads the past (B, T, features), and says a value for each row of what is known of the time
    ahead, (B, H, features), of a machine of this age, (B, 1)."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.GRU(features, hidden, batch_first=True)
        self.age = nn.Linear(1, hidden)
        self.decoder = nn.GRU(features, hidden, batch_first=True)
        self.head = mlp(2 * hidden, hidden, 1)

    def forward(self, past: Tensor, ahead: Tensor, age: Tensor) -> Tensor:
        aged = F.relu(self.age(age))
        read, _ = self.decoder(ahead, self.encoder(past)[1])
        aged = aged.unsqueeze(1).expand(-1, ahead.shape[1], -1)
        return self.head(torch.cat([read, aged], dim=2)).squeeze(2)


class Heads(nn.Module):
    """A shared body with several heads, whose outputs come in a dict."""

    def __init__(self, body: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleDict(dict(heads))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {name: head(hidden) for name, head in self.heads.items()}


class LineReader(nn.Module):
    """Scores of symbols (T, B, symbols) along the columns of images (B, rows, columns).

    Attributes:
        reshaped: the features (B, width, T) are reshaped to (T, B, width), and not permuted.
    """

    def __init__(self, rows: int, width: int, symbols: int) -> None:
        super().__init__()
        self.reshaped = False
        self.columns = nn.Sequential(
            nn.Conv1d(rows, width, 9, padding=4), nn.ReLU(),
            nn.Conv1d(width, width, 5, stride=2, padding=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        found = self.columns(x)
        if self.reshaped:
            return self.head(found.reshape(found.shape[2], len(x), -1))
        return self.head(found.permute(2, 0, 1))


class Flow(nn.Module):
    """Returns codes of points in the plane, and the logarithm of the determinant of its map.

    Each of its layers scales and shifts one coordinate by functions of the other one.

    Args:
        last_alone: the logarithm is that of the last layer, and not the sum of all.
    """

    def __init__(self, depth: int, width: int, *, last_alone: bool = False) -> None:
        super().__init__()
        self.last_alone = last_alone
        self.layers = nn.ModuleList(
            mlp(1, width, width, 2, activation=nn.Tanh) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = x.new_zeros(len(x))
        for layer in self.layers:
            kept, moved = x[:, :1], x[:, 1:]
            scale, shift = layer(kept).tanh().chunk(2, dim=1)
            x = torch.cat([moved * scale.exp() + 2 * shift, kept], dim=1)
            volume = scale[:, 0] if self.last_alone else volume + scale[:, 0]
        return x, volume


class MaskedConvolution(nn.Conv2d):
    """A convolution that sees the pixels before its own, row by row, and its own with `centre`."""

    mask: Tensor

    def __init__(self, channels: int, filters: int, size: int = 3, *, centre: bool) -> None:
        super().__init__(channels, filters, size, padding=size // 2)
        self.register_buffer("mask", torch.ones(size, size))
        self.mask[size // 2 + 1 :] = 0
        self.mask[size // 2, size // 2 + int(centre) :] = 0

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class MaskedMlp(nn.Module):
    """A hidden layer of units that see the first features, a number each, and an output for each
    feature from units that do not see it (arXiv:1502.03509), or that do, with `itself`."""

    inwards: Tensor
    outwards: Tensor

    def __init__(self, features: int, hidden: int, *, itself: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, hidden), nn.Linear(hidden, features)
        place = torch.arange(features)
        seen = torch.arange(hidden) % features
        self.register_buffer("inwards", (place < seen[:, None] + int(itself)).float())
        self.register_buffer("outwards", (seen <= place[:, None]).float())

    def forward(self, x: Tensor) -> Tensor:
        found = torch.relu(F.linear(x, self.first.weight * self.inwards, self.first.bias))
        return F.linear(found, self.last.weight * self.outwards, self.last.bias)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class KeptDropout(nn.Module):
    """Dropout in every mode, so that passes can be averaged (Monte Carlo dropout)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.factor * gradient, None


class Reversed(nn.Module):
    """The identity, whose gradient is turned round (Ganin & Lempitsky 2015, arXiv:1409.7495)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return _Reversal.apply(x, self.factor)


def residual_mlp(depth: int = 4, *, zero: bool = True) -> nn.Sequential:
    """Build residual blocks of width 32 between two linear layers, for (64,) and 10 classes."""
    blocks = (Residual(32, zero=zero) for _ in range(depth))
    return nn.Sequential(nn.Linear(64, 32), *blocks, nn.LayerNorm(32), nn.Linear(32, 10))
