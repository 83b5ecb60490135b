"""What `loss_facts` measures of right and wrong loss functions, on outputs that it makes up."""

import itertools
import math
from collections import namedtuple
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.observe.loss_function.facts import loss_facts
from debugnn.doctor.observe.task import Task, read, score

BATCH, CLASSES = 32, 5
LABELS = torch.arange(BATCH) % CLASSES
SQUASHED = Task("classes", CLASSES, 1, squashed=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hot(labels):
    return F.one_hot(labels, CLASSES).float()


def focal(outputs, targets):
    surprise = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - torch.exp(-surprise)).square() * surprise).mean()


def of_logits(loss, targets=LABELS):
    outputs = normal(BATCH, CLASSES)
    return loss_facts(loss, outputs, targets, read(outputs, targets))


def floor(facts):
    """The loss of perfect outputs over that of the best constant ones."""
    return facts.best / facts.constant


def falls(facts):
    """The loss is lower at the right one of each pair of made-up outputs."""
    assert facts.rewards
    return all(right < wrong for right, wrong in facts.rewards)


def squashed_twice(classes):
    """The best cross-entropy of probabilities that are taken for logits, over that of guessing."""
    return math.log((math.e + classes - 1) / math.e) / math.log(classes)


# --- one of many classes, from logits -----------------------------------------------------------

SOUND = {
    "cross_entropy": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "class_weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])),
    "focal": focal,
    "multi_margin": F.multi_margin_loss,
    "log_softmax_inside": lambda o, t: F.nll_loss(o.log_softmax(dim=1), t),
    "scaled": lambda o, t: 20 * F.cross_entropy(o, t),
    "sharpened": lambda o, t: F.cross_entropy(4 * o, t),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_loss_of_logits_has_nothing_against_it(name):
    facts = of_logits(SOUND[name])
    assert facts.error is None
    assert facts.scalar
    assert facts.gradient
    assert facts.doubling == pytest.approx(1, abs=1e-3)
    assert facts.output_space == "real"
    assert falls(facts)
    assert floor(facts) == pytest.approx(0, abs=1e-3)
    assert facts.shift_change < 1e-5
    assert facts.other_entries > 0.1
    assert facts.cross_gradient < 1e-5
    assert facts.far is None
    assert facts.shapes == [[BATCH, CLASSES], [BATCH]]


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("classes", [2, 5, 100])
def test_smoothed_labels_cost_more_where_the_outputs_are_most_confident(smoothing, classes):
    outputs, targets = normal(BATCH, classes), torch.arange(BATCH) % classes
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing)
    facts = loss_facts(loss, outputs, targets, read(outputs, targets))
    assert facts.confident > 2 * facts.best
    assert falls(facts)
    assert facts.shift_change < 1e-5


def test_nll_of_log_softmax_reads_the_outputs_as_logarithms():
    outputs = normal(BATCH, CLASSES).log_softmax(dim=1)
    facts = loss_facts(F.nll_loss, outputs, LABELS, read(outputs, LABELS))
    assert facts.output_space == "log_simplex"
    assert facts.other_entries == 0
    assert falls(facts)
    assert floor(facts) < 0.01
    assert (
        facts.shift_change is None
    )  # shifted, the outputs are no longer logarithms of probabilities
    assert facts.confident is None


def test_nll_of_raw_logits_looks_at_one_logit_alone():
    facts = of_logits(F.nll_loss)
    assert facts.output_space == "real"
    assert facts.other_entries == 0
    assert facts.shift_change > 0.5


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.mse_loss(o, hot(t)),
        lambda o, t: F.l1_loss(o, hot(t)),
        lambda o, t: F.binary_cross_entropy_with_logits(o, hot(t)),
    ],
    ids=["mse", "l1", "bce"],
)
def test_a_loss_of_one_hot_vectors_does_not_compare_the_classes(loss):
    facts = of_logits(loss)
    assert facts.shift_change > 0.5
    assert facts.other_entries > 0.1
    assert falls(facts)


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_a_softmax_before_cross_entropy_leaves_its_floor(classes):
    outputs, targets = normal(BATCH, classes), torch.arange(BATCH) % classes

    def inside(o, t):
        return F.cross_entropy(o.softmax(dim=1), t)

    facts = loss_facts(inside, outputs, targets, read(outputs, targets))
    assert floor(facts) == pytest.approx(squashed_twice(classes), abs=1e-3)
    # With the softmax in the model, the outputs are probabilities.
    outputs = outputs.softmax(dim=1)
    facts = loss_facts(F.cross_entropy, outputs, targets, read(outputs, targets))
    assert facts.output_space == "simplex"
    assert floor(facts) == pytest.approx(squashed_twice(classes), abs=2e-3)


