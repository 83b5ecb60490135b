"""Causes that validation samples and rare classes show."""

import pytest
import torch
from handmade_evidence import evidence, found_by, score
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes.signals.data import SHIFTED, TOLD_APART
from debugnn.doctor.causes.signals.skill import skill
from debugnn.doctor.causes.verdict import verdict
from debugnn.doctor.evidence import AdjustedFacts, Evidence, Pairing, Validation
from debugnn.doctor.observe.rescaled import rescaled_skill


def validated(train, *held_out, losses=None) -> Evidence:
    given = evidence(train)
    losses = losses or [1.0] * len(held_out)
    given.outcome.validations = [
        Validation(20 * i, loss, score(s, samples=300))
        for i, (s, loss) in enumerate(zip(held_out, losses, strict=True))
    ]
    return given


@pytest.mark.parametrize(
    ("held_out", "losses", "expected"),
    [
        # Of 300 samples chance makes up to 0.03.
        ([0.5, 0.5, 0.51], [1.0, 1.0, 1.0], True),  # the gap alone is large enough
        ([0.5, 0.5, 0.53], [1.0, 1.0, 1.0], False),
        ([0.7, 0.7, 0.71], [1.0, 1.0, 1.11], True),  # a gap, and the loss has turned
        ([0.7, 0.7, 0.71], [1.0, 1.0, 1.09], False),
        ([0.7, 0.7, 0.73], [1.0, 1.0, 1.11], False),
        ([0.8, 0.8, 0.81], [1.0, 1.0, 1.41], True),
        ([0.8, 0.8, 0.81], [1.0, 1.0, 1.39], False),
        ([0.9, 0.9, 0.9], [1.0, 1.0, 2.0], False),  # no gap
        # One low loss among others is no steep turn, and several are.
        ([0.8, 0.8, 0.8, 0.8, 0.81], [1.5, 1.4, 0.9, 1.4, 1.4], False),
        ([0.8, 0.8, 0.8, 0.8, 0.81], [1.5, 0.9, 0.9, 1.4, 1.4], True),
    ],
)
def test_overfitting_at_its_edges(held_out, losses, expected):
    found = found_by("overfitting", validated(0.95, *held_out, losses=losses))
    assert bool(found) is expected
    assert all(f.severity == "warning" for f in found)


@pytest.mark.parametrize(
    ("same", "distinct", "validated_on", "certain"),
    [(True, 32, 300, True), (True, 32, 100, False), (False, 32, 300, False)],
)
def test_the_same_few_samples_in_every_step_are_said(same, distinct, validated_on, certain):
    given = validated(0.95, 0.3, 0.3, 0.3)
    data = given.data
    data.same_batch, data.distinct, data.validation_size = same, distinct, validated_on
    (finding,) = found_by("overfitting", given)
    assert ("the same 32 samples" in finding.summary) is certain
    assert (finding.confidence == "certain") is certain


@pytest.mark.parametrize(
    ("kept", "training", "severity"),
    [(0.89, 0.5, "error"), (0.91, 0.5, "note"), (0.89, 0.75, None), (0.39, 0.1, None)],
)
def test_wrong_training_labels_do_harm_where_what_is_learnt_does_not_hold(kept, training, severity):
    given = validated(training, kept)
    held, trained = given.outcome.validations[-1].score, given.outcome.train
    held.recalls, trained.recalls = (dict.fromkeys(range(3), skill) for skill in (kept, training))
    # Random crops seldom come again as they were.
    for epochs, expected in (
        (2.0, severity),
        (1.9, severity and "note"),
        (None, severity and "note"),
    ):
        given.outcome.epochs = epochs
        found = [f for f in found_by("bad_labels", given) if "part of the training" in f.summary]
        assert [f.severity for f in found] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("others", "ratios", "named"),
    [(0.5, (1.0, 1.0), True), (0.0, (1.0, 1.0), False), (0.5, (1.0, 2.1), False),
     (0.5, (None, None), False)],
)  # fmt: skip
def test_one_target_alone_is_named_where_the_loss_is_of_nothing_else(others, ratios, named):
    given = validated(0.5, 0.5)
    given.task, given.data.one_target, given.data.other_targets = "unknown", 1.0, others
    given.loop.loss_ratio_low, given.loop.loss_ratio_high = ratios
    found = [f for f in found_by("class_imbalance", given) if "every target" in f.summary]
    assert [(f.severity, f.confidence) for f in found] == [("error", "certain")] * named


