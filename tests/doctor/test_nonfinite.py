import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint

from debugnn.doctor.nonfinite.origin import Origin
from debugnn.doctor.nonfinite.search import find_origin
from debugnn.doctor.observe.layout import Layout

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Op(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


FILE = Path(__file__)
HERE = FILE.relative_to(Path.cwd()) if FILE.is_relative_to(Path.cwd()) else FILE
OP_LINE = f"{HERE}:{Op.forward.__code__.co_firstlineno + 1}"


def mse(outputs, targets):
    return F.mse_loss(outputs, targets)


def total(outputs, targets):
    return outputs.sum()


def batch(rows=4, columns=3, zeros=()):
    """Return ones, with zeros in the rows that `zeros` lists."""
    inputs = torch.ones(rows, columns)
    inputs[list(zeros)] = 0
    return inputs


def identity(size=3, dtype=torch.float32):
    layer = nn.Linear(size, size, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(size))
        layer.bias.zero_()
    return layer


def around(function):
    """The function between two layers that have gradients."""
    return nn.Sequential(identity(), Op(function), identity())


def where(origin):
    return (origin.where, origin.name, origin.layer, origin.kind)


# --- the tensors that a step starts from --------------------------------------------------------


def test_a_finite_step_has_no_origin():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    assert find_origin(model, mse, torch.randn(4, 3), torch.randn(4, 1)) is None


def test_a_bad_input_is_found_before_what_it_does():
    inputs = batch()
    inputs[2, 1], inputs[3] = INF, torch.tensor([NAN, 7.0, -8.0])
    origin = find_origin(around(torch.log), mse, inputs, batch())
    assert origin == Origin(
        "input", "input", None, "nan", [2, 3], 2, 8.0, False, outputs=["float32 (4, 3)"]
    )


@pytest.mark.parametrize("many", [tuple, list])
def test_the_inputs_of_a_tuple_go_by_their_index(many):
    model = Op(lambda x, y: identity()(x + y))
    inputs = many([batch(), batch() * INF])
    assert find_origin(model, mse, inputs, batch()).name == "1"
    assert find_origin(model, mse, many([batch(), batch()]), batch()) is None


def test_the_inputs_of_a_dict_go_by_their_key():
    model = Op(lambda image, extra: image + extra["age"][0])
    inputs = {"image": batch(), "extra": {"age": [batch() * NAN]}}
    origin = find_origin(model, None, inputs, None)
    assert where(origin) == ("input", "extra.age.0", None, "nan")


def test_a_bad_target_is_found():
    targets = batch()
    targets[1, 0] = -INF
    origin = find_origin(around(torch.relu), mse, batch(), targets)
    assert origin == Origin(
        "target", "target", None, "inf", [1], 1, 1.0, False, outputs=["float32 (4, 3)"]
    )


def test_a_bad_parameter_is_named_and_has_no_samples():
    model = around(torch.relu)
    with torch.no_grad():
        model[2].weight[1, 2] = NAN
    # The weight has as many rows as the batch.
    origin = find_origin(model, mse, batch(3), batch(3))
    assert origin == Origin(
        "parameter", "2.weight", None, "nan", [], 1, 1.0, False, outputs=["float32 (3, 3)"]
    )


@pytest.mark.parametrize("training", [True, False], ids=["unread", "read"])
def test_bad_running_statistics_are_found(training):
    model = nn.Sequential(identity(), nn.BatchNorm1d(3)).train(training)
    model[1].running_mean[0] = NAN
    origin = find_origin(model, mse, torch.randn(4, 3), batch())
    assert where(origin) == ("buffer", "1.running_mean", None, "nan")


def test_an_input_that_the_model_repairs_is_not_blamed_for_another_fault():
    inputs = batch(zeros=[1])
    inputs[0] = NAN
    model = nn.Sequential(Op(torch.nan_to_num), *around(torch.log))
    origin = find_origin(model, total, inputs, None)
    assert where(origin) == ("forward", "log", "2", "inf")
    assert origin.samples == [0, 1]
    fine = nn.Sequential(Op(torch.nan_to_num), identity())
    assert find_origin(fine, total, inputs, None).where == "input"


# --- the forward pass and the loss --------------------------------------------------------------


def test_an_operation_is_found_with_its_layer_and_samples():
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.ModuleDict({"attention": Op(torch.log)})),
            "head": identity(),
        }
    )

    def call(model, inputs):
        return model["head"](model["encoder"][0]["attention"](inputs))

    origin = find_origin(model, mse, batch(zeros=[1, 3]) * 5, batch(), call)
    assert origin == Origin(
        "forward", "log", "encoder.0.attention", "inf", [1, 3], 6, 5.0, overflow=False,
        inputs=["float32 (4, 3)"], outputs=["float32 (4, 3)"], line=OP_LINE,
    )  # fmt: skip


