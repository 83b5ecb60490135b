"""Runs that are killed at random moments leave what runs leave that were left alone."""

import json
import os
import subprocess
import sys

import pytest
import torch

import soak
from conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.long
def test_thirty_kills_change_nothing(tmp_path):
    kinds = "bn_dropout,each_step,range_test,regression,stacked"
    command = [sys.executable, "scripts/soak.py", "--kills", "30", "--kinds", kinds]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    total = ran.stdout.splitlines()[-1].split()
    assert int(total[1]) >= 30, ran.stdout
    assert not list(tmp_path.glob("soak-*"))


def test_a_difference_in_the_last_bit_is_seen():
    left = {"model": {"weight": torch.tensor([0.1, float("nan")])}, "rows": [{"loss": 0.5}]}
    same = {"model": {"weight": torch.tensor([0.1, float("nan")])}, "rows": [{"loss": 0.5}]}
    assert soak.difference(left, same) is None
    same["model"]["weight"][0] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))
    assert soak.difference(left, same) == "/model/weight"
    assert soak.difference(left, {**left, "rows": [{"loss": 0.5000000001}]}) == "/rows/0/loss"
    assert soak.difference(left, {**left, "rows": []}) == "/rows: 1 and 0 of them"


def test_faults_are_counted_by_their_kind(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.injects('a flood')\n@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_a(n): assert n == 1\n"
        "@pytest.mark.injects('a flood')\n@pytest.mark.injects('a fire')\n"
        "def test_b(): pytest.skip('no fire here')\n"
        "def test_c(): raise AssertionError('counted without a mark')\n"
    )
    command = [sys.executable, "scripts/soak.py", "--faults", str(tmp_path), "--output", tmp_path]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 1
    assert json.loads((tmp_path / "faults.json").read_text())["kinds"] == {
        "a fire": {"injected": 0, "as_wanted": 0, "left_out": 1},
        "a flood": {"injected": 2, "as_wanted": 1, "left_out": 1},
    }
