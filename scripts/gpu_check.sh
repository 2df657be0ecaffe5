#!/bin/sh
# Everything that needs a card, in ten minutes: tests marked gpu, speed and memory -> outputs/gpu_check/gpu_check.md and .json.
#   sh scripts/gpu_check.sh [--out FOLDER]      without a card, to try the code: --device cpu --small
set -e
cd "$(dirname "$0")/.."
EXTRA=dev
. scripts/environment.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" tests/bench/gpu_check.py "$@"
