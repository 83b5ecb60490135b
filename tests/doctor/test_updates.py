"""What lies between backward passes and updates: cleared gradients, rates, accumulation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from debugnn import Doctor
from debugnn.doctor import causes
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.causes.lr_too_low import (
    cut_before_the_update,
    faded,
    never_arrives,
    taken_to_nothing,
)
from debugnn.doctor.causes.signals.learning_rate import (
    faded_rate,
    unfinished_rise,
    vanished_rate,
)
from debugnn.doctor.causes.signals.loss_function import undivided_passes
from debugnn.doctor.evidence import Evidence, OptimizerFacts, Score, TrialOutcome
from debugnn.doctor.observe.optimizer import RateCurve
from debugnn.doctor.trials import HIGHER_RATES, LOWER_RATES, RESUMED, RESUMED_FASTER, UNCHANGED
from debugnn.faults import train
from debugnn.faults.cases import case
from debugnn.faults.lr_too_low import compounding_decay
from debugnn.faults.sound import sound


def data(samples=256):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(samples, 8, generator=generator)
    return inputs, (inputs @ torch.randn(8, 3, generator=generator)).argmax(dim=1)


def batches(steps, size=16):
    inputs, targets = data()
    for step in range(steps):
        chosen = torch.arange(step * size, (step + 1) * size) % len(inputs)
        yield inputs[chosen], targets[chosen]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def cleared(report):
    return [f for f in report.findings if "zero_grad() is called between" in f.summary]


# --- gradients that are cleared before the update -------------------------------------------------


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("by_model", [True, False])
def test_gradients_cleared_between_backward_and_step_are_told_as_that(to_none, by_model):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss()) as doctor:
        for x, y in batches(60):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            (model if by_model else optimizer).zero_grad(set_to_none=to_none)
            optimizer.step()
            doctor.step(loss, x, y)
        report = doctor.report()
    assert report.main_cause == "frozen_parameters"
    (found,) = cleared(report)
    assert found.confidence == "certain"
    assert ("None" in found.summary) == to_none
    assert "before loss.backward()" in found.fix
    assert not any("raise the learning rate" in f.fix for f in report.findings)


def loop_with_closure(model, optimizer, doctor):
    for x, y in batches(12):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.zero_grad()
        doctor.step(optimizer.step(closure), x, y)


def loop_with_two_passes(model, optimizer, doctor):
    """As sharpness-aware minimisation clears the gradients of its first pass."""
    for x, y in batches(12):
        F.cross_entropy(model(x), y).backward()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        doctor.step(loss, x, y)


def loop_that_skips(model, optimizer, doctor):
    """Clears the gradients of one batch in four, which is too noisy, and steps all the same."""
    for step, (x, y) in enumerate(batches(24)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if step % 4 == 3:
            optimizer.zero_grad()
        optimizer.step()
        doctor.step(loss, x, y)


def loop_that_freezes(model, optimizer, doctor):
    """Takes the gradients of the last layer away for a warm-up."""
    for x, y in batches(24):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        for parameter in model[-1].parameters():
            parameter.grad = None
        optimizer.step()
        doctor.step(loss, x, y)


@pytest.mark.parametrize(
    "loop", [loop_with_closure, loop_with_two_passes, loop_that_skips, loop_that_freezes]
)
def test_loops_that_clear_gradients_on_purpose_are_not_accused(loop):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        loop(model, optimizer, doctor)
        assert cleared(doctor.report()) == []


def test_gradients_clipped_by_a_norm_that_overflows_are_not_cleared():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        for x, y in batches(24):
            optimizer.zero_grad()
            loss = 1e24 * F.cross_entropy(model(x), y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert not any(p.grad.any() for p in model.parameters())
            optimizer.step()
            doctor.step(loss, x, y)
        assert cleared(doctor.report()) == []


def test_a_network_without_any_gradient_has_nothing_that_could_be_cleared():
    model = net()
    nn.init.constant_(model[0].bias, -100.0)  # dead
    nn.init.zeros_(model[2].weight)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        for x, y in batches(12):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        assert cleared(doctor.report()) == []


# --- rates ----------------------------------------------------------------------------------------


def points(rate, updates, groups=1):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    curve = RateCurve()
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = rate(update)
        curve.note(optimizer)
    return curve.points()


def test_the_course_of_a_rate_is_kept_in_few_points():
    found = points(lambda update: 1 / (1 + update), 5000)
    assert len(found) <= 65
    assert found[0] == [0.0, 1.0]
    assert found[-1] == [4999.0, pytest.approx(1 / 5000)]
    assert all(rate == pytest.approx(1 / (1 + update)) for update, rate in found)
    assert [a for a, _ in found] == sorted({a for a, _ in found})


def test_a_constant_rate_is_one_point_and_its_end():
    assert points(lambda update: 0.1, 100) == [[0.0, 0.1], [99.0, 0.1]]


def trained(skill, rates, steps=400):
    given = Evidence(task="classes", classes=3, optimizer=OptimizerFacts(lr=1.0, rates=rates))
    given.loop.steps = given.loop.optimizer_steps = steps
    given.outcome.train = given.outcome.train_mode = Score(1 - skill, skill, skill, samples=500)
    given.outcome.first_loss, given.outcome.highest_loss, given.outcome.last_loss = 1.1, 1.2, 1.0
    return given


SOUND_RATES = {
    "constant": lambda u: 1.0,
    "cosine": lambda u: 0.5 + 0.5 * math.cos(math.pi * u / 400),
    "linear": lambda u: 1 - u / 400,
    "warm-up and cosine": lambda u: min(u / 40, 0.5 + 0.5 * math.cos(math.pi * u / 400)),
    "three steps": lambda u: 0.1 ** (u // 100),
    "exponential": lambda u: 0.98**u,
    "inverse root": lambda u: min(u / 40, 1) / (1 + u) ** 0.5,
    "warm restarts": lambda u: 0.5 + 0.5 * math.cos(math.pi * (u % 50) / 50),
    "warm-up that hardly begins": lambda u: u / 1e6,
}


@pytest.mark.parametrize("name", SOUND_RATES)
def test_usual_schedules_do_not_take_the_rate_to_nothing(name):
    assert vanished_rate(trained(0.3, points(SOUND_RATES[name], 400))) is None


@pytest.mark.parametrize("name", SOUND_RATES)
def test_only_a_warm_up_that_hardly_begins_is_an_unfinished_rise(name):
    found = unfinished_rise(trained(0.3, points(SOUND_RATES[name], 400)))
    assert (found is not None) == (name == "warm-up that hardly begins")


@pytest.mark.parametrize(
    ("per_level", "updates", "seldom"), [(40, 240, True), (1, 240, False), (1, 4000, False)]
)
def test_levels_of_many_updates_are_those_of_epochs(per_level, updates, seldom):
    given = trained(0.7, points(lambda u: (1 + u // per_level) / 1e5, updates))
    given.optimizer.scheduled = 1.0
    assert unfinished_rise(given).seldom == seldom


@pytest.mark.parametrize(("before", "after", "named"), [(0.5, 0.4, True), (0.5, 0.49, False)])
def test_a_copy_that_learns_more_shows_that_a_warm_up_never_arrives(before, after, named):
    given = trained(0.7, points(lambda u: (1 + u // 40) / 1e4, 240))
    given.optimizer.scheduled = 1.0
    given.trials[RESUMED_FASTER.name] = TrialOutcome(72, before, after, after, before)
    found = [sign.confidence for sign in never_arrives(given)]
    assert found == (["shown"] if named else [])


def test_a_warm_up_and_a_constant_rate_have_arrived():
    given = trained(0.3, points(lambda u: min(u / 40, 1), 400))
    assert unfinished_rise(given) is None
    given.optimizer.scheduled = 1.0
    assert unfinished_rise(given) is None


@pytest.mark.parametrize(
    ("rate", "skill", "named"),
    [
        (lambda u: u / 5000, 0.7, True),
        (lambda u: u / 5000, 0.9, False),
        (lambda u: 1e-2, 0.7, False),  # of an optimiser whose own rate is 1
        (lambda u: 1e-2, 0.1, True),
        (lambda u: u / 1000, 0.1, False),
    ],
)
def test_what_is_learnt_at_the_beginning_of_a_warm_up_must_stay_behind_a_simple_model(
    rate, skill, named
):
    given = trained(skill, points(rate, 400))
    given.optimizer.scheduled, given.data.simple_skill = 1.0, 0.92
    given.trials[UNCHANGED.name] = TrialOutcome(24, 1.0, 0.95, 0.95)
    given.trials[HIGHER_RATES[0].name] = TrialOutcome(24, 1.0, 0.5, 0.5)
    found = [sign.confidence for sign in never_arrives(given)]
    assert found == (["shown"] if named else [])


def warmed_up(per_epoch, rate=2e-2, epochs=6, scheduler=True, task=data):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    warm_up = LambdaLR(optimizer, lambda n: min(n / 100, 1)) if scheduler else None
    inputs, targets = task()
    updates = 0
    with Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss()) as doctor:
        for epoch in range(epochs):
            for x, y in zip(inputs.split(16), targets.split(16), strict=True):
                if warm_up is None:
                    optimizer.param_groups[0]["lr"] = rate * min(
                        (epoch if per_epoch else updates) / 100, 1
                    )
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                updates += 1
                if warm_up is not None and not per_epoch:
                    warm_up.step()
                doctor.step(loss, x, y)
            if warm_up is not None and per_epoch:
                warm_up.step()
        return doctor.report()


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [True, False])
def test_a_warm_up_in_batches_that_is_stepped_once_an_epoch_is_named(scheduler):
    report = warmed_up(True, rate=1e-2, scheduler=scheduler)
    assert report.evidence.optimizer.scheduled == (1e-2 if scheduler else None)
    assert (report.main_cause, report.main.confidence) == ("lr_too_low", "shown"), report
    assert "scheduler once a batch" in report.main.fix


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [True, False])
def test_a_warm_up_that_is_stepped_at_each_batch_is_healthy(scheduler):
    assert warmed_up(False, epochs=12, scheduler=scheduler).healthy


@pytest.mark.slow
def test_a_slow_warm_up_is_not_blamed_for_labels_of_chance():
    def of_chance():
        generator = torch.Generator().manual_seed(5)
        return data()[0], torch.randint(3, (256,), generator=generator)

    report = warmed_up(True, rate=1e-2, task=of_chance)
    assert report.main_cause != "lr_too_low"


def test_a_step_decay_stepped_at_each_batch_takes_the_rate_to_nothing():
    given = trained(0.05, points(lambda u: 0.1 ** (u // 10), 400))
    fall = vanished_rate(given)
    assert (fall.start, fall.updates, fall.highest) == (30, 400, 1.0)
    (sign,) = taken_to_nothing(given)
    assert (sign.severity, sign.confidence, sign.step) == ("error", "certain", 30)
    assert "370 of 400" in sign.summary


def test_what_is_learnt_all_the_same_is_not_accused():
    assert vanished_rate(trained(0.95, points(lambda u: 0.1 ** (u // 5), 400))) is None


@pytest.mark.parametrize(
    ("first", "last", "steps", "said"),
    [
        (3.0, 2.0, 400, True),
        (3.0, 0.2, 400, False),  # it may have learnt all that there is
        (3.0, 4.0, 400, False),
        (-3.0, -2.0, 400, False),
        (3.0, 2.0, 60, False),
    ],
)
def test_of_an_unknown_task_a_rate_that_is_nothing_is_told_while_the_loss_is_far_from_zero(
    first, last, steps, said
):
    rates = points(lambda u: 0.1 ** (u // (steps // 40)), steps)
    given = Evidence(task="unknown", optimizer=OptimizerFacts(rates=rates))
    given.loop.steps = steps
    given.outcome.first_loss = given.outcome.highest_loss = first
    given.outcome.last_loss = last
    assert [sign.confidence for sign in taken_to_nothing(given)] == ["certain"] * said


# --- what is learnt and lost again ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenths", "lost"),
    [
        ([2.0, 1.0, 1.0, 1.4], True),
        ([2.0, 1.0, 1.0, 1.1], False),
        ([2.0, 1.5, 1.2, 1.0], False),
        ([2.2, 2.4, 2.5, 2.6], False),  # nothing was learnt
    ],
)
def test_lower_rates_are_tried_where_what_was_learnt_is_lost_again(tenths, lost):
    given = trained(0.3, points(lambda u: 1.0, 400))
    given.outcome.first_loss, given.outcome.tenths = 2.2, tenths
    wanted = list(causes.trials_wanted(given))
    assert all((trial in wanted) is lost for trial in (UNCHANGED, *LOWER_RATES))


@pytest.mark.slow
@pytest.mark.parametrize(("decay", "named"), [(0.3, True), (1e-5, False)])
def test_a_decay_that_leaves_nothing_of_the_weights_is_named_whatever_can_be_learnt(decay, named):
    """Two embeddings whose product is a number: a simple model knows nothing of it."""
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 40, 2, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    values = (left[pairs[:, 0]] * right[pairs[:, 1]]).sum(dim=1)

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Embedding(40, 4), nn.Embedding(40, 4)

        def forward(self, pairs):
            return (self.left(pairs[:, 0]) * self.right(pairs[:, 1])).sum(dim=1)

    torch.manual_seed(0)
    model = Product()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03, weight_decay=decay)
    with Doctor(model, optimizer, nn.MSELoss()) as doctor:
        for _ in range(400):
            chosen = torch.randint(len(pairs), (64,))
            loss = F.mse_loss(model(pairs[chosen]), values[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, pairs[chosen], values[chosen])
        report = doctor.report()
    assert (report.main_cause == "over_regularised") is named, report
    assert report.healthy is not named


@pytest.mark.parametrize(
    ("end", "again", "severity", "confidence"),
    [
        (0.2, 0.25, "warning", "shown"),
        (0.2, 0.55, "note", "suspected"),
        (0.2, None, "note", "suspected"),
        (0.6, 0.6, "note", "suspected"),
    ],
)
def test_where_something_is_learnt_a_constant_rate_must_learn_more_on_both_sets(
    end, again, severity, confidence
):
    given = trained(0.5, points(lambda u: 0.1 ** (u // 5), 400))
    given.outcome.epochs = 4000.0
    assert list(causes.trials_wanted(given)) == [UNCHANGED, RESUMED]
    given.trials[UNCHANGED.name] = TrialOutcome(24, 1.0, end, again)
    assert (UNCHANGED in causes.trials_to_confirm(given)) == (again is None)
    (sign,) = taken_to_nothing(given)
    assert (sign.severity, sign.confidence) == (severity, confidence)


@pytest.mark.parametrize(
    ("per_level", "epochs", "severity"),
    [
        (10, 40.0, "warning"),  # over after two epochs, and 11.1 updates at the highest rate
        (10, None, "warning"),  # of samples that never come again
        (10, 1000.0, "note"),  # the samples have come 75 times by then
        (25, 40.0, "note"),  # a fourteenth of the training at the highest rate
    ],
)
def test_a_schedule_that_is_over_at_the_beginning_needs_no_trial(per_level, epochs, severity):
    given = trained(0.5, points(lambda u: 0.1 ** (u // per_level), 400))
    given.outcome.epochs = epochs
    (sign,) = taken_to_nothing(given)
    assert sign.severity == severity
    assert ("as far as 11 at the highest rate" in sign.summary) == (severity == "warning")


@pytest.mark.parametrize(
    ("skill", "pairs", "said"),
    [
        (0.5, ((0.5, 0.4), (0.5, 0.42)), True),
        (0.5, ((0.5, 0.4), (0.5, 0.49)), False),  # on one set alone
        (0.5, ((0.5, 0.49), (0.5, 0.48)), False),  # hardly
        (0.15, ((0.98, 0.965), (0.99, 0.975)), True),  # as much as in the whole training
        (0.5, ((1.3, 1.1), (1.3, 1.1)), False),  # worse than guessing, as before
        (0.5, ((0.5, 0.4), (None, None)), False),
        (0.5, ((math.nan, math.nan), (0.5, 0.4)), False),
    ],
)
def test_a_faded_rate_is_too_low_where_the_trained_weights_learn_more_at_the_highest(
    skill, pairs, said
):
    given = trained(skill, points(lambda u: 0.977**u, 400))
    assert vanished_rate(given) is None
    assert faded_rate(given).start in range(195, 210)
    assert RESUMED in causes.trials_wanted(given)
    (start, end), (start_again, end_again) = pairs
    given.trials[RESUMED.name] = TrialOutcome(72, start, end, None, None)
    assert (RESUMED in causes.trials_to_confirm(given)) == (end < start)
    given.trials[RESUMED.name] = TrialOutcome(72, start, end, end_again, start_again)
    signs = list(faded(given))
    assert len(signs) == said
    if said:
        assert (signs[0].severity, signs[0].confidence) == ("warning", "shown")


@pytest.mark.parametrize(
    ("make", "main"),
    [
        (lambda: case("friedman", compounding_decay, decay=0.5).build(0), "lr_too_low"),
        (lambda: sound("noisy_line_decayed", 0), "healthy"),
    ],
    ids=["compounding", "converged"],
)
def test_a_copy_goes_on_at_the_highest_rate_where_half_of_the_training_had_none(make, main):
    with train(make(), 0, Doctor) as doctor:
        report = doctor.report()
    outcome = report.evidence.trials[RESUMED.name]
    assert outcome.steps == 72
    assert report.main_cause == main
    assert (outcome.end < outcome.start - 0.05) == (main == "lr_too_low")
    assert report.evidence.trial_steps <= 200


def test_one_group_of_two_may_be_frozen_by_its_rate():
    given = trained(0.3, [[float(u), 0.1**u, 1.0] for u in range(0, 400, 7)])
    assert vanished_rate(given) is None


# --- gradients that are cut before the update -----------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "end", "again", "said"),
    [
        ([0.01] * 20, 0.5, 0.55, True),
        ([0.01] * 20, 0.5, 0.97, False),  # on one set of batches alone
        ([0.01] * 20, 0.5, None, False),
        ([0.01] * 4, 0.5, 0.55, False),  # too few comparisons
        ([0.3] * 20, 0.5, 0.55, False),  # a threshold at a usual norm
        ([0.01, 1.0, 1.0] * 7, 0.5, 0.55, False),  # in some steps alone
        ([], 0.5, 0.55, False),
    ],
)
def test_gradients_cut_to_a_small_part_make_steps_too_small_where_whole_ones_learn(
    shares, end, again, said
):
    given = trained(0.02, points(lambda u: 0.01, 400))
    given.loop.gradient_shares = shares
    given.trials[UNCHANGED.name] = TrialOutcome(24, 1.0, end, again)
    asked = again is None and len(shares) >= 5
    assert (UNCHANGED in causes.trials_to_confirm(given)) == asked
    signs = list(cut_before_the_update(given))
    assert [(sign.severity, sign.confidence) for sign in signs] == [("error", "shown")] * said


@pytest.mark.parametrize("passes", [1, 3])
def test_what_is_left_of_the_gradients_is_measured_around_a_clipping(passes):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    doctor = Doctor(model, optimizer)
    for step in range(12):
        optimizer.zero_grad()
        for _ in range(passes):
            loss = model(torch.randn(8, 8)).square().mean()
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        doctor.step(loss)
        if step > 0:  # the first gradients have none before them to be compared with
            (*_, left) = doctor.evidence.loop.gradient_shares
            assert left == pytest.approx(0.01 / norm.item(), rel=1e-3)
    doctor.close()


# --- accumulation ---------------------------------------------------------------------------------


def accumulated(divide, passes, rate, every=4, steps=160):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    doctor = Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss())
    optimizer.zero_grad()
    for step, (x, y) in enumerate(batches(steps, size=8)):
        loss = F.cross_entropy(model(x), y)
        (loss / passes if divide else loss).backward()
        if step % passes == passes - 1:
            optimizer.step()
            optimizer.zero_grad()
            if every == passes:
                doctor.step(loss, x, y)
        if every == 1:
            doctor.step(loss, x, y)
    report = doctor.report()
    doctor.close()
    return report


@pytest.mark.parametrize("every", [1, 4])  # called for each batch, or for each update
@pytest.mark.parametrize("divide", [True, False])
def test_passes_are_counted_and_their_division_is_seen(divide, every):
    report = accumulated(divide, 4, rate=0.1, every=every)
    loop = report.evidence.loop
    assert set(loop.passes_per_update) == {4}
    assert loop.gradient_scale == pytest.approx(0.25 if divide else 1.0)
    assert undivided_passes(report.evidence) == (None if divide else 4)
    assert report.healthy is not False


def test_undivided_accumulation_that_does_no_harm_is_a_note():
    report = accumulated(False, 4, rate=0.05)
    (found,) = [f for f in report.findings if f.cause == "loss_reduction"]
    assert found.severity == "note"
    assert "4 times higher" in found.summary
    assert "(loss / 4).backward()" in found.fix


def test_a_step_of_one_pass_is_not_compared():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer, loss_fn=nn.CrossEntropyLoss()) as doctor:
        for x, y in batches(24):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        loop = doctor.report().evidence.loop
    assert set(loop.passes_per_update) == {1}
    assert loop.gradient_scale is None


def test_weights_that_have_not_moved_at_all_need_no_higher_rate():
    given = trained(0.0, [[0.0, 1.0], [399.0, 1.0]])
    given.outcome.movement = 0.0
    assert list(CAUSES["lr_too_low"].findings(given)) == []


def test_gradients_that_are_left_over_show_though_the_smallest_parameters_are_single_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1), nn.Tanh(), nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Doctor(model, optimizer) as doctor:
        for step, (x, _) in enumerate(batches(24)):
            if step % 8 == 0:
                optimizer.zero_grad()
            loss = (model(x) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x)
        causes = [f.cause for f in doctor.report().findings if f.severity != "note"]
    assert causes[:1] == ["missing_zero_grad"]
