"""Sound programs whose loop is not the plain one, or whose samples do not lie along the first axis.

Each function builds a `Setup` whose `loop` takes the place of the plain loop. A fault changes the
setup's parts, as it does with any other.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim import SGD, Adam, AdamW, Optimizer

from debugnn.faults.datasets import digits, toy
from debugnn.faults.nets import ConditionalAutoencoder, Heads, mlp
from debugnn.faults.program import MakeObserver, Observer, Setup, score

Batch = tuple[Any, Any]  # the model's arguments, a tuple, and the targets


def train_on(
    setup: Setup,
    batches: Callable[[torch.Generator], Iterator[Batch]],
    validation: Batch | None,
    alone: bool,
    seed: int,
    make_observer: MakeObserver,
) -> Observer:
    """Train on batches of several arguments.

    Args:
        batches: gives those of an epoch.
        validation: a batch; None where there is no validation.
        alone: hand over the loss and nothing else.
    """
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = setup.make_optimizer(setup.model.parameters())
    model, loss_fn = setup.model, setup.loss_fn
    observer = make_observer(model, optimizer, loss_fn)
    for _ in range(setup.epochs):
        model.train()
        for arguments, targets in batches(shuffle):
            optimizer.zero_grad()
            loss = loss_fn(model(*arguments), targets)
            loss.backward()
            optimizer.step()
            if alone:
                observer.step(loss)
            else:
                observer.step(loss, arguments, targets)
        if validation is not None:
            model.eval()
            observer.validate(*validation)
    return observer


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
        optimizer = setup.make_optimizer(setup.model.parameters())
        model = setup.model
        observer = make_observer(model, optimizer, setup.loss_fn)
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


# --- graphs ---------------------------------------------------------------------------------------


class Convolving(nn.Module):
    """A two-layer graph net, which is given the graph in the form that `spread` multiplies with."""

    def __init__(self, spread: Callable[[Any, Tensor], Tensor], features: int, kinds: int) -> None:
        super().__init__()
        self.spread = spread
        self.first, self.second = nn.Linear(features, 24), nn.Linear(24, kinds)

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        hidden = F.relu(self.spread(graph, self.first(x)))
        return self.spread(graph, self.second(hidden))


class Holding(Convolving):
    """The same net, which holds its graph."""

    def __init__(self, graph: Tensor, features: int, kinds: int) -> None:
        super().__init__(torch.matmul, features, kinds)
        self.graph: Tensor
        self.register_buffer("graph", graph)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, self.graph)


def neighbours_mean(edges: Tensor, x: Tensor) -> Tensor:
    """Return the mean over each node's neighbours. Edges (2, E) lead from the first row's nodes."""
    total = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
    return total / torch.bincount(edges[1], minlength=len(x)).clamp_min(1)[:, None]


def graph(seed: int, form: str, nodes: int = 360, kinds: int = 3) -> Setup:
    """Nodes of a graph whose neighbours are mostly of their kind, all of them at each step.

    Args:
        form: of the graph: `dense`, `sparse`, `edges`, or `held` by the model.
    """
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (nodes,), generator=draw)
    chance = torch.where(kind[:, None] == kind, 0.08, 0.01)
    linked = torch.bernoulli(chance, generator=draw).triu(1)
    linked = linked + linked.T + torch.eye(nodes)
    features = torch.randn(nodes, 12, generator=draw) + 0.7 * F.one_hot(kind, 12)
    mean = linked / linked.sum(dim=1, keepdim=True)
    forms: dict[str, tuple[Any, Callable[[Any, Tensor], Tensor]]] = {
        "dense": (mean, torch.matmul),
        "sparse": (mean.to_sparse(), torch.sparse.mm),
        "edges": (linked.nonzero().T.contiguous(), neighbours_mean),
        "held": (None, torch.matmul),
    }
    given, spread = forms[form]
    model = Holding(mean, 12, kinds) if form == "held" else Convolving(spread, 12, kinds)
    known = torch.rand(nodes, generator=draw) < 0.5

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        (x, y), (_, wanted) = setup.train, setup.val
        arguments = (x,) if form == "held" else (x, given)

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for _ in range(20):
                yield arguments, y

        return train_on(setup, batches, (arguments, wanted), False, seed, make_observer)

    train = features, torch.where(known, kind, -100)
    val = features, torch.where(known, -100, kind)
    return Setup(model, F.cross_entropy, partial(Adam, lr=1e-2), train, val, epochs=8, loop=loop)


class Messages(nn.Module):
    """Sums over the nodes of each graph, after messages along the edges."""

    def __init__(self, kinds: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(kinds, width)
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)
        self.head = mlp(width, width, 1)

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor) -> Tensor:
        h = self.embedding(x)
        sent = torch.zeros_like(h).index_add(0, edges[1], self.others(h)[edges[0]])
        h = torch.relu(self.own(h) + sent)
        graphs = int(owner[-1]) + 1
        return h.new_zeros(graphs, 1).index_add(0, owner, self.head(h))


def small_graphs(seed: int, graphs: int = 900, kinds: int = 4) -> Setup:
    """Many small graphs, 32 to a batch: how many of its edges join nodes of the same kind.

    `change_batch` takes the arguments and the targets of each batch, validation's too.
    """
    draw = torch.Generator().manual_seed(seed)
    made = []
    for size in torch.randint(5, 11, (graphs,), generator=draw).tolist():
        kind = torch.randint(kinds, (size,), generator=draw)
        linked = torch.bernoulli(torch.full((size, size), 0.4), generator=draw).triu(1)
        linked[0, 1] = 1  # an edge in each graph
        pairs = linked.nonzero().T
        equal = (kind[pairs[0]] == kind[pairs[1]]).sum()
        made.append((kind, torch.cat([pairs, pairs.flip(0)], dim=1), equal))
    counts = torch.stack([equal for *_, equal in made]).float()
    wanted = ((counts - counts.mean()) / counts.std())[:, None]

    def together(chosen: list[int]) -> Batch:
        nodes, edges, owner, before = [], [], [], 0
        for number, index in enumerate(chosen):
            kind, pairs, _ = made[index]
            nodes.append(kind)
            edges.append(pairs + before)
            owner.append(torch.full((len(kind),), number))
            before += len(kind)
        return (torch.cat(nodes), torch.cat(edges, dim=1), torch.cat(owner)), wanted[chosen]

    known = 2 * graphs // 3

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        change: Any = setup.change_batch or (lambda *batch: batch)

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(known, generator=shuffle).split(setup.batch_size):
                yield change(*together(chosen.tolist()))

        validation = change(*together(list(range(known, graphs))))
        return train_on(setup, batches, validation, False, seed, make_observer)

    data = counts[:known, None], wanted[:known]
    return Setup(
        Messages(kinds, 32), F.mse_loss, partial(Adam, lr=3e-3), data, data, epochs=14, loop=loop
    )  # fmt: skip


# --- pairs ----------------------------------------------------------------------------------------


class Matching(nn.Module):
    """Similarities (B, B) of the samples of two views: the others are each sample's negatives."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.left, self.right = mlp(features, 64, 24), mlp(features, 64, 24)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        embedded = (
            F.normalize(net(x), dim=1) for net, x in ((self.left, one), (self.right, other))
        )
        left, right = embedded
        return 8 * left @ right.T


