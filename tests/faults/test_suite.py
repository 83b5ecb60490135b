"""The doctor on the suite of sound and faulty programs, at a seed that the evidence does not use.

`scripts/evaluate_doctor.py` runs all of them, five seeds each.
"""

import pytest

from debugnn import Doctor
from debugnn.doctor.findings import CAUSES, main_cause
from programs import FAULTY, SOUND, train

SEED = 11


def diagnosed(program):
    with train(program.build(SEED), SEED, Doctor) as doctor:
        return doctor.report()


def test_the_suite_is_as_large_as_it_claims():
    assert len(SOUND) >= 30
    for cause in CAUSES:
        halves = [p.half for p in FAULTY if p.cause == cause]
        assert len(halves) >= 4, cause
        assert set(halves) == {"tuning", "held_out"}, cause
    names = [p.name for p in (*SOUND, *FAULTY)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("program", SOUND, ids=lambda p: p.name)
def test_a_sound_program_is_called_healthy(program):
    report = diagnosed(program)
    assert report.healthy, str(report)
    assert report.troubles == []
    assert report.judged


def test_faults_are_found_and_named():
    """The first two held-out programs of each cause: 95 % found, 85 % named rightly."""
    chosen = [
        program
        for cause in CAUSES
        for program in [p for p in FAULTY if p.cause == cause and p.half == "held_out"][:2]
    ]
    found = [(p, main_cause(diagnosed(p).findings)) for p in chosen]
    missed = [p.name for p, cause in found if cause == "healthy"]
    misnamed = [(p.name, cause) for p, cause in found if cause not in (p.cause, *p.accepted)]
    assert len(missed) <= 0.05 * len(chosen), missed
    assert len(misnamed) <= 0.15 * len(chosen), misnamed
