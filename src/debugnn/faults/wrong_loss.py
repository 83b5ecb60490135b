"""A loss that does not fit the task or the model's output."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.faults.cases import case
from debugnn.faults.edits import Apply, change_data, sequential, use_loss
from debugnn.faults.nets import Flow, LineReader, Recurrent
from debugnn.faults.program import Setup, score
from debugnn.faults.sound.policies import log_likelihood
from debugnn.faults.sound.sequences import line_loss_of
from debugnn.faults.sound.survival import partial_likelihood

softmax = partial(nn.Softmax, dim=1)


def append(setup: Setup, make: Callable[[], nn.Module]) -> None:
    """A module after the output layer that the loss does not expect."""
    setup.model = nn.Sequential(*sequential(setup), make())


def overlap_of_scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """A Dice loss that is given scores, without a sigmoid."""
    both = (outputs * targets).sum()
    return 1 - (2 * both + 1) / (outputs.sum() + targets.sum() + 1)


def softmax_of_labels(setup: Setup) -> None:
    """A softmax over labels of which a sample may have several, and a binary loss of each."""
    append(setup, partial(nn.Softmax, dim=1))
    setup.loss_fn = F.binary_cross_entropy


def softmax_of_one_output(setup: Setup, last: Callable[[], nn.Module]) -> None:
    """A softmax over a single output, which is 1 for every input."""
    append(setup, last)
    setup.loss_fn = nn.BCELoss()


def exponential() -> nn.Module:
    """Return an exponential as a module."""
    return Apply(torch.exp)


def mse_on_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error between probabilities and one-hot labels."""
    return F.mse_loss(logits.softmax(dim=1), F.one_hot(labels, logits.shape[1]).float())


def mse_on_argmax(logits: Tensor, labels: Tensor) -> Tensor:
    """The class number as a regression target of the largest logit."""
    return F.mse_loss(logits.amax(dim=1), labels.float())


def softmax_over_batch(logits: Tensor, labels: Tensor) -> Tensor:
    """A log-softmax over the samples."""
    return F.nll_loss(logits.log_softmax(dim=0), labels)


def flat_targets(setup: Setup) -> None:
    """(B, 1) outputs against (B,) targets, which broadcast to (B, B)."""
    change_data(setup, lambda x, y: (x, y.flatten()))


def _of_pixels_by_view(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.view(-1, outputs.shape[1]), labels.view(-1))


def viewed_without_permuting(setup: Setup) -> None:
    """Scores (B, classes, H, W) become (-1, classes) by a view: a row is of several pixels."""
    setup.loss_fn = _of_pixels_by_view


def _of_pixels_by_view_after_softmax(outputs: Tensor, labels: Tensor) -> Tensor:
    logarithms = outputs.log_softmax(dim=1)
    return F.nll_loss(logarithms.view(-1, outputs.shape[1]), labels.view(-1))


def normalised_and_viewed(setup: Setup) -> None:
    """The same behind a softmax over the classes of each pixel, which is right."""
    setup.loss_fn = _of_pixels_by_view_after_softmax


def _classes_second_by_reshape(outputs: Tensor, labels: Tensor) -> Tensor:
    batch, height, width, classes = outputs.shape
    return F.cross_entropy(outputs.reshape(batch, classes, height, width), labels)


def _classes_last(scores: Tensor) -> Tensor:
    return scores.permute(0, 2, 3, 1).contiguous()


def reshaped_without_permuting(setup: Setup) -> None:
    """Scores (B, H, W, classes) become (B, classes, H, W) by a reshape."""
    append(setup, lambda: Apply(_classes_last))
    setup.loss_fn = _classes_second_by_reshape
    setup.score = lambda outputs, labels: score(outputs.permute(0, 3, 1, 2), labels)


def _rarer_if_rewarded(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    actions, advantages = targets
    return (log_likelihood(outputs, actions) * advantages).mean()


def rewards_avoided(setup: Setup) -> None:
    """A policy gradient without its minus: what is rewarded becomes rarer."""
    setup.loss_fn = _rarer_if_rewarded


def minus_forgotten(setup: Setup) -> None:
    """The same in a loop that computes its loss itself, beside the error of a value."""
    setup.loss_sign = -1.0


def flipped_sign(setup: Setup) -> None:
    """The loss is maximised."""
    setup.loss_sign = -1.0


def unsigned_labels(setup: Setup) -> None:
    """SoftMarginLoss, which wants labels -1 and 1, on labels 0 and 1."""
    setup.loss_fn = nn.SoftMarginLoss()


def ignored_class(setup: Setup, label: int) -> None:
    """`ignore_index`, which is for padding, leaves a real class out of the loss."""
    setup.loss_fn = nn.CrossEntropyLoss(ignore_index=label)


def _square_of_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).mean().square()