def test_the_line_is_that_of_the_persons_code_that_called():
    def normalise(x):
        return (x - x.mean(0)) / x.std(0)

    origin = find_origin(around(normalise), total, batch(), None)
    first = normalise.__code__.co_firstlineno
    assert (origin.name, origin.line) == ("div", f"{HERE}:{first + 1}")
    assert origin.inputs == ["float32 (4, 3)", "float32 (3,)"]


def test_a_bad_gradient_has_the_line_of_its_forward_operation():
    def root(x):
        return x.sqrt()

    origin = find_origin(around(root), total, batch(zeros=[1]), None)
    first = root.__code__.co_firstlineno
    assert (origin.where, origin.name, origin.line) == ("backward", "sqrt", f"{HERE}:{first + 1}")


def test_an_operation_that_torch_alone_called_has_no_line():
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=1))
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    assert find_origin(model, None, batch() * 9, None).line is None


def test_an_operation_of_the_model_itself_and_one_outside_of_it_are_told_apart():
    model = Op(torch.log)
    assert find_origin(model, total, batch() * 0, None).layer == ""
    outside = find_origin(model, total, batch() * 0, None, call=lambda _, x: x.log())
    assert outside.layer is None


def test_a_module_that_is_not_the_models_counts_to_its_caller():
    stranger = Op(torch.log)
    origin = find_origin(around(lambda x: stranger(x)), total, batch() * 0, None)
    assert origin.layer == "1"


def test_an_operation_of_the_loss_has_no_layer():
    loss = Op(lambda outputs, targets: -(targets * outputs.log()).mean())
    origin = find_origin(identity(), loss, batch(zeros=[0]), batch())
    assert where(origin) == ("loss", "log", None, "inf")
    assert origin.samples == [0]
    assert find_origin(identity(), None, batch(zeros=[0]), batch()) is None


def test_a_nan_is_traced_to_the_infinity_it_was_made_of():
    # log 0 = −inf, then 0 · −inf = NaN, then everything.
    model = around(lambda x: x * x.log())
    assert where(find_origin(model, mse, batch(zeros=[2]), batch())) == (
        "forward", "log", "1", "inf"
    )  # fmt: skip


def test_of_two_faults_the_first_is_found():
    model = nn.Sequential(Op(torch.rsqrt), identity(), Op(lambda x: (x - x) / 0))
    assert find_origin(model, mse, batch(zeros=[2]), batch()).name == "rsqrt"


def test_a_value_written_in_place_into_a_part_is_followed():
    def head(x):
        x = x.clone()
        x[:, 0].log_()
        x[:, 1] = -INF  # does not hide what is already there
        return x.softmax(1)

    origin = find_origin(around(head), mse, -batch(), batch())
    assert where(origin) == ("forward", "log", "1", "nan")
    assert (origin.count, origin.magnitude) == (4, 1.0)  # before the log replaced it


def test_a_fault_that_reaches_nothing_is_not_accused():
    unused = around(lambda x: (x.log(), torch.where(x > 0, x.detach().log(), 0.0) + x)[1])
    assert find_origin(unused, mse, batch(zeros=[1]), batch()) is None
    squashed = around(lambda x: torch.exp(x.detach().log()) + x)
    assert find_origin(squashed, mse, batch(zeros=[1]), batch()) is None


def test_memory_that_nothing_was_written_to_yet_is_not_accused():
    def fill(x, function=torch.exp):
        result = torch.empty_like(x)  # NaN, in deterministic mode
        for i in range(x.shape[1]):
            result[:, i] = function(x[:, i])
        return result

    def mask(x):
        return (x + torch.empty_like(x).fill_(-INF)).softmax(1)

    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(2).isnan().all()
        assert find_origin(around(fill), mse, batch(), batch()) is None
        origin = find_origin(around(lambda x: fill(x, torch.log)), mse, batch(zeros=[1]), batch())
        assert (origin.name, origin.samples) == ("log", [1])
        assert find_origin(around(mask), mse, batch(), batch()).name == "softmax"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_bad_constant_is_found_where_it_is_read():
    constant = torch.tensor([1.0, NAN, 1.0])
    origin = find_origin(around(lambda x: x * constant), mse, batch(), batch())
    assert where(origin) == ("forward", "mul", "1", "nan")
    assert origin.count == 1


