"""A member of a stack is the run alone: the slow, obvious path that each test compares with."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from debugnn import records
from debugnn.build import build
from debugnn.errors import ConfigError
from debugnn.records import Epoch, Layers, Step
from debugnn.runs.execute import execute
from debugnn.stacking.stack import Member, Stack, fit_captured, share_data
from debugnn.stacking.sweep import execute_together
from debugnn.training import checkpoint
from debugnn.training.clipping import keep
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import fit

# 100 samples in batches of 32: the last is smaller, and has masks of its own size.
SMALL = ("data.train_size=100", "data.batch_size=32", "trainer.eval_every=2")
CONV = ("model=relu_net", "model.blocks=[[4,6]]", "model.hidden=[12]")
# With batch norm some step of these runs has a ReLU or a max-pool that falls the other way for a
# rounding error, and that step's gradient moves. But for it both sides are 1e-6 away from float64
# (tested below, and in test_models.py for each layout).
FLIPPED = 5e-3
CONTIGUOUS = "trainer.channels_last=false"
DENSE = ("model=deep_mlp", "model.hidden=[20,12]")
# Adam divides by a gradient's size, down to eps: where the true gradient is 0 (a bias before batch
# norm) the default 1e-8 makes a rounding error a whole step, in a stack as between two machines.
STEADY = "+optim.eps=1e-3"


def stack_of(trainings, at_once=True):
    return Stack([Member(training) for training in trainings], at_once=at_once)


def built(configs):
    """Members of these configurations: each takes the random numbers as its building left them."""
    members = []
    for config in configs:
        members.append(Member(build(config)))
        share_data(members[-1].training, members[0].training)
    return members


def train_alone(config, epochs=2, every=3):
    """Records, training, and torch's random state at the end."""
    training = build(config)
    return list(fit(training, epochs, LayerProbe(every))), training, torch.get_rng_state()


def train_stacked(stack, epochs=2, every=3):
    found = [[] for _ in stack.members]
    for index, record in stack.fit(epochs, [LayerProbe(every)] * len(found)):
        found[index].append(record)
    return found


def assert_close(records, expected, rel):
    """Equal up to `rel` in what is made of gradients, and up to 1e-4 in everything else."""
    assert [type(r) for r in records] == [type(r) for r in expected]
    for record, other in zip(records, expected, strict=True):
        if isinstance(record, Layers):
            for kind in ("gradients", "parameters", "activations"):
                a, b = getattr(record, kind), getattr(other, kind)
                assert list(a) == list(b)
                norms = [stats.norm for stats in b.values()]
                # A gradient that is 0 but for rounding has no relative precision.
                small = rel * max(norms)
                assert [s.norm for s in a.values()] == pytest.approx(norms, rel, small)
            continue
        for field in dataclasses.fields(record):
            if field.name != "seconds":
                a, b = getattr(record, field.name), getattr(other, field.name)
                near = rel if field.name == "grad_norm" else min(rel, 1e-4)
                same = a is b if b is None else a == pytest.approx(b, rel=near, nan_ok=True)
                assert same, (field.name, record, other)


def assert_weights_close(model, expected, tolerance):
    ours, theirs = model.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_members_equal_runs_alone(configs, tolerance=1e-4, at_once=True):
    members = built(configs)
    found = train_stacked(Stack(members, at_once=at_once))
    for config, member, rows in zip(configs, members, found, strict=True):
        expected, training, random_state = train_alone(config)
        assert_close(rows, expected, tolerance)
        assert_weights_close(member.training.model, training.model, tolerance)
        with member.randomness():  # the same numbers were drawn, to the last
            assert torch.equal(torch.get_rng_state(), random_state)


# --- equal to the run alone -----------------------------------------------------------------------


@pytest.mark.parametrize("net", [CONV, DENSE], ids=["conv", "dense"])
@pytest.mark.parametrize("clip", ["off", "4.0", "scaling"])
@pytest.mark.parametrize("reg", ["none", "dropout", "bn", "bn_dropout"])
def test_each_member_equals_the_run_alone(compose, net, reg, clip):
    shared = (*SMALL, *net, f"reg={reg}", f"clip={clip}", STEADY)
    # A norm that clips: the gradients of these nets are smaller than 4.
    threshold = ["clip.max_norm=0.5"] if clip == "4.0" else []
    # Under dropout a ReLU of these runs falls the other way for a rounding error: a smooth
    # activation shows that the masks are the same. (Below two of the seeds have ReLUs.)
    smooth = ["model.activation._target_=torch.nn.Tanh"] if net is CONV and reg == "dropout" else []
    configs = [compose(*shared, *threshold, *smooth, f"seed={s}") for s in (0, 1, 5)]
    assert_members_equal_runs_alone(configs, FLIPPED if net is CONV and "bn" in reg else 1e-4)


