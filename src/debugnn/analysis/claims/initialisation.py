"""Claim 9: an initialisation for each activation, and what it is good for."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference, Share
from debugnn.analysis.claims.quantities import FINAL_ACCURACY, GRADIENT_DECADES, accuracy_after

_RULES = ("kaiming", "xavier", "lecun")
_RECOMMENDED = {"ReLU": "kaiming", "LeakyReLU": "kaiming", "SELU": "lecun", "ELU": "lecun",
                "Tanh": "xavier"}  # fmt: skip


def _deep(activation: str, init: str) -> Arm:
    return Arm(f"init={init},model.activation={activation}")


_INITS = ("kaiming_conv", "kaiming", "xavier", "lecun")
_DEFAULT = Arm("init=default")

CLAIMS = (
    Claim(
        "9a",
        "He's initialisation suits ReLU and leaky ReLU, LeCun's SELU and ELU, Glorot's tanh: a "
        "deep net trains best with it.",
        "init_activation",
        5,
        tuple(
            Difference(f"{activation}: {best} − {other}", _deep(activation, best),
                       _deep(activation, other), FINAL_ACCURACY, margin=1.0, no_worse=True)
            for activation, best in _RECOMMENDED.items()
            for other in _RULES
            if other != best
        ),
    ),
    Claim(
        "9b",
        "A good initialisation prevents vanishing and exploding gradients (20 layers).",
        "init_activation",
        5,
        tuple(
            Share(f"{activation}, {best}", _deep(activation, best), GRADIENT_DECADES, below=1.0)
            for activation, best in _RECOMMENDED.items()
        ),
    ),
    Claim(
        "9c",
        "A good initialisation speeds the training up (the first epoch on CIFAR-10).",
        "weight_init",
        5,
        tuple(
            Difference(f"{init} − default", Arm(f"init={init}"), _DEFAULT,
                       accuracy_after(1, "train"), margin=1.0)
            for init in _INITS
        ),
    ),
    Claim(
        "9d",
        "A good initialisation ends at a better accuracy (10 epochs on CIFAR-10).",
        "weight_init",
        5,
        tuple(
            Difference(f"{init} − default", Arm(f"init={init}"), _DEFAULT, accuracy_after(10),
                       margin=0.5)
            for init in _INITS
        ),
    ),
)  # fmt: skip