# --- samples ------------------------------------------------------------------------------------


def test_at_most_32_samples_are_listed():
    origin = find_origin(around(torch.log), mse, batch(50) * 0, batch(50))
    assert origin.samples == list(range(32))
    assert origin.count == 150


def test_samples_are_not_told_of_a_tensor_that_is_not_the_batchs():
    model = around(lambda x: x.log().mean(0))
    origin = find_origin(model, total, batch(zeros=[1]), None)
    assert origin.samples == [1]  # the log's
    model = around(lambda x: x.mean(0).log().expand_as(x))
    assert find_origin(model, total, batch() * 0, None).samples == []


def test_samples_are_not_told_where_inputs_and_targets_disagree_on_the_batch():
    # Five steps of two samples.
    model = Op(lambda x: x.log().mean(0))
    origin = find_origin(model, mse, torch.zeros(5, 2, 3), torch.ones(2, 3))
    assert (origin.name, origin.samples) == ("log", [])


@pytest.mark.parametrize(
    ("targets", "samples"), [((4,), [3]), ((5, 4), [3]), ((20,), [3]), ((7,), [])], ids=str
)
def test_samples_of_the_second_axis_are_told(targets, samples):
    inputs = torch.ones(5, 4, 3)  # five steps of four samples
    inputs[2, 3] = 0
    model = nn.Sequential(identity(), Op(torch.log))
    for layout in (Layout(1), Layout(1, main=1)):
        given = (inputs,) if layout.main == 0 else (torch.zeros(2, 2), inputs)
        origin = find_origin(
            model, total, given, torch.ones(targets), lambda m, i: m(i[-1]), layout
        )
        assert (origin.name, origin.samples) == ("log", samples)


def test_what_each_sample_of_the_second_axis_ends_in_is_told_by_its_sample():
    inputs = torch.ones(5, 4, 3)
    inputs[:, 1] = 0
    model = nn.Sequential(identity(), Op(lambda x: x.sum(0).log()))  # (samples, features)
    origin = find_origin(model, total, inputs, torch.ones(4), layout=Layout(1))
    assert (origin.name, origin.samples) == ("log", [1])


def test_entries_that_are_not_apart_are_told_by_the_first_axis():
    origin = find_origin(around(torch.log), total, batch(zeros=[2]), None, layout=Layout(None))
    assert (origin.name, origin.samples) == ("log", [2])


# --- masks --------------------------------------------------------------------------------------


def causal(size):
    return torch.full((size, size), -INF).triu(1)


MASKS = {
    "masked_fill": lambda scores: scores.masked_fill(causal(4) < 0, -INF),
    "added": lambda scores: scores + causal(4),
    "where": lambda scores: torch.where(causal(4) < 0, -INF, scores),
    "a tensor's fill": lambda scores: scores.masked_fill(causal(4) < 0, torch.tensor(-INF)),
    "assigned": lambda scores: torch.where(causal(4) < 0, torch.zeros(4, 4).fill_(-INF), scores),
    "a log": lambda scores: scores + (causal(4) == 0).float().log(),
}


def attend(mask):
    return nn.Sequential(identity(4), Op(mask), nn.Softmax(-1), identity(4))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_before_a_softmax_is_sound(mask):
    assert find_origin(attend(mask), mse, torch.randn(4, 4), torch.randn(4, 4)) is None


def test_a_constant_mask_is_sound_wherever_it_is_kept():
    mask = causal(4)
    assert find_origin(attend(lambda x: x + mask), mse, batch(4, 4), batch(4, 4)) is None
    all_of_it = causal(4).fill_diagonal_(-INF)
    model = attend(lambda x: x + all_of_it)
    assert find_origin(model, mse, batch(4, 4), batch(4, 4)).name == "softmax"
    model = attend(lambda x: x + model.mask)
    model.register_buffer("mask", mask)
    assert find_origin(model, mse, batch(4, 4), batch(4, 4)) is None
    model = Op(lambda x, mask: (x + mask).softmax(-1))
    assert find_origin(model, mse, (batch(4, 4), mask), batch(4, 4)) is None


def test_a_row_that_is_masked_throughout_is_the_softmaxs_fault():
    def masked(scores):
        return scores.masked_fill(torch.tensor([[0], [0], [1], [0]]).bool(), -INF)

    origin = find_origin(attend(masked), mse, batch(4, 4), batch(4, 4))
    assert where(origin) == ("forward", "softmax", "2", "nan")
    assert (origin.samples, origin.overflow) == ([2], False)