@pytest.mark.parametrize("reg", ["none", "bn"])
@pytest.mark.parametrize("net", [CONV, DENSE], ids=["conv", "dense"])
def test_a_stacks_gradients_are_those_in_float64(compose, net, reg):
    members = built([compose(*SMALL, *net, f"reg={reg}", f"seed={s}") for s in (0, 1)])
    expected, batches = [], []
    for member in members:
        training = member.training
        inputs, targets = next(iter(training.batches(0)))
        model = copy.deepcopy(training.model).double().train()
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()
        expected.append({name: p.grad for name, p in model.named_parameters()})
        batches.append((inputs, targets))
    inputs, targets = (torch.stack(part) for part in zip(*batches, strict=True))
    *_, gradients = Stack(members, at_once=True)._at_once(inputs, targets)
    for index, own in enumerate(expected):
        largest = max(gradient.norm() for gradient in own.values())
        for name, gradient in own.items():
            assert (gradients[name][index] - gradient).norm() < 1e-5 * largest, name


@pytest.mark.parametrize(
    "setting",
    [("data.labels=permuted",), ("data.augment_shift=2",),
     ("data.imbalance=0.5", "data.train_size=60"),
     ("model=maxout", "reg=dropout", "model.hidden=[8]", "model.blocks=[[4]]"),
     ("optim=sgd", "reg=dropout"), ("optim=adamw", "reg=dropout", STEADY),
     # Divides by the size of a whole tensor: stacked tensors would not do.
     ("optim._target_=torch.optim.Adafactor", "optim.lr=0.02", "reg=dropout")],
    ids=lambda setting: setting[0],
)  # fmt: skip
def test_what_else_draws_or_updates_is_each_members_own(compose, setting):
    shared = (*SMALL, *CONV, *setting)
    assert_members_equal_runs_alone([compose(*shared, f"seed={s}") for s in (0, 1)])


@pytest.mark.parametrize(("reg", "tolerance"), [("dropout", 1e-4), ("bn_dropout", FLIPPED)])
def test_the_contiguous_layout_draws_the_same_masks(compose, reg, tolerance):
    shared = (*SMALL, *CONV, f"reg={reg}", STEADY, CONTIGUOUS)
    assert_members_equal_runs_alone([compose(*shared, f"seed={s}") for s in (0, 1)], tolerance)


def test_a_regression_equals_the_run_alone(compose):
    shared = ("data=regression", "model=regressor", "loss=mse", "trainer.steps_per_epoch=5", STEADY)
    assert_members_equal_runs_alone([compose(*shared, f"seed={s}") for s in (0, 1)])


def test_passes_one_by_one_equal_the_run_alone(compose):
    configs = [compose(*SMALL, *CONV, "reg=bn_dropout", STEADY, f"seed={s}") for s in (0, 1)]
    assert not Stack(built(configs)).at_once  # convolutions on a CPU
    assert_members_equal_runs_alone(configs, at_once=None)


def test_bf16_equals_the_run_alone_within_bf16(compose):
    shared = (*SMALL, *DENSE, "reg=dropout", STEADY, "trainer.precision=bf16")
    configs = [compose(*shared, f"seed={s}") for s in (0, 1)]
    found = train_stacked(Stack(built(configs)), epochs=1, every=None)
    for config, rows in zip(configs, found, strict=True):
        expected = [r for r in train_alone(config)[0] if isinstance(r, Step)]
        losses = [r.loss for r in rows if isinstance(r, Step)]
        assert losses == pytest.approx([r.loss for r in expected[: len(losses)]], rel=2**-7)


@pytest.mark.parametrize("net", [CONV, DENSE], ids=["conv", "dense"])
@pytest.mark.parametrize(
    "arms",
    [
        [("reg=dropout", STEADY), ("reg=none", "init=kaiming", STEADY, "optim.lr=1e-2"),
         ("reg=dropout", "reg.dropout=0.2", "clip.max_norm=0.1", STEADY, "seed=3")],
        [("reg=none", STEADY), ("reg=dropout", "init=xavier", "clip=scaling", "optim=sgd")],
    ],
    ids=["one_optimiser", "two_optimisers"],
)  # fmt: skip
def test_arms_that_differ_in_numbers_stack(compose, net, arms):
    """Initialisation, learning rate, threshold and dropout rate, 0 among them."""
    assert_members_equal_runs_alone([compose(*SMALL, *net, *arm) for arm in arms])


