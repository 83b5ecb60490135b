"""Faults of data and numbers that need no trial: copies, order, statistics, divisions by 0."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.class_imbalance import sorted_batches
from debugnn.doctor.causes.label_leak import trained_on_validation
from debugnn.doctor.causes.train_eval_mode import running_statistics_differ
from debugnn.doctor.evidence import Evidence, Score, Validation
from debugnn.doctor.observe import samples


def table(count, classes=2, seed=0, features=6):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    inputs = torch.randn(count, features, generator=generator)
    inputs[:, 0] += 2.0 * labels
    return inputs, labels


def watched(inputs, targets, validation=None, batch=16, epochs=2, model=None, **settings):
    torch.manual_seed(0)
    classes = int(targets.max()) + 1
    if model is None:
        model = nn.Sequential(nn.Linear(inputs.shape[1], 16), nn.ReLU(), nn.Linear(16, classes))
    optimizer = settings.get("optimizer", lambda p: torch.optim.SGD(p, lr=0.05))(model.parameters())
    loss_fn = settings.get("loss_fn", nn.CrossEntropyLoss())
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(epochs):
            model.train()
            for x, y in zip(inputs.split(batch), targets.split(batch), strict=True):
                optimizer.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                optimizer.step()
                doctor.step(loss, x, y)
            model.eval()
            if validation is not None:
                doctor.validate(*validation)
        return doctor.report()


def shuffled(inputs, labels):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return inputs[order], labels[order]


# --- copies in the validation set -----------------------------------------------------------------


def rare(inputs, labels, share=4):
    """Keep one in `share` samples of class 1."""
    kept = (labels == 0) | (torch.arange(len(labels)) // 2 % share == 0)
    return inputs[kept], labels[kept]


def repeated(inputs, labels, times):
    own = (labels == 1).nonzero().flatten().repeat(times)
    return torch.cat([inputs, inputs[own]]), torch.cat([labels, labels[own]])


def halves(inputs, labels):
    inputs, labels = shuffled(inputs, labels)
    cut = 3 * len(labels) // 4
    return (inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])


def leaks(report):
    return [f for f in report.findings if f.cause == "label_leak" and f.severity != "note"]


def test_a_class_repeated_before_the_split_is_named_and_after_it_is_not():
    both = rare(*table(800))
    train, validation = halves(*repeated(*both, times=5))
    (found,) = leaks(watched(*train, validation))
    assert found.confidence == "certain"
    assert "of class 1 were trained on, and 0 % of class 0" in found.summary
    assert "split first" in found.fix
    train, validation = halves(*both)
    assert leaks(watched(*shuffled(*repeated(*train, times=5)), validation)) == []


def test_few_values_repeat_by_nature():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(3, (800, 4), generator=generator).float()
    labels = (inputs.sum(dim=1) > 4).long()
    train, validation = (inputs[:600], labels[:600]), (inputs[600:], labels[600:])
    report = watched(*train, validation)
    assert report.evidence.data.overlap > 0.9
    assert report.evidence.data.continuous < 0.1
    assert leaks(report) == []


def test_samples_drawn_with_replacement_before_the_split_are_copies():
    inputs, labels = table(600)
    drawn = torch.randint(600, (900,), generator=torch.Generator().manual_seed(2))
    train, validation = halves(inputs[drawn], labels[drawn])
    (found,) = leaks(watched(*train, validation))
    assert "were trained on" in found.summary


def split_facts(**facts):
    given = Evidence(task="classes", classes=2)
    given.data.overlap, given.data.copies, given.data.natural_repeats = 0.2, 40, 0.1
    given.data.overlap_of_class = {0: 0.0, 1: 0.98}
    for name, value in facts.items():
        setattr(given.data, name, value)
    return given


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, True),
        ({"overlap_of_class": {0: 0.0, 1: 0.5}}, False),
        ({"overlap_of_class": {0: 0.3, 1: 0.98}}, False),
        ({"overlap_of_class": {1: 0.98}}, False),
        ({"copies": 1}, False),  # one blank image
        ({"floating": False}, False),
        ({"covered": 0.99}, False),  # the training set itself
    ],
)
def test_copies_of_one_class_alone(facts, said):
    assert bool(list(trained_on_validation(split_facts(**facts)))) == said


# --- batches of one class -------------------------------------------------------------------------


def test_sorted_data_that_are_not_shuffled_are_told():
    inputs, labels = table(640, classes=4)
    order = labels.argsort(stable=True)
    report = watched(inputs[order], labels[order], epochs=2)
    (found,) = [f for f in report.findings if f.cause == "class_imbalance"]
    assert found.confidence == "certain"
    assert "100 % of the batches hold one class alone" in found.summary
    assert "10 batches of the same class in a row" in found.summary
    assert "shuffle=True" in found.fix
    report = watched(*shuffled(inputs, labels), epochs=2)
    assert report.evidence.data.one_class_batches == 0
    assert [f for f in report.findings if f.cause == "class_imbalance"] == []


def batches_of(labels, size=8):
    prints = torch.arange(len(labels)).double()
    return list(prints.split(size)), list(labels.split(size))


def test_shares_of_batches_of_one_class():
    labels = torch.tensor([0] * 36 + [1] * 36)
    share, chance, run = samples.one_class_batches(*batches_of(labels))
    assert share == pytest.approx(8 / 9)  # one batch holds the border
    assert chance == pytest.approx(2 * 0.5**8)
    assert run == 4.0


def test_alternating_batches_are_no_run():
    labels = torch.tensor(([0] * 8 + [1] * 8) * 10)
    share, _, run = samples.one_class_batches(*batches_of(labels))
    assert (share, run) == (1.0, 1.0)


def test_few_small_or_segmented_batches_tell_nothing():
    nothing = (0.0, 0.0, 0.0)
    assert samples.one_class_batches(*batches_of(torch.zeros(24))) == nothing
    assert samples.one_class_batches(*batches_of(torch.zeros(48), size=2)) == nothing
    prints, _ = batches_of(torch.zeros(80))
    assert samples.one_class_batches(prints, [torch.zeros(80)] * 10) == nothing


def one_class(share=0.9, chance=0.001, run=6.0, skill=0.3, classes=4):
    given = Evidence(task="classes", classes=classes)
    given.loop.steps = 200
    given.outcome.train = given.outcome.train_mode = Score(1 - skill, skill, samples=500)
    data = given.data
    data.one_class_batches, data.one_class_by_chance, data.one_class_run = share, chance, run
    data.class_counts = dict.fromkeys(range(classes), 100)
    return given


@pytest.mark.parametrize(("classes", "run", "said"), [(10, 1.7, 1), (2, 1.7, 0), (2, 3.0, 1)])
def test_runs_are_as_long_by_chance_as_there_are_few_classes(classes, run, said):
    """Batches of one class each, of two classes in random order, come in runs of two."""
    assert len(list(sorted_batches(one_class(run=run, classes=classes)))) == said


def test_what_is_learnt_from_sorted_data_all_the_same_is_a_note():
    assert [s.severity for s in sorted_batches(one_class())] == ["warning"]
    assert [s.severity for s in sorted_batches(one_class(skill=0.95))] == ["note"]


@pytest.mark.parametrize(
    "facts", [{"share": 0.3}, {"chance": 0.5}, {"run": 1.5}], ids=["few", "by chance", "in turns"]
)
def test_batches_of_one_class_that_mean_nothing(facts):
    assert list(sorted_batches(one_class(**facts))) == []


# --- running statistics ---------------------------------------------------------------------------


def modes(by_batch=0.95, running=0.1, validation=0.1, steps=200):
    given = Evidence(task="classes", classes=4)
    given.loop.steps = steps
    given.outcome.train_mode = Score(1 - by_batch, by_batch, samples=500)
    given.outcome.train = Score(1 - running, running, samples=500)
    if validation is not None:
        score = Score(1 - validation, validation, samples=500)
        given.outcome.validations = [Validation(steps, None, score)]
    return given


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, True),
        ({"validation": None}, True),
        ({"validation": 0.9}, False),
        ({"running": 0.9}, False),
        ({"by_batch": 0.4, "running": -2.0}, False),
        ({"steps": 50}, False),
    ],
)
def test_skill_by_batch_statistics_beside_running_ones(facts, said):
    signs = list(running_statistics_differ(modes(**facts)))
    assert bool(signs) == said
    if said:
        assert "0.95 in training mode" in signs[0].summary
        assert "0.10 in evaluation mode" in signs[0].summary


def test_batch_norm_whose_averages_do_not_follow():
    inputs, labels = table(640, classes=4)
    inputs, labels = shuffled(20 + 5 * inputs, labels)

    def net(momentum):
        return nn.Sequential(
            nn.Linear(6, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 4)
        )

    told = {
        momentum: [
            f.cause
            for f in watched(inputs, labels, epochs=4, model=net(momentum)).findings
            if f.severity == "warning"
        ]
        for momentum in (0.1, 1e-5)
    }
    assert "train_eval_mode" not in told[0.1]
    assert "train_eval_mode" in told[1e-5]


class OverOneKey(nn.Module):
    """Attention of each sample over itself alone: its weights are 1, and need no gradient."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        query, key, value = (part(x)[:, None] for part in (self.query, self.key, self.value))
        weights = (query @ key.transpose(1, 2)).softmax(-1)
        return self.head((weights @ value)[:, 0].relu())


