"""What functions of torch.nn.functional are given as parts of a training's loss.

Some of them expect more of their arguments than their shapes: targets of 1 and -1, labels without
the blank, logarithms of probabilities. Other values raise no error, and ask for something else than
was meant.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from debugnn.doctor.evidence import Evidence, LossCall
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import first_tensor
from debugnn.doctor.observe.losses import value_of
from debugnn.doctor.troubles import guarded

_PROBES = 12  # probes in which the loss's graph is searched
_CALLS = 64  # most calls of one step that are kept
_NODES = 2_000  # most nodes of a loss's graph that are searched
_EXAMPLES = 4  # most example values that are kept
_ROUNDING = 1e-2  # rounding error of a sum of probabilities in half precision

Arguments = dict[str, Any]


class LossCalls:
    """Notes what is given to functions whose arguments are to be of a certain kind.

    If the doctor was given a loss function, its calls are noted when the doctor calls it. If not,
    torch's hook for all modules is active between the forward pass and the end of the step. Only
    modules of torch.nn count whose result is in the graph of the step's loss. Functions that such a
    loop calls itself are not seen.

    Args:
        evidence: where the calls are noted.
        outputs: returns the model's outputs of the latest pass.
    """

    not_in_state = (
        "_handle",
        "_pending",
    )

    def __init__(self, evidence: Evidence, outputs: Callable[[], Any]) -> None:
        self.evidence = evidence
        self._outputs = outputs
        self._probes = 0
        self._noted: dict[tuple[str, str | None], LossCall] = {}
        self._pending: list[tuple[str, str | None, Arguments, Node]] = []
        self._handle: RemovableHandle | None = None

    @contextmanager
    def of_loss_function(self) -> Iterator[None]:
        """Look at the calls in the block, which evaluates the training's loss function."""
        if self._probes >= _PROBES:
            yield
            return
        self._probes += 1
        with _Mode(self):
            yield

    def watch(self) -> None:
        """Look at the loop's own calls, until `take`; not where anything is compiled."""
        if self._handle is None and self._probes < _PROBES and not is_compiling():
            self._handle = register_module_forward_hook(self._keep, with_kwargs=True)

    def ignore(self) -> None:
        """Look at no further calls, and forget those that are not taken."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self._probes += 1
        self._pending.clear()

    @guarded("the calls of a loss")
    def take(self, loss: Any) -> None:
        """Note those of the calls since `watch` that a step's loss is made of."""
        if self._handle is None:
            return
        pending = list(self._pending)
        self.ignore()
        if pending and isinstance(loss, Tensor) and loss.grad_fn is not None:
            reached = _within(loss.grad_fn, {node for *_, node in pending})
            for name, line, arguments, node in pending:
                if node in reached:
                    self.note(name, line, arguments)

    @guarded("the call of a loss")
    def _keep(self, module: nn.Module, args: tuple, kwargs: Arguments, result: Any) -> None:
        """Keep a call of the loop until `take`, if it has a gradient."""
        name = _MODULES.get(type(module))
        node = result.grad_fn if name and isinstance(result, Tensor) else None
        if name and node is not None and len(self._pending) < _CALLS:
            arguments = _of_module(name, module, args, kwargs)
            self._pending.append((name, line_of_caller(), arguments, node))

    @guarded("the arguments of a loss")
    def note(self, name: str, line: str | None, arguments: Arguments) -> None:
        """Add what a call was given to what is known of its line."""
        key = name, line
        if key not in self._noted:
            self._noted[key] = LossCall(name, arguments["reduction"], line)
            self.evidence.loss.calls.append(self._noted[key])
        found = self._noted[key]
        found.calls += 1
        with torch.no_grad():
            _READERS[name](found, arguments)
            given, output = arguments.get("input"), first_tensor(self._outputs())
            if isinstance(given, Tensor) and output is not None:
                found.of_outputs = given.data_ptr() == output.data_ptr()


