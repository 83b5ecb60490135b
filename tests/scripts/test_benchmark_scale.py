"""The measurement of cost against size, on its smallest sizes."""

import json

import pytest

import benchmark_scale
from benchmarking import scale_output

pytestmark = pytest.mark.slow


def test_each_quantity_is_measured_and_drawn(tmp_path):
    assert benchmark_scale.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "scale.json").read_text())
    assert list(results["seconds"]) == list(scale_output.QUANTITIES)
    assert list(results["seconds"]["batch"]) == ["8", "16"]
    for sizes in results["seconds"].values():
        assert all(0 < each["low"] <= each["median"] <= each["high"] for each in sizes.values())
    page = (tmp_path / "scale.md").read_text()
    assert all((tmp_path / f"scale_{name}.png").name in page for name in results["seconds"])
    assert len(list(tmp_path.glob("scale_*.png"))) == len(results["seconds"])