def test_a_sigmoid_before_cross_entropy_leaves_its_floor():
    inside = of_logits(lambda o, t: F.cross_entropy(torch.sigmoid(o), t))
    # Guessing is flat at one half, perfect at (1, 0, …): measured from sigmoid(0) = 1/2.
    assert floor(inside) > 0.5
    assert inside.shift_change > 0.01
    outputs = torch.sigmoid(normal(BATCH, CLASSES))
    facts = loss_facts(F.cross_entropy, outputs, LABELS, SQUASHED)
    assert facts.output_space == "unit"
    assert floor(facts) == pytest.approx(squashed_twice(CLASSES), abs=2e-3)


def test_probabilities_in_a_loss_for_probabilities_are_right():
    outputs = normal(BATCH, CLASSES).softmax(dim=1)
    facts = loss_facts(lambda o, t: F.nll_loss(o.log(), t), outputs, LABELS, SQUASHED)
    assert facts.output_space == "simplex"
    assert floor(facts) < 0.01
    assert facts.other_entries == 0
    facts = loss_facts(lambda o, t: F.mse_loss(o, hot(t)), outputs, LABELS, SQUASHED)
    assert facts.other_entries > 0.1


def test_a_flipped_sign_is_worse_when_right():
    assert not falls(of_logits(lambda o, t: -F.cross_entropy(o, t)))
    assert not falls(of_logits(lambda o, t: (o.softmax(dim=1) * hot(t)).sum(1).mean()))


def test_a_sum_is_told_from_a_mean_at_any_size():
    summed = of_logits(lambda o, t: F.cross_entropy(o, t, reduction="sum"))
    assert summed.doubling == pytest.approx(2, rel=1e-4)
    tiny = of_logits(lambda o, t: 1e-3 * F.cross_entropy(o, t, reduction="sum"))
    assert tiny.doubling == pytest.approx(2, rel=1e-4)
    averaged = of_logits(lambda o, t: 1e-3 * F.cross_entropy(o, t))
    assert averaged.doubling == pytest.approx(1, rel=1e-4)
    # A loss of 0 has no ratio.
    assert of_logits(lambda o, t: 0 * F.cross_entropy(o, t)).doubling is None


def test_a_vector_is_no_scalar():
    facts = of_logits(lambda o, t: F.cross_entropy(o, t, reduction="none"))
    assert not facts.scalar
    assert facts.doubling is None


def test_a_softmax_over_the_batch_mixes_samples():
    facts = of_logits(lambda o, t: F.nll_loss(o.log_softmax(dim=0), t))
    assert facts.cross_gradient > 0.1


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.cross_entropy(o.detach(), t),
        lambda o, t: torch.tensor(float((o.argmax(dim=1) != t).float().mean())),
    ],
    ids=["detached", "error_rate"],
)
def test_a_loss_without_a_gradient_is_known(loss):
    assert of_logits(loss).gradient is False


def test_what_a_loss_raises_is_told():
    facts = of_logits(lambda o, t: F.cross_entropy(o, t.float()))
    assert facts.error.startswith("RuntimeError")
    assert facts.shapes == [[BATCH, CLASSES], [BATCH]]
    assert facts.rewards == []


def test_nan_outputs_do_not_hide_what_the_loss_is():
    outputs = torch.full((BATCH, CLASSES), math.nan)
    facts = loss_facts(F.cross_entropy, outputs, LABELS, Task("classes", CLASSES))
    assert falls(facts)
    assert floor(facts) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("ignored", [-100, 2])
def test_labels_that_the_loss_leaves_out_do_not_count(ignored):
    labels = LABELS.clone()
    labels[3] = ignored
    facts = of_logits(lambda o, t: F.cross_entropy(o, t, ignore_index=ignored), labels)
    assert facts.error is None
    assert facts.confirmed
    assert floor(facts) == pytest.approx(0, abs=1e-3)


def test_a_label_that_no_output_stands_for_leaves_it_open():
    labels = LABELS.clone()
    labels[3] = CLASSES

    def loss(o, t):  # nothing is raised, and the sample counts
        return -(o.log_softmax(dim=1) * F.one_hot(t, CLASSES + 1)[:, :CLASSES]).sum(1).mean() + (
            0.1 * o.square().mean()
        )

    facts = of_logits(loss, labels)
    assert facts.rewards == []
    assert not facts.confirmed


def test_examining_leaves_outputs_targets_and_the_random_state():
    outputs = normal(BATCH, CLASSES).requires_grad_()
    kept, state = outputs.detach().clone(), torch.get_rng_state()
    loss_facts(F.cross_entropy, outputs, LABELS, read(outputs, LABELS))
    assert torch.equal(outputs, kept)
    assert outputs.grad is None
    assert torch.equal(LABELS, torch.arange(BATCH) % CLASSES)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [2, 3])
