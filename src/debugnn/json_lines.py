"""Reads the rows that runs wrote, as plain values or as the records that they were made of.

Needs the standard library only, as `records`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from debugnn.records import Layers, Record, TensorStats, load


def read(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file in order.

    A last line without a newline is an interrupted write and is left out.

    Args:
        kind: yield only the rows of this kind.

    Raises:
        ValueError: a line is no JSON object; the message begins with its number.
    """
    with path.open("rb") as lines:  # as bytes: an interrupted write can end inside a character
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = load(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number}: no JSON object")
            if kind is None or row.get("kind") == kind:
                yield row


def decode(row: Mapping[str, Any]) -> Record:
    """Return the record that a row was made of: the inverse of `records.encode`.

    Raises:
        KeyError, TypeError: the row is of another version of this project.
    """
    kind = {each.kind: each for each in get_args(Record)}[row["kind"]]
    fields = {name: value for name, value in row.items() if name != "kind"}
    if kind is Layers:
        for name, value in fields.items():
            if isinstance(value, dict):
                fields[name] = {layer: TensorStats(**stats) for layer, stats in value.items()}
    return kind(**fields)
