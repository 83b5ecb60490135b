"""Download a data set and decode it, so that later runs need no network.

python scripts/prepare_data.py mnist cifar10
"""

import argparse
import logging
import os
import sys

from debugnn import data
from debugnn.data import archives
from debugnn.errors import ConfigError

READERS = {"mnist": archives.mnist, "cifar10": archives.cifar10}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Download a data set and decode it, so that later runs need no network."
    )
    parser.add_argument("names", nargs="+", choices=READERS, help="which data sets")
    parser.add_argument(
        "--root",
        default=os.environ.get("DEBUGNN_DATA", "data"),
        help="where the files go (default: the environment variable DEBUGNN_DATA, or data)",
    )
    parser.add_argument("--cache", default="data/prepared", help="where the decoded arrays go")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in options.names:
        try:
            arrays = data.decoded(READERS[name], name, options.root, options.cache, download=True)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        train, test = len(arrays.train_targets), len(arrays.test_targets)
        print(f"{name}: {train} + {test} images of {arrays.train_inputs.shape[1:]}, ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
