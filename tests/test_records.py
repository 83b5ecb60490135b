import dataclasses
import json
import math
import subprocess
import sys
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import REPOSITORY
from debugnn import json_lines, records
from debugnn.records import Epoch, Layers, LrPoint, LrSuggestion, Step, TensorStats

STATS = TensorStats(
    size=6, nonfinite=2, norm=math.nan, mean=0.5, std=0.25, low=-1.0, high=2.0, zeros=0.5,
    histogram=[1, 0, 3], dead_units=None, saturated=0.5,
)  # fmt: skip
EXAMPLES = [
    Step(epoch=0, step=3, loss=math.nan, accuracy=None, lr=0.01, grad_norm=math.inf),
    Epoch(
        epoch=1, step=41, train_loss=-math.inf, last_batch_loss=2.5, train_accuracy=12.5,
        test_loss=None, test_accuracy=None, seconds=0.125,
    ),
    LrPoint(test=0, iteration=7, lr=1e-9, lr_as_logged=1.3e-9, loss=2.3, smoothed_loss=2.31),
    LrSuggestion(test=2, rule="valley", lr=3e-3),
    Layers(epoch=0, step=0, gradients={"conv1.weight": STATS}, parameters={}, activations={}),
]  # fmt: skip

# The strings that encode non-finite numbers are decoded as these numbers.
words = st.text().filter(lambda text: text not in {"NaN", "Infinity", "-Infinity"})
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Compare so that NaN equals NaN, and 1, 1.0 and True differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@given(json_values)
def test_load_gives_back_what_dump_wrote(value):
    assert same(records.load(records.dump(value)), value)


@given(json_values)
def test_dump_is_one_line_of_strict_json(value):
    text = records.dump(value)
    json.loads(text, parse_constant=refuse)
    assert "\n" not in text
    assert "\r" not in text


def test_every_kind_of_record_has_an_example_and_a_name_of_its_own():
    kinds = typing.get_args(records.Record)
    assert {type(example) for example in EXAMPLES} == set(kinds)
    assert len({kind.kind for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.kind)
def test_a_record_survives_its_line(record):
    line = records.encode(record)
    json.loads(line, parse_constant=refuse)
    assert same(records.load(line), {"kind": record.kind, **dataclasses.asdict(record)})


def test_read_jsonl_keeps_the_order_and_selects_a_kind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(records.encode(r) + "\n" for r in [*EXAMPLES, *EXAMPLES]))
    assert [row["kind"] for row in json_lines.read(path)] == [r.kind for r in EXAMPLES] * 2
    steps = list(json_lines.read(path, kind="step"))
    assert [row["step"] for row in steps] == [3, 3]
    assert math.isnan(steps[0]["loss"])


@pytest.mark.parametrize("name", ["fc1", "größe"])
def test_a_file_cut_off_at_any_byte_gives_its_whole_lines(tmp_path, name):
    path = tmp_path / "layers.jsonl"
    rows = [{"kind": "layers", "name": name, "step": step, "norm": math.nan} for step in range(3)]
    whole = "".join(records.dump(row) + "\n" for row in rows).encode()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        assert [row["step"] for row in json_lines.read(path)] == list(range(complete))


def test_records_need_the_standard_library_alone():
    # -S removes site-packages from the path.
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r}); import debugnn.records"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.kind)
def test_a_row_becomes_its_record_again(record):
    again = json_lines.decode(records.load(records.encode(record)))
    assert type(again) is type(record)
    assert same(dataclasses.asdict(again), dataclasses.asdict(record))