def test_two_samples_are_enough(batch):
    outputs, targets = normal(batch, CLASSES), LABELS[:batch]
    facts = loss_facts(F.cross_entropy, outputs, targets, read(outputs, targets))
    assert falls(facts)
    assert facts.cross_gradient < 1e-5


def test_one_sample_does_not_end_the_examination():
    outputs, targets = normal(1, CLASSES), LABELS[:1]
    assert falls(loss_facts(F.cross_entropy, outputs, targets, read(outputs, targets)))


def test_a_loss_of_one_batch_size_only_can_be_examined():
    facts = of_logits(lambda o, t: F.cross_entropy(o.view(BATCH, CLASSES), t))
    assert falls(facts)
    assert facts.doubling is None


def test_a_small_penalty_on_the_logits_size_is_no_other_loss():
    def z_loss(o, t):
        return F.cross_entropy(o, t) + 1e-4 * o.logsumexp(dim=1).square().mean()

    assert of_logits(z_loss).shift_change < 0.01


# --- sequences, and soft targets ----------------------------------------------------------------


def test_sequences_with_the_classes_second():
    outputs, targets = normal(8, CLASSES, 7), torch.arange(56).reshape(8, 7) % CLASSES
    facts = loss_facts(F.cross_entropy, outputs, targets, read(outputs, targets))
    assert falls(facts)
    assert floor(facts) == pytest.approx(0, abs=1e-3)
    assert facts.shift_change < 1e-5
    assert facts.other_entries > 0.1
    assert facts.cross_gradient < 1e-5
    # A softmax over the time axis: classes do not compete.
    facts = loss_facts(
        lambda o, t: F.nll_loss(o.log_softmax(dim=2), t), outputs, targets, read(outputs, targets)
    )
    assert floor(facts) > 0.2


def test_sequences_with_the_classes_last():
    outputs, targets = normal(8, 7, CLASSES), torch.arange(56).reshape(8, 7) % CLASSES

    def flattened(o, t):
        return F.cross_entropy(o.reshape(-1, CLASSES), t.reshape(-1))

    for loss in (flattened, lambda o, t: F.cross_entropy(o.transpose(1, 2), t)):
        facts = loss_facts(loss, outputs, targets, read(outputs, targets))
        assert falls(facts)
        assert floor(facts) == pytest.approx(0, abs=1e-3)
        assert facts.shift_change < 1e-5
        assert facts.cross_gradient < 1e-5


def test_one_hot_targets_are_classes():
    facts = of_logits(F.cross_entropy, hot(LABELS))
    assert facts.confirmed
    assert floor(facts) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "loss",
    [F.cross_entropy, lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="sum")],
    ids=["cross_entropy", "divergence"],
)
def test_a_distribution_is_met_best_by_itself(loss):
    soft = normal(BATCH, CLASSES, seed=1).softmax(dim=1)
    facts = of_logits(loss, soft)
    assert facts.error is None
    assert facts.gradient
    assert facts.confirmed
    assert falls(facts)
    assert facts.best is None  # its entropy stays, whatever the outputs are
    assert of_logits(lambda o, t: -loss(o, t), soft).opposed


# --- two classes from one output ----------------------------------------------------------------

TWO = (torch.arange(BATCH) % 2).float().unsqueeze(1)


def of_one_logit(loss, targets=TWO):
    outputs = normal(BATCH, 1)
    return loss_facts(loss, outputs, targets, read(outputs, targets))


@pytest.mark.parametrize("targets", [TWO, TWO.long(), TWO.squeeze(1)], ids=str)
def test_bce_of_a_logit_is_sound(targets):
    def loss(o, t):
        return F.binary_cross_entropy_with_logits(o.reshape(t.shape), t.float())

    facts = of_one_logit(loss, targets)
    assert facts.output_space == "real"
    assert falls(facts)
    assert floor(facts) < 0.01
    assert facts.shift_change is None
    assert not facts.squared


def test_bce_of_a_sigmoid_is_sound_and_with_a_second_one_is_not():
    outputs, task = torch.sigmoid(normal(BATCH, 1)), Task("binary", squashed=True)
    facts = loss_facts(F.binary_cross_entropy, outputs, TWO, task)
    assert facts.output_space == "unit"
    assert floor(facts) < 0.01
    twice = loss_facts(F.binary_cross_entropy_with_logits, outputs, TWO, task)
    # Perfect is log(1 + e⁻¹) or log(1 + e⁰), and guessing is at one half.
    perfect = (math.log1p(math.exp(-1)) + math.log(2)) / 2
    guessing = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5))) / 2
    assert floor(twice) == pytest.approx(perfect / guessing, abs=2e-3)


def test_a_squared_error_of_two_classes_is_known():
    facts = of_one_logit(F.mse_loss)
    assert facts.squared
    assert floor(facts) == pytest.approx(0, abs=1e-6)