def squared_mean_error(setup: Setup) -> None:
    """The square of the mean error, where the mean of the squared errors was meant."""
    setup.loss_fn = _square_of_mean


def _mean_of_differences(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).mean()


def signed_error(setup: Setup) -> None:
    """The mean of the errors without their absolute value or square."""
    setup.loss_fn = _mean_of_differences


def nll_of_probabilities(setup: Setup) -> None:
    """A softmax before nll_loss, which wants logarithms."""
    append(setup, softmax)
    setup.loss_fn = nn.NLLLoss()


def nll_of_squashed(setup: Setup) -> None:
    """A sigmoid before nll_loss, which wants the logarithms of a softmax."""
    append(setup, nn.Sigmoid)
    setup.loss_fn = F.nll_loss


def _kl_of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = F.one_hot(targets, outputs.shape[1]) * 0.9 + 0.1 / outputs.shape[1]
    return F.kl_div(outputs, wanted, reduction="batchmean")


def divergence_of_probabilities(setup: Setup) -> None:
    """A softmax before kl_div, which wants logarithms; the targets are smoothed."""
    append(setup, softmax)
    setup.loss_fn = _kl_of_probabilities


def scores_as_logarithms(setup: Setup) -> None:
    """ctc_loss is given scores, where it wants logarithms of probabilities."""
    setup.loss_fn = line_loss_of


def softplus_of_logarithms(setup: Setup) -> None:
    """The network gives rates, by a softplus, to a loss that takes the logarithms of rates."""
    append(setup, nn.Softplus)


def _cosine_of_0_and_1(embedded: Tensor, different: Tensor) -> Tensor:
    left, right = embedded.unbind(dim=1)
    return F.cosine_embedding_loss(left, right, 1 - different, margin=0.3)


def pairs_labelled_0(setup: Setup) -> None:
    """Pairs are labelled 1 and 0, where cosine_embedding_loss wants 1 and -1."""
    setup.loss_fn = _cosine_of_0_and_1


def _hinge_of_0_and_1(embedded: Tensor, different: Tensor) -> Tensor:
    distance = (embedded[:, 0] - embedded[:, 1]).square().sum(dim=1)
    return F.hinge_embedding_loss(distance, (different == 0).float())


def distances_labelled_0(setup: Setup) -> None:
    """Pairs are labelled 1 and 0, where hinge_embedding_loss wants 1 and -1."""
    setup.loss_fn = _hinge_of_0_and_1


def first_symbol_is_blank(setup: Setup) -> None:
    """Symbols are numbered from 0, which is the blank of ctc_loss."""
    change_data(setup, lambda x, y: (x, y - 1))
    setup.model = LineReader(8, 64, 10)


def padding_is_spelt(setup: Setup) -> None:
    """Lines of one or two symbols are filled up with the blank, and target_lengths counts it."""

    def shortened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.clone(), y.clone()
        x[::2, :, 20:], y[::2, 2] = x[::2, :, -1:], 0
        x[::4, :, 10:20], y[::4, 1] = x[::4, :, -1:], 0
        return x, y

    change_data(setup, shortened)


