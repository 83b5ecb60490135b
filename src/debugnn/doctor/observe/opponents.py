"""What a generator and its discriminator ask for of the same samples, where each has a doctor."""

import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.copies import copied_model
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain, with_first
from debugnn.doctor.observe.samples import fingerprints
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded

_PASSES = 4  # latest passes whose outputs are looked for among a discriminator's inputs
_COMPARED = 12  # most comparisons
_USED = 0.5  # share of samples, at least, that both losses have a gradient at

_watched: "weakref.WeakSet[Opponents]" = weakref.WeakSet()


class Opponents:
    """Compares a generator's loss with the loss of the discriminator that is given its samples.

    A discriminator is a model with a doctor of its own whose batch holds outputs of this model,
    under targets below or above those of all other samples. Nothing is kept where this process has
    no other doctor.

    Args:
        training: what is watched.

    Attributes:
        evidence: the training's.
    """

    not_in_state = ("_made", "_batch")

    def __init__(self, training: WatchedTraining) -> None:
        self.evidence = training.evidence
        self._training = training
        self._made: deque[Tensor] = deque(maxlen=_PASSES)
        self._batch: tuple[Call, Tensor] | None = None
        _watched.add(self)

    def note_outputs(self, outputs: Any) -> None:
        """Note what the model makes in a pass, with gradients or without."""
        compares = len(self.evidence.loss.beside_discriminator) < _COMPARED
        if len(_watched) > 1 and compares and self._training.probe_due:
            tensor = first_tensor(outputs)
            if tensor is not None and is_plain(tensor) and tensor.dim() > 1 and len(tensor):
                self._made.append(tensor.detach())

    def note_batch(self, call: Call, targets: Any) -> None:
        """Note the batch of a step, which may hold what another model has made."""
        known = isinstance(targets, Tensor) and self._training.loss_fn is not None
        self._batch = (call, targets) if known and len(_watched) > 1 else None

    @guarded("the discriminator's loss beside the generator's")
    def compare(self, outputs: Any, targets: Any) -> None:
        """Compare the losses of the discriminators at the model's outputs with its own.

        Args:
            outputs: of the step's latest pass with gradients, without a graph.
            targets: the step's.
        """
        made = list(self._made)
        self._made.clear()
        if not made or self._training.loss_fn is None or first_tensor(outputs) is None:
            return
        for other in list(_watched):
            label = None if other is self else other.label_of(made)
            cosine = None if label is None else self._beside(other, label, outputs, targets)
            if cosine is not None:
                self.evidence.loss.beside_discriminator.append(cosine)

    def label_of(self, made: list[Tensor]) -> Tensor | None:
        """Return the target of those samples of the latest batch that were made by another model.

        None where there are none, or no others, or where the targets of both overlap.

        Args:
            made: outputs of the other model.
        """
        rows, targets = self._rows()
        if rows is None or targets is None:
            return None
        same = [tensor for tensor in made if tensor[0].numel() == rows[0].numel()]
        if not same:
            return None
        prints = torch.cat([fingerprints(tensor) for tensor in same])
        found = torch.isin(fingerprints(rows), prints).to(targets.device)
        if found.all() or not found.any():
            return None
        own, others = targets[found].double(), targets[~found].double()
        if own.max() < others.min() or own.min() > others.max():
            return targets[found].double().mean(dim=0).to(targets.dtype)
        return None

    def release(self) -> None:
        """Let go of batches, and be no other doctor's opponent."""
        _watched.discard(self)
        self._made.clear()
        self._batch = None

    def _rows(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the latest batch's inputs and targets where these are all that there is."""
        if self._batch is None or self._training.layout.axis != 0:
            return None, None
        call, targets = self._batch
        tensors = call.tensors()
        plain = len(tensors) == 1 and is_plain(tensors[0]) and tensors[0].dim() > 1
        if not plain or not targets.dim() or len(targets) != len(tensors[0]):
            return None, None
        return tensors[0], targets

    def _beside(
        self, other: "Opponents", label: Tensor, outputs: Any, targets: Any
    ) -> float | None:
        """Return the mean cosine of both losses' gradients with respect to a made sample."""
        own, there = self._training, other._training
        made, (rows, _) = first_tensor(outputs), other._rows()
        model = there.current_model()
        loss_fn, judged = own.loss_fn, there.loss_fn
        if model is None or made is None or rows is None or loss_fn is None or judged is None:
            return None
        with own.undisturbed(), there.undisturbed(), torch.enable_grad():
            leaf = made.clone().requires_grad_()
            torch.random.default_generator.manual_seed(0)  # one dropout for both
            loss = loss_fn(with_first(outputs, leaf), targets).float().mean()
            torch.random.default_generator.manual_seed(0)
            asked = label.expand(len(leaf), *label.shape)
            judge = copied_model(model)
            for module, original in zip(judge.modules(), there.model.modules(), strict=True):
                module.training = original.training
            scores = judge(leaf.reshape(-1, *rows.shape[1:]))
            value = judged(scores, asked).float().mean()
            pulls = [_gradient(each, leaf) for each in (loss, value)]
        if there.replica is not None:
            there.replica.rest()
        return _alignment(*pulls)


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor | None:
    if not loss.requires_grad:
        return None
    return torch.autograd.grad(loss, leaf, allow_unused=True)[0]


def _alignment(one: Tensor | None, other: Tensor | None) -> float | None:
    if one is None or other is None:
        return None
    pair = [gradient.flatten(1).double() for gradient in (one, other)]
    used = (pair[0].norm(dim=1) > 0) & (pair[1].norm(dim=1) > 0)
    if used.double().mean() < _USED or not all(torch.isfinite(each).all() for each in pair):
        return None
    return torch.cosine_similarity(pair[0][used], pair[1][used], dim=1, eps=1e-30).mean().item()
