"""Padding that a loss counts as data is told from symbols that have a meaning."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.signals.padding import padding_counted
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.padding import can_be_left_out, without_padding
from debugnn.doctor.trials import PADDED_ON, UNPADDED_ON

KINDS, LENGTH, BATCH, PAD = 6, 12, 16, 5


def sentences(end=PAD):
    """Sequences of 4 to 11 symbols below 5, filled up with another, (BATCH, LENGTH + 1)."""
    words = torch.randint(5, (BATCH, LENGTH + 1))
    lengths = torch.randint(4, 12, (BATCH, 1))
    return words.where(torch.arange(LENGTH + 1) < lengths, torch.as_tensor(end))


class Reader(nn.Module):
    def __init__(self, flat, time_first):
        super().__init__()
        self.embedding = nn.Embedding(KINDS, 8)
        self.rnn = nn.GRU(8, 8, batch_first=not time_first)
        self.head = nn.Linear(8, KINDS)
        self.flat = flat

    def forward(self, symbols):
        scores = self.head(self.rnn(self.embedding(symbols))[0])
        return scores.flatten(0, 1) if self.flat else scores


def watched(batches, flat=False, time_first=False, **options):
    torch.manual_seed(0)
    model = Reader(flat, time_first)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss_fn(scores, targets):
        return F.cross_entropy(scores.reshape(-1, KINDS), targets.reshape(-1), **options)

    told = 1 if time_first else 0
    with Doctor(model, optimizer, loss_fn=loss_fn, every=1, sample_axis=told) as doctor:
        for words in batches:
            words = words.t() if time_first else words
            at = 0 if time_first else 1
            inputs = words.narrow(at, 0, LENGTH).contiguous()
            targets = words.narrow(at, 1, LENGTH).contiguous()
            loss = loss_fn(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        return doctor.report().evidence


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("time_first", [False, True])
def test_padding_that_the_loss_counts_is_noted(flat, time_first):
    torch.manual_seed(1)
    words = sentences()
    evidence = watched([words], flat, time_first)
    padding = (words[:, 1:] == PAD).sum(dim=1)
    assert evidence.data.tail.symbol == PAD
    assert evidence.data.tail.share == pytest.approx((padding - 1).clamp_min(0).sum() / 192)
    (sign,) = padding_counted(evidence)
    assert sign.severity == "note"
    assert "symbol 5" in sign.summary
    assert "ignore_index=5" in sign.fix


def test_padding_that_the_loss_leaves_out_is_not_noted():
    torch.manual_seed(1)
    assert not list(padding_counted(watched([sentences()], ignore_index=PAD)))


def test_a_symbol_with_a_meaning_is_no_padding():
    """It fills up the ends and stands within the sequences as well."""
    torch.manual_seed(1)
    evidence = watched([sentences(end=3)])
    assert evidence.data.tail.symbol == 3
    assert not list(padding_counted(evidence))


def test_answers_of_one_form_are_no_padding():
    torch.manual_seed(1)
    words = torch.randint(5, (BATCH, LENGTH + 1))
    words[:, 7:] = PAD
    evidence = watched([words])
    assert evidence.data.tail.share > 0.3
    assert not list(padding_counted(evidence))


WORDS, LETTERS = ("by", "sea", "bird", "green", "yellow"), "abdegilnorswy"
SPACE = 40  # most of it is padding


def spelt():
    """The words' letters as symbols from 2 on, then the end, 1, and padding, 0: (words, SPACE)."""
    symbols = torch.zeros(len(WORDS), SPACE, dtype=torch.long)
    for row, word in zip(symbols, WORDS, strict=True):
        row[: len(word)] = torch.tensor([2 + LETTERS.index(letter) for letter in word])
        row[len(word)] = 1
    return symbols


