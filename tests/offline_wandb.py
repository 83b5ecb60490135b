"""An offline W&B run, read back with W&B's own reader."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

WANDB = Path(sys.executable).parent / "wandb"


def read_back(directory: Path) -> dict[str, list[dict]]:
    """Return the records of the one offline run below `directory`, by type."""
    (file,) = directory.rglob("*.wandb")
    shown = subprocess.run(
        [WANDB, "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=True
    )
    found = defaultdict(list)
    for line in shown.stdout.splitlines():
        row = json.loads(line)
        found[row["type"]].append(row.get(row["type"]))
    return found
