"""The program that fills the cache in a subprocess: `python -m debugnn.data.decode`.

`debugnn.data.decoding` starts it, so that the training does not have to import torchvision. To
prepare data sets by hand, use `scripts/prepare_data.py`.
"""

import argparse
import contextlib
import logging
import signal
import sys

from debugnn.data import archives, decoding
from debugnn.errors import ConfigError


def main() -> int:
    """Decode one data set, and return the exit code.

    After a ConfigError the exit code is `decoding.REFUSED`, and the message is the standard output.
    """
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # the parent shows the traceback
    parser = argparse.ArgumentParser(description="Decode a data set into the cache.")
    parser.add_argument("reader", choices=["mnist", "cifar10"])
    parser.add_argument("name", help="the data set's name in the cache and in messages")
    parser.add_argument("root", help="the folder that holds the data set's files")
    parser.add_argument("cache", help="the folder of the cache")
    parser.add_argument("--download", action="store_true", help="download missing files")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reader = getattr(archives, options.reader)
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # torchvision prints what it downloads
        try:
            arrays = decoding.read(reader, options.name, options.root, options.download)
            decoding.write(arrays, reader, options.name, options.root, options.cache)
        except ConfigError as error:
            answer.write(str(error))
            return decoding.REFUSED
        except OSError:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