@pytest.mark.parametrize(
    ("seen", "held", "expected"),
    [(1.0, [1.0, 0.0], (1.0, 0.5)), (1.0, [1.0, 1.0], (1.0, 0.0)), (None, [1.0, 0.0], (None, 0))],
)
def test_all_targets_that_were_trained_on_are_looked_at(seen, held, expected):
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Embedding(20, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss()
    nn.init.zeros_(model[0].weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn) as doctor:
        for step in range(45):
            x = torch.randint(20, (16, 1))
            # One other target, late, is not among the batches that are kept.
            y = torch.full((16,), 1.0 if seen is not None or step != 33 else 0.0)
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        doctor.validate(torch.arange(2)[:, None], torch.tensor(held))
        report = doctor.report()
    data = report.evidence.data
    assert (data.one_target, data.other_targets) == expected


def test_rows_of_a_table_are_no_units_that_stay_equal():
    """All words come alike, so that they are equal by right."""
    model, loss_fn = nn.Sequential(nn.Embedding(20, 1), nn.Flatten(0)), nn.BCEWithLogitsLoss()
    nn.init.zeros_(model[0].weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.arange(20)[:, None], torch.ones(20)
    with Doctor(model, optimizer, loss_fn) as doctor:
        for _ in range(45):
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        report = doctor.report()
    assert len(model[0].weight.unique()) == 1
    assert [w.still_equal for w in report.evidence.weights] == [0.0]
    assert "symmetric_init" not in [f.cause for f in report.findings]


def misread_values(own, best=0.7, constant=2.7):
    given = evidence(-300.0)
    given.task, given.loss.best, given.loss.constant = "values", best, constant
    given.outcome.own_loss.train = Pairing(32, 1.0, own, 3.0, 0.1)
    given.outcome.validations = [
        Validation(s, 0.1, score(-300.0, samples=300)) for s in (20, 40, 60)
    ]
    return given


@pytest.mark.parametrize(
    ("own", "best", "misread"),
    [(0.04, 0.7, True), (0.3, 0.7, False), (0.0, 0.0, False), (-5.0, -2.0, False)],
)
def test_a_loss_far_below_that_of_right_values_compares_something_else(own, best, misread):
    """What a detector's loss makes of its boxes is not how far they are from the targets."""
    given = misread_values(own, best)
    assert (skill(given) is None) is misread
    assert (verdict(given).healthy is None) is misread


def test_overfitting_is_dated_by_the_lowest_loss():
    given = validated(0.95, 0.6, 0.7, 0.6, 0.5, losses=[1.0, 0.8, 1.0, 1.2])
    (finding,) = found_by("overfitting", given)
    assert finding.step == 20
    assert finding.evidence["validation_loss_over_lowest"] == pytest.approx(1.5)
    few = validated(0.95, 0.2)
    few.outcome.validations[-1].score.samples = 19
    assert found_by("overfitting", few) == []


def test_what_is_worse_than_guessing_on_training_samples_is_not_learnt_by_heart():
    assert found_by("overfitting", validated(-3.6, -25.0, -25.0, -25.4)) == []


@pytest.mark.parametrize(
    ("train", "held_out", "losses", "learns"),
    [
        (0.05, [0.0, 0.0], [1.02, 1.1], False),
        (0.05, [0.0, 0.0], [0.99, 1.1], True),  # at one validation it was better than guessing
        (0.05, [0.05, 0.05], [1.02, 1.1], True),
        (0.2, [0.0, 0.0], [1.02, 1.1], False),
        (0.2, [0.0, 0.0], [0.98, 1.1], True),
        (0.6, [0.0, 0.0], [1.02, 1.1], True),  # which is overfitting
        (0.05, [0.0], [1.1], True),
    ],
)
@pytest.mark.parametrize("task", ["classes", "binary"])
def test_what_holds_for_no_new_sample_is_learnt_by_heart(task, train, held_out, losses, learns):
    """Of training samples the loss is that of half a guess, and few outputs are right."""
    given = validated(train, *held_out)
    given.task = task
    given.data.simple_skill = None
    for each in (given.outcome.train, given.outcome.train_mode):
        each.relative_loss = 0.5
    for validation, loss in zip(given.outcome.validations, losses, strict=True):
        validation.score.relative_loss = loss
    found = verdict(given)
    assert found.healthy is learns
    assert learns or "by heart" in found.reason
    given.outcome.own_loss.validation = Pairing(20, 0.9, 1.0, 0.5, 0.05)  # a relation was found
    assert verdict(given).healthy is (learns or train > 0.1)


def test_a_mismatch_needs_inputs_that_differ_and_a_skill_that_falls():
    given = validated(0.95, 0.5)
    given.data.shift, given.data.scale_shift = 0.9, 0.1
    assert [f.cause for f in found_by("train_test_mismatch", given)] == ["train_test_mismatch"]
    given.data.shift = TOLD_APART
    assert found_by("train_test_mismatch", given) == []
    given.data.scale_shift = SHIFTED + 0.01
    assert found_by("train_test_mismatch", given)
    given = validated(0.95, 0.85)  # nothing is lost
    given.data.shift, given.data.scale_shift = 0.9, 1.4
    assert found_by("train_test_mismatch", given) == []
    given.data.scale_shift = 1.6
    assert found_by("train_test_mismatch", given)


def test_labels_that_are_coded_otherwise_in_validation():
    given = validated(0.95, 0.0)
    given.data.relabelled_skill = 0.9
    assert [f.cause for f in found_by("bad_labels", given)] == ["bad_labels"]
    given.data.relabelled_skill = 0.5
    assert found_by("bad_labels", given) == []


def words(samples, table, seed):
    """Sentences of six of 20 words, of the class that most of them belong to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (samples,), generator=generator)
    own = labels[:, None] * 5 + torch.randint(5, (samples, 6), generator=generator)
    other = torch.randint(20, (samples, 6), generator=generator)
    return table[torch.where(torch.rand(own.shape, generator=generator) < 0.8, own, other)], labels


@pytest.mark.parametrize("renumbered", ["words", "labels", "shuffled labels", None])
def test_words_that_are_numbered_otherwise_are_told_from_labels_that_are(renumbered):
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(20, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    other = torch.randperm(20) if renumbered == "words" else torch.arange(20)
    train, val = words(800, torch.arange(20), 0), words(400, other, 1)
    if renumbered == "labels":
        val = val[0], (val[1] + 1) % 4
    if renumbered == "shuffled labels":
        val = val[0], val[1][torch.randperm(400)]
    with Doctor(model, optimizer, nn.CrossEntropyLoss()) as doctor:
        for _ in range(8):
            for rows in torch.randperm(800).split(32):
                loss = nn.functional.cross_entropy(model(train[0][rows]), train[1][rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                doctor.step(loss, train[0][rows], train[1][rows])
            doctor.validate(*val)
        report = doctor.report()
    wanted = {"words": ["train_test_mismatch"], None: []}.get(renumbered, ["bad_labels"])
    assert [f.cause for f in report.findings if f.severity != "note"][:1] == wanted


@pytest.mark.parametrize("renumbered", [True, False])
def test_categories_that_are_numbered_otherwise_are_named_beside_values(renumbered):
    torch.manual_seed(0)
    worth = torch.randn(20)
    model = nn.Sequential(nn.EmbeddingBag(20, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    order = torch.randperm(20) if renumbered else torch.arange(20)
    (x, _), (x_val, _) = words(800, torch.arange(20), 0), words(400, torch.arange(20), 1)
    y, y_val = (worth[rows].mean(dim=1, keepdim=True) for rows in (x, x_val))
    x_val = order[x_val]
    with Doctor(model, optimizer, nn.MSELoss()) as doctor:
        for _ in range(12):
            for rows in torch.randperm(800).split(32):
                loss = nn.functional.mse_loss(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                doctor.step(loss, x[rows], y[rows])
            doctor.validate(x_val, y_val)
        report = doctor.report()
    named = [f.cause for f in report.findings if f.severity != "note"][:1]
    assert named == ["train_test_mismatch"] * renumbered


def test_a_rare_class_that_a_simple_model_recognises_is_shown_to_be_lost():
    given = evidence()
    given.data.class_counts[4] = 8
    given.outcome.train.recalls = {4: 0.1, 5: 0.1}  # class 5 is not rare
    (suspected,) = found_by("class_imbalance", given)
    assert suspected.confidence == "suspected"
    for recognised, confidence in (({4: 0.5}, "shown"), ({4: 0.49}, "suspected"),
                                   ({5: 0.9}, "suspected")):  # fmt: skip
        given.data.simple_recognition = recognised
        (found,) = found_by("class_imbalance", given)
        assert found.confidence == confidence
    given.data.simple_recognition = {4: 0.6}
    given.outcome.train.recalls = {4: 0.3}  # not clearly worse
    assert found_by("class_imbalance", given)[0].confidence == "suspected"


def test_tokens_are_not_called_imbalanced():
    given = evidence()
    given.data.class_counts[4], given.outcome.train.recalls = 1, {4: 0.0}
    assert found_by("class_imbalance", given)
    given.positions = True
    assert found_by("class_imbalance", given) == []


@pytest.mark.parametrize(
    ("rarest", "recall", "expected"),
    [(8, 0.6, True), (9, 0.6, False), (8, 0.61, False), (8, None, False), (0, 0.1, False)],
)
def test_rare_classes_that_are_not_recognised(rarest, recall, expected):
    given = evidence()
    given.data.class_counts[4] = rarest
    given.outcome.train.recalls = {} if recall is None else {4: recall}
    found = found_by("class_imbalance", given)
    assert bool(found) is expected
    if expected:
        assert found[0].severity == "warning"
        assert found[0].summary.startswith("class 4")


# --- values at another scale ----------------------------------------------------------------------


@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.integers(0, 99))
def test_a_linear_map_is_undone(scale, offset, seed):
    wanted = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert rescaled_skill(scale * wanted + offset, wanted) == pytest.approx(1.0)
    assert rescaled_skill(-scale * wanted + offset, wanted) is None


def test_what_outputs_do_not_tell_no_map_brings_back():
    wanted, noise = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    assert rescaled_skill(noise + 0.02 * wanted, wanted) < 0.1
    assert rescaled_skill(wanted + noise, wanted) == pytest.approx(0.5, abs=0.05)
    for poor in (wanted[:10], torch.ones(4000), torch.full((4000,), torch.nan)):
        assert rescaled_skill(poor, wanted[: len(poor)]) is None


def heating(scaled_by_itself, seed=0):
    """The demand of warm and cold days; the validation days are cold, and scaled with their own
    mean and deviation where that is asked for."""
    torch.manual_seed(seed)
    warmth, wind = 10 + 8 * torch.randn(1200), 4 + 2 * torch.randn(1200)
    raw = torch.stack([warmth, wind], dim=1)
    demand = (17 - warmth).clamp_min(0) + wind + 0.3 * torch.randn(1200)
    cold = warmth < 2
    cold[:800] = False
    train, mean, deviation = raw[:800], raw[:800].mean(dim=0), raw[:800].std(dim=0)
    scaled, targets = (train - mean) / deviation, (demand[:800, None] - 10) / 8
    new = raw[cold]
    if scaled_by_itself:
        mean, deviation = new.mean(dim=0), new.std(dim=0)
    new, wanted = (new - mean) / deviation, (demand[cold][:, None] - 10) / 8
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=nn.functional.mse_loss) as doctor:
        for _ in range(12):
            for rows in torch.randperm(800).split(50):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(scaled[rows]), targets[rows])
                loss.backward()
                optimizer.step()
                doctor.step(loss, scaled[rows], targets[rows])
            doctor.validate(new, wanted)
        return doctor.report()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_validation_inputs_scaled_by_themselves_are_a_mismatch(seed):
    report = heating(scaled_by_itself=True, seed=seed)
    assert report.main_cause == "train_test_mismatch", str(report)
    assert heating(scaled_by_itself=False, seed=seed).healthy is True


def test_a_validation_loss_says_nothing_where_classes_were_drawn_otherwise():
    given = validated(0.95, 0.7, 0.7, 0.7, losses=[1.0, 1.1, 1.3])
    assert found_by("overfitting", given)
    given.classes, given.data.class_counts = 2, {0: 400, 1: 400}
    given.outcome.adjusted = AdjustedFacts(0.7, 400, {0: 380, 1: 20})
    assert found_by("overfitting", given) == []
    given.outcome.adjusted.counts = {0: 280, 1: 120}
    assert found_by("overfitting", given)


class WithKinds(nn.Module):
    """Takes the first column of a table for the index of a kind."""

    def __init__(self):
        super().__init__()
        self.kinds, self.net = nn.Embedding(5, 4), nn.Sequential(nn.Linear(7, 16), nn.ReLU())
        self.out = nn.Linear(16, 2)

    def forward(self, table):
        return self.out(self.net(torch.cat([self.kinds(table[:, 0].long()), table[:, 1:]], dim=1)))


def test_a_column_of_indices_is_no_trouble():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(480, 4, generator=generator)
    table[:, 0] = torch.randint(5, (480,), generator=generator)
    labels = (table[:, 1] + (table[:, 0] - 2) > 0).long()
    torch.manual_seed(0)
    model = WithKinds()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=nn.functional.cross_entropy) as doctor:
        for start in range(0, 320, 32):
            loss = nn.functional.cross_entropy(
                model(table[start : start + 32]), labels[start:][:32]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, table[start : start + 32], labels[start : start + 32])
        doctor.validate(table[320:], labels[320:])
        report = doctor.report()
    assert report.troubles == []
    tried = report.evidence.data.preparations.changed
    assert "divided by 255" in tried
    assert "multiplied by 255" not in tried  # no kind has such an index
