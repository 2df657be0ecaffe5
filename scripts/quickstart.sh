#!/usr/bin/env bash
# From a bare clone to a model that reads and draws pictures, and a report of it all: environment first, then unicode.run.quickstart.
#   bash scripts/quickstart.sh [FOLDER] [--data emoji|shapes|stamps|fashion|FOLDER] [--llm smollm2] [--from STEP] [--only STEP ...]
set -e
cd "$(dirname "$0")/.."
case " $* " in
    *" --data emoji "*) EXTRA=emoji ;;
    *" --data "*) ;;
    *) EXTRA=emoji ;;
esac
. scripts/environment.sh
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH
exec "$PYTHON" -m unicode.run.quickstart "$@"
