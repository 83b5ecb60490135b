"""A sample's output does not depend on its place in the batch, unless the network says so."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.batch_mixing import place_in_the_batch

LENGTH, WIDTH, BATCH = 6, 8, 12


class Reader(nn.Module):
    """Attention over a sequence with a positional encoding along an axis of the inputs."""

    def __init__(self, axis, time_first=False, noisy=False):
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.positions = nn.Parameter(torch.randn(32, WIDTH))
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=not time_first)
        self.head = nn.Linear(WIDTH, 4)
        self.axis, self.time, self.noisy = axis, 0 if time_first else 1, noisy

    def forward(self, x):
        shape = [1, 1, WIDTH]
        shape[self.axis] = x.shape[self.axis]
        h = self.embed(x) + self.positions[: x.shape[self.axis]].reshape(shape)
        if self.noisy:
            h = h + torch.randn_like(h)
        return self.head(self.mix(h, h, h)[0].mean(dim=self.time))


def watched(model, time_first=False):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    told = 1 if time_first else 0
    with Doctor(model, optimizer, loss_fn=F.cross_entropy, sample_axis=told) as doctor:
        for _ in range(3):
            shape = (LENGTH, BATCH, 3) if time_first else (BATCH, LENGTH, 3)
            x, y = torch.randn(shape), torch.randint(4, (BATCH,))
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        return doctor.report().evidence


@pytest.mark.parametrize("time_first", [False, True])
def test_an_encoding_of_the_place_in_the_batch_is_seen(time_first):
    samples, time = (1, 0) if time_first else (0, 1)
    wrong = watched(Reader(samples, time_first), time_first)
    assert wrong.network.mixing == 0
    (sign,) = place_in_the_batch(wrong)
    assert "place in the batch" in sign.summary
    right = watched(Reader(time, time_first), time_first)
    assert right.network.place_change == 0
    assert not list(place_in_the_batch(right))


def test_noise_is_no_dependence_on_the_place():
    evidence = watched(Reader(1, noisy=True))
    assert evidence.network.evaluation_change > 0
    assert not list(place_in_the_batch(evidence))


class WithState(nn.Module):
    """A recurrence that is handed its state, (1, samples, WIDTH), another one for each sample."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, WIDTH, batch_first=True), nn.Linear(WIDTH, 4)

    def forward(self, x, state):
        return self.head(self.rnn(x, state)[0][:, -1])


def test_what_belongs_to_a_sample_moves_with_it():
    torch.manual_seed(0)
    model = WithState()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Doctor(model, optimizer, loss_fn=F.cross_entropy) as doctor:
        for _ in range(3):
            x, y = torch.randn(BATCH, LENGTH, 3), torch.randint(4, (BATCH,))
            state = torch.randn(1, BATCH, WIDTH)
            loss = F.cross_entropy(model(x, state), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, (x, state), y)
        evidence = doctor.report().evidence
    assert not list(place_in_the_batch(evidence))


class Tagger(nn.Module):
    """A recurrence over the words of one sentence, which the batch consists of."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, WIDTH, bidirectional=True), nn.Linear(2 * WIDTH, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def test_words_of_a_sentence_have_a_place_in_it():
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Doctor(model, optimizer, loss_fn=F.cross_entropy) as doctor:
        for step in range(6):
            x, y = torch.randn(8 + step % 3, 3), torch.randint(4, (8 + step % 3,))
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        evidence = doctor.report().evidence
    assert not [s for s in place_in_the_batch(evidence) if s.severity != "note"]


def test_a_model_that_asks_for_an_order_of_its_samples_is_looked_at():
    """Packed sequences stand by falling length."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.out(self.cell(packed)[1][0])

    torch.manual_seed(0)
    model = Packed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=F.cross_entropy) as doctor:
        for _ in range(60):
            lengths = torch.randint(2, 9, (32,)).sort(descending=True).values
            x = torch.randn(32, 8, 3)
            x[torch.arange(8) >= lengths[:, None]] = 0.0
            y = (x.sum(dim=(1, 2)) > 0).long()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, lengths), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, (x, lengths), y)
        report = doctor.report()
    assert report.troubles == []
    assert (report.evidence.task, report.healthy) == ("classes", True)
