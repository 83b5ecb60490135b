"""The buffer holds what was put in, in order."""

import pytest
import torch

from debugnn.doctor.observe import samples
from debugnn.doctor.observe.buffer import BatchBuffer
from debugnn.doctor.observe.calls import as_call
from debugnn.doctor.observe.growing import GrowingTensor
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.task import Task
from debugnn.doctor.observe.windows import WindowEnds

SIZES = [3, 1, 4096, 0, 7, 9000, 2]


def test_batches_are_what_was_noted():
    """Against a plain list of copies."""
    generator = torch.Generator().manual_seed(0)
    noted, plain = GrowingTensor(), []
    assert noted.each() == []
    for size in SIZES:
        batch = torch.randn(size, 2, generator=generator)
        noted.append(batch)
        plain.append(batch.clone().flatten())
        batch.zero_()  # the loop may use its memory again
        assert len(noted) == len(plain)
        assert torch.equal(noted.together(), torch.cat(plain))
        assert all(map(torch.equal, noted.each(), plain))


def test_batches_that_come_together_are_the_same_as_one_by_one():
    together, alone = GrowingTensor(), GrowingTensor()
    numbers = torch.arange(float(sum(SIZES)))
    together.extend(numbers, SIZES)
    for batch in numbers.split(SIZES):
        alone.append(batch)
    assert all(map(torch.equal, together.each(), alone.each()))


def test_batches_of_several_types_lose_no_digit():
    noted = GrowingTensor()
    noted.append(torch.tensor([True, False]))
    noted.append(torch.tensor([2**40]))
    noted.append(torch.tensor([0.1], dtype=torch.float64, requires_grad=True))
    assert noted.together().tolist() == [1.0, 0.0, 2.0**40, 0.1]
    assert not noted.together().requires_grad


def test_batches_are_noted_in_and_out_of_inference_mode():
    noted = GrowingTensor()
    with torch.inference_mode():
        noted.append(torch.zeros(2))
    noted.append(torch.ones(2))
    assert noted.together().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("hot", [False, True])
def test_classes_are_counted_over_all_batches(hot):
    buffer = BatchBuffer()
    for step in range(30):
        labels = torch.tensor([0, 1, 2, 0]) if step % 3 else torch.tensor([1])
        targets = torch.eye(4)[labels] if hot else labels
        inputs = torch.zeros(len(labels), 5)
        buffer.take(as_call(inputs), inputs, targets, Layout(), due=step % 20 == 0)
    assert buffer.class_counts(Task("classes", 4)).tolist() == [40, 30, 20, 0]
    assert buffer.rarest(Task("classes", 4)) == [3, 2, 1, 0]


def test_targets_that_are_no_plain_tensors_are_left_out():
    buffer, inputs = BatchBuffer(), torch.zeros(3, 5)
    for targets in (torch.eye(3).to_sparse(), "labels", None):
        buffer.take(as_call(inputs), inputs, targets, Layout(), due=False)
    assert not buffer.labels
    assert len(buffer.early) == 3


@pytest.mark.parametrize(
    ("targets", "moved"),
    [
        (lambda step, noise: noise, False),
        (lambda step, noise: noise + 3 * (step > 20), True),
        (lambda step, noise: noise * (4 if step > 20 else 1), True),
        (lambda step, noise: noise / (4 if step > 20 else 1), True),
        (lambda step, noise: noise + 0.5 * (step > 20), False),
        (lambda step, noise: (noise > 2 * (step < 20)).long(), False),  # classes may be rarer
    ],
)
def test_targets_that_have_moved_are_known(targets, moved):
    generator = torch.Generator().manual_seed(0)
    buffer = BatchBuffer()
    for step in range(60):
        inputs = torch.randn(64, 3, generator=generator)
        given = targets(step, torch.randn(64, 1, generator=generator))
        buffer.take(as_call(inputs), inputs, given, Layout(), due=step >= 30 and step % 5 == 0)
    assert buffer.targets_moved is moved


def test_samples_of_the_second_axis_are_kept_as_rows():
    buffer, inputs = BatchBuffer(), torch.arange(12).reshape(3, 4)
    buffer.take(as_call(inputs), None, None, Layout(1), due=True)
    buffer.fingerprint()
    assert torch.equal(buffer.early[0].inputs, inputs.T)
    assert torch.equal(buffer.early[0].call.args[0], inputs)
    assert [len(prints) for prints in buffer.prints.each()] == [4]
    assert buffer.sizes == {4}


def test_batches_are_compared_with_the_first_one_without_end():
    """Fingerprints come to an end after 50,000 samples."""
    buffer, graph = BatchBuffer(), torch.randn(30_000, 2)
    for step in range(6):
        buffer.take(as_call(graph), graph, None, Layout(None), due=True)
        if step == 4:
            graph = graph.flip(0)
    assert buffer.same == [True, True, True, True, False]
    assert len(buffer.prints) < 6


def test_batches_that_wait_are_looked_at_as_they_came():
    """Against each alone; the loop writes the next batch over the one before."""
    generator = torch.Generator().manual_seed(0)
    buffer, ends, prints = BatchBuffer(), WindowEnds(), []
    held = torch.empty(5, 12)
    for step in range(23):
        held.normal_(generator=generator)
        buffer.take(as_call(held), held, None, Layout(), due=step % 3 == 0)
        ends.add(held)
        prints.append(samples.fingerprints(held))
    buffer.fingerprint()
    assert all(map(torch.equal, buffer.prints.each(), prints))
    windows = torch.cat([held[:, 6:], torch.zeros(5, 6)], dim=1)
    found = buffer.ends.facts(held, windows)
    assert found == ends.facts(held, windows)
    assert found.share_before == 1.0


def test_samples_are_noted_until_each_has_come_eight_times_and_again_once_others_come():
    """60 samples of three classes in batches of 7 and 4: no further pass tells more of them."""
    generator = torch.Generator().manual_seed(0)
    buffer, step = BatchBuffer(), 0
    data, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 3

    def train(passes):
        nonlocal step
        for _ in range(passes):
            for rows in torch.randperm(60, generator=generator).split(7):
                given = data[rows]
                buffer.take(as_call(given), given, labels[rows], Layout(), due=step % 20 == 0)
                step += 1

    def noted():
        return len(buffer.prints.together()), len(buffer.labels.together()), buffer.left_out

    train(20)
    # Each of the 12th pass's samples is noted: 100 batches are looked at, of whatever size.
    assert noted() == (12 * 60, 12 * 60, 8 * 60)
    assert buffer.class_counts(Task("classes", 3)).tolist() == [240, 240, 240]
    assert buffer.numbers == list(range(12 * 9))
    labels[:] = 2  # the next probe shows it
    train(20)
    again = noted()[0] - 12 * 60
    assert 2 * 60 < again < 20 * 60
    assert noted() == (12 * 60 + again, 12 * 60 + again, 28 * 60 - again)
    assert buffer.numbers[12 * 9] % 20 == 0
    assert len(buffer.numbers) == len(buffer.prints) == len(buffer.labels)


@pytest.mark.parametrize("new", ["samples", "labels"])
def test_samples_are_noted_as_long_as_new_ones_come(new):
    buffer, generator = BatchBuffer(), torch.Generator().manual_seed(0)
    data, labels = torch.randn(32, 5, generator=generator), torch.zeros(32)
    for _ in range(300):
        if new == "samples":
            data[0].normal_(generator=generator)
        else:
            labels[0] += 1
        buffer.take(as_call(data), data, labels, Layout(), due=False)
    assert len(buffer.labels) == 300
    assert buffer.left_out == 0