def test_each_model_stacks(compose, each_model):
    settings = ["data=regression", "loss=mse"] if each_model == "regressor" else []
    settings += ["data.batch_size=4", "data.train_size=16", "trainer.steps_per_epoch=2"]
    configs = [compose(f"model={each_model}", *settings, f"seed={s}") for s in (0, 1)]
    found = train_stacked(Stack(built(configs), at_once=True), epochs=1, every=None)
    for config, rows in zip(configs, found, strict=True):
        expected, *_ = train_alone(config, epochs=1, every=None)
        first, other = (next(iter(r)) for r in (rows, expected))
        assert_close([first], [other], 1e-4)


def test_each_loss_stacks(compose, each_loss):
    configs = [compose(*SMALL, *DENSE, f"loss={each_loss}", STEADY, f"seed={s}") for s in (0, 1)]
    assert_members_equal_runs_alone(configs)


# --- what keeps members apart ---------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["off", "4.0", "scaling"])
@pytest.mark.parametrize("net", [CONV, DENSE], ids=["conv", "dense"])
def test_nan_in_one_member_does_not_touch_the_others(compose, net, clip):
    configs = [
        compose(*SMALL, *net, "reg=bn_dropout", f"clip={clip}", f"seed={s}") for s in range(3)
    ]
    outcomes = []
    for poison in (False, True):
        members = built(configs)
        if poison:
            with torch.no_grad():
                next(members[1].training.model.parameters()).fill_(math.nan)
        found = train_stacked(Stack(members, at_once=True))
        outcomes.append((found, [m.training.model for m in members]))
    (sound, models), (poisoned, others) = outcomes
    assert math.isnan(poisoned[1][-1].train_loss)
    for index in (0, 2):
        assert_close(poisoned[index], sound[index], rel=0)
        assert_weights_close(others[index], models[index], 0)


def test_a_rule_from_elsewhere_is_asked_member_by_member(small_training):
    """And an optimiser from elsewhere steps each member's own parameters."""

    def sign(parameters):
        parameters = list(parameters)
        for parameter in parameters:
            parameter.grad.sign_()
        return keep(parameters)

    def make(seed):
        return small_training(
            seed=seed, gradient_rule=sign, optimizer=torch.optim.Rprop, dropout=0.0,
            batch_norm=False,
        )  # fmt: skip

    trainings = [make(0), make(1)]
    found = train_stacked(stack_of(trainings))
    for seed, rows in enumerate(found):
        alone = make(seed)
        expected = list(fit(alone, 2, LayerProbe(3)))
        assert [r.grad_norm for r in rows if isinstance(r, Step)] == pytest.approx(
            [r.grad_norm for r in expected if isinstance(r, Step)], rel=1e-4
        )
        assert rows[1].loss == pytest.approx(expected[1].loss, rel=1e-4)