def small_net(*last):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1), *last)


ONE_OUTPUT = {
    "a softmax": (lambda: small_net(nn.Softmax(dim=1)), nn.BCELoss(), True),
    "a softmax after attention": (
        lambda: nn.Sequential(OverOneKey(), nn.Softmax(dim=-1)),
        nn.MSELoss(),
        True,
    ),
    "a sigmoid": (lambda: small_net(nn.Sigmoid()), nn.BCELoss(), False),
    "attention over one key": (OverOneKey, nn.BCEWithLogitsLoss(), False),
}


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_a_softmax_over_one_output_is_constant(name):
    make, loss_fn, constant = ONE_OUTPUT[name]
    inputs, labels = table(320)
    report = watched(inputs, labels[:, None].float(), model=make(), loss_fn=loss_fn)
    told = [f for f in report.findings if f.cause in ("wrong_loss", "frozen_parameters")]
    assert [f.cause for f in told] == ["wrong_loss"] * constant
    if constant:
        assert report.main_cause == "wrong_loss"
        assert report.main.confidence == "certain"
        assert "every output is 1" in report.main.summary
        assert report.main.fix.startswith("use a sigmoid")


# --- NaN ------------------------------------------------------------------------------------------


def nonfinite(report):
    assert report.main_cause == "non_finite"
    return report.findings[0]


