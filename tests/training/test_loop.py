import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from debugnn.build import build
from debugnn.data import assemble as assemble_data
from debugnn.data import regression
from debugnn.nn.losses import cross_entropy, mse
from debugnn.records import Epoch, Step
from debugnn.training.clipping import clip_norm, rescale_norm
from debugnn.training.gradients import keep
from debugnn.training.loop import Training, evaluate, fit


def run(training: Training, epochs: int) -> tuple[list[Step], list[Epoch]]:
    records = list(fit(training, epochs))
    steps = [record for record in records if isinstance(record, Step)]
    return steps, [record for record in records if isinstance(record, Epoch)]


def timeless(epochs: list[Epoch]) -> list[Epoch]:
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in epochs]


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


# --- what a training is a function of -----------------------------------------------------------


def test_the_seed_decides_every_number(small_training):
    outcomes = {}
    for seed in (0, 0, 1):
        training = small_training(seed=seed)
        steps, epochs = run(training, 2)
        outcome = (steps, timeless(epochs))
        assert outcomes.setdefault(seed, outcome) == outcome
    assert outcomes[0][0][0].loss != outcomes[1][0][0].loss


def test_the_same_configuration_trains_to_the_same_weights(compose):
    config = compose(
        "data.train_size=64", "reg=bn_dropout", "model.blocks=[[4,4]]", "model.hidden=[8]",
        "trainer.steps_per_epoch=2", "data.batch_size=16",
    )  # fmt: skip
    first, second = build(config), build(config)
    # Both are built from the seed; each trains from the same random numbers.
    for training in (first, second):
        torch.manual_seed(7)
        run(training, 1)
    assert_same_weights(first.model, second.model)


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        (keep, lambda parameters: None),
        (
            lambda parameters: clip_norm(parameters, 0.5),
            lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.5),
        ),
    ],
    ids=["unclipped", "clipped"],
)
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 1e-6}),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_a_plain_pytorch_loop_ends_at_the_same_weights_bit_for_bit(
    small_training, optimizer, options, rule, by_hand
):
    def configured(parameters, lr):
        return optimizer(parameters, lr=lr, **options)

    training = small_training(optimizer=configured, gradient_rule=rule)
    plain = small_training(optimizer=configured)
    torch.manual_seed(5)
    losses = []
    for epoch in range(2):
        plain.model.train()
        for inputs, targets in plain.batches(epoch):
            plain.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain.model(inputs), targets)
            loss.backward()
            by_hand(plain.model.parameters())
            plain.optimizer.step()
            losses.append(loss.item())
    torch.manual_seed(5)
    steps, _ = run(training, 2)
    assert [step.loss for step in steps] == losses
    assert_same_weights(training.model, plain.model)


def test_a_training_that_paused_between_epochs_goes_on_as_if_it_had_not(small_training):
    whole, paused = small_training(), small_training()
    torch.manual_seed(1)
    steps, epochs = run(whole, 3)
    torch.manual_seed(1)
    parts = [run(paused, n) for n in (1, 1, 3)]
    assert [s for part, _ in parts for s in part] == steps
    assert timeless([e for _, part in parts for e in part]) == timeless(epochs)
    assert_same_weights(whole.model, paused.model)


def test_a_model_that_was_left_in_evaluation_mode_is_trained_in_training_mode(small_training):
    losses = []
    for mode in (True, False):
        training = small_training()
        training.model.train(mode)
        torch.manual_seed(1)
        losses.append([step.loss for step in run(training, 1)[0]])
    assert losses[0] == losses[1]


def test_epochs_draw_other_orders_and_each_can_be_drawn_again(small_training):
    training = small_training()

    def order(epoch: int) -> torch.Tensor:
        return torch.cat([inputs for inputs, _ in training.batches(epoch)])

    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(0), order(1))
    assert not torch.equal(order(0), torch.cat([x for x, _ in small_training(seed=1).batches(0)]))


# --- the records --------------------------------------------------------------------------------


def test_steps_and_epochs_are_counted_from_zero(small_training):
    steps, epochs = run(small_training(), 2)
    assert [(step.epoch, step.step) for step in steps] == [
        (0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)
    ]  # fmt: skip
    assert [(epoch.epoch, epoch.step) for epoch in epochs] == [(0, 2), (1, 5)]
    assert all(step.lr == 1e-2 for step in steps)
    assert all(epoch.seconds > 0 for epoch in epochs)