def test_a_flipped_sign_of_two_classes():
    flipped = of_one_logit(lambda o, t: -F.binary_cross_entropy_with_logits(o, t))
    assert not falls(flipped)


SEVERAL = (normal(BATCH, CLASSES, seed=4) > 0.4).float()
SEVERAL_SHARE = (SEVERAL.sum(dim=1) != 1).float().mean().item()


@pytest.mark.parametrize(
    ("loss", "squash", "expected"),
    [
        (F.binary_cross_entropy_with_logits, None, None),
        (F.binary_cross_entropy, "sigmoid", None),
        (F.multilabel_soft_margin_loss, None, None),
        (F.mse_loss, None, None),
        (F.cross_entropy, None, SEVERAL_SHARE),
        (lambda o, t: -(o.log_softmax(dim=1) * t).mean(), None, SEVERAL_SHARE),
        (F.binary_cross_entropy, "softmax", SEVERAL_SHARE),
    ],
)
def test_several_labels_of_a_sample_compete_in_a_softmax(loss, squash, expected):
    outputs = normal(BATCH, CLASSES)
    task = read(outputs, SEVERAL)
    if squash is not None:
        outputs = outputs.sigmoid() if squash == "sigmoid" else outputs.softmax(dim=1)
        task = Task("binary", squashed=True)
    facts = loss_facts(loss, outputs, SEVERAL, task)
    assert facts.competing == (None if expected is None else pytest.approx(expected))


def dice(outputs, targets):
    both, all_of_it = (outputs * targets).sum(), outputs.sum() + targets.sum()
    return 1 - (2 * both + 1) / (all_of_it + 1)


def jaccard(outputs, targets):
    both = (outputs * targets).sum(dim=(1, 2, 3))
    either = (outputs + targets - outputs * targets).sum(dim=(1, 2, 3))
    return (1 - both / either).mean()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (dice, True),
        (jaccard, True),
        (lambda o, t: dice(o.sigmoid(), t), False),
        (lambda o, t: jaccard(o.sigmoid(), t), False),
        (lambda o, t: F.binary_cross_entropy_with_logits(o, t) + dice(o.sigmoid(), t), False),
        (F.binary_cross_entropy_with_logits, False),
        (F.mse_loss, False),
        (lambda o, t: F.hinge_embedding_loss(o, 2 * t - 1), False),
    ],
)
def test_an_overlap_of_areas_takes_real_outputs_for_probabilities(loss, expected):
    outputs, areas = normal(4, 1, 6, 6), (normal(4, 1, 6, 6, seed=3) > 0.3).float()
    assert loss_facts(loss, outputs, areas, read(outputs, areas)).overlap == expected
    inside = outputs.sigmoid()  # by the network, in a way that nobody sees
    assert not loss_facts(loss, inside, areas, read(inside, areas)).overlap


# --- regression ---------------------------------------------------------------------------------

VALUES = 3 * normal(BATCH, 1, seed=2) + 1


def of_values(loss, targets=VALUES, outputs=None):
    outputs = normal(BATCH, 1) if outputs is None else outputs
    return loss_facts(loss, outputs, targets, read(outputs, targets))


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.l1_loss,
        F.huber_loss,
        lambda o, t: F.gaussian_nll_loss(o, t, torch.ones_like(o)),
        lambda o, t: F.mse_loss(o, t).sqrt(),
        lambda o, t: torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean(),
    ],
    ids=["mse", "l1", "huber", "gaussian", "rmse", "quantile"],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_regressions_loss_is_sound_at_any_size(loss, scale):
    facts = of_values(loss, VALUES * scale)
    assert facts.error is None
    assert falls(facts)
    assert floor(facts) == pytest.approx(0, abs=1e-3)
    assert facts.doubling == pytest.approx(1, abs=1e-3)
    assert facts.far >= facts.best


def test_a_summed_and_a_flipped_regression():
    summed = of_values(lambda o, t: F.mse_loss(o, t, reduction="sum"))
    assert summed.doubling == pytest.approx(2, rel=1e-4)
    assert not falls(of_values(lambda o, t: -F.mse_loss(o, t)))


def test_poisson_nll_reads_outputs_as_the_logarithms_of_rates():
    counts = torch.as_tensor(np.random.default_rng(0).poisson(4.0, (BATCH, 1))).float()
    facts = of_values(F.poisson_nll_loss, counts)
    assert facts.confirmed
    assert facts.link == "exp"
    assert facts.far > -10
    assert not facts.opposed


