"""Run a command and write the peak resident set of its process in KiB to a file.

    python -S -E peak_memory.py FILE COMMAND [ARGUMENT ...]

A process on Linux starts with the peak of the process that it was forked from. This one imports
next to nothing, so that the peak that it reads is the command's own.
"""

import os
import sys

if __name__ == "__main__":
    place, *command = sys.argv[1:]
    process = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    with open(place, "w") as file:
        file.write(str(usage.ru_maxrss))
    sys.exit(os.waitstatus_to_exitcode(status) % 256)
