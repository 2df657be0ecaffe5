#!/usr/bin/env bash
# The environment, then lint, types and tests. Arguments go to pytest: bash scripts/test.sh tests/ids -k layout
set -e
cd "$(dirname "$0")/.."
EXTRA=dev
. scripts/environment.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy unicode
exec "$PYTHON" -m pytest "$@"
