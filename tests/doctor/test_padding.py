"""Padding that a loss counts as data is told from symbols that have a meaning."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.loss_reduction import padding_counted

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
