"""What a run leaves in its directory, without what a clock measured."""

import torch

from debugnn import json_lines, records


def facts(directory):
    return records.load((directory / "run.json").read_text())


def rows(directory):
    found = json_lines.read(directory / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def weights(directory):
    return torch.load(directory / "checkpoint.pt", weights_only=True)["model"]
