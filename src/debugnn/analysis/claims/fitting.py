"""Claim 1: a sound model overfits a few samples."""

from debugnn.analysis.claims.claim import Arm, Claim, Share
from debugnn.analysis.claims.quantities import fitted_loss

_STATEMENT = "A sound model overfits 50 to 60 samples"
_ZERO = 0.05  # counts as "to zero": a hundredth of the loss of 11 wrong samples in 64

_SOUND = Arm("data.labels=paired,loss=cross_entropy")
_PERMUTED = Arm("data.labels=permuted,loss=cross_entropy")

CLAIMS = (
    Claim(
        "1a",
        f"{_STATEMENT}, loss to zero.",
        "overfit_small",
        20,
        (Share("sound net", _SOUND, fitted_loss(60), below=_ZERO),),
    ),
    Claim(
        "1b",
        f"{_STATEMENT} in 2 to 5 epochs.",
        "overfit_small",
        20,
        (Share("sound net", _SOUND, fitted_loss(6), below=_ZERO),),
        article="loss 0.628 and accuracy 92 % after 5 steps",
        remark="An epoch of one batch is one step; five steps are judged by the loss of the sixth. "
        "The article's own notebook stops at a loss of 0.63 and calls it overfitted.",
    ),
    Claim(
        "1c",
        "A model with a wrong loss (a sigmoid at the output of a classifier) never overfits.",
        "overfit_small",
        20,
        tuple(
            Share(loss, Arm(f"data.labels=paired,loss={loss}"), fitted_loss(60), above=_ZERO)
            for loss in ("sigmoid_output", "softmax_twice", "bce_index")
        ),
    ),
    Claim(
        "1d",
        "If it does not overfit them, the architecture or the loss is wrong.",
        "overfit_small",
        20,
        (
            Share(
                "sound net, labels permuted at each step", _PERMUTED, fitted_loss(60), below=_ZERO
            ),
        ),
        remark="A third reason is refuted by this: labels that do not belong to their samples.",
    ),
)
