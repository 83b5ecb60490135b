"""What a network that names a symbol at each position is given, and what its outputs see."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from debugnn import Doctor, check
from debugnn.doctor.causes.bad_labels import shifted_twice
from debugnn.doctor.causes.label_leak import sees_its_target
from debugnn.doctor.evidence import Evidence

KINDS, LENGTH, BATCH, WIDTH = 7, 10, 6, 12


def windows(step=0, batch=BATCH, length=LENGTH):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(KINDS, (batch, length + 1), generator=generator)


class Reader(nn.Module):
    """A GRU over symbols; batch or time first, outputs by position, class or flattened."""

    def __init__(self, both=False, time_first=False, form="last"):
        super().__init__()
        self.embedding = nn.Embedding(KINDS, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=not time_first, bidirectional=both)
        self.head = nn.Linear(WIDTH * (1 + both), KINDS)
        self.form = form

    def forward(self, tokens):
        embedded = self.embedding(tokens) if tokens.dim() == 2 else tokens @ self.embedding.weight
        scores = self.head(self.rnn(embedded)[0])
        if self.form == "flat":
            return scores.reshape(-1, KINDS)
        return scores.movedim(-1, 1) if self.form == "classes second" else scores


class Attention(nn.Module):
    """Attention over symbols, causal or not."""

    def __init__(self, causal):
        super().__init__()
        self.embedding, self.head = nn.Embedding(KINDS, WIDTH), nn.Linear(WIDTH, KINDS)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, 0.1, batch_first=True)
        self.causal = causal

    def forward(self, tokens):
        size = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(size) if self.causal else None
        return self.head(self.block(self.embedding(tokens), src_mask=mask))


class Coded(nn.Module):
    """A variational language model: its decoder reads from the left, and a code of everything."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(KINDS, WIDTH)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.mean, self.head = nn.Linear(2 * WIDTH, 4), nn.Linear(WIDTH, KINDS)
        self.decoder = nn.GRU(WIDTH + 4, WIDTH, batch_first=True)

    def forward(self, tokens):
        embedded = self.embedding(tokens)
        code = self.mean(self.encoder(embedded)[1].transpose(0, 1).flatten(1))
        given = torch.cat([embedded, code[:, None].expand(-1, tokens.shape[1], -1)], 2)
        return self.head(self.decoder(given)[0])