def test_bce_of_logits_reads_probabilities_through_a_sigmoid():
    shares = normal(BATCH, 1, seed=3).sigmoid()
    facts = of_values(F.binary_cross_entropy_with_logits, shares)
    assert facts.confirmed
    assert facts.link == "sigmoid"
    task = Task("values", link=facts.link)
    assert score(task, shares.logit(), shares).skill == pytest.approx(1, abs=1e-4)
    # The same targets by a squared error of the outputs themselves.
    assert of_values(F.mse_loss, shares).link == "identity"


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: F.poisson_nll_loss(o, t, log_input=False),
        lambda o, t: F.mse_loss(torch.log1p(o), torch.log1p(t)),
    ],
    ids=["poisson_of_a_rate", "squared_log_error"],
)
def test_a_loss_of_positive_outputs_is_not_called_flipped(loss):
    counts = torch.as_tensor(np.random.default_rng(0).poisson(4.0, (BATCH, 1))).float()
    facts = of_values(loss, counts, outputs=normal(BATCH, 1).exp())
    assert any(right < wrong for right, wrong in facts.rewards)


def test_a_column_against_a_row_is_broadcast():
    def loss(o, t):  # what F.mse_loss does, without its warning
        return (o - t).square().mean()

    facts = of_values(loss, VALUES.squeeze(1))
    # The loss of perfect outputs is E(x − y)² = 2σ², that of constant ones σ².
    assert floor(facts) == pytest.approx(2, abs=1e-3)
    assert facts.shapes == [[BATCH, 1], [BATCH]]
    assert of_values(lambda o, t: loss(o.squeeze(1), t), VALUES.squeeze(1)).best < 1e-6


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1, 2),
        (0, 255),
        pytest.param(-1, 1),
    ],
)
def test_a_binary_loss_of_values_beyond_zero_and_one_falls_without_end(low, high):
    coded = torch.where(TWO > 0, float(high), float(low))
    squared = of_values(F.mse_loss, coded)
    assert squared.far > squared.best
    likelihood = of_values(F.binary_cross_entropy_with_logits, coded)
    assert likelihood.far < min(likelihood.best, -10)


def test_targets_that_do_not_vary_leave_it_open():
    facts = of_values(F.mse_loss, torch.full((BATCH, 1), 3.0))
    assert facts.best is None
    assert facts.rewards == []


# --- what can't be read -------------------------------------------------------------------------


class Answer:
    """What a model may return that is no container."""

    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


Pair = namedtuple("Pair", ["logits", "hidden"])
LOGITS, HIDDEN = normal(BATCH, CLASSES), normal(BATCH, 3, seed=1)


@pytest.mark.parametrize(
    ("outputs", "loss"),
    [
        ((LOGITS, HIDDEN), lambda o, t: F.cross_entropy(o[0], t)),
        ([LOGITS], lambda o, t: F.cross_entropy(o[0], t)),
        (((LOGITS, HIDDEN), None), lambda o, t: F.cross_entropy(o[0][0], t)),
        (Pair(LOGITS, HIDDEN), lambda o, t: F.cross_entropy(o.logits, t)),
        ({"logits": LOGITS, "hidden": HIDDEN}, lambda o, t: F.cross_entropy(o["logits"], t)),
        (Answer(LOGITS, HIDDEN), lambda o, t: F.cross_entropy(o.logits, t)),
    ],
    ids=["tuple", "list", "nested", "named tuple", "dict", "object"],
)
def test_made_up_outputs_take_the_first_tensors_place(outputs, loss):
    facts = loss_facts(loss, outputs, LABELS, read(outputs, LABELS))
    plain = loss_facts(F.cross_entropy, LOGITS, LABELS, read(LOGITS, LABELS))
    assert asdict(facts) == asdict(plain)
    assert facts.confirmed


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_term_of_other_outputs_leaves_the_level_open(kind):
    outputs = kind([LOGITS, HIDDEN])

    def loss(o, t):
        return F.cross_entropy(o[0], t) + o[1].square().mean()

    facts = loss_facts(loss, outputs, LABELS, read(outputs, LABELS))
    assert facts.confirmed
    assert facts.other_outputs
    assert facts.best is None
    assert facts.constant is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_divergence_is_bounded_and_its_opposite_is_not(sign):
    outputs = (normal(BATCH, 6), normal(BATCH, 2, seed=1), normal(BATCH, 2, seed=2))
    targets = normal(BATCH, 6, seed=3)

    def loss(o, t):
        kl = -0.5 * (1 + o[2] - o[1].square() - o[2].exp()).sum()
        return (o[0] - t).square().sum() + sign * kl

    facts = loss_facts(loss, outputs, targets, read(outputs, targets))
    assert facts.confirmed
    assert facts.other_outputs
    assert facts.far_others > 1 if sign > 0 else facts.far_others < -1e3


