"""Settings of the process, not of the training: they save time or memory and change no number.

`DEBUGNN_PLAIN_PROCESS=1` in the environment turns them off, `cli.start`'s quick end included.
"""

import ctypes
import os
import platform
import sys

import torch
from torch import nn

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

# Above this a freed block goes back to the kernel after all (32 MiB is the most that glibc takes):
# the activations of a batch of these nets stay below.
_KEPT_BLOCK = 32 << 20
_KEPT_TOTAL = 512 << 20

_THREADS = torch.get_num_threads()  # that torch began with
_SHARED = 1_000_000  # products of a forward pass, of a step that several threads compute


def plain() -> bool:
    """Return whether the user asked for a process without any of these settings."""
    return os.environ.get("DEBUGNN_PLAIN_PROCESS", "") not in ("", "0")


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory, so that the next step uses it again.

    A step allocates and frees the same activations, megabytes each. glibc hands blocks of this
    size back to the kernel, which has to map and zero them again page by page.

    It buys 15 % of the processor time of three short epochs of the MNIST net (23.9 s, 28.3 s
    without) and 95 % of their page faults (0.11 million, 2.39 million without), and costs 8 MB:
    medians of 5 alternating runs of
    `train.py data=mnist trainer.epochs=3 trainer.steps_per_epoch=100 trainer.eval_every=3
    doctor=off` on one thread of an AMD EPYC.

    Returns:
        Whether malloc was set: False without glibc, or in a plain process.
    """
    if plain() or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # One store of freed memory for all threads: what one gives back the others can take.
    settings = ((_M_MMAP_THRESHOLD, _KEPT_BLOCK), (_M_TRIM_THRESHOLD, _KEPT_TOTAL),
                (_M_ARENA_MAX, 1))  # fmt: skip
    return all(libc.mallopt(parameter, value) for parameter, value in settings)


def choose_threads(model: nn.Module, batch_size: int) -> None:
    """Let one thread compute a training's steps if they are too small to be shared.

    It buys 15 % of a step of the article's regression net (0.50 ms, 0.59 ms in two threads, with
    the doctor and W&B on an AMD EPYC): idle threads hold up the one that writes the records. Nets
    of convolutions, which use a weight at many places, are never small.

    Args:
        batch_size: number of samples of a training batch; of a stack, of all members together.
    """
    if plain():
        return
    parameters = list(model.parameters())
    products = batch_size * sum(parameter.numel() for parameter in parameters)
    small = products < _SHARED and all(parameter.dim() <= 2 for parameter in parameters)
    torch.set_num_threads(1 if small else _THREADS)


def leave_dynamo_out(optimizer: type[torch.optim.Optimizer]) -> None:
    """Spare the import of torch.compile's front end, which nothing here uses.

    torch.optim imports it to mark an optimiser's step and four other methods as not to be
    compiled. This function replaces the step by what it is without that mark, a function under
    `torch.no_grad`, and marks the others itself. It changes nothing where torch names its parts in
    another way, or where something has imported the front end before and may be compiling.

    It buys 149 MB of peak memory (717 MB, 866 MB without) and 0.8 s of processor time, measured as
    for `keep_freed_memory`.
    """
    if plain() or "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        function = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if function is not None:
            function.__dynamo_disable = function  # what torch._compile looks for first
    step = optimizer.step
    if getattr(step, "__name__", "") == "step" and step.__code__.co_name == "_use_grad":
        # setattr, because type checkers rightly refuse to assign to a method.
        setattr(optimizer, "step", torch.no_grad()(vars(step)["__wrapped__"]))  # noqa: B010