class Translator(nn.Module):
    """Reads a source in both directions, and says a target from the left."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(KINDS, WIDTH), nn.Linear(WIDTH, KINDS)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, source, given):
        _, state = self.encoder(self.embedding(source))
        return self.head(self.decoder(self.embedding(given), state)[0])


def cross_entropy(outputs, targets):
    if outputs.dim() == 3 and outputs.shape[:2] == targets.shape:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    if outputs.dim() == 2:
        return F.cross_entropy(outputs, targets.flatten())
    return F.cross_entropy(outputs, targets)


def watched(model, make, loss_fn=cross_entropy, knows_loss=True, steps=4):
    """Train on what `make` makes of windows; return the facts and what the rule says."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer, loss_fn=loss_fn if knows_loss else None) as doctor:
        for step in range(steps):
            inputs, targets = make(windows(step))
            optimizer.zero_grad()
            outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
            loss = loss_fn(outputs, targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        evidence = doctor.report().evidence
    assert evidence.troubles == []
    return evidence.data.sequence, list(sees_its_target(evidence))


def shifted(tokens):
    return tokens[:, :-1], tokens[:, 1:]


def not_shifted(tokens):
    return tokens[:, :-1], tokens[:, :-1].clone()


def time_first(make):
    return lambda tokens: tuple(part.t().contiguous() for part in make(tokens))


def one_hot(make):
    def change(tokens):
        inputs, targets = make(tokens)
        return F.one_hot(inputs, KINDS).float(), targets

    return change


LAYOUTS = {
    "batch first": ({}, lambda make: make),
    "classes second": ({"form": "classes second"}, lambda make: make),
    "flat": ({"form": "flat"}, lambda make: make),
    "time first": ({"time_first": True}, time_first),
    "time first, flat": ({"time_first": True, "form": "flat"}, time_first),
    "one-hot": ({}, one_hot),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_from_the_left_is_sound_and_one_from_both_sides_sees_its_target(layout):
    settings, arranged = LAYOUTS[layout]
    facts, signs = watched(Reader(**settings), arranged(shifted))
    assert (facts.argument, facts.following, facts.scored) == ("tokens", 1.0, 1.0)
    assert (facts.sees_own, facts.sees_following) == (1.0, 0.0)
    assert facts.sees_past
    assert not facts.sees_future
    assert signs == []
    facts, signs = watched(Reader(both=True, **settings), arranged(shifted))
    assert (facts.sees_following, facts.through_code) == (1.0, 0.0)
    (sign,) = signs
    assert "`tokens` at t + 1" in sign.summary


@pytest.mark.parametrize("layout", LAYOUTS)
def test_targets_that_are_not_shifted_are_seen(layout):
    settings, arranged = LAYOUTS[layout]
    facts, signs = watched(Reader(**settings), arranged(not_shifted))
    assert (facts.same, facts.sees_own) == (1.0, 1.0)
    (sign,) = signs
    assert "tokens[:, 1:]" in sign.fix


@pytest.mark.parametrize("knows_loss", [True, False])
@pytest.mark.parametrize("length", [LENGTH, BATCH])  # as many positions as samples, too
def test_attention_without_a_mask_sees_what_follows(knows_loss, length):
    def make(tokens):
        return shifted(tokens[:, : length + 1])

    assert watched(Attention(causal=True), make, knows_loss=knows_loss)[1] == []
    (sign,) = watched(Attention(causal=False), make, knows_loss=knows_loss)[1]
    assert "mask" in sign.fix


def test_a_shift_within_the_loss_is_one():
    def loss(outputs, tokens):
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    facts, signs = watched(Attention(causal=True), not_shifted, loss)
    assert (facts.following, facts.same < 0.5) == (1.0, True)
    assert facts.scored == pytest.approx(1 - 1 / LENGTH)
    assert signs == []
    assert len(watched(Attention(causal=False), not_shifted, loss)[1]) == 1


def test_what_comes_through_a_code_of_the_whole_sequence_is_no_leak():
    facts, signs = watched(Coded(), shifted)
    assert facts.sees_future
    assert facts.sees_following == facts.through_code == 1.0
    assert signs == []


def test_a_code_is_told_where_there_are_as_many_samples_as_positions():
    assert watched(Coded(), lambda tokens: shifted(tokens[:, : BATCH + 1]))[1] == []


def test_a_decoder_that_is_given_the_symbol_it_is_to_say():
    def teacher_forced(tokens):
        return (tokens.flip(1), tokens[:, :-1]), tokens[:, 1:]

    def given_away(tokens):
        return (tokens.flip(1), tokens[:, 1:]), tokens[:, 1:]

    assert watched(Translator(), teacher_forced)[1] == []
    (sign,) = watched(Translator(), given_away)[1]
    assert sign.evidence["argument"] == "given"


def test_an_autoencoder_of_symbols_sees_everything_by_right():
    """As many outputs as inputs, and each sees all: it may be a copying task, or a code."""
    assert watched(Attention(causal=False), not_shifted)[1] == []


def masked(tokens, hide):
    """Score a third of the positions, hidden in the inputs or not."""
    chosen = torch.zeros_like(tokens, dtype=torch.bool)
    chosen[:, ::3] = True
    inputs = tokens.masked_fill(chosen, 0) if hide else tokens.clone()
    return inputs, tokens.masked_fill(~chosen, -100)


def test_masked_positions_that_are_not_masked_in_the_input():
    assert watched(Attention(causal=False), lambda t: masked(1 + t % (KINDS - 1), True))[1] == []
    (sign,) = watched(Attention(causal=False), lambda t: masked(1 + t % (KINDS - 1), False))[1]
    assert "mask tokens at the positions that are scored" in sign.fix


def inverted(tokens):
    """Hide a third of the positions, and score the others."""
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden[:, 1::3] = True
    return tokens.masked_fill(hidden, 0), tokens.masked_fill(hidden, -100)


def filled_up(tokens):
    """Score all but the padding at the ends."""
    tokens = tokens.clone()
    tokens[: BATCH // 2, LENGTH // 2 :] = 0
    return tokens, tokens.masked_fill(tokens == 0, -100)


def test_an_inverted_mask_is_told_from_padding_that_an_autoencoder_leaves_out():
    (sign,) = watched(Attention(causal=False), lambda t: inverted(1 + t % (KINDS - 1)))[1]
    assert "the mask may be inverted" in sign.fix
    facts, signs = watched(Attention(causal=False), lambda t: filled_up(1 + t % (KINDS - 1)))
    assert (facts.left_out, signs) == (0.0, [])


def test_padding_that_the_loss_leaves_out_counts_for_nothing():
    def padded(tokens):
        tokens = 1 + tokens % (KINDS - 1)
        tokens[: BATCH // 2, LENGTH // 2 :] = 0
        return shifted(tokens)

    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=0)

    facts, signs = watched(Reader(), padded, loss)
    assert facts.scored < 0.9
    assert facts.following == 1.0
    assert signs == []
    assert len(watched(Reader(both=True), padded, loss)[1]) == 1


@pytest.mark.parametrize("target", ["sum", "reversed", "constant input"])
def test_other_targets_are_not_the_input(target):
    def make(tokens):
        inputs = tokens[:, :-1]
        if target == "constant input":
            return torch.ones_like(inputs), torch.ones_like(inputs)
        if target == "reversed":
            return inputs, inputs.flip(1)
        return inputs, inputs.cumsum(1) % KINDS

    assert watched(Reader(both=True), make)[1] == []


def test_values_and_single_classes_are_no_symbols():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    facts, signs = watched(model, lambda t: (t[:, :4].float(), t[:, :4].float()), F.mse_loss)
    assert facts is None
    assert signs == []


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_the_checklist_tells_a_leak_before_the_training(causal):
    model = Attention(causal)
    batches = [shifted(windows(step)) for step in range(4)]
    shown = check(model, cross_entropy, batches, torch.optim.Adam(model.parameters()))
    (line,) = [c for c in shown.checks if c.name == "no leak"]
    assert line.passed == causal


def test_without_facts_there_is_no_sign():
    assert inspect.isgenerator(sees_its_target(Evidence()))
    assert list(sees_its_target(Evidence())) == []


@pytest.mark.parametrize("shifts", [1, 2])
def test_labels_that_are_shifted_twice_are_named(shifts):
    """The model shifts its labels itself, and the loop has shifted them before."""
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss_fn(scores, labels):
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    with Doctor(model, optimizer, loss_fn=loss_fn, every=1) as doctor:
        for step in range(4):
            text = windows(step, batch=16)
            inputs, labels = text[:, :-1], text[:, 1:] if shifts == 2 else text[:, :-1]
            loss = loss_fn(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, labels)
        report = doctor.report()
    assert report.evidence.data.sequence.second == pytest.approx(
        1.0 if shifts == 2 else 0.15, abs=0.1
    )
    assert [sign.confidence for sign in shifted_twice(report.evidence)] == ["certain"] * (
        shifts - 1
    )


@dataclass
class Output:
    """As the hub's models return it: no container, with the loss that the model computed."""

    loss: Tensor
    logits: Tensor


class Causal(Reader):
    def forward(self, tokens, labels):
        scores = super().forward(tokens)
        loss = F.cross_entropy(
            scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        return Output(loss, scores)


@pytest.mark.parametrize("shifts", [1, 2])
def test_labels_are_known_in_a_step_of_several_passes(shifts):
    """A loop accumulates gradients, and hands over the inputs of all its passes together."""
    torch.manual_seed(0)
    model = Causal()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with Doctor(model, optimizer, every=1) as doctor:
        for step in range(4):
            seen, logged = [], 0.0
            optimizer.zero_grad()
            for part in range(2):
                text = windows(2 * step + part, batch=16)
                labels = text if shifts == 1 else F.pad(text[:, 1:], (0, 1), value=-100)
                loss = model(text, labels=labels).loss / 2
                loss.backward()
                seen.append(text)
                logged += loss.item()
            optimizer.step()
            doctor.step(logged, torch.cat(seen))
        report = doctor.report()
    assert report.evidence.task == "classes"
    facts = report.evidence.data.sequence
    assert (facts.following, facts.second)[shifts - 1] == 1.0
    assert len(list(shifted_twice(report.evidence))) == shifts - 1
