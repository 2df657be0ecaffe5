#!/usr/bin/env bash
# The environment, then lint, types and tests on all cores.
#   bash scripts/test.sh [--all] [ARGUMENTS OF PYTEST]     --all adds the tests marked slow: ZeRO, several servers
set -e
cd "$(dirname "$0")/.."
EXTRA=dev
. scripts/environment.sh
if [ "${1:-}" = --all ]; then shift; else set -- -m "not slow" "$@"; fi
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy unicode &
types=$!
status=0
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --dist loadfile "$@" || status=$?
wait "$types" || status=1
exit "$status"
