"""Claim 6: dying ReLUs and their remedies."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference
from debugnn.analysis.claims.quantities import DEAD_UNITS, FINAL_ACCURACY


def _arm(model: str = "relu_net", init: str = "default", lr: str = "0.001") -> Arm:
    return Arm(f"init={init},model={model},optim.lr={lr}")


_REMEDIES = {"leaky ReLU": "leaky_relu", "ReLU6": "relu6", "maxout": "maxout"}

CLAIMS = (
    Claim(
        "6a",
        "ReLUs die when they are fed values below zero.",
        "dying_relu",
        5,
        (
            Difference("biases of −1", _arm(init="bias_negative"), _arm(), DEAD_UNITS, margin=5.0),
            Difference("a rate of 0.03", _arm(lr="0.03"), _arm(), DEAD_UNITS, margin=5.0),
        ),
    ),
    Claim(
        "6b",
        "A small positive bias, leaky ReLU, ReLU6 and maxout mend it, with a rate of 0.03.",
        "dying_relu",
        5,
        (
            Difference("small positive bias", _arm(init="bias_positive", lr="0.03"),
                       _arm(lr="0.03"), FINAL_ACCURACY, margin=1.0),
            *(Difference(label, _arm(model, lr="0.03"), _arm(lr="0.03"), FINAL_ACCURACY, margin=1.0)
              for label, model in _REMEDIES.items()),
        ),
    ),
    Claim(
        "6c",
        "Leaky ReLU, ReLU6 and maxout mend it, with biases that keep ReLUs below zero.",
        "dying_relu",
        5,
        tuple(
            Difference(label, _arm(model, init="bias_negative"), _arm(init="bias_negative"),
                       FINAL_ACCURACY, margin=1.0)
            for label, model in _REMEDIES.items()
        ),
    ),
)  # fmt: skip
