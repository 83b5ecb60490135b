"""A flow's change of volume in its likelihood."""

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


def another_volume(evidence: Evidence) -> str | None:
    """A flow's likelihood with another number than its change of volume."""
    volume = evidence.loss.volume
    if volume is None or volume.exact or volume.gradient > -ALL_SAMPLES:
        return None
    if volume.towards_centre < NORMAL:
        return None
    return (
        "the loss is the likelihood of codes under a normal density and of a change of volume, but "
        "the number that the model returns for this is not the logarithm of the determinant of "
        "its map"
    )