def test_a_mask_that_reaches_the_loss_is_found():
    def head(logits):
        return logits.masked_fill(torch.tensor([True, False, False]), -INF)

    model = nn.Sequential(identity(), Op(head))
    assert find_origin(model, F.cross_entropy, batch(), torch.tensor([1, 2, 1, 2])) is None
    origin = find_origin(model, F.cross_entropy, batch(), torch.tensor([1, 0, 1, 2]))
    assert where(origin) == ("forward", "masked_fill", "1", "inf")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mask", ["causal", "padding", "float padding", "both"])
def test_a_transformers_masks_are_sound(mask, training):
    padding = torch.tensor([5, 2, 4, 1])[:, None] <= torch.arange(5)
    inputs = {"src": torch.randn(4, 5, 8)}
    if mask in ("causal", "both"):
        inputs["src_mask"] = nn.Transformer.generate_square_subsequent_mask(5)
    if mask != "causal":
        as_float = torch.zeros(4, 5).masked_fill(padding, -INF)
        inputs["src_key_padding_mask"] = padding if mask == "padding" else as_float
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(training)
    assert find_origin(model, mse, inputs, torch.randn(4, 5, 8)) is None
    with torch.no_grad():
        model.linear1.weight.zero_()[:, 0] = 3e38
    origin = find_origin(model, mse, inputs, torch.randn(4, 5, 8))
    assert (origin.where, origin.layer, origin.overflow) == ("forward", "linear1", True)


# --- overflow or an invalid operation -----------------------------------------------------------

OVERFLOWS = {
    "mul": lambda x: x * 1e20 * 1e20,
    "pow": lambda x: (x * 1e20) ** 2,
    "exp": lambda x: (x * 1e7).exp(),
    "sum": lambda x: (x * 3e38).sum(1, keepdim=True).expand_as(x),
    "mm": lambda x: (x * 1e20) @ (torch.eye(3) * 1e20),
    "layer_norm": lambda x: F.layer_norm(x * torch.tensor([1.0, 2, 3]) * 1e20, (3,)),
    "div": lambda x: x * 1e30 / 1e-30,
}
INVALID = {
    "exp": lambda x: (x * 100).exp(),
    "div": lambda x: x * 1e20 / 0,
    "reciprocal": lambda x: 1 / (x - x),
    "log": lambda x: (x * torch.tensor([0, 1e30, 1e30])).log(),
    "sqrt": lambda x: (-x).sqrt(),
    "acos": lambda x: (x * 2).acos(),
    "pow": lambda x: (-x) ** 0.5,
    "mul": lambda x: x * INF * 0,
    "sub": lambda x: x.fill_(INF) - INF,
    "std": lambda x: x[:, :1].std(1, keepdim=True).expand_as(x),
}


@pytest.mark.parametrize(("name", "function"), OVERFLOWS.items(), ids=OVERFLOWS)
def test_an_overflow_is_told(name, function):
    origin = find_origin(around(function), mse, batch(), batch())
    assert (origin.where, origin.name, origin.overflow) == ("forward", name, True)


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom")
@pytest.mark.parametrize(("name", "function"), INVALID.items(), ids=INVALID)
def test_an_invalid_operation_is_no_overflow(name, function):
    origin = find_origin(around(function), mse, batch(), batch())
    assert (origin.where, origin.name, origin.overflow) == ("forward", name, False)


