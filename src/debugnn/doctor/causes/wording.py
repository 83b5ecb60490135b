"""What several rules say in the same words."""

from debugnn.doctor.causes.signals import failing
from debugnn.doctor.evidence import Evidence


def severity(evidence: Evidence) -> str:
    return "error" if failing(evidence) else "warning"


def fork_numbers(evidence: Evidence, *names: str) -> dict[str, float]:
    """Relative losses after the forks: 1 is the best constant predictor."""
    wanted = ("same", *names)
    return {f"fork_{n}": evidence.forks[n].end for n in wanted if n in evidence.forks}


def listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def relu_override(evidence: Evidence) -> str:
    """The override that puts ReLUs in: the article's net is for images alone."""
    images = evidence.data.axes == 4
    return "model=relu_net" if images else "model.activation._target_=torch.nn.ReLU"
