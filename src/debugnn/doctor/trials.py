"""The trials: the one change under which each short training of a copy runs.

A trial trains a copy of the model from its initial weights, on the training's first batches. What
it does differently is written down here as plain values; `copy_training` carries it out. Needs no
torch, so that causes can name the trials that would tell them from their rivals.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One change of a training.

    Attributes:
        name: its key in `Evidence.trials`.
        lr: factor on every group's learning rate.
        regularised: False turns weight decay and dropout off.
        reinitialised: the weights are drawn anew by each module's own initialisation.
        small_tables: the initial weights of embeddings are a tenth of what they were.
        standardised_inputs: the inputs are brought to mean 0 and standard deviation 1.
        standardised_targets: the same for the targets.
        exchanged_labels: each of two labels is the other one.
        scaled_layers: layers that take data divide each feature of them by its root mean square.
        averaged_loss: the loss is divided by the number of samples in a batch.
        divided: gradients that are added up over several passes are divided by their number.
        unfrozen: parameters that were frozen are trained too.
        rectified: hidden sigmoids and tanhs are ReLUs, and weights are drawn by Kaiming's rule.
        unit_signals: weights are scaled so that each layer's outputs have an RMS of 1; no biases.
        clipped: the gradient is clipped at this norm; None leaves it as it is.
        main_alone: the loss has no gradient by other outputs than the one that is compared with the
            targets.
        resumed: the copy goes on from the trained weights, at the highest rate that there was.
        padding: whether the loss counts the padding at the ends of sequences; losses of other
            batches are measured without it either way. None looks at no padding.
    """

    name: str
    lr: float = 1.0
    regularised: bool = True
    reinitialised: bool = False
    small_tables: bool = False
    standardised_inputs: bool = False
    standardised_targets: bool = False
    exchanged_labels: bool = False
    scaled_layers: bool = False
    averaged_loss: bool = False
    divided: bool = False
    unfrozen: bool = False
    rectified: bool = False
    unit_signals: bool = False
    clipped: float | None = None
    main_alone: bool = False
    resumed: bool = False
    padding: bool | None = None


UNCHANGED = Trial("unchanged")
RESUMED = Trial("goes on", resumed=True)
RESUMED_FASTER = Trial("goes on at ten times the rate", lr=10.0, resumed=True)
UNREGULARISED_ON = Trial("goes on unregularised", resumed=True, regularised=False)
PADDED_ON = Trial("goes on with padding", resumed=True, padding=True)
UNPADDED_ON = Trial("goes on without padding", resumed=True, padding=False)
STANDARDISED_INPUTS = Trial("standardised inputs", standardised_inputs=True)
SCALED_LAYERS = Trial("data scaled where layers take them", scaled_layers=True)
AVERAGED_LOSS = Trial("averaged loss", averaged_loss=True)
DIVIDED = Trial("accumulation divided", divided=True)
REINITIALISED = Trial("reinitialised", reinitialised=True)
SMALL_TABLES = Trial("small embeddings", small_tables=True)
UNREGULARISED = Trial("unregularised", regularised=False)
MAIN_ALONE = Trial("main output alone", main_alone=True)
EXCHANGED_LABELS = Trial("labels exchanged", exchanged_labels=True)
STANDARDISED_TARGETS = Trial("standardised targets", standardised_targets=True)
UNFROZEN = Trial("unfrozen", unfrozen=True)
RECTIFIED = Trial("rectified", rectified=True)
UNIT_SIGNALS = Trial("unit signals", unit_signals=True)
CLIPPED = Trial("clipped gradient", clipped=1.0)
LOWER_RATES = (Trial("rate / 10", lr=0.1), Trial("rate / 100", lr=0.01))
HIGHER_RATES = (
    Trial("rate * 10", lr=10.0),
    Trial("rate * 100", lr=100.0),
    Trial("rate * 1000", lr=1000.0),
    Trial("rate * 10000", lr=10000.0),
)

# In the order in which they run while the budget lasts: changes of the data, the loss and the
# weights come before changes of the rate, which may hide them. The two about padding, which
# take nearly all of the usual budget if they are confirmed, go on from weights as they are.
TRIALS = (
    PADDED_ON,
    UNPADDED_ON,
    UNCHANGED,
    RESUMED,
    RESUMED_FASTER,
    UNREGULARISED_ON,
    STANDARDISED_INPUTS,
    SCALED_LAYERS,
    AVERAGED_LOSS,
    DIVIDED,
    REINITIALISED,
    SMALL_TABLES,
    UNREGULARISED,
    MAIN_ALONE,
    STANDARDISED_TARGETS,
    EXCHANGED_LABELS,
    UNFROZEN,
    RECTIFIED,
    UNIT_SIGNALS,
    CLIPPED,
    *LOWER_RATES,
    *HIGHER_RATES,
)