@pytest.mark.parametrize("reg", ["none", "bn_dropout"])
def test_a_member_can_be_saved_and_goes_on_alone(compose, tmp_path, reg):
    """The optimiser's state too: a stack's checkpoint is a run's, of a run's size."""
    configs = [compose(*SMALL, *DENSE, f"reg={reg}", STEADY, f"seed={s}") for s in (0, 1, 2)]
    members = built(configs)
    train_stacked(Stack(members), epochs=1)
    with members[1].randomness():
        checkpoint.write(tmp_path / "member.pt", checkpoint.state_of(members[1].training))
    whole, expected, _ = train_alone(configs[1])
    resumed = build(configs[1])
    checkpoint.write(tmp_path / "run.pt", checkpoint.state_of(resumed))
    checkpoint.restore(tmp_path / "member.pt", resumed)
    rows = list(fit(resumed, 2, LayerProbe(3)))
    assert_close(rows, whole[-len(rows) :], 1e-4)
    assert_weights_close(resumed.model, expected.model, 1e-4)
    state = sum(t.nbytes for t in resumed.optimizer.state_dict()["state"][0].values())
    assert state > 0
    checkpoint.write(tmp_path / "run.pt", checkpoint.state_of(resumed))
    sizes = [(tmp_path / name).stat().st_size for name in ("member.pt", "run.pt")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


# --- what does not stack --------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["RReLU", "AlphaDropout"])
def test_a_layer_that_draws_its_own_random_numbers_is_refused(compose, layer):
    settings = (*SMALL, *DENSE, f"model.activation._target_=torch.nn.{layer}")
    with pytest.raises(ConfigError, match=r"trainer\.stack=2: .* cannot be stacked"):
        Stack(built([compose(*settings, f"seed={s}") for s in (0, 1)]))


@pytest.mark.parametrize(
    "other",
    ["model.hidden=[20,13]", "model.activation._target_=torch.nn.Tanh", "reg=bn", "loss=mse",
     "data.batch_size=31", "data.train_size=99"],
)  # fmt: skip
def test_other_architectures_and_settings_are_refused(compose, other):
    with pytest.raises(ConfigError, match="differ between the members"):
        Stack(built([compose(*SMALL, *DENSE), compose(*SMALL, *DENSE, other)]))


def test_arms_that_differ_in_more_than_numbers_are_named(compose, tmp_path):
    configs = [compose(*SMALL, *DENSE, *own) for own in ((), ("trainer.epochs=3",))]
    for config in configs:
        config.output_dir = str(tmp_path)
    with pytest.raises(ConfigError, match=r"trainer\.epochs=10 and trainer\.epochs=3"):
        execute_together([(configs[0], ["a=1"]), (configs[1], ["a=2"])], None)
    assert not list(tmp_path.iterdir())


# --- run directories ------------------------------------------------------------------------------


@pytest.fixture
def settings(compose, tmp_path):
    def make(*overrides, output="stacked"):
        config = compose(*SMALL, *DENSE, "reg=bn_dropout", STEADY, "trainer.epochs=4", *overrides)
        config.output_dir = str(tmp_path / output)
        return config

    return make


def rows_of(directory, kind):
    found = records.read_jsonl(directory / "metrics.jsonl", kind)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def assert_rows_close(rows, expected):
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            same = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert row[key] == same, (key, row, other)


def facts_of(directory):
    return records.load((directory / "run.json").read_text())


def test_a_stacks_directories_are_those_of_the_runs_alone(settings):
    arm = execute(settings("seed=3", "trainer.stack=2"), ["clip=off", "trainer.stack=2"], None)
    assert arm.parts[-2:] == ("adhoc", "clip=off")
    assert sorted(path.name for path in arm.iterdir()) == ["seed=3", "seed=4"]
    for seed in (3, 4):
        own = arm / f"seed={seed}"
        alone = execute(settings(f"seed={seed}", output="alone"), ["clip=off"], None)
        kept = {p.name for p in alone.iterdir()} - {"findings.json", "evidence.json"}
        assert {p.name for p in own.iterdir()} == kept  # a stack is not diagnosed
        text = (alone / "config.yaml").read_text().replace("/alone", "/stacked")
        assert (own / "config.yaml").read_text() == text
        assert facts_of(own).keys() - facts_of(alone).keys() == {"stacked"}
        assert facts_of(own)["status"] == "finished"
        for kind in ("step", "epoch"):
            assert_rows_close(rows_of(own, kind), rows_of(alone, kind))
        steps = [[row["step"] for row in records.read_jsonl(d / "layers.jsonl")]
                 for d in (own, alone)]  # fmt: skip
        assert steps[0] == steps[1] == [0]


@pytest.mark.parametrize("reg", ["none", "bn_dropout"])
def test_a_captured_training_is_the_plain_one_and_can_be_taken_up(compose, tmp_path, reg):
    """On a GPU its passes are a graph; what surrounds them is the same anywhere."""
    config = compose(*SMALL, *DENSE, f"reg={reg}", STEADY)
    expected, plain, _ = train_alone(config)
    training = build(config)
    rows = []
    for record in fit_captured(training, 2, LayerProbe(3)):
        rows.append(record)
        if isinstance(record, Epoch) and record.epoch == 0:
            checkpoint.write(tmp_path / "run.pt", checkpoint.state_of(training))
    assert_close(rows, expected, 1e-4)
    assert_weights_close(training.model, plain.model, 1e-4)
    resumed = build(config)
    torch.manual_seed(99)
    checkpoint.restore(tmp_path / "run.pt", resumed)
    again = list(fit_captured(resumed, 2, LayerProbe(3)))
    assert_close(again, rows[-len(again) :], 0)


def test_finished_members_are_skipped_whoever_ran_them(settings, caplog):
    alone = execute(settings("seed=1"), [], None)
    before = (alone / "metrics.jsonl").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        arm = execute(settings("trainer.stack=3"), [], None)
        assert "seed=1: finished before, skipped" in caplog.text
        assert (alone / "metrics.jsonl").stat().st_mtime_ns == before
        assert [facts_of(arm / f"seed={s}").get("stacked") for s in range(3)] == [2, None, 2]
        caplog.clear()
        execute(settings("trainer.stack=3"), [], None)
        assert caplog.text.count("skipped") == 3


@pytest.mark.parametrize("saved", [4, 5], ids=["between_epochs", "between_two_members"])
def test_a_stack_that_was_cut_off_goes_on(settings, monkeypatch, saved):
    whole = execute(settings("trainer.stack=2", output="whole"), [], None)
    write, count = checkpoint.write, 0

    def write_then_stop(path, state):
        nonlocal count
        write(path, state)
        count += 1
        if count == saved:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        execute(settings("trainer.stack=2"), [], None)
    arm = execute(settings("trainer.stack=2"), [], None)
    for seed in ("seed=0", "seed=1"):
        assert facts_of(arm / seed)["status"] == "finished"
        for kind in ("step", "epoch"):
            found, expected = rows_of(arm / seed, kind), rows_of(whole / seed, kind)
            if saved == 4:  # bit for bit, as a run alone
                assert found == expected
            assert_rows_close(found, expected)


def test_a_member_that_breaks_the_stack_leaves_failed_runs(settings, monkeypatch):
    monkeypatch.setattr(Stack, "evaluate", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(settings("trainer.stack=2"), [], None)
    directory = settings().output_dir
    for seed in (0, 1):
        facts = facts_of(_path(directory, seed))
        assert facts["status"] == "failed"
        assert "ZeroDivisionError" in facts["error"]


def _path(output, seed):
    return Path(output) / "adhoc" / "default" / f"seed={seed}"


def test_a_range_test_chooses_each_members_rate(settings):
    test = ("task=lr_train", "task.lr_from=minimum", "task.finder.start_lr=1e-5", "reg=dropout")
    arm = execute(settings(*test, "trainer.stack=2"), [], None)
    for seed in (0, 1):
        alone = execute(settings(*test, f"seed={seed}", output="alone"), [], None)
        own = arm / f"seed={seed}"
        assert rows_of(own, "lr_point") == rows_of(alone, "lr_point")
        assert rows_of(own, "step")[0]["lr"] == rows_of(alone, "step")[0]["lr"]
        assert_rows_close(rows_of(own, "epoch"), rows_of(alone, "epoch"))


def test_arms_are_executed_together_each_in_its_own_directory(settings):
    requests = [
        (settings("optim.lr=0.01"), ["optim.lr=0.01"]),
        (settings("reg.dropout=0.1", "init=kaiming"), ["init=kaiming", "reg.dropout=0.1"]),
    ]
    directories = execute_together(requests, None)
    for (config, overrides), directory in zip(requests, directories, strict=True):
        config.output_dir = config.output_dir.replace("stacked", "alone")
        alone = execute(config, overrides, None)
        assert directory.parts[-3:] == alone.parts[-3:]
        assert_rows_close(rows_of(directory, "epoch"), rows_of(alone, "epoch"))


def test_each_member_has_a_wandb_run_of_its_own(settings):
    from test_wandb import read_back

    config = settings("trainer.stack=2", "wandb=offline", "trainer.epochs=1")
    arm = execute(config, [], None)
    ids = [facts_of(arm / f"seed={s}")["wandb_id"] for s in (0, 1)]
    assert len(set(ids)) == 2
    for seed, run_id in enumerate(ids):
        seen = read_back(arm / f"seed={seed}")
        (described,) = seen["run"]
        assert described["run_id"] == run_id
        assert described["config"]["update"]["seed"] == seed
        losses = [h["item"]["step/loss"] for h in seen["history"] if "step/loss" in h["item"]]
        expected = [row["loss"] for row in rows_of(arm / f"seed={seed}", "step")]
        assert losses == pytest.approx(expected)


# --- CUDA -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the graph is never captured")
def test_a_cuda_graph_equals_plain_execution(compose):
    settings = (*SMALL, *CONV, "reg=bn_dropout", STEADY, "trainer.device=cuda")
    configs = [compose(*settings, f"seed={s}") for s in (0, 1)]
    graphed, plain = Stack(built(configs), graph=True), Stack(built(configs))
    found, expected = train_stacked(graphed), train_stacked(plain)
    assert any(graphed._graphs.values())
    for rows, others in zip(found, expected, strict=True):
        assert_close([r for r in rows if isinstance(r, Step | Epoch)],
                     [r for r in others if isinstance(r, Step | Epoch)], 1e-4)  # fmt: skip