class _Mode(TorchFunctionMode):
    """Notes calls in a block."""

    def __init__(self, calls: LossCalls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = _NAMES.get(func)
        if name is not None:
            line = line_of_caller(below=value_of.__code__)
            self._calls.note(name, line, _bound(name, args, kwargs or {}))
        return result


def _within(root: Node, wanted: set[Node]) -> set[Node]:
    """Return those of the nodes that the graph of a loss leads to, near its root."""
    pending, seen = [root], {root}
    while pending and len(seen) < _NODES and not wanted <= seen:
        following = [node for node, _ in pending.pop(0).next_functions if node is not None]
        pending += [node for node in dict.fromkeys(following) if node not in seen]
        seen.update(following)
    return seen & wanted


def _of_module(name: str, module: nn.Module, args: tuple, kwargs: Arguments) -> Arguments:
    """Return the arguments that a module hands to its function."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments.values()
    names = list(inspect.signature(_PLAIN[name]).parameters)[len(given) :]
    options = {option: getattr(module, option) for option in names if hasattr(module, option)}
    return _bound(name, tuple(given), options)


def _bound(name: str, args: tuple, kwargs: Arguments) -> Arguments:
    """Return a call's arguments by their names. Tensors have no graph."""
    bound = inspect.signature(_PLAIN[name]).bind(*args, **kwargs)
    bound.apply_defaults()
    return {
        key: value.detach() if isinstance(value, Tensor) else value
        for key, value in bound.arguments.items()
    }


# --- what is read of the arguments ----------------------------------------------------------------


def _read_signs(call: LossCall, arguments: Arguments) -> None:
    """Count targets that are neither 1 nor -1."""
    targets = arguments["target"].float().flatten()
    others = targets[targets.abs() != 1]
    call.targets += len(targets)
    call.unsigned += len(others)
    call.negative += int((targets < 0).sum())
    kinds = {*call.others, *others.unique()[:_EXAMPLES].tolist()}
    call.others = sorted(kinds)[:_EXAMPLES]


def _read_labels(call: LossCall, arguments: Arguments) -> None:
    """Count the labels of sequences, and those among them that are the blank; sum up what should
    be the probabilities of a frame."""
    masses = arguments["log_probs"].float().logsumexp(dim=-1).abs()
    if masses.numel():
        call.log_mass = max(call.log_mass or 0.0, masses.median().item())
    targets, blank = arguments["targets"].cpu(), arguments["blank"]
    lengths, frames = (_numbers(arguments[n]) for n in ("target_lengths", "input_lengths"))
    if targets.dim() > 1:
        rows = [row[:length] for row, length in zip(targets, lengths, strict=True)]
    else:
        rows = list(targets[: sum(lengths)].split(lengths))
    call.blank = blank
    for row, columns in zip(rows, frames, strict=True):
        call.labels += len(row)
        call.blanks += int((row == blank).sum())
        call.sequences += 1
        between = int((row[1:] == row[:-1]).sum())  # equal labels need a blank between them
        call.too_long += len(row) + between > columns


def _numbers(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        return value.flatten().tolist()
    return [int(v) for v in value] if isinstance(value, Iterable) else [int(value)]


def _read_masses(call: LossCall, arguments: Arguments) -> None:
    """Sum up what should be probabilities, along the axis along which the targets are."""
    given, targets = arguments["input"].float(), arguments["target"].float()
    if given.shape != targets.shape or not given.numel():
        return
    shares = targets.exp() if arguments["log_target"] else targets
    if not bool((shares >= 0).all()):
        return
    axes = [axis for axis in range(given.dim()) if given.shape[axis] > 1]
    whole = {axis: (shares.sum(dim=axis) - 1).abs() < _ROUNDING for axis in axes}
    most = max((int(rows.sum()) for rows in whole.values()), default=0)
    # The targets may be probabilities along several axes: the input may be so along any of them.
    masses = [
        given.logsumexp(dim=axis)[rows].median().item()
        for axis, rows in whole.items()
        if 0 < most == int(rows.sum())
    ]
    if masses:
        before = -math.inf if call.log_mass is None else call.log_mass
        call.log_mass = max(before, min(masses))


def _read_indices(call: LossCall, arguments: Arguments) -> None:
    """Count rows that name a class twice before their first -1."""
    rows = arguments["target"].reshape(-1, arguments["target"].shape[-1]).cpu()
    for row in rows.tolist():
        named = row[: row.index(-1)] if -1 in row else row
        call.targets += 1
        call.repeating += len(set(named)) < len(named)


def _read_rates(call: LossCall, arguments: Arguments) -> None:
    """Add up the targets."""
    targets = arguments["target"]
    call.logarithms = arguments["log_input"]
    call.targets += targets.numel()
    call.target_sum += targets.double().sum().item()
    call.inputs += arguments["input"].numel()
    call.not_above_zero += int((arguments["input"] <= 0).sum())
    call.below_zero += int((arguments["input"] < 0).sum())


_READERS: dict[str, Callable[[LossCall, Arguments], None]] = {
    "cosine_embedding_loss": _read_signs,
    "hinge_embedding_loss": _read_signs,
    "margin_ranking_loss": _read_signs,
    "soft_margin_loss": _read_signs,
    "ctc_loss": _read_labels,
    "kl_div": _read_masses,
    "multilabel_margin_loss": _read_indices,
    "poisson_nll_loss": _read_rates,
}


# --- functions and modules -----------------------------------------------------------------------


_PLAIN: dict[str, Callable] = {name: getattr(F, name) for name in _READERS}
_NAMES = {function: name for name, function in _PLAIN.items()}
_MODULES: dict[type[nn.Module], str] = {
    nn.CosineEmbeddingLoss: "cosine_embedding_loss",
    nn.HingeEmbeddingLoss: "hinge_embedding_loss",
    nn.MarginRankingLoss: "margin_ranking_loss",
    nn.SoftMarginLoss: "soft_margin_loss",
    nn.CTCLoss: "ctc_loss",
    nn.KLDivLoss: "kl_div",
    nn.MultiLabelMarginLoss: "multilabel_margin_loss",
    nn.PoissonNLLLoss: "poisson_nll_loss",
}


def is_compiling() -> bool:
    """Return whether anything was handed to torch.compile, which compiles anew where a hook for all
    modules appears."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    backends: dict[int, Any] = getattr(frames, "cached_backends", {})
    return any(backend is not None for backend in backends.values())