def test_an_epochs_train_loss_is_the_mean_over_its_samples(small_training):
    # 44 samples in batches of 16: 16, 16 and 12.
    steps, epochs = run(small_training(), 2)
    for epoch in epochs:
        own = [step for step in steps if step.epoch == epoch.epoch]
        weighted = sum(s.loss * n for s, n in zip(own, (16, 16, 12), strict=True)) / 44
        right = sum(s.accuracy * n for s, n in zip(own, (16, 16, 12), strict=True)) / 44
        assert epoch.train_loss == pytest.approx(weighted, rel=1e-12)
        assert epoch.train_accuracy == pytest.approx(right, rel=1e-12)
        assert epoch.last_batch_loss == own[-1].loss
        assert epoch.train_loss != epoch.last_batch_loss


@pytest.mark.parametrize("rule", [keep, lambda p: clip_norm(p, 1e-3), lambda p: rescale_norm(p, 4)])
def test_a_steps_record_is_from_before_its_update(small_training, rule):
    training = small_training(dropout=0.0, gradient_rule=rule)
    twin = copy.deepcopy(training.model)
    step = next(fit(training, 1))
    inputs, targets = next(training.batches(0))
    outputs = twin(inputs)
    loss = nn.functional.cross_entropy(outputs, targets)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    assert step.loss == loss.item()
    norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)
    right = sum(int(row.argmax()) == int(t) for row, t in zip(outputs, targets, strict=True))
    assert step.accuracy == 100 * right / 16


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
def test_an_epoch_ends_after_its_limit_of_steps(small_training, limit):
    steps, epochs = run(small_training(steps_per_epoch=limit), 2)
    assert len(steps) == 2 * min(limit, 3)
    assert [epoch.step for epoch in epochs] == [min(limit, 3) - 1, 2 * min(limit, 3) - 1]


@pytest.mark.parametrize(
    ("every", "evaluated"),
    [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (3, [2, 4]), (5, [4]), (9, [4])],
)
def test_the_test_set_is_evaluated_every_nth_epoch_and_after_the_last(
    small_training, every, evaluated
):
    training = small_training(eval_every=every, steps_per_epoch=1)
    _, epochs = run(training, 5)
    assert [epoch.epoch for epoch in epochs if epoch.test_loss is not None] == evaluated
    assert all((e.test_loss is None) == (e.test_accuracy is None) for e in epochs)
    assert epochs[-1].test_loss == evaluate(training)[0]


def test_evaluating_changes_nothing_of_the_training(small_training):
    weights = []
    for every in (1, 4):
        training = small_training(eval_every=every)
        torch.manual_seed(2)
        steps, _ = run(training, 4)
        weights.append((training.model, steps))
    assert weights[0][1] == weights[1][1]
    assert_same_weights(weights[0][0], weights[1][0])


def test_a_training_at_nan_goes_on_to_its_end(small_training):
    training = small_training(
        batch_norm=False, optimizer=torch.optim.SGD, lr=1e30, steps_per_epoch=2
    )
    steps, epochs = run(training, 3)
    assert (len(steps), len(epochs)) == (6, 3)
    assert math.isfinite(steps[0].loss)
    assert all(math.isnan(step.loss) for step in steps[2:])
    assert math.isnan(epochs[-1].train_loss)
    assert math.isnan(epochs[-1].test_loss)
    assert 0 <= epochs[-1].test_accuracy <= 100


# --- the evaluation -----------------------------------------------------------------------------


def one_by_one(training: Training) -> tuple[float, float]:
    """Compute the test set's mean loss and accuracy one sample at a time."""
    model = copy.deepcopy(training.model).eval()
    losses, right = [], 0
    for inputs, target in zip(*training.data.test, strict=True):
        with torch.no_grad():
            outputs = model(training.data.prepare(inputs[None]))
        losses.append(training.loss(outputs, target[None]).item())
        right += int(outputs.argmax()) == int(target)
    return sum(losses) / len(losses), 100 * right / len(losses)


