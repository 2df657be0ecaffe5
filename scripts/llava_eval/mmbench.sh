#!/bin/sh
# MMBench: the table for the submission server; the score of the first letter on dev; --circular asks every rotation.
#   bash scripts/llava_eval/mmbench.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=mmbench
. "$(dirname "$0")/benchmark.sh"