def test_the_magnitude_is_of_what_the_operation_met():
    origin = find_origin(around(lambda x: (x * -3e25) ** 2), mse, batch(), batch())
    assert origin.magnitude == pytest.approx(3e25, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_range_is_the_dtypes_own(dtype):
    def run(function, value):
        model = nn.Sequential(identity(dtype=dtype), Op(function))
        inputs = torch.full((4, 3), value, dtype=dtype)
        return find_origin(model, lambda outputs, _: outputs.double().sum(), inputs, None)

    most = torch.finfo(dtype).max
    origin = run(torch.square, most**0.6)
    assert (origin.name, origin.kind, origin.overflow) == ("pow", "inf", most > 1e12)
    assert origin.magnitude == pytest.approx(most**0.6, rel=0.01)
    assert run(lambda x: x * x, most**0.6).overflow
    assert run(lambda x: x * x, most**0.4) is None
    assert run(torch.log, 0.0).samples == [0, 1, 2, 3]


def test_a_long_sum_overflows_half_precision_at_small_values():
    layer = Op(lambda x: x @ x.T)
    origin = find_origin(layer, total, torch.full((4, 100), 30.0, dtype=torch.float16), None)
    assert (origin.name, origin.magnitude, origin.overflow) == ("mm", 30, True)


# --- the backward pass --------------------------------------------------------------------------

BACKWARD = {
    "sqrt": lambda x: x.sqrt(),
    "pow": lambda x: x**0.5,
    "acos": lambda x: (1 - x).acos(),
    "log": lambda x: torch.where(x > 0, x.log(), 0.0),
    "div": lambda x: torch.where(x > 0, x / x, 0.0),
    "log1p": lambda x: torch.where(x > 0, (x - 1).log1p(), 0.0),
}


@pytest.mark.parametrize(("name", "function"), BACKWARD.items(), ids=BACKWARD)
def test_a_gradient_is_traced_to_the_operation_of_a_middle_layer(name, function):
    inputs = batch(zeros=[1, 2]) / 2
    origin = find_origin(around(function), total, inputs, None)
    assert (origin.where, origin.name, origin.layer) == ("backward", name, "1")
    assert (origin.samples, origin.count, origin.overflow) == ([1, 2], 6, False)
    assert 0.5 <= origin.magnitude <= 2
    assert find_origin(around(function), None, inputs, None) is None
    assert find_origin(around(function), total, batch() / 2, None) is None


def test_a_gradient_of_the_loss_has_no_layer():
    def distance(outputs, targets):
        return (outputs - targets).square().sum(1).sqrt().mean()

    targets = batch() + 1
    targets[3] = 1
    origin = find_origin(identity(), distance, batch(), targets)
    assert where(origin) == ("backward", "sqrt", None, "inf")
    assert origin.samples == [3]


def test_a_gradient_that_reaches_no_parameter_is_not_accused():
    # The gradient of a ReLU at 0 is 0, whatever comes from above.
    model = nn.Sequential(identity(), nn.ReLU(), Op(torch.sqrt))
    assert find_origin(model, total, batch(zeros=[1]), None) is None
    model = nn.Sequential(identity(), nn.ReLU(), Op(torch.sqrt), identity(), Op(lambda x: x**0.5))
    origin = find_origin(model, total, batch(zeros=[1]), None)
    assert (origin.name, origin.layer) == ("pow", "4")  # to the last layer's weights


def test_a_gradient_spoilt_by_an_infinity_of_the_forward_pass_is_traced_to_that():
    def guarded(x):
        inverse = 1 / x.detach()
        return torch.where(x > 0, x * inverse, 0.0)

    origin = find_origin(around(guarded), total, batch(zeros=[1]), None)
    assert where(origin) == ("forward", "reciprocal", "1", "inf")


def test_a_gradient_spoilt_by_a_mask_is_the_fault_of_what_reads_the_mask():
    def guarded(x):
        masked = x.masked_fill(x == 0, -INF)
        return torch.where(x == 0, 0.0, masked * x)

    origin = find_origin(around(guarded), total, batch(zeros=[1]), None)
    assert where(origin) == ("backward", "mul", "1", "nan")
    assert not origin.overflow


def test_a_gradient_that_overflows_is_an_overflow():
    model = around(lambda x: (x * 1e-30) * 1e30 * 1e30)
    origin = find_origin(model, lambda outputs, _: (outputs * 1e9).sum(), batch() * 1e-5, None)
    assert (origin.where, origin.name, origin.overflow) == ("backward", "mul", True)
    assert origin.magnitude > 1e9


def test_gradients_whose_sum_overflows_are_found():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1e-10]))

        def forward(self, inputs):
            return (self.weight * 3e38 + self.weight * 3e38).sum()

    origin = find_origin(Shared(), lambda outputs, _: outputs, batch(1), None)
    assert where(origin) == ("backward", "add", None, "inf")
    assert (origin.samples, origin.overflow) == ([], True)


def test_the_gradient_of_a_parameter_has_no_samples():
    model = Op(lambda x: x * model.scale.sqrt())
    model.scale = nn.Parameter(batch(zeros=[2]))  # has as many rows as the batch
    origin = find_origin(model, total, batch(), None)
    assert where(origin) == ("backward", "sqrt", "", "inf")
    assert (origin.samples, origin.count) == ([], 3)


