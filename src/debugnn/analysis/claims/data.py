"""Claims 13 and 14: first layers from another data set, and decisions about the data."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference
from debugnn.analysis.claims.quantities import FINAL_ACCURACY, early_accuracy

_SOUND = Arm("decision=none")


def _decided(name: str) -> Arm:
    return Arm(f"decision={name}")


CLAIMS = (
    Claim(
        "13",
        "The first layers of a pre-trained model speed the training up, even from another domain.",
        "transfer",
        5,
        (
            Difference("pre-trained − random", Arm("init=pretrained_cifar10", "init=pretrained"),
                       Arm("init=default"), early_accuracy(), margin=1.0),
        ),
    ),
    Claim(
        "14a",
        "Classes have to be balanced, and inputs on a consistent scale.",
        "data_decisions",
        5,
        (
            Difference("balanced − imbalanced", _SOUND, _decided("imbalanced"), FINAL_ACCURACY,
                       margin=0.5),
            Difference("standardised − raw pixels", _SOUND, _decided("unscaled"), FINAL_ACCURACY,
                       margin=0.5),
        ),
    ),
    Claim(
        "14b",
        "Augmentation helps a small data set.",
        "data_decisions",
        5,
        (
            Difference("augmented − not", _decided("small_augmented"), _decided("small"),
                       FINAL_ACCURACY, margin=0.5),
        ),
    ),
)  # fmt: skip
