#!/bin/sh
# MME: perception and cognition.
#   bash scripts/llava_eval/mme.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=mme
. "$(dirname "$0")/benchmark.sh"
