"""Claims 10 to 12: dropout and batch norm."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference, Share, Spread
from debugnn.analysis.claims.quantities import (
    FINAL_ACCURACY,
    TEST_LOSS_RISE,
    accuracy_after,
    early_accuracy,
)

_NONE, _DROPOUT = Arm("reg=none"), Arm("reg=dropout")
_BN, _BOTH = Arm("reg=bn"), Arm("reg=bn_dropout")
_OVERFITS = 0.1  # rise of the test loss above its lowest; it wavers by some hundredths
_RATES = ("0.0001", "0.001", "0.01")
_INITS = ("default", "kaiming", "xavier")


def _sensitivity(reg: str, lr: str, init: str) -> Arm:
    return Arm(f"init={init},optim.lr={lr},reg={reg}")


CLAIMS = (
    Claim(
        "10a",
        "Dropout avoids overfitting.",
        "dropout_batchnorm",
        5,
        (
            Share("dropout", _DROPOUT, TEST_LOSS_RISE, below=_OVERFITS),
            Share("no regulariser overfits", _NONE, TEST_LOSS_RISE, above=_OVERFITS),
        ),
    ),
    Claim(
        "10b",
        "Dropout converges more slowly.",
        "dropout_batchnorm",
        5,
        (Difference("none − dropout", _NONE, _DROPOUT, early_accuracy(), margin=0.5),),
    ),
    Claim(
        "11a",
        "Batch norm converges in fewer steps.",
        "dropout_batchnorm",
        5,
        (Difference("batch norm − none", _BN, _NONE, early_accuracy(), margin=0.5),),
    ),
    Claim(
        "11b",
        "Batch norm allows higher learning rates (0.01, ten times Adam's default).",
        "bn_sensitivity",
        5,
        tuple(
            Difference(f"batch norm − none, {init}", _sensitivity("bn", "0.01", init),
                       _sensitivity("none", "0.01", init), FINAL_ACCURACY, margin=5.0)
            for init in _INITS
        ),
    ),
    Claim(
        "11c",
        "Batch norm makes the training less sensitive to the initialisation.",
        "bn_sensitivity",
        5,
        tuple(
            Difference(
                f"accuracies of three initialisations, highest − lowest, none − batch norm, "
                f"rate {lr}",
                Spread(tuple(_sensitivity("none", lr, init) for init in _INITS)),
                Spread(tuple(_sensitivity("bn", lr, init) for init in _INITS)),
                FINAL_ACCURACY,
                margin=2.0,
            )
            for lr in _RATES
        ),
    ),
    Claim(
        "11d",
        "Batch norm can remove the need for dropout.",
        "dropout_batchnorm",
        5,
        (
            Share("batch norm does not overfit", _BN, TEST_LOSS_RISE, below=_OVERFITS),
            Difference("batch norm − dropout", _BN, _DROPOUT, accuracy_after(10), margin=0.5,
                       no_worse=True),
        ),
    ),
    Claim(
        "12a",
        "Batch norm and dropout together do not overfit.",
        "dropout_batchnorm",
        5,
        (Share("both", _BOTH, TEST_LOSS_RISE, below=_OVERFITS),),
    ),
    Claim(
        "12b",
        "Batch norm and dropout together are faster than dropout alone.",
        "dropout_batchnorm",
        5,
        (Difference("both − dropout", _BOTH, _DROPOUT, early_accuracy(), margin=0.5),),
    ),
)  # fmt: skip