def _divergence_of_scores(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.kl_div(outputs / 4, (targets / 4).softmax(dim=1), reduction="batchmean")


def divergence_of_scores(setup: Setup) -> None:
    """kl_div is given a student's scores, where it wants logarithms of probabilities."""
    setup.loss_fn = _divergence_of_scores


def _rewarded_divergence(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:
    rebuilt, mean, log_variance = outputs
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return 0.5 * (rebuilt - targets).square().sum() - kl


def rewarded_divergence(setup: Setup) -> None:
    """The divergence's sign in a variational autoencoder's bound is flipped."""
    setup.loss_fn = _rewarded_divergence


def _shrinking(outputs: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    codes, volume = outputs
    return (0.5 * codes.square().sum(dim=1) + volume).mean()


def volume_subtracted(setup: Setup) -> None:
    """A flow's change of volume is subtracted from the likelihood."""
    setup.loss_fn = _shrinking


def _codes_alone(outputs: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    return 0.5 * outputs[0].square().sum(dim=1).mean()


def volume_left_out(setup: Setup) -> None:
    """A flow's likelihood is that of its codes alone."""
    setup.loss_fn = _codes_alone


def volume_of_last_layer(setup: Setup) -> None:
    """Each layer's change of volume takes the place of those before it."""
    setup.model = Flow(6, 32, last_alone=True)


def advantages_in_a_column(setup: Setup) -> None:
    """Advantages (B, 1) beside likelihoods (B,): each action is weighed with all advantages."""
    setup.change_batch = lambda actions, advantages: (actions, advantages[:, None])


def bare_state(setup: Setup, cell: Callable[..., nn.RNNBase]) -> None:
    """The outputs are the state of a recurrent layer, and no linear layer is behind it."""
    rows, targets = setup.train
    model = Recurrent(cell, rows.shape[2], targets.shape[1], targets.shape[1])
    model.head = nn.Identity()  # type: ignore[assignment]
    setup.model = model


def _other_way_round(embedded: Tensor, _: Tensor) -> Tensor:
    anchor, own, other = embedded.unbind(dim=1)
    return F.triplet_margin_loss(anchor, other, own)


def positive_and_negative_exchanged(setup: Setup) -> None:
    """The triplet loss is given the sample of another class in the place of that of its own."""
    setup.loss_fn = _other_way_round


def _with_those_who_left(outputs: Tensor, targets: Tensor) -> Tensor:
    times = targets[:, 0]
    return partial_likelihood(outputs, targets, times <= times[:, None])


def risk_sets_reversed(setup: Setup) -> None:
    """Cox's likelihood compares an event with the samples whose time is shorter."""
    setup.loss_fn = _with_those_who_left


TUNING = [
    case("triplet_net", positive_and_negative_exchanged),
    case("survival", risk_sets_reversed),
    case("cnn_of_textures", viewed_without_permuting),
    case("cnn_of_textures", normalised_and_viewed),
    case("steering", rewards_avoided),
    case("adverts", minus_forgotten),
    case("rare_counts", append, make=exponential),
    case("mlp_sgd", append, make=softmax),
    case("cancer_one_logit", append, make=nn.Sigmoid),
    case("friedman", append, make=nn.ReLU),
    case("cnn", append, make=softmax),
    case("mlp", append, make=partial(nn.Softmax, dim=0)),
    case("friedman", append, make=nn.Sigmoid),
    # That no gradient reaches a parameter is a correct diagnosis too.
    case("circles_one_logit", softmax_of_one_output, ("frozen_parameters",), last=softmax),
    case(
        "cancer_one_logit",
        softmax_of_one_output,
        ("frozen_parameters",),
        last=partial(nn.Softmax, dim=-1),
    ),
    case("mlp", use_loss, loss_fn=softmax_over_batch),
    case("mlp", use_loss, loss_fn=F.nll_loss),
    # The softmax over one logit is 1, so that the loss is 0 for every output.
    case("cancer_one_logit", use_loss, loss_fn=F.cross_entropy),
    case("mlp", use_loss, loss_fn=mse_on_argmax),
    case("mlp_sgd", use_loss, loss_fn=mse_on_softmax),
    case("friedman", flat_targets),
    case("diabetes", flat_targets),
    case("friedman_prices", flat_targets),
    case("mlp", nll_of_probabilities),
    case("cnn", nll_of_probabilities),
    case("forty_classes", append, make=softmax),
    case("flow", volume_subtracted),
    case("flow", volume_of_last_layer),
    case("flow", volume_left_out),
    case("steering", advantages_in_a_column),
    case("gru_vibrations", bare_state, cell=nn.LSTM),
    case("written_lines", scores_as_logarithms),
    case("variational_autoencoder", rewarded_divergence, ("non_finite",)),
    # That the labels have the wrong code is a correct diagnosis too.
    case("cosine_pairs", pairs_labelled_0, ("bad_labels",)),
    case("rare_counts", softplus_of_logarithms),
    case("written_lines", first_symbol_is_blank, ("bad_labels",)),
    case("student", divergence_of_scores),
    case("cnn_of_pixels", use_loss, loss_fn=overlap_of_scores),
    case("properties", use_loss, loss_fn=F.cross_entropy),
    case("properties", softmax_of_labels),
]

HELD_OUT = [
    case("cnn_of_textures", reshaped_without_permuting),
    case("cnn", flipped_sign),
    case("friedman", flipped_sign),
    # That the labels have the wrong code is a correct diagnosis too.
    case("cancer_one_logit", unsigned_labels, ("bad_labels",)),
    case("circles_one_logit", unsigned_labels, ("bad_labels",)),
    case("few_informative", ignored_class, label=0),
    case("friedman_sgd", squared_mean_error),
    case("sine", squared_mean_error),
    case("diabetes", signed_error),
    case("mlp_momentum", nll_of_squashed),
    case("few_informative", divergence_of_probabilities),
    case("hinge_pairs", distances_labelled_0, ("bad_labels",)),
    case("written_lines", padding_is_spelt, ("bad_labels",)),
]
