#!/usr/bin/env bash
# The environment, lint, types, and the tests. Arguments go to pytest:
# bash scripts/test.sh -m "not slow"; bash scripts/test.sh tests/runs
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Tests start many processes, which import this package in a third of the time from bytecode.
unset PYTHONDONTWRITEBYTECODE
# Workers with one thread each: threads that wait for each other waste a busy machine. One worker
# more than there are cores, because tests that wait for servers and killed processes leave one idle.
workers=$(($(getconf _NPROCESSORS_ONLN) + 1))
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$workers" --dist worksteal "$@"
