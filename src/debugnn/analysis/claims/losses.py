"""Claims 2 and 3: wrong losses, and the loss before the first update."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference, Share
from debugnn.analysis.claims.quantities import FINAL_ACCURACY, INITIAL_LOSS_ERROR, early_accuracy

_LEARNT = 20.0  # %; chance among ten classes is about 10
_NEAR = 0.1  # largest relative distance from −log(1/C): 2.07 to 2.53 for ten classes

CLAIMS = (
    Claim(
        "2a",
        "A wrong loss, such as a binary loss for many classes, does not improve the accuracy.",
        "wrong_loss",
        5,
        (
            Share("binary loss on class indices", Arm("loss=bce_index"), FINAL_ACCURACY,
                  below=_LEARNT),
            Share("binary loss on one-hot targets", Arm("loss=bce"), FINAL_ACCURACY,
                  below=_LEARNT),
        ),
        remark="It depends on what the binary loss is given: class indices teach nothing, one-hot "
        "targets train a sound classifier.",
    ),
    Claim(
        "2b",
        "A loss that does not fit the model's output makes the training slower.",
        "wrong_loss",
        5,
        tuple(
            Difference(f"cross-entropy − {loss}", Arm("loss=cross_entropy"), Arm(f"loss={loss}"),
                       early_accuracy(), margin=1.0)
            for loss in ("mse", "softmax_twice", "sigmoid_output")
        ),
    ),
    Claim(
        "3",
        "At a random initialisation the cross-entropy is about −log(1/number of classes).",
        "initial_loss",
        5,
        tuple(
            Share(f"{model}, {init}", Arm(f"init={init},model={model}"), INITIAL_LOSS_ERROR,
                  below=_NEAR)
            for model in ("sigmoid_net", "relu_net", "cnn")
            for init in ("default", "kaiming", "xavier", "lecun", "orthogonal")
        ),
        remark="It depends on the initialisation and on the activation.",
    ),
)  # fmt: skip