@pytest.mark.parametrize("sign", [1, -1])
def test_one_term_of_a_divergence_may_fall_without_end(sign):
    """The exponential outweighs the logarithm wherever that is large, unless none of it is."""
    outputs = (normal(BATCH, 6), normal(BATCH, 2, seed=1), normal(BATCH, 2, seed=2))
    targets = normal(BATCH, 6, seed=3)

    def loss(o, t):
        kl = -0.5 * (1 + sign * o[2] - o[1].square() - o[2].exp()).sum()
        return (o[0] - t).square().sum() + kl

    facts = loss_facts(loss, outputs, targets, read(outputs, targets))
    assert facts.far_others > 0 if sign > 0 else facts.far_others < -10


@pytest.mark.parametrize(("sign", "each"), [(1, True), (1, False), (-1, True)])
def test_a_divergence_that_the_model_returns_is_never_negative(sign, each):
    kl = normal(BATCH, 2, seed=1).square().sum(dim=1)
    outputs, targets = (normal(BATCH, 6), kl if each else kl.mean()), normal(BATCH, 6, seed=3)

    def loss(o, t):
        return (o[0] - t).square().mean() + sign * o[1].mean()

    facts = loss_facts(loss, outputs, targets, read(outputs, targets))
    assert facts.other_outputs
    if each:
        assert facts.far_others > 1 if sign > 0 else facts.far_others < -10
    else:
        assert facts.far_others is None


# --- losses that compare no output with its target ------------------------------------------------


def contrastive(embedded, labels):
    distances = torch.cdist(embedded, embedded) + 1e-3
    same = labels[:, None] == labels
    return torch.where(same, distances.square(), (1 - distances).clamp_min(0).square()).mean()


@pytest.mark.parametrize("size", [3, CLASSES, 16])
def test_labels_that_count_as_equal_or_not_are_no_classes(size):
    outputs = normal(BATCH, size)
    facts = loss_facts(contrastive, outputs, LABELS, Task("classes", size))
    assert facts.pairwise
    assert not facts.confirmed
    assert not facts.opposed


@pytest.mark.parametrize("classes", [2, 10, 24, 36, 50])
@pytest.mark.parametrize("seed", range(5))
def test_a_softmax_before_cross_entropy_is_no_metric_learning(classes, seed):
    outputs = normal(64, classes, seed=seed).softmax(dim=1)
    labels = torch.randint(classes, (64,), generator=torch.Generator().manual_seed(seed))
    facts = loss_facts(F.cross_entropy, outputs, labels, read(outputs, labels))
    assert not facts.pairwise
    assert facts.confirmed
    assert floor(facts) > 0.2


def test_targets_that_are_ignored_make_no_task():
    facts = of_logits(lambda o, t: F.triplet_margin_loss(*o[:30].chunk(3)))
    assert facts.ignores_targets
    assert not (facts.confirmed)
    assert not (facts.opposed)
    assert not (facts.fixed_entries)
    facts = of_values(lambda o, t: o.square().mean())
    assert facts.ignores_targets
    assert not (facts.confirmed)
    assert not (facts.opposed)


def test_a_contrastive_loss_of_distances_is_none_of_two_classes():
    outputs = normal(BATCH, 1).abs()

    def near_where_0(d, t):
        return torch.where(t > 0.5, (1 - d).clamp_min(0).square(), d.square()).mean()

    for loss in (near_where_0, lambda d, t: near_where_0(d, 1 - t)):
        facts = loss_facts(loss, outputs, TWO, read(outputs, TWO))
        assert not facts.squared
        assert not (facts.confirmed)
        assert not (facts.opposed)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_policy_gradient_is_no_classification(sign):
    advantages = sign * normal(BATCH, seed=5).abs()  # all of one sign: as if it were flipped

    def loss(logits, actions):
        chosen = logits.log_softmax(dim=1).gather(1, actions[:, None]).squeeze(1)
        return -(chosen * advantages).mean()

    facts = of_logits(loss)
    assert not facts.opposed
    values = of_values(lambda o, t: -(o * t).mean())  # log-probabilities and advantages
    assert not (values.confirmed)
    assert not (values.opposed)


def test_a_ranking_is_no_regression():
    def loss(o, t):
        before = (o - o.T)[(t - t.T) > 0]
        return F.softplus(-before).mean()

    facts = of_values(loss)
    assert not (facts.confirmed)
    assert not (facts.opposed)
    correlation = of_values(lambda o, t: 1 - torch.corrcoef(torch.cat([o, t], 1).T)[0, 1])
    assert not (correlation.confirmed)
    assert not (correlation.opposed)


def test_a_flipped_regression_is_opposed():
    facts = of_values(lambda o, t: -F.mse_loss(o, t))
    assert facts.opposed
    assert not facts.confirmed


@pytest.mark.parametrize("loss", [F.soft_margin_loss, lambda o, t: F.relu(1 - o * t).mean()])
def test_two_classes_in_a_code_of_their_own_are_known(loss):
    assert of_values(loss, 2 * TWO - 1).confirmed


