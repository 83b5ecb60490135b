"""Runs that are killed at random moments leave what runs leave that were left alone."""

import os
import subprocess
import sys

import pytest
import torch

import soak
from conftest import REPOSITORY


@pytest.mark.slow
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
