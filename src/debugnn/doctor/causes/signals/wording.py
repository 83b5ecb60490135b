"""Words for findings: names in a phrase, modules, overrides."""

from collections.abc import Iterable

from debugnn.doctor.evidence import Evidence


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return names in one phrase: the first ones, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def module_of(parameter: str) -> str | None:
    """Return the name of the module that holds a parameter, None for the model itself."""
    return parameter.rpartition(".")[0] or None


# Axes of a batch of images: (B, C, H, W).
IMAGE_AXES = 4


def relu_override(evidence: Evidence) -> str:
    """Return the override that puts ReLUs in: the article's net is for images alone."""
    images = evidence.data.axes == IMAGE_AXES
    return "model=relu_net" if images else "model.activation._target_=torch.nn.ReLU"