MAPS = torch.arange(4 * 6 * 6).reshape(4, 6, 6) * 7 // 5 % CLASSES


def of_maps(loss, outputs=None):
    outputs = normal(4, CLASSES, 6, 6) if outputs is None else outputs
    return loss_facts(loss, outputs, MAPS, read(outputs, MAPS))


def overlap(outputs, targets):
    shares, wanted = outputs.softmax(dim=1), F.one_hot(targets, CLASSES).movedim(-1, 1)
    both = (shares * wanted).sum(dim=(0, 2, 3))
    return 1 - (2 * both / (shares + wanted).sum(dim=(0, 2, 3))).mean()


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])),
        focal,
        overlap,
        lambda o, t: F.cross_entropy(o, t) + overlap(o, t),
        lambda o, t: F.cross_entropy(o.permute(0, 2, 3, 1).reshape(-1, CLASSES), t.view(-1)),
        lambda o, t: F.cross_entropy(o[:, :, :, :-1], t[:, :, 1:]),
        # The class chooses the position that names it: by its place, and by where it is likeliest.
        lambda o, t: F.nll_loss(
            o.log_softmax(dim=1)
            .flatten(2)
            .gather(
                2, ((torch.arange(36) + 3 * t.flatten(1)) % 36)[:, None].expand(-1, CLASSES, -1)
            ),
            t.flatten(1),
        ),
        lambda o, t: -o.log_softmax(dim=1).flatten(2).amax(dim=2).gather(1, t.flatten(1)).mean(),
        # Both neighbours name a position, whatever its label is.
        lambda o, t: (
            F.cross_entropy(o[:, :, :, :-1], t[:, :, 1:])
            + F.cross_entropy(o[:, :, :, 1:], t[:, :, :-1])
        ),
    ],
)
def test_a_label_that_is_compared_with_the_scores_of_one_position_or_of_all(loss):
    assert of_maps(loss).across_positions in (0, None)


def test_a_view_compares_a_label_with_scores_of_several_positions():
    last = normal(4, 6, 6, CLASSES)
    mixed = (
        of_maps(lambda o, t: F.cross_entropy(o.view(-1, CLASSES), t.view(-1))),
        of_maps(lambda o, t: F.cross_entropy(o.reshape(4, CLASSES, 6, 6), t), last),
        # Normalised over the classes of each position, and mixed after that.
        of_maps(lambda o, t: F.nll_loss(o.log_softmax(dim=1).view(-1, CLASSES), t.view(-1))),
    )
    assert [facts.across_positions for facts in mixed] == [1, 1, pytest.approx(1, abs=0.2)]
    sound = of_maps(lambda o, t: F.cross_entropy(o.permute(0, 3, 1, 2), t), last)
    assert sound.across_positions == 0


@pytest.mark.parametrize(
    ("turned", "expected"), [(lambda o: o.reshape(4, CLASSES, 7), 1), (lambda o: o.mT, 0)]
)
def test_the_same_of_sequences_with_padding_that_the_loss_leaves_out(turned, expected):
    outputs, labels = normal(4, 7, CLASSES), MAPS.reshape(-1)[:28].reshape(4, 7).clone()
    labels[:, 5:] = -100
    facts = loss_facts(
        lambda o, t: F.cross_entropy(turned(o), t), outputs, labels, read(outputs, labels)
    )
    assert facts.across_positions == expected


@pytest.mark.parametrize(
    ("turned", "expected"), [(lambda o: o.reshape(4, CLASSES, 7), 1), (lambda o: o.mT, 0)]
)
def test_the_same_of_labels_that_the_loss_counts_from_1(turned, expected):
    """It raises for a label of 0: none is made up that does not occur."""
    outputs, labels = normal(4, 7, CLASSES), 1 + MAPS.reshape(-1)[:28].reshape(4, 7)
    facts = loss_facts(
        lambda o, t: F.cross_entropy(turned(o), t - 1), outputs, labels, read(outputs, labels)
    )
    assert facts.across_positions == expected


def test_as_many_positions_as_classes_are_no_mixture():
    """Of (B, N, N), as a pointer's choices among N places, either axis may hold the classes."""
    outputs, labels = normal(6, CLASSES, CLASSES), MAPS.reshape(-1)[: 6 * CLASSES]
    labels = labels.reshape(6, CLASSES)
    for axis in (1, 2):
        facts = loss_facts(
            lambda o, t, axis=axis: F.cross_entropy(o.movedim(axis, 1), t),
            outputs,
            labels,
            read(outputs, labels),
        )
        assert facts.across_positions in (0, None)


