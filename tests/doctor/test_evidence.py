"""Evidence is plain numbers, from which a diagnosis can be made again."""

import pickle
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch import nn

from debugnn import Doctor, records
from debugnn.doctor import causes
from doctor.watched_programs import NAN, batches, cross_entropy, in_a_process, mlp, sgd, train


def evidence_of(name):
    torch.manual_seed(0)
    model = mlp(nn.BatchNorm1d(12)) if name == "sound" else mlp()
    optimizer = sgd(model, lr=1e4 if name == "lr" else 0.1)
    with Doctor(model, optimizer, cross_entropy, every=5) as doctor:
        rows = list(batches(45))
        if name == "nan":
            rows[7][0][2] = NAN
        if name == "zero_grad":
            optimizer.zero_grad = lambda *args: None
        train(doctor, model, optimizer, rows=rows)
        return doctor.evidence, doctor.report()


@pytest.mark.parametrize("name", ["sound", "lr", "nan", "zero_grad"])
def test_evidence_is_plain_numbers(name):
    evidence, report = evidence_of(name)
    kept = records.load(records.dump(asdict(evidence)))
    assert records.dump(kept) == records.dump(asdict(evidence))
    assert causes.diagnose(evidence, budget=200).to_json() == report.to_json()
    assert report.healthy == (name == "sound")
    losses = [p.step for p in evidence.probes]
    assert all(a < b for a, b in pairwise(losses))


def test_a_diagnosis_can_be_made_again_without_torch(tmp_path):
    evidence, report = evidence_of("nan")
    (tmp_path / "evidence").write_bytes(pickle.dumps(evidence))
    code = f"""if True:
        import pickle, sys
        from debugnn.doctor import causes
        with open({str(tmp_path / "evidence")!r}, "rb") as file:
            report = causes.diagnose(pickle.load(file), budget=200)
        assert "torch" not in sys.modules, "torch was imported"
        print(report.to_json())
    """
    assert in_a_process(code) == report.to_json()