class Speller(nn.Module):
    """Spells the word that a picture shows, by a recurrent net over the places of letters."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh())
        self.places = nn.Parameter(torch.randn(SPACE, 8) * 0.5)
        self.decoder = nn.GRU(8, 32, batch_first=True)
        self.head = nn.Linear(32, 2 + len(LETTERS))

    def forward(self, picture):
        places = self.places.expand(len(picture), -1, -1)
        return self.head(self.decoder(places, self.encoder(picture)[None])[0])


def spelling(optimizer, learning_rate, steps, readable):
    """Train a net to spell words, the padding of which its loss counts, and return the report.

    Args:
        readable: share of the letters that the picture tells; the others are drawn.
    """
    torch.manual_seed(0)
    pictures, table, model = torch.randn(len(WORDS), 10), spelt(), Speller()
    made = optimizer(model.parameters(), learning_rate)

    def loss_fn(scores, targets):
        return F.cross_entropy(scores.transpose(1, 2), targets)

    with Doctor(model, made, loss_fn=loss_fn) as doctor:
        for _ in range(steps):
            words = torch.randint(len(WORDS), (32,))
            seen, letters = pictures[words] + 0.5 * torch.randn(32, 10), table[words]
            drawn = (letters > 1) & (torch.rand(letters.shape) > readable)
            letters = torch.randint(2, 2 + len(LETTERS), letters.shape).where(drawn, letters)
            loss = loss_fn(model(seen), letters)
            made.zero_grad()
            loss.backward()
            made.step()
            doctor.step(loss, seen, letters)
        return doctor.report()


def test_padding_that_keeps_the_letters_from_being_learnt_is_shown_to_do_so():
    """The same weights learn the letters as soon as the loss leaves the padding out."""
    report = spelling(lambda weights, rate: torch.optim.SGD(weights, rate, 0.9), 0.1, 100, 1.0)
    assert (report.main_cause, report.main.confidence) == ("wrong_loss", "shown"), report.details()
    assert report.main.severity != "note"
    assert "ignore_index=0" in report.main.fix
    numbers = report.main.evidence
    assert numbers["padding_share"] > 0.8
    padded, unpadded = (numbers[f"trial: {trial.name}"] for trial in (PADDED_ON, UNPADDED_ON))
    assert unpadded < padded - 0.1
    assert report.trial_steps <= report.trial_budget


def test_padding_beside_which_the_letters_are_learnt_stays_a_note():
    """Half of the letters cannot be known, and no more is learnt of them without the padding."""
    report = spelling(torch.optim.Adam, 1e-2, 80, 0.5)
    assert {PADDED_ON.name, UNPADDED_ON.name} <= set(report.evidence.trials)
    assert report.healthy is True, report.details()
    (finding,) = (f for f in report.findings if "padding" in f.summary)
    assert finding.severity == "note"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("flat", [False, True])
def test_targets_without_padding_keep_the_first_symbol_of_its_runs(flat, axis):
    """It may be the end of the sequence; the symbol elsewhere has a meaning, and stays."""
    symbols = torch.tensor([[4, 0, 3, 0, 0, 0], [2, 1, 3, 4, 4, 0], [1, 2, 1, 0, 0, 3]])
    expected = symbols.clone()
    expected[0, 4:] = -100
    symbols, expected = (each.movedim(0, axis).contiguous() for each in (symbols, expected))
    shown = symbols.flatten() if flat else symbols
    masked = without_padding(Batch(Call((symbols,)), shown), 0, axis)
    assert masked.targets.tolist() == (expected.flatten() if flat else expected).tolist()
    assert without_padding(Batch(Call((symbols,)), shown.float()), 0, axis) is None


@pytest.mark.parametrize(
    ("loss_fn", "accepted"),
    [
        (lambda scores, t: F.cross_entropy(scores.transpose(1, 2), t), True),
        (lambda scores, t: F.nll_loss(scores.log_softmax(2).flatten(0, 1), t.flatten()), True),
        # It counts what it should leave out, is told another label, and knows no other labels.
        (lambda scores, t: F.cross_entropy(scores.flatten(0, 1), t.flatten().clamp(min=0)), False),
        (lambda s, t: F.cross_entropy(s.transpose(1, 2), t, ignore_index=1), False),
        (lambda scores, t: (scores.softmax(2) - F.one_hot(t, KINDS)).square().sum(), False),
    ],
)
def test_a_loss_that_does_not_leave_minus_100_out_is_known(loss_fn, accepted):
    torch.manual_seed(0)
    words = sentences()
    batch = Batch(Call((words[:, :-1].contiguous(),)), words[:, 1:].contiguous())
    model = Reader(flat=False, time_first=False)
    assert can_be_left_out(model, batch, PAD, Layout(), loss_fn) is accepted
