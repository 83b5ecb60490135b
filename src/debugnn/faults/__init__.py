"""The suite on which the doctor is judged: sound training programs, and faulty ones.

A faulty program is a sound one with one fault in it. Each cause that the doctor names has a module
here of the same name, with the functions that cause the fault and two lists of cases:

    TUNING      seen when the thresholds of the doctor's rules were set
    HELD_OUT    not seen; a fault function is in one list or the other, never in both

    from debugnn import Doctor
    from debugnn.faults import FAULTY, SOUND, train

    for program in SOUND + FAULTY:
        doctor = train(program.build(seed), seed, Doctor)
"""

from functools import partial
from importlib import import_module

from debugnn.doctor.causes import ORDER
from debugnn.faults import sound
from debugnn.faults.cases import Case
from debugnn.faults.program import Build, Half, Program, Setup, score, train

__all__ = ["CASES", "FAULTY", "SOUND", "Case", "Program", "Setup", "score", "train"]


def cases_of(cause: str) -> dict[Half, list[Case]]:
    """Return the cases of a cause from the module of its name.

    Raises:
        ModuleNotFoundError: the cause has no module.
        AttributeError: the module lacks one of its two lists.
    """
    module = import_module(f"debugnn.faults.{cause}")
    return {"tuning": module.TUNING, "held_out": module.HELD_OUT}


CASES: dict[str, dict[Half, list[Case]]] = {cause: cases_of(cause) for cause in ORDER}

_SOUND_HALVES: dict[Half, dict[str, Build]] = {
    "tuning": sound.TUNING,
    "held_out": sound.HELD_OUT,
}

SOUND = [
    Program(name, None, None, half, partial(sound.sound, name))
    for half, builders in _SOUND_HALVES.items()
    for name in builders
]

FAULTY = [
    Program(f"{cause}/{case.name}", cause, case.fault.__name__, half, case.build, case.accepted)
    for cause, halves in CASES.items()
    for half, cases in halves.items()
    for case in cases
]