def contrastive(seed: int, both_ways: bool = False) -> Setup:
    """The left halves of digits find their right halves among those of the batch.

    Args:
        both_ways: the right halves find their left halves too.
    """
    (x, _), (x_val, _) = digits(seed, 8, 8)

    def loss_fn(scores: Tensor, own: Tensor) -> Tensor:
        loss = F.cross_entropy(scores, own)
        return (loss + F.cross_entropy(scores.T, own)) / 2 if both_ways else loss

    def halves(images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        inputs, _ = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                yield halves(inputs[chosen]), torch.arange(len(chosen))

        return train_on(setup, batches, None, False, seed, make_observer)

    return Setup(
        Matching(32), loss_fn, partial(Adam, lr=3e-3), (x, torch.arange(len(x))),
        (x_val, torch.arange(len(x_val))), batch_size=48, epochs=8, loop=loop,
    )  # fmt: skip


def siamese(seed: int) -> Setup:
    """Two passes of one net a step, with two images that show the same digit or not."""
    (x, y), val = digits(seed)

    def loss_fn(pair: Any, same: Tensor) -> Tensor:
        distance = F.pairwise_distance(*pair)
        return torch.where(same, distance.square(), F.relu(1.5 - distance).square()).mean()

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        shuffle = torch.Generator().manual_seed(seed)
        optimizer = setup.make_optimizer(setup.model.parameters())
        model = setup.model
        observer = make_observer(model, optimizer, setup.loss_fn)
        inputs, labels = setup.train
        for _ in range(setup.epochs * 25):
            one, other = torch.randint(len(inputs), (2, setup.batch_size), generator=shuffle)
            like = torch.rand(len(one), generator=shuffle) < 0.4
            ranked = labels.argsort()
            near = ranked[torch.searchsorted(labels[ranked], labels[one])]
            other = torch.where(like, near, other)
            optimizer.zero_grad()
            same = labels[one] == labels[other]
            loss = setup.loss_fn((model(inputs[one]), model(inputs[other])), same)
            loss.backward()
            optimizer.step()
            observer.step(loss)
        return observer

    return Setup(
        mlp(64, 64, 16), loss_fn, partial(Adam, lr=2e-3), (x, y), val, batch_size=40, loop=loop
    )  # fmt: skip


# --- steps ----------------------------------------------------------------------------------------


def sharpness_aware(seed: int) -> Setup:
    """Two passes and two backward passes a step, the second at weights that were moved uphill."""

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        shuffle = torch.Generator().manual_seed(seed)
        optimizer = setup.make_optimizer(setup.model.parameters())
        model, loss_fn = setup.model, setup.loss_fn
        observer = make_observer(model, optimizer, loss_fn)
        inputs, targets = setup.train
        for _ in range(setup.epochs):
            model.train()
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                x, y = inputs[chosen], targets[chosen]
                optimizer.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                moves = uphill(model, 0.03)
                optimizer.zero_grad()
                loss_fn(model(x), y).backward()
                with torch.no_grad():
                    for parameter, move in zip(model.parameters(), moves, strict=True):
                        parameter.sub_(move)
                optimizer.step()
                observer.step(loss, x, y)
            model.eval()
            observer.validate(*setup.val)
        return observer

    return Setup(
        mlp(2, 32, 32, 2), nn.CrossEntropyLoss(), partial(SGD, lr=0.1, momentum=0.9),
        *toy("moons", seed), epochs=15, loop=loop,
    )  # fmt: skip


def uphill(model: nn.Module, distance: float) -> list[Tensor]:
    """Move the weights along their gradients by this distance in all, and return the moves."""
    with torch.no_grad():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm() + 1e-12
        moves = [distance * g / norm for g in gradients]
        for parameter, move in zip(model.parameters(), moves, strict=True):
            parameter.add_(move)
    return moves


def two_backward_passes(seed: int) -> Setup:
    """Two heads on one body, for the digit and for its pixels, with a backward pass for each loss.

    `setup.zero_grad` is called before either pass, with its number.
    """
    body = nn.Sequential(*mlp(64, 64, 48), nn.ReLU())
    heads = {"digit": nn.Linear(48, 10), "pixels": nn.Linear(48, 64)}

    def losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        digit = F.cross_entropy(outputs["digit"], targets["digit"])
        return digit, F.mse_loss(outputs["pixels"], targets["pixels"])

    def loss_fn(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        digit, pixels = losses(outputs, targets)
        return digit + pixels

    def clear_once(optimizer: Optimizer, number: int) -> None:
        if number == 0:
            optimizer.zero_grad()

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        shuffle = torch.Generator().manual_seed(seed)
        optimizer = setup.make_optimizer(setup.model.parameters())
        model = setup.model
        observer = make_observer(model, optimizer, setup.loss_fn)
        inputs, labels = setup.train
        for _ in range(setup.epochs):
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                x, targets = inputs[chosen], {"digit": labels[chosen], "pixels": inputs[chosen]}
                found = losses(model(x), targets)
                for number, loss in enumerate(found):
                    setup.zero_grad(optimizer, number)
                    loss.backward(retain_graph=number == 0)
                optimizer.step()
                observer.step(sum(found), x, targets)
        return observer

    return Setup(
        Heads(body, heads), loss_fn,
        partial(Adam, lr=2e-3), *digits(seed), zero_grad=clear_once, loop=loop,
    )  # fmt: skip


def loss_alone(seed: int) -> Setup:
    """A plain training of which only the loss is handed over."""
    train, val = digits(seed)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        inputs, targets = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(inputs), generator=shuffle).split(setup.batch_size):
                yield (inputs[chosen],), targets[chosen]

        return train_on(setup, batches, None, True, seed, make_observer)

    return Setup(
        mlp(64, 64, 10), nn.CrossEntropyLoss(), partial(Adam, lr=2e-3), train, val, loop=loop
    )


def told_the_class(seed: int) -> Setup:
    """A conditional autoencoder of digits that makes its own loss; nothing is handed over but it
    and the model's arguments."""
    (x, y), (x_val, y_val) = digits(seed)

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        images, labels = setup.train

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(len(images), generator=shuffle).split(setup.batch_size):
                yield (images[chosen], labels[chosen]), None

        observer = train_on(setup, batches, None, False, seed, make_observer)
        with torch.no_grad():
            rebuilt = setup.model(*setup.val)["rebuilt"]
        setup.scores.append(score(rebuilt, setup.val[0]))
        return observer

    def loss_fn(outputs: dict[str, Tensor], _: None) -> Tensor:
        return outputs["loss"]

    return Setup(
        ConditionalAutoencoder(64, 10, 64, 6, 1.0), loss_fn, partial(AdamW, lr=4e-3),
        (x, y), (x_val, y_val), epochs=12, loop=loop,
    )  # fmt: skip
