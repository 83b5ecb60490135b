#!/usr/bin/env bash
# The environment, then the article's notebooks on data that needs no download, then the figures.
# Arguments go to scripts/reproduce.py: bash scripts/reproduce.sh --experiments all --seeds 0,1,2
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh
.venv/bin/python scripts/reproduce.py "$@"