def test_features_without_deviation_are_named():
    inputs, labels = table(320)
    inputs[:, [1, 4]] = 3.0
    found = nonfinite(watched((inputs - inputs.mean(0)) / inputs.std(0), labels))
    assert "features 1, 4" in found.summary
    assert "std[std == 0] = 1" in found.fix


def test_a_batch_without_any_target_is_named():
    inputs, labels = table(320)
    labels[160:176] = -100
    found = nonfinite(watched(inputs, labels))
    assert found.step == 10
    assert "ignore_index" in found.fix


class MaskedMean(nn.Module):
    """Attention over the tokens that are not 0."""

    def __init__(self):
        super().__init__()
        self.embedding, self.score = nn.Embedding(8, 12), nn.Linear(12, 1)
        self.head = nn.Linear(12, 2)

    def forward(self, tokens):
        embedded = self.embedding(tokens)
        scores = self.score(embedded).squeeze(2).masked_fill(tokens == 0, -torch.inf)
        return self.head((scores.softmax(1).unsqueeze(2) * embedded).sum(1))


def test_samples_that_are_masked_throughout_are_named():
    tokens = torch.randint(1, 8, (320, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens[:, 0] % 2
    tokens[16 * 5 + 3] = 0
    found = nonfinite(watched(tokens, labels, model=MaskedMean()))
    assert (found.step, found.samples) == (5, [3])
    assert "padding throughout" in found.fix


def test_a_mean_over_nothing_is_no_argument_that_could_be_clamped():
    inputs, labels = table(320)
    inputs[80:96, 0] = -9.0

    def of_the_large(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")[targets > 0].mean()

    labels[80:96] = 0
    found = nonfinite(watched(inputs, labels, loss_fn=of_the_large))
    assert found.step == 5
    assert "empty" in found.fix


@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_an_eps_that_half_precision_cannot_hold(eps):
    inputs, labels = table(320)
    inputs[:, 3] = 0.0  # a weight without a gradient
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).half()
    report = watched(
        inputs.half(),
        labels,
        model=model,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=eps),
    )
    if eps == 1e-4:
        assert report.evidence.nonfinite is None
        return
    found = nonfinite(report)
    assert "eps of 1e-08 is 0 in float16" in found.summary
    assert "clamp" not in found.fix
