"""Draw the article's figures from finished runs.

python scripts/figures.py
python scripts/figures.py --runs outputs --output outputs/figures --experiments weight_init
"""

import argparse
import logging
import sys
from pathlib import Path

from debugnn.analysis.figures import draw
from debugnn.errors import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the article's figures from finished runs.")
    parser.add_argument(
        "--runs", type=Path, default=Path("outputs"), help="where the runs are, or kept results"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/figures"))
    parser.add_argument("--experiments", nargs="+", metavar="NAME", help="only these")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        written = draw(options.runs, options.output, options.experiments)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    if not written:
        print(f"error: no figure drawn, {options.runs} holds no finished run", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
