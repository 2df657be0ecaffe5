#!/bin/sh
# All twelve benchmarks whose files are there, and a table of them.
#   bash scripts/llava_eval/all.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=all
. "$(dirname "$0")/benchmark.sh"