@pytest.mark.parametrize("eval_batch_size", [1, 5, 23, 128])
def test_the_evaluation_is_the_mean_over_single_samples(small_training, eval_batch_size):
    training = small_training(eval_batch_size=eval_batch_size)
    run(training, 1)  # batch norm has running statistics of its own
    loss, accuracy = evaluate(training)
    slow_loss, slow_accuracy = one_by_one(training)
    assert loss == pytest.approx(slow_loss, rel=1e-5)
    assert accuracy == pytest.approx(slow_accuracy, rel=1e-12)
    training.test_loss_scale = 0.25
    assert evaluate(training) == (loss / 4, accuracy)


@pytest.mark.parametrize("mode", [True, False])
def test_the_evaluation_restores_the_mode_and_touches_nothing_else(small_training, mode):
    training = small_training()
    training.model.train(mode)
    before, state = copy.deepcopy(training.model.state_dict()), torch.get_rng_state()
    first = evaluate(training)
    assert evaluate(training) == first
    assert all(module.training == mode for module in training.model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_evaluation_that_fails_restores_the_mode(small_training):
    training = small_training()

    def failing(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no loss")

    training.loss = failing
    training.model.train()
    with pytest.raises(RuntimeError, match="no loss"):
        evaluate(training)
    assert training.model.training


def test_a_regression_has_no_accuracy():
    data = assemble_data(regression("", False), name="regression", seed=0, batch_size=100)
    torch.manual_seed(0)
    model = nn.Linear(20, 1)
    training = Training(
        model=model, loss=mse, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), data=data,
        batch_size=100, seed=0,
    )  # fmt: skip
    steps, epochs = run(training, 1)
    assert {step.accuracy for step in steps} == {None}
    assert (epochs[0].train_accuracy, epochs[0].test_accuracy) == (None, None)
    predicted = model(data.test.inputs)
    wanted = (predicted - data.test.targets).double().square().mean().item()
    assert epochs[0].test_loss == pytest.approx(wanted, rel=1e-5)


# --- precision and layout -----------------------------------------------------------------------


def test_bf16_computes_in_bf16_and_keeps_weights_and_losses_in_fp32(small_training):
    full, half = small_training(dropout=0.0), small_training(dropout=0.0, bf16=True)
    inputs, targets = next(full.batches(0))
    a, b = full.outputs(inputs), half.outputs(inputs)
    assert a.dtype == b.dtype == torch.float32
    assert not torch.equal(a, b)
    # bfloat16 has 8 significant bits.
    torch.testing.assert_close(a, b, rtol=0, atol=0.03 * a.abs().max().item())
    cross_entropy(b, targets).backward()
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in half.model.parameters()} == {torch.float32}


def test_channels_last_computes_the_same(small_training):
    plain, other = small_training(dropout=0.0), small_training(dropout=0.0, channels_last=True)
    other.model.to(memory_format=torch.channels_last)
    losses = [[step.loss for step in run(training, 1)[0]] for training in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- when numbers are read ------------------------------------------------------------------------


def test_the_interval_of_reads_changes_when_records_come_and_not_what_they_say(small_training):
    trained = {}
    for every in (1, 4, 1000):
        training = small_training(steps_per_epoch=6, batch_size=8, read_every=every)
        counts, steps, epochs = [], [], []
        for record in fit(training, 2):
            if isinstance(record, Step):
                steps.append(record)
                counts.append(training.step)  # how many steps are done when the record is yielded
            elif isinstance(record, Epoch):
                epochs.append(record)
        trained[every] = steps, timeless(epochs)
        told = {1: [*range(1, 13)], 4: [1] + [5] * 4 + [6] + [9] * 3 + [12] * 3}
        assert counts == told.get(every, [1] + [6] * 5 + [12] * 6)
    assert trained[1] == trained[4] == trained[1000]


def test_the_steps_before_a_failure_are_yielded(small_training):
    training = small_training(steps_per_epoch=6, batch_size=8)
    rule, calls = training.gradient_rule, []

    def fail_at_the_fourth(parameters) -> torch.Tensor:
        calls.append(1)
        return rule(parameters) if len(calls) < 4 else 1 / 0

    training.gradient_rule = fail_at_the_fourth
    told = []
    with pytest.raises(ZeroDivisionError):
        told.extend(record.step for record in fit(training, 1))
    assert told == [0, 1, 2]