def test_a_checkpointed_layers_gradient_is_found():
    layer = Op(torch.sqrt)
    model = nn.Sequential(identity(), Op(lambda x: checkpoint(layer, x, use_reentrant=False)))
    origin = find_origin(model, total, batch(zeros=[2]), None)
    assert where(origin) == ("backward", "sqrt", "1", "inf")
    assert origin.samples == [2]


def test_a_function_with_its_own_backward_is_named():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x * 7)
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * NAN

    origin = find_origin(around(Broken.apply), total, batch(), None)
    assert where(origin) == ("backward", "broken", "1", "nan")
    assert origin.magnitude == 7


# --- models of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize("several", [tuple, list, lambda pair: {"a": pair[0], "b": pair[1]}])
def test_an_output_that_the_loss_does_not_read_is_searched_too(several):
    model = nn.Sequential(identity(), Op(lambda x: several((x, x.detach().log()))))

    def loss(outputs, targets):
        first = outputs["a"] if isinstance(outputs, dict) else outputs[0]
        return mse(first, targets)

    origin = find_origin(model, loss, batch(zeros=[3]), batch())
    assert where(origin) == ("forward", "log", "1", "inf")
    assert find_origin(model, loss, batch(), batch()) is None


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_found(layer):
    model = nn.ModuleDict({"embed": identity(), "rnn": layer(3, 5, batch_first=True)})

    def call(model, inputs):
        return model["rnn"](model["embed"](inputs))[0][:, -1]

    inputs, targets = torch.randn(4, 7, 3), torch.zeros(4, 5)
    assert find_origin(model, mse, inputs, targets, call) is None
    with torch.no_grad():
        model["rnn"].weight_ih_l0.fill_(3e38)
        model["rnn"].weight_hh_l0.fill_(1e38)
    origin = find_origin(model, mse, inputs * 1e10, targets, call)
    assert (origin.where, origin.layer, origin.overflow) == ("forward", "rnn", True)
    assert origin.name in ("rnn", "mm", "addmm")


def test_a_compiled_function_is_looked_into():
    def sealed(graph, example_inputs):
        def run(*tensors):
            with _disable_current_modes():
                return graph.forward(*tensors)

        return run

    model = around(torch.compile(lambda x: x.log(), backend=sealed))
    model(batch())
    origin = find_origin(model, total, batch(zeros=[2]), None)
    assert (origin.name, origin.layer, origin.samples) == ("log", "1", [2])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_layer_is_looked_into():
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        next(scripted.parameters()).fill_(3e38)
    model = nn.Sequential(identity(), nn.Sequential(scripted))  # a script's layers go by these
    origin = find_origin(model, total, batch() * 2, None)
    assert (origin.where, origin.name, origin.layer) == ("forward", "addmm", "1")


def test_sparse_gradients_and_integer_inputs_are_no_hindrance():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), identity(), Op(torch.log))
    with torch.no_grad():
        model[0].weight.fill_(1.0)[4] = 0
    words = torch.tensor([1, 4, 2])
    assert find_origin(model, total, words.clamp(max=2), None) is None
    assert find_origin(model, total, words, None).samples == [1]


def test_a_step_that_needs_no_gradient_and_one_under_no_grad_are_searched():
    assert find_origin(Op(torch.sqrt), total, batch() * 0, None) is None
    with torch.no_grad():
        assert find_origin(around(torch.sqrt), total, batch() * 0, None).where == "backward"


def test_what_the_model_raises_is_passed_on_and_leaves_no_hook():
    def fail(x):
        raise ZeroDivisionError

    model = around(fail)
    with pytest.raises(ZeroDivisionError):
        find_origin(model, mse, batch(), batch())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_raises_is_left():
    def attempt(x):
        try:
            return broken(x)
        except ZeroDivisionError:
            return x.log()

    broken = Op(lambda x: x / (1 // 0))
    model = nn.ModuleDict({"broken": broken, "outer": Op(attempt)})
    origin = find_origin(model, total, batch() * 0, None, call=lambda m, x: m["outer"](x))
    assert (origin.name, origin.layer) == ("log", "outer")


def test_the_random_numbers_are_those_of_the_step(small_training):
    training = small_training()
    inputs, targets = next(training.batches(0))
    torch.manual_seed(3)
    expected = training.loss(training.model(inputs), targets)
    expected.backward()
    after, seen = torch.get_rng_state(), []

    def loss(outputs, targets):
        seen.append(training.loss(outputs, targets))
        return seen[-1]

    torch.manual_seed(3)
    assert find_origin(training.model, loss, inputs, targets) is None
    assert torch.equal(seen[0], expected)
    assert torch.equal(torch.get_rng_state(), after)
