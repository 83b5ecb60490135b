"""A flow's change of volume in its likelihood."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Sign
from debugnn.doctor.evidence import Evidence

# Share of the samples, as a mean of signs, at which the loss rises with the volume of a flow, and
# cosine from which on its codes are drawn to one point: 1 of a normal density, about 0.9 of others.
ALL_SAMPLES = 0.99
DRAWN = 0.5
# The same, from which the codes' density is the normal one.
NORMAL = 0.99


def volume_punished(evidence: Evidence) -> str | None:
    """A flow's change of volume is subtracted from the likelihood, and not added."""
    volume = evidence.loss.volume
    if volume is None or volume.towards_centre < DRAWN or not volume.exact:
        return None
    if volume.gradient == 0:
        if volume.towards_centre < NORMAL:
            return None
        return (
            "the loss draws the model's codes to one point, and does not read the logarithm of the "
            "determinant that the model returns: it is lowest where all inputs shrink to that point"
        )
    if volume.gradient < ALL_SAMPLES:
        return None
    return (
        "the loss rises with the logarithm of the determinant of the model's map, and with the "
        "size of its codes: it is lowest where all inputs shrink to one point"
    )


def another_volume(evidence: Evidence) -> Iterator[Sign]:
    """A likelihood of codes and of a number that is not the map's change of volume.

    It may be meant: the scales of an autoencoder's errors, an estimate of a trace, or a part of the
    change that has no parameters and is left out.
    """
    volume = evidence.loss.volume
    if volume is None or volume.exact or volume.gradient > -ALL_SAMPLES:
        return
    if volume.towards_centre < NORMAL:
        return
    yield Sign(
        "note",
        "the loss is the likelihood of codes under a normal density and of a number for each "
        "sample, and if that is to be a flow's change of volume: it is not the logarithm of the "
        "determinant of the model's map",
        "add up the logarithms of all layers' determinants, each summed over the features of a "
        "sample",
        evidence={"towards_centre": volume.towards_centre},
        override=None,
        confidence="certain",
    )
