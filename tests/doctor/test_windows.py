"""Overlapping windows of a series are seen on both sides of a split, and nothing else is."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from debugnn import Doctor, check
from debugnn.doctor.causes.label_leak import windows_cut_before_split
from debugnn.doctor.evidence import Evidence, WindowFacts
from debugnn.doctor.observe.buffer import BatchBuffer
from debugnn.doctor.observe.calls import as_call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.windows import WindowEnds


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def series(recordings, length=200, channels=3, seed=0):
    """Recordings (recordings, length, channels) that wander around a level of their own."""
    draw = generator(seed)
    steps = torch.randn(recordings, length, channels, generator=draw)
    return torch.randn(recordings, 1, channels, generator=draw) + 0.3 * steps.cumsum(dim=1)


def cut(recordings, width=32, step=8):
    """Windows (recordings, windows, width, channels)."""
    return recordings.unfold(1, width, step).movedim(3, 2)


def at_random(windows, share=0.75, seed=1):
    """Training and validation windows, (N, width, channels) each."""
    windows = windows.flatten(0, 1)
    order = torch.randperm(len(windows), generator=generator(seed))
    chosen = order.split([int(share * len(order)), len(order) - int(share * len(order))])
    return tuple(windows[part] for part in chosen)


def by_recording(windows, share=0.75):
    first = int(share * len(windows))
    return windows[:first].flatten(0, 1), windows[first:].flatten(0, 1)


def labels(windows):
    """The class of a window: whether it rises."""
    rows = windows.float().reshape(len(windows), -1)
    half = rows.shape[1] // 2
    return (rows[:, half:].mean(dim=1) > rows[:, :half].mean(dim=1)).long()


def trained(train, validation, model=None, change=None, epochs=3):
    """Train on windows of any shape, with a change of each batch, and return the report."""
    torch.manual_seed(0)
    width = (train[:1] if change is None else change(train[:1])).numel()
    if model is None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss_fn = nn.CrossEntropyLoss()
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(epochs):
            for rows in torch.randperm(len(train)).split(32):
                inputs = train[rows] if change is None else change(train[rows])
                targets = labels(inputs)
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs, targets)
            doctor.validate(validation, labels(validation))
        report = doctor.report()
    assert report.troubles == []
    return report


def accusations(report):
    return [f for f in report.findings if f.cause == "label_leak" and f.severity != "note"]


# --- windows on both sides ------------------------------------------------------------------------


class LastStep(nn.Module):
    """A GRU whose last output is the score of two classes."""

    def __init__(self, channels):
        super().__init__()
        self.rnn, self.head = nn.GRU(channels, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(
    ("arrange", "axis", "model"),
    [
        pytest.param(lambda x: x, 1, lambda: LastStep(3), marks=pytest.mark.slow),
        (lambda x: x.transpose(1, 2).contiguous(), 2, lambda: None),
        (lambda x: x[:, :, 0], 1, lambda: None),
    ],
    ids=["(N, T, C)", "(N, C, T)", "(N, T)"],
)
def test_windows_that_were_split_at_random_are_named(arrange, axis, model):
    train, validation = map(arrange, at_random(cut(series(30))))
    report = trained(train, validation, model())
    (found,) = accusations(report)
    assert report.main_cause == "label_leak", str(report)
    assert (found.severity, found.confidence) == ("warning", "certain")
    assert found.evidence["axis"] == axis
    assert found.evidence["overlapping_windows"] > 0.95
    assert "at the median 75 % of a window's 32 positions" in found.summary
    assert "split the series by time or by subject first" in found.fix


def test_the_same_windows_split_by_recording_are_not_accused():
    report = trained(*by_recording(cut(series(30))))
    assert accusations(report) == []
    assert report.evidence.data.windows.share == 0.0


def test_a_check_before_the_training_warns_of_them():
    def line(train, validation):
        model = nn.Sequential(nn.Flatten(), nn.Linear(96, 2))
        batches = ([(x, labels(x)) for x in part.split(64)] for part in (train, validation))
        optimizer = torch.optim.Adam(model.parameters())
        found = check(model, nn.CrossEntropyLoss(), next(batches), optimizer, next(batches))
        return next(c for c in found.checks if c.name == "train/test overlap")

    warned = line(*at_random(cut(series(30))))
    assert warned.passed is None
    assert "cut before the split" in warned.reason
    assert line(*by_recording(cut(series(30)))).passed is True


def brute_force(train, validation):
    """The largest overlap of each validation window, with an earlier and a later one, (M, 2)."""
    width, found = train.shape[1], torch.zeros(len(validation), 2, dtype=torch.long)
    for row, window in enumerate(validation):
        for common in range(4, width):
            earlier = (train[:, -common:] == window[:common]).all(dim=2).all(dim=1).any()
            later = (train[:, :common] == window[-common:]).all(dim=2).all(dim=1).any()
            for side, seen in enumerate((earlier, later)):
                found[row, side] = common if seen else found[row, side]
    return found


@pytest.mark.parametrize("step", [3, 8, 16, 24])
def test_what_is_seen_is_what_comparing_every_pair_gives(step):
    train, validation = at_random(cut(series(6), step=step), share=0.5)
    buffer = BatchBuffer()
    for number, batch in enumerate(train.split(16)):
        buffer.take(as_call(batch), batch, None, Layout(), due=number % 2 == 0)
    buffer.fingerprint()
    facts, true = buffer.ends.facts(train[:20], validation), brute_force(train, validation)
    found = true.amax(dim=1) > 0
    assert facts.windows == len(validation)
    assert facts.share == pytest.approx(found.double().mean().item())
    assert facts.share_before == pytest.approx((true[:, 0] > 0).double().mean().item())
    assert facts.share_after == pytest.approx((true[:, 1] > 0).double().mean().item())
    assert facts.common == pytest.approx(true.amax(dim=1)[found].median().item() / 32)
    assert facts.pairs > 0
    assert facts.whole == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_windows_of_any_precision_are_compared(dtype):
    train, validation = at_random(cut(series(10)).to(dtype))
    ends = WindowEnds()
    ends.add(train)
    assert ends.facts(train, validation).share > 0.9
    other = cut(series(10, seed=5)).to(dtype).flatten(0, 1)
    assert ends.facts(train, other).share < 0.05


def test_no_axis_of_positions_gives_no_facts():
    for shape in [(20, 7), (20, 3, 16, 16), (20,), (20, 4, 5)]:
        ends, inputs = WindowEnds(), torch.randn(shape)
        ends.add(inputs)
        assert ends.facts(inputs, inputs) is None
    ends, tokens = WindowEnds(), torch.arange(400).reshape(20, 20)
    ends.add(tokens)
    assert ends.facts(tokens, tokens) is None


# --- what is sound --------------------------------------------------------------------------------


def later_time():
    """One long series; what comes later is for validation, and windows overlap at the border."""
    windows = cut(series(1, length=4000), step=4).flatten(0, 1)
    return windows[:750], windows[750:]


def forecasts_from_known_values():
    """So few forecasts that all of them begin from values that were trained on."""
    windows = cut(series(1, length=1500), width=64, step=2).flatten(0, 1)
    return windows[:-31], windows[-31:]


def ends_of_recordings():
    windows = cut(series(40))
    return windows[:, :18].flatten(0, 1), windows[:, 18:].flatten(0, 1)


def padded():
    """Recordings of many lengths, followed by zeros."""
    whole = series(600, length=40)
    lengths = torch.randint(6, 40, (600, 1, 1), generator=generator(2))
    whole = whole * (torch.arange(40)[:, None] < lengths)
    return whole[:450], whole[450:]


def padded_in_front():
    train, validation = padded()
    return train.flip(1), validation.flip(1)


def quantised():
    """Four levels, whose runs come again by chance."""
    return tuple(part.clamp(-1.4, 1.4).round() for part in by_recording(cut(series(40))))


def one_hot():
    symbols = torch.randint(6, (600, 24), generator=generator(3))
    hot = nn.functional.one_hot(symbols, 6).float()
    return hot[:450], hot[450:]


def embedded_phrases():
    """Texts as word vectors, which have phrases in common at any place."""
    draw = generator(4)
    words = torch.randn(200, 8, generator=draw)
    phrases = torch.randint(200, (12, 8), generator=draw)
    texts = phrases[torch.randint(12, (600, 4), generator=draw)].flatten(1)
    shifts = torch.randint(8, (600, 1), generator=draw)
    vectors = words[texts.gather(1, torch.arange(24) + shifts)]
    return vectors[:450], vectors[450:]


def pattern_in_noise():
    """A pattern that is put into noise at any place."""
    draw = generator(5)
    pattern, inputs = torch.randn(20, generator=draw), torch.randn(600, 60, generator=draw)
    for row, place in enumerate(torch.randint(41, (600,), generator=draw).tolist()):
        inputs[row, place : place + 20] = pattern
    return inputs[:450], inputs[450:]


def without_noise():
    """A later part of a wave that repeats itself to the last bit."""
    wave = torch.sin(2 * torch.pi * (torch.arange(1500) % 50) / 50)
    windows = cut(wave.reshape(1, -1, 1), step=1).flatten(0, 1)
    return windows[:1000], windows[1040:]


def calendar():
    """Hour and day of the week, which repeat, beside a value; the later part is held out."""
    hours = torch.arange(1500.0)
    angles = [2 * torch.pi * (hours % period) / period for period in (24, 168)]
    known = [f(a) for a in angles for f in (torch.sin, torch.cos)]
    value = series(1, length=1500, channels=1)[0, :, 0]
    windows = cut(torch.stack([value, *known], dim=1)[None], step=1).flatten(0, 1)
    return windows[:1000], windows[1040:]


def table():
    rows = torch.randn(600, 12, generator=generator(6)).exp()
    return rows[:450], rows[450:]


@pytest.mark.parametrize(
    "data",
    [
        later_time, forecasts_from_known_values, ends_of_recordings, padded, padded_in_front,
        quantised, one_hot, embedded_phrases, pattern_in_noise, without_noise, calendar, table,
    ],
)  # fmt: skip
def test_a_sound_split_is_not_accused(data):
    report = trained(*data())
    assert list(windows_cut_before_split(report.evidence)) == [], report.evidence.data


def test_crops_of_training_recordings_are_not_accused():
    whole = series(300, length=64)

    def crop(rows):
        place = int(torch.randint(33, ()))
        return rows[:, place : place + 32]

    report = trained(whole[:225], whole[225:, 16:48], change=crop)
    assert report.evidence.data.windows.share == 0.0
    assert accusations(report) == []


def test_windows_that_are_validated_on_themselves_are_no_split():
    windows = cut(series(20)).flatten(0, 1)
    assert list(windows_cut_before_split(trained(windows, windows).evidence)) == []


# --- the rule -------------------------------------------------------------------------------------

SEEN = WindowFacts(
    axis=1, positions=40, windows=100, share=0.9, share_before=0.7, share_after=0.7, common=0.5,
    pairs=50, whole=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "data", "said"),
    [
        ({}, {}, True),
        ({"windows": 19}, {}, False),
        ({"share": 0.5}, {}, False),
        ({"share_before": 0.25}, {}, False),
        ({"share_after": 0.25}, {}, False),
        ({"common": 0.19}, {}, False),
        ({"whole": 0.89}, {}, False),
        ({}, {"continuous": 0.5}, False),
        ({}, {"continuous": None}, False),
        ({}, {"natural_repeats": 0.06}, False),
        ({}, {"overlap": 0.06}, False),
        ({}, {"overlap": None}, True),
    ],
)
def test_each_condition_is_needed(facts, data, said):
    given = Evidence(task="classes", classes=2)
    given.data.continuous, given.data.overlap = 1.0, 0.0
    given.data.windows = replace(SEEN, **facts)
    for name, value in data.items():
        setattr(given.data, name, value)
    assert bool(list(windows_cut_before_split(given))) == said