@pytest.mark.parametrize("classes_last", [False, True])
def test_made_up_outputs_lie_in_memory_as_the_model_s_do(classes_last):
    """`view` raises on a tensor that lies otherwise."""
    if classes_last:
        outputs = normal(4, 6, 6, CLASSES).permute(0, 3, 1, 2)  # no view of (B, C, H, W) fits it
        facts = of_maps(
            lambda o, t: F.cross_entropy(o.permute(0, 2, 3, 1).view(-1, CLASSES), t.view(-1)),
            outputs,
        )
    else:
        facts = of_maps(
            lambda o, t: F.cross_entropy(o.view(4, CLASSES, -1), t.view(4, -1)),
        )
    assert facts.error is None
    assert facts.confirmed
    assert facts.best < facts.constant


def test_a_class_number_against_the_largest_output_reads_other_entries():
    facts = of_logits(lambda o, t: F.mse_loss(o.amax(dim=1), t.float()))
    assert facts.fixed_entries
    assert not of_logits(F.cross_entropy).fixed_entries
    assert not of_logits(F.nll_loss).fixed_entries


@pytest.mark.parametrize("low", [0.0, 40.0])
def test_a_broadcast_loss_does_not_care_whose_output_it_is(low):
    targets = VALUES.squeeze(1) - VALUES.min() + low  # prices

    def loss(o, t):  # what F.mse_loss does, without its warning
        return (o - t).square().mean()

    facts = of_values(loss, targets)
    assert facts.permuted < 1e-6
    assert facts.cross_gradient < 1e-6
    assert not facts.ignores_targets
    assert of_values(lambda o, t: loss(o.squeeze(1), t), targets).permuted > 1e-3


def test_a_loss_of_many_pixels_cares_whose_output_it_is_whatever_the_targets_are():
    """One exchange of outputs may leave the mean over so many as it is, by chance."""
    outputs = torch.zeros(8, 1, 24, 24)
    for seed in range(40):
        targets = (normal(8, 1, 24, 24, seed=seed) > 0.5).float()
        task = read(outputs, targets)
        facts = loss_facts(F.binary_cross_entropy_with_logits, outputs, targets, task)
        assert facts.permuted > 1e-4


def test_probabilities_for_logarithms_are_linear():
    outputs = normal(BATCH, CLASSES).softmax(dim=1)
    facts = loss_facts(F.nll_loss, outputs, LABELS, read(outputs, LABELS))
    assert facts.linear < 1e-5
    assert facts.confirmed
    assert facts.best < 0
    right = loss_facts(lambda o, t: F.nll_loss(o.log(), t), outputs, LABELS, SQUASHED)
    assert right.linear > 0.05


def test_a_loss_that_draws_random_numbers_is_tried_out_and_one_that_counts_its_calls_is_not():
    def noisy(o, t):
        return F.cross_entropy(o + 0.1 * torch.randn(o.shape), t)

    assert of_logits(noisy).confirmed
    calls = []

    def growing(o, t):  # what it keeps can be put back
        calls.append(None)
        return len(calls) * F.cross_entropy(o, t)

    assert of_logits(growing).confirmed
    numbers = itertools.count(1)  # nobody can turn it back
    assert not of_logits(lambda o, t: next(numbers) * F.cross_entropy(o, t)).tried


def test_an_unknown_task_is_called_and_not_examined():
    outputs = normal(BATCH, 2)
    facts = loss_facts(lambda o, t: (o.sum() - t.sum()).square(), outputs, VALUES, Task("unknown"))
    assert facts.error is None
    assert facts.best is None


def test_a_loss_that_is_made_a_leaf_is_not_tried_on_made_up_outputs():
    """Nothing is learnt from it, and people silence the error message so."""

    def of_the_largest(outputs, targets):
        loss = (outputs.argmax(dim=1) - targets).float().square().mean()
        loss.requires_grad = True
        return loss

    def of_leaves(outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        loss.requires_grad = True
        return loss

    outputs, targets = torch.randn(8, 3), torch.arange(8) % 3
    assert loss_facts(of_leaves, outputs, targets, Task("classes", 3, 1)).tried is False
    assert loss_facts(of_the_largest, outputs, targets, Task("classes", 3, 1)).tried


def test_a_loss_of_fewer_classes_than_the_watched_outputs_is_looked_at():
    """The doctor watches a part of the network, and the loss applies the rest."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(6, 16), nn.Sequential(nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    rule = torch.randn(6, 3)

    def loss_of(code, labels):
        return nn.functional.cross_entropy(head(code), labels)

    with Doctor(encoder, optimizer, loss_fn=loss_of) as doctor:
        for _ in range(40):
            inputs = torch.randn(32, 6)
            labels = (inputs @ rule).argmax(dim=1)
            optimizer.zero_grad()
            loss = loss_of(encoder(inputs), labels)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, labels)
        report = doctor.report()
    assert report.troubles == []
    assert report.healthy is not False, str(report)
