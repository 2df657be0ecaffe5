#!/bin/sh
# MM-Vet: the file for the official grader.
#   bash scripts/llava_eval/mmvet.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=mmvet
. "$(dirname "$0")/benchmark.sh"
