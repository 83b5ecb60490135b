"""Claims 5, 7 and 8: vanishing, exploding and NaN gradients."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference, Share
from debugnn.analysis.claims.quantities import (
    FINAL_ACCURACY,
    FINAL_TEST_LOSS,
    FIRST_GRADIENT,
    GRADIENT_GROWTH,
    GRADIENT_RATIO,
    LOSS_LEFT,
    LOSS_RISES,
    NONFINITE_EPOCHS,
    accuracy_after,
)

_SIGMOID, _RELU = Arm("model=sigmoid_net"), Arm("model=relu_net")
_AT_CHANCE = 20.0  # %; chance among ten classes is about 10
_HUGE, _DEFAULT = Arm("init=const100"), Arm("init=default")
_NOTEBOOK = "data=regression_notebook"
_MENDED = "data=regression"
_VARIANCE = 1e4  # about that of the targets, so the loss of a net that says their mean

CLAIMS = (
    Claim(
        "5a",
        "In a sigmoid net earlier layers get smaller gradients; ReLU solves it.",
        "vanishing_gradient",
        20,
        (
            Share("sigmoid net", _SIGMOID, GRADIENT_RATIO, below=0.01),
            Share("ReLU net", _RELU, GRADIENT_RATIO, above=0.1),
            Difference("ReLU net / sigmoid net", _RELU, _SIGMOID, GRADIENT_RATIO, margin=10.0,
                       ratio=True),
        ),
    ),
    Claim(
        "5b",
        "A sigmoid net does not learn (10 epochs).",
        "vanishing_gradient",
        20,
        (Share("sigmoid net", _SIGMOID, accuracy_after(10), below=_AT_CHANCE),),
        article="Vanishing_Grad_1 ends at 9.7 %",
        remark="Both of the article's runs are one program. Which of them one sees is decided by "
        "the seed.",
    ),
    Claim(
        "5c",
        "A sigmoid net takes very long to converge (over 80 % within 40 epochs).",
        "vanishing_gradient",
        20,
        (Share("sigmoid net", _SIGMOID, accuracy_after(40), above=80.0),),
    ),
    Claim(
        "5d",
        "ReLU solves it: the same net with ReLUs learns within 10 epochs.",
        "vanishing_gradient",
        20,
        (Share("ReLU net", _RELU, accuracy_after(10), above=95.0),),
    ),
    Claim(
        "7a",
        "Too large weights explode the gradients, exponentially toward the input.",
        "exploding_gradient",
        20,
        (
            Difference("weights 100 / default weights", _HUGE, _DEFAULT, FIRST_GRADIENT,
                       margin=1000.0, ratio=True),
            Share("weights 100", _HUGE, GRADIENT_GROWTH, above=2.0),
        ),
        article="gradients of about 1e7 at conv1 and 1e5 at conv2",
    ),
    Claim(
        "7b",
        "With exploding gradients the loss oscillates, and the net does not learn.",
        "exploding_gradient",
        20,
        (
            Share("weights 100, oscillates", _HUGE, LOSS_RISES, above=1.5),
            Share("weights 100, does not learn", _HUGE, FINAL_ACCURACY, below=_AT_CHANCE),
        ),
    ),
    Claim(
        "7c",
        "With exploding gradients the loss becomes NaN.",
        "nan_loss",
        20,
        (Share("not clipped", Arm(f"clip=off,{_NOTEBOOK}"), NONFINITE_EPOCHS, above=0.5),),
    ),
    Claim(
        "8a",
        "Gradient clipping (norm 4.0) and gradient scaling solve it.",
        "nan_loss",
        20,
        tuple(
            Share(label, Arm(f"clip={clip},{_NOTEBOOK}"), LOSS_LEFT, below=0.01)
            for label, clip in (("clipped", "4.0"), ("scaled", "scaling"))
        ),
    ),
    Claim(
        "8b",
        "The notebook's test loss shows how well the clipped net fits.",
        "nan_loss",
        20,
        (
            Share("test loss of the notebook", Arm(f"clip=4.0,{_NOTEBOOK}"), FINAL_TEST_LOSS,
                  below=_VARIANCE / 100),
            Share("test loss against its own targets", Arm(f"clip=4.0,{_MENDED}"),
                  FINAL_TEST_LOSS, below=_VARIANCE / 100),
        ),
        remark="The notebook compares the test inputs with the training targets. Against its own "
        "targets the net's test loss says what the article wants to say.",
    ),
)  # fmt: skip
