#!/usr/bin/env bash
# Make .venv beside this folder from requirements.txt, once: a later call that finds it as
# requirements.txt wants it returns at once. PYTHON=python3.12 chooses another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(cat requirements.txt pyproject.toml | cksum)
if [ -f .venv/installed ] && [ "$(cat .venv/installed)" = "$wanted" ]; then
    exit 0
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ]; then
    echo "error: Python 3.11, 3.12 or 3.13 is needed; PYTHON=/path/to/python names one" >&2
    exit 1
fi

echo "installing into .venv with $("$python" --version) (torch is large: minutes, about 6 GB)"
"$python" -m venv .venv
# --use-pep517: an older pip warns about each package that is not built so.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 \
    --requirement requirements.txt
echo "$wanted" > .venv/installed
echo "installed; now: source .venv/bin/activate"
